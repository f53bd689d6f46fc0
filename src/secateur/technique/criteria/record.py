"""How criteria, reducers, normalisers and modifiers are written down and found by name.

A criterion is one pure function and one decorator::

    @criterion("magnitude", summary="the absolute value", source="Hagiwara 1994")
    def magnitude(evidence: Evidence) -> Tensor:
        return evidence.weight.abs()

It returns a score for every weight (any shape that broadcasts to the weight's); a reducer turns
the scores of a unit's weights into one. With ``level="unit"`` it gets the unit's weights as rows
[units, weights of a unit] and returns a score per unit. The lowest scores go first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from secateur.errors import SecateurError, suggestion
from secateur.technique.criteria.evidence import NEEDS
from secateur.technique.criteria.gate import Gate
from secateur.technique.criteria.tails import Tails
from secateur.technique.registry import Registry

Function = Callable[..., Tensor]
_SETTINGS = ("reduce", "normalize")


@dataclass(frozen=True)
class CriterionRecord:
    """A named criterion: its function, one sentence, its paper, and what it needs.

    ``moves`` says that it looks at how weights have moved, so that before the first step of a
    training all its scores are equal. ``gate`` says how what it has ``learned`` enters the forward
    pass. ``lazily`` gives, for a unit-level criterion, what its scores can be computed from where
    they are asked for, or None for rows that it has to score at once.
    """

    name: str
    function: Function
    summary: str
    source: str
    needs: tuple[str, ...]
    level: str
    reduce: str
    parameters: tuple[tuple[str, Any], ...]
    aliases: tuple[str, ...] = ()
    moves: bool = False
    gate: Gate | None = None
    lazily: Callable[[Tensor], Tails | None] | None = None


@dataclass(frozen=True)
class FunctionRecord:
    """A named reducer, normaliser or modifier."""

    name: str
    function: Function
    summary: str
    source: str
    parameters: tuple[tuple[str, Any], ...]
    aliases: tuple[str, ...] = ()


CRITERIA: Registry[CriterionRecord] = Registry("criterion")
REDUCERS: Registry[FunctionRecord] = Registry("reducer")
NORMALIZERS: Registry[FunctionRecord] = Registry("normalizer")
MODIFIERS: Registry[FunctionRecord] = Registry("modifier")


def criterion(
    name: str,
    *,
    summary: str,
    source: str = "",
    needs: tuple[str, ...] = (),
    level: str = "weight",
    reduce: str = "mean",
    aliases: tuple[str, ...] = (),
    moves: bool = False,
    gate: Gate | None = None,
    lazily: Callable[[Tensor], Tails | None] | None = None,
) -> Callable[[Function], Function]:
    """Register a criterion under a name; see this module's text for what the function gets.

    Raises SecateurError for a taken name, an unknown need, an unknown level, and for a gate without
    the need ``learned`` or the need without a gate.
    """
    for need in needs:
        if need not in NEEDS:
            raise SecateurError(f"criterion '{name}': unknown need: {suggestion(need, NEEDS)}")
    if level not in ("weight", "unit"):
        raise SecateurError(f"criterion '{name}': level is 'weight' or 'unit', not '{level}'")

    if (gate is None) == ("learned" in needs):
        raise SecateurError(f"criterion '{name}': a gate= and the need 'learned' go together")

    def register(function: Function) -> Function:
        pairs = _parameters(function, skip=1 if level == "weight" else 2)
        record = CriterionRecord(
            name, function, summary, source, needs, level, reduce, pairs, aliases, moves, gate,
            lazily,
        )  # fmt: skip
        if name in MODIFIERS:
            raise SecateurError(f"criterion '{name}' exists already as a modifier")
        CRITERIA.add(record)
        return function

    return register


def reducer(name: str, *, summary: str, source: str = "") -> Callable[[Function], Function]:
    """Register ``f(rows [units, weights], counts [units, 1] or None) -> [units]``.

    Rows of unequal length end in zeros; ``counts`` then holds their true lengths.
    """
    return _register(REDUCERS, name, summary, source, skip=2)


def normalizer(name: str, *, summary: str, source: str = "") -> Callable[[Function], Function]:
    """Register ``f(scores of a layer [units]) -> [units]``."""
    return _register(NORMALIZERS, name, summary, source, skip=1)


def modifier(name: str, *, summary: str, source: str = "") -> Callable[[Function], Function]:
    """Register ``f(scores [units], rows [units, weights], removing, **parameters) -> [units]``.

    ``removing`` is the number of the layer's units that the budget takes at this update.
    """
    return _register(MODIFIERS, name, summary, source, skip=3)


def _register(
    registry: Registry[FunctionRecord], name: str, summary: str, source: str, skip: int
) -> Callable[[Function], Function]:
    def register(function: Function) -> Function:
        registry.add(FunctionRecord(name, function, summary, source, _parameters(function, skip)))
        return function

    return register


def _parameters(function: Function, skip: int) -> tuple[tuple[str, Any], ...]:
    found = []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.default is inspect.Parameter.empty:
            raise SecateurError(f"'{function.__name__}': '{parameter.name}' needs a default")
        if parameter.name in _SETTINGS:
            raise SecateurError(f"'{function.__name__}': '{parameter.name}' is taken")
        found.append((parameter.name, parameter.default))
    return tuple(found)
