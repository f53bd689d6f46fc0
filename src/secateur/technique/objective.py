"""Objective: what is added to the loss while training under a technique."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.technique.schedule import Schedule
from secateur.technique.syntax import Call, bind, count, format_call, format_value, parse_call, word

OBJECTIVES: dict[str, str] = {
    "none": "nothing is added to the loss",
    "group_lasso": "the sum of the units' L2 norms",
    "l1_scale": "the L1 norm of the norms' scales",
    "growing_l2": "an L2 term on the condemned units that grows",
    "admm": "half the squared distance from the nearest pruned weights, with dual variables",
    "gates": "what the criterion's gates ask of the numbers that they learn",
    "distillation": "the distance to a teacher's answers",
}
PARAMETERS: dict[str, dict[str, Any]] = {
    "admm": {"every": 10},
    "group_lasso": {"sized": False},
    "distillation": {"temperature": 4.0, "answers": "softmax", "dim": 1},
}
ANSWERS: dict[str, str] = {
    "softmax": "scores of classes that exclude each other",
    "sigmoid": "scores of yes-or-no questions, each on its own",
    "values": "plain numbers",
}
_GROWS = ("growing_l2",)


@dataclass(frozen=True)
class Objective:
    """A term added to the loss, with its weight and the schedule of that weight.

    The term counts ``weight`` times what the schedule gives at a share of training done; without
    one it is ``constant``, for ``growing_l2`` it is ``linear``. ``parameters`` are the objective's
    own, by name.

    >>> str(Objective.parse("distillation(weight=0.9, temperature=2)"))
    'distillation(weight=0.9, temperature=2)'
    """

    name: str = "none"
    weight: float = 1.0
    schedule: str = ""
    parameters: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise SecateurError(
                f"unknown objective '{self.name}': {suggestion(self.name, OBJECTIVES)}"
            )
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise SecateurError(f"objective {self.name}: weight={self.weight} is not a number")
        placed = Schedule.parse(self.schedule or self._usual_schedule)
        object.__setattr__(self, "schedule", str(placed))
        object.__setattr__(self, "parameters", _parameters(self.name, dict(self.parameters)))

    @property
    def _usual_schedule(self) -> str:
        return "linear" if self.name in _GROWS else "constant"

    def at(self, progress: float) -> float:
        """Return what the term is multiplied by at a share of training done, in [0, 1].

        >>> Objective("growing_l2", 0.5).at(0.5)
        0.25
        """
        return self.weight * Schedule.parse(self.schedule).at(progress)

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
        own = PARAMETERS.get(call.name, {})
        found = bind(call, ("weight", "schedule", *own), "objective", ordered=1)
        if "schedule" in found:
            written = found["schedule"]
            found["schedule"] = written if isinstance(written, str) else format_value(written)
        if "answers" in found:
            found["answers"] = word(found["answers"], f"answers of {call.name}")
        given = tuple((key, found.pop(key)) for key in own if key in found)
        return cls(call.name, **found, parameters=given)

    def words(self) -> str:
        """Say in words what is added."""
        if self.name == "none":
            return OBJECTIVES[self.name]
        own = "".join(f", {key} {format_value(value)}" for key, value in self._given().items())
        return f"{OBJECTIVES[self.name]}{own}, times {self.weight:g} ({self.schedule})"

    def _given(self) -> dict[str, Any]:
        """Return the parameters that differ from what they are without being written."""
        usual = PARAMETERS.get(self.name, {})
        named = {key: value for key, value in self.parameters if value != usual[key]}
        return {key: Call(v) if key == "answers" else v for key, v in named.items()}

    def __str__(self) -> str:
        keywords: dict[str, Any] = {}
        if self.weight != 1:
            keywords["weight"] = self.weight
        if self.schedule != self._usual_schedule:
            keywords["schedule"] = Call(self.schedule)
        return format_call(self.name, (), keywords | self._given())


def _parameters(name: str, given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Fill in what was not given, and refuse what has no meaning."""
    usual = PARAMETERS.get(name, {})
    for key in given:
        if key not in usual:
            accepted = ["weight", "schedule", *usual]
            raise SecateurError(f"objective '{name}' has no '{key}': {suggestion(key, accepted)}")
    found = usual | given
    if name == "group_lasso" and not isinstance(found["sized"], bool):
        raise SecateurError(f"objective {name}: sized={found['sized']} is neither true nor false")
    if name == "admm":
        count(found["every"], "objective admm: every")
    if name == "distillation":
        _check_distillation(found)
    return tuple(found.items())


def _check_distillation(found: dict[str, Any]) -> None:
    temperature, answers, dim = found["temperature"], found["answers"], found["dim"]
    if answers not in ANSWERS:
        raise SecateurError(f"unknown answers '{answers}': {suggestion(answers, ANSWERS)}")
    plain = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    if not plain or not 0 < temperature < math.inf:
        raise SecateurError(f"objective distillation: temperature={temperature} is not above 0")
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise SecateurError(f"objective distillation: dim={dim} is not a whole number")
    for key, needs in (("temperature", ("softmax", "sigmoid")), ("dim", ("softmax",))):
        if found[key] != PARAMETERS["distillation"][key] and answers not in needs:
            raise SecateurError(
                f"objective distillation: {key}= has no meaning for answers={answers}"
            )
    found["temperature"] = float(temperature)
