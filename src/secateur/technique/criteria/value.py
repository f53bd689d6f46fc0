"""The criteria axis as a value: a named criterion with its settings, or a modifier around one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secateur.errors import SecateurError, suggestion
from secateur.technique.criteria.gate import Gate
from secateur.technique.criteria.record import (
    CRITERIA,
    MODIFIERS,
    NORMALIZERS,
    REDUCERS,
    FunctionRecord,
)
from secateur.technique.syntax import Call, format_call, format_value, parse_call, word


@dataclass(frozen=True)
class Criterion:
    """Why a unit survives: ``magnitude(reduce=l2)`` or ``variety(movement, gamma=2)``.

    ``reduce`` turns the scores of a unit's weights into one, ``normalize`` makes layers
    comparable; ``inner`` holds the criterion that a modifier wraps.

    >>> Criterion.parse("large_final") == Criterion.parse("magnitude")
    True
    """

    name: str = "magnitude"
    parameters: tuple[tuple[str, Any], ...] = ()
    reduce: str | None = None
    normalize: str | None = None
    inner: Criterion | None = None

    def __post_init__(self) -> None:
        modifies = self.inner is not None
        record: Any = MODIFIERS.get(self.name) if modifies else CRITERIA.get(self.name)
        object.__setattr__(self, "name", record.name)
        defaults = dict(record.parameters)
        given = dict(self.parameters)
        for key in given:
            if key not in defaults:
                accepted = [*defaults, "normalize", *([] if modifies else ["reduce"])]
                raise SecateurError(f"'{self.name}' has no '{key}': {suggestion(key, accepted)}")
        complete = {key: given.get(key, default) for key, default in defaults.items()}
        for key, value in complete.items():
            if value is None or isinstance(defaults[key], str) != isinstance(value, str):
                kind = "word" if isinstance(defaults[key], str) else "number"
                raise SecateurError(f"'{self.name}': {key}={format_value(value)} is not a {kind}")
        object.__setattr__(self, "parameters", tuple(complete.items()))
        if modifies:
            _try_modifier(record, complete)
        if self.normalize is not None:
            NORMALIZERS.get(self.normalize)
        if self.reduce is not None:
            self._check_reducer(record.level if not modifies else "modifier")

    def _check_reducer(self, level: str) -> None:
        if level != "weight":
            raise SecateurError(
                f"'{self.name}' scores whole units: reduce={self.reduce} has nothing to reduce"
            )
        REDUCERS.get(self.reduce or "")

    @classmethod
    def parse(cls, text: str) -> Criterion:
        """Read a criterion; raise SecateurError with what is accepted."""
        return cls.from_call(parse_call(text, "criterion"))

    @classmethod
    def from_call(cls, call: Call) -> Criterion:
        """Build a criterion from a parsed call."""
        if call.name not in CRITERIA and call.name not in MODIFIERS:
            names = [n for r in (*CRITERIA, *MODIFIERS) for n in (r.name, *r.aliases)]
            raise SecateurError(f"unknown criterion '{call.name}': {suggestion(call.name, names)}")
        settings: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in call.keywords:
            if key in ("reduce", "normalize"):
                settings[key] = word(value, f"{key} of {call.name}")
            else:
                own[key] = word(value, key) if isinstance(value, Call) else value
        if call.name in MODIFIERS:
            if len(call.arguments) != 1 or not isinstance(call.arguments[0], Call):
                raise SecateurError(
                    f"'{call.name}' wraps a criterion: write {call.name}(magnitude)"
                )
            settings["inner"] = cls.from_call(call.arguments[0])
        elif call.arguments:
            raise SecateurError(
                f"'{call.name}' takes key=value only; just modifiers wrap: "
                f"{', '.join(record.name for record in MODIFIERS)}"
            )
        return cls(call.name, tuple(own.items()), **settings)

    @property
    def needs(self) -> tuple[str, ...]:
        """What the criterion must be told beside the weight."""
        if self.inner is not None:
            return self.inner.needs
        return CRITERIA.get(self.name).needs

    @property
    def moves(self) -> bool:
        """Whether all scores are equal before the first step of a training."""
        if self.inner is not None:
            return self.inner.moves
        return CRITERIA.get(self.name).moves

    @property
    def innermost(self) -> Criterion:
        """The criterion that all modifiers around it change."""
        return self if self.inner is None else self.inner.innermost

    @property
    def gate(self) -> Gate | None:
        """How what the criterion has learned enters the forward pass, None where nothing does."""
        return CRITERIA.get(self.innermost.name).gate

    def words(self) -> str:
        """Say in words what is scored."""
        if self.inner is not None:
            said = f"{MODIFIERS.get(self.name).summary}, on top of: {self.inner.words()}"
        else:
            record = CRITERIA.get(self.name)
            said = record.summary
            if record.level == "weight":
                said += f"; of a unit, {REDUCERS.get(self.reduce or record.reduce).summary}"
        if self.normalize:
            said += f"; scores of a layer {NORMALIZERS.get(self.normalize).summary}"
        return said

    def __str__(self) -> str:
        record: Any = MODIFIERS.get(self.name) if self.inner else CRITERIA.get(self.name)
        defaults = dict(record.parameters)
        keywords: dict[str, Any] = {
            key: Call(value) if isinstance(value, str) and value.isidentifier() else value
            for key, value in self.parameters
            if value != defaults[key]
        }
        for key in ("reduce", "normalize"):
            if getattr(self, key) is not None:
                keywords[key] = Call(getattr(self, key))
        arguments = (Call(str(self.inner)),) if self.inner else ()
        return format_call(self.name, arguments, keywords)


def _try_modifier(record: FunctionRecord, parameters: dict[str, Any]) -> None:
    """Run a modifier on three units, so that impossible values are told when they are written."""
    try:
        record.function(torch.ones(3), torch.eye(3), 1, **parameters)
    except SecateurError:
        raise
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        shown = format_call(record.name, (), parameters)
        reason = str(error).splitlines()[0]
        raise SecateurError(f"modifier {shown} cannot be computed: {reason}") from error
