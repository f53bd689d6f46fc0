"""Update: what becomes of the removed weights, of the survivors and of the optimiser's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.technique.compensation import Compensation, compensation_of
from secateur.technique.context import check_share
from secateur.technique.syntax import Call, bind, count, format_call, parse_call, word

SURVIVORS: dict[str, str] = {
    "keep": "survivors keep their values",
    "rewind": "after each removal, survivors return to their values at a training step",
    "reinitialise": "after each removal, survivors get fresh initial values",
    "fixed": "no parameter is trained, and only the masks change",
    "sign": "after the removal, survivors become constants with their first signs, and stay so",
    "compensate": "survivors are changed to make up for what was removed",
}
REMOVED: dict[str, str] = {
    "frozen": "removed weights are zero and stay zero",
    "learning": "removed weights are zeroed at each update and learn on in between",
    "held": "removed weights are zero in the forward pass and wait with the values they had",
    "straight_through": "removed weights are zero in the forward pass and learn all the same",
}
HIDDEN = frozenset({"held", "straight_through"})
"""The fates under which removed weights keep values that the forward pass does not see."""

OPTIMIZER: dict[str, str] = {
    "keep": "the optimiser keeps its state",
    "reset": "the optimiser's state is cleared after each removal",
    "rewind": "the optimiser's state and learning rate return with the survivors",
    "rewind_rate": "the learning rate alone returns to where it was at a training step",
}


@dataclass(frozen=True)
class Update:
    """What happens at each removal, beside the removal.

    ``step`` is the optimiser step that ``rewind`` and ``rewind_rate`` return to, ``compensation``
    how ``compensate`` changes the survivors; ``drop`` is the share of units that every step of the
    training leaves out at random.

    >>> str(Update.parse("rewind(step=500, optimizer=reset)"))
    'rewind(step=500, optimizer=reset)'
    """

    survivors: str = "keep"
    step: int | None = None
    removed: str = "frozen"
    optimizer: str = "keep"
    compensation: Compensation | None = None
    drop: float = 0.0

    def __post_init__(self) -> None:
        for value, accepted, what in (
            (self.survivors, SURVIVORS, "update"),
            (self.removed, REMOVED, "fate of removed weights"),
            (self.optimizer, OPTIMIZER, "fate of the optimiser's state"),
        ):
            if value not in accepted:
                raise SecateurError(f"unknown {what} '{value}': {suggestion(value, accepted)}")
        if self.survivors == "compensate" and self.compensation is None:
            object.__setattr__(self, "compensation", Compensation())
        if self.compensation is not None and self.survivors != "compensate":
            raise SecateurError(f"update {self.survivors} compensates nothing: write compensate")
        returns = self.survivors == "rewind" or self.optimizer == "rewind_rate"
        if returns and self.step is None:
            object.__setattr__(self, "step", 0)
        if self.step is not None:
            if not returns:
                raise SecateurError(f"update {self.survivors}: step= has no meaning without rewind")
            count(self.step, "update rewind: step", least=0)
        if self.optimizer == "rewind_rate" and self.survivors == "compensate":
            raise SecateurError(
                "compensate is for networks that are not trained on, and optimizer=rewind_rate "
                "trains on: write keep(optimizer=rewind_rate)"
            )
        check_share(self.drop, "drop")
        if self.drop and self.survivors == "compensate":
            raise SecateurError(
                "compensate is for networks that are not trained on, and drop= is for training: "
                "write keep(drop=...)"
            )
        if self.optimizer == "rewind" and self.survivors != "rewind":
            raise SecateurError("optimizer=rewind goes with rewind(step=...) only")

    @classmethod
    def parse(cls, text: str) -> Update:
        """Read ``keep``, ``rewind(step=500)``, ``compensate(sparsegpt, block=64)``."""
        return cls.from_call(parse_call(text, "update"))

    @classmethod
    def from_call(cls, call: Call) -> Update:
        """Build an update from a parsed call."""
        if call.name not in SURVIVORS:
            raise SecateurError(f"unknown update '{call.name}': {suggestion(call.name, SURVIVORS)}")
        if call.name == "compensate":
            return cls._compensating(call)
        found = bind(call, ("step", "removed", "optimizer", "drop"), "update", ordered=1)
        for key in set(found) & {"removed", "optimizer"}:
            found[key] = word(found[key], key)
        return cls(call.name, **found)

    @classmethod
    def _compensating(cls, call: Call) -> Update:
        fates: dict[str, Any] = {
            key: word(value, key) for key, value in call.keywords if key in ("removed", "optimizer")
        }
        own = {key: value for key, value in call.keywords if key not in fates}
        return cls(call.name, compensation=compensation_of(call, own), **fates)

    def words(self) -> str:
        """Say in words what happens."""
        said = SURVIVORS[self.survivors]
        if self.compensation is not None:
            said += f": {self.compensation.words()}"
        if self.step is not None:
            said += f" (step {self.step})"
        if self.drop:
            said += f"; each training step leaves out {self.drop:.3g} of the units at random"
        return f"{REMOVED[self.removed]}; {said}; {OPTIMIZER[self.optimizer]}"

    def __str__(self) -> str:
        keywords: dict[str, Any] = {}
        arguments: tuple[Any, ...] = ()
        if self.compensation is not None:
            arguments, keywords = (Call(self.compensation.method),), self.compensation.keywords
        if self.step is not None:
            keywords["step"] = self.step
        if self.removed != "frozen":
            keywords["removed"] = Call(self.removed)
        if self.optimizer != "keep":
            keywords["optimizer"] = Call(self.optimizer)
        if self.drop:
            keywords["drop"] = self.drop
        return format_call(self.survivors, arguments, keywords)
