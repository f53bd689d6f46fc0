"""Objective: what is added to the loss while training under a technique."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.technique.syntax import Call, bind, format_call, format_value, parse_call

OBJECTIVES: dict[str, str] = {
    "none": "nothing is added to the loss",
    "group_lasso": "the sum of the units' L2 norms",
    "l1_scale": "the L1 norm of the norms' scales",
    "growing_l2": "an L2 term on the condemned units that grows",
    "distillation": "the distance to a teacher's answers",
}


@dataclass(frozen=True)
class Objective:
    """A term added to the loss, with its weight and the schedule of that weight.

    >>> str(Objective.parse("group_lasso(weight=0.001)"))
    'group_lasso(weight=0.001)'
    """

    name: str = "none"
    weight: float = 1.0
    schedule: str = "constant"

    def __post_init__(self) -> None:
        from secateur.technique.schedule import Schedule

        if self.name not in OBJECTIVES:
            raise SecateurError(
                f"unknown objective '{self.name}': {suggestion(self.name, OBJECTIVES)}"
            )
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise SecateurError(f"objective {self.name}: weight={self.weight} is not a number")
        object.__setattr__(self, "schedule", str(Schedule.parse(self.schedule)))

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``none`` or ``group_lasso(weight=0.001, schedule=linear)``."""
        return cls.from_call(parse_call(text, "objective"))

    @classmethod
    def from_call(cls, call: Call) -> Objective:
        """Build an objective from a parsed call."""
        if call.name not in OBJECTIVES:
            raise SecateurError(
                f"unknown objective '{call.name}': {suggestion(call.name, OBJECTIVES)}"
            )
        found = bind(call, ("weight", "schedule"), "objective", ordered=1)
        if "schedule" in found:
            written = found["schedule"]
            found["schedule"] = written if isinstance(written, str) else format_value(written)
        return cls(call.name, **found)

    def words(self) -> str:
        """Say in words what is added."""
        if self.name == "none":
            return OBJECTIVES[self.name]
        return f"{OBJECTIVES[self.name]}, times {self.weight:g} ({self.schedule})"

    def __str__(self) -> str:
        keywords: dict[str, Any] = {}
        if self.weight != 1:
            keywords["weight"] = self.weight
        if self.schedule != "constant":
            keywords["schedule"] = Call(self.schedule)
        return format_call(self.name, (), keywords)
