"""Context: which units compete with each other, and how a budget is divided among the pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.technique.syntax import (
    Call,
    Table,
    bind,
    format_call,
    format_value,
    parse_value,
)

POOLS: dict[str, str] = {
    "row": "units of one output compete",
    "local": "units of one layer compete",
    "groups": "units of the layers of a named group compete",
    "isomorphic": "units of all layers whose units have the same kind and shape compete",
    "global": "all units of the model compete",
}
ALLOCATIONS: dict[str, str] = {
    "uniform": "every layer gives the same share",
    "uniform_plus": "uniform, but the first convolution stays dense and the last layer "
    "gives at most 80 % (Gale, Elsen, Hooker 2019)",
    "erk": "density in proportion to (o + i + h + w) / (o i h w) (Evci et al. 2020)",
    "er": "density in proportion to (o + i) / (o i) (Mocanu et al. 2018)",
    "lamp": "the shares that a global ranking of LAMP scores would give (Lee et al. 2021)",
    "sensitivity": "less from the layers whose removal raises the loss most; needs data",
    "owl": "less from the layers with many outliers among |w| ||x||; needs data (Yin et al. 2024)",
    "tail": "less from the layers whose spectrum has a heavy tail (Lu et al. 2024)",
    "sampled": "the best of some random divisions, by the loss once batch norms' statistics have "
    "been taken anew; needs data (Li et al. 2020)",
    "ranking": "the shares that a global ranking gives with a factor and an offset per layer, "
    "found by an evolutionary search on the loss; needs data (Chin et al. 2020)",
    "greedy": "each update takes from the one layer that harms the loss least; needs data "
    "(Yang et al. 2018)",
    "momentum": "what an update frees goes to layers by the mean momentum of their survivors "
    "(Dettmers, Zettlemoyer 2019)",
    "threshold": "whatever scores below zero; the budget is then an outcome",
    "given": "shares written per layer, as glob patterns; the first match counts",
}
SEARCHED = ("sampled", "ranking", "greedy")
"""The allocations that try divisions of the budget and compare the losses."""

_ALIASES = {"uniform+": "uniform_plus", "layer": "local", "model": "global"}


@dataclass(frozen=True)
class Context:
    """A pool, an allocation, and the least share that every layer keeps.

    ``groups`` holds (name, patterns) for the pool ``groups``; ``given`` holds (pattern, share
    removed) for the allocation ``given``; ``keep`` is a share in [0, 1] of each layer's units.

    >>> str(Context.parse("local(erk)")), str(Context.parse('{"layer1.*": 0.5}'))
    ('local(erk)', '{"layer1.*": 0.5}')
    """

    pool: str = "global"
    allocation: str = "uniform"
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    given: tuple[tuple[str, float], ...] = ()
    keep: float = 0.0

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise SecateurError(f"unknown context '{self.pool}': {suggestion(self.pool, POOLS)}")
        if self.allocation not in ALLOCATIONS:
            known = suggestion(self.allocation, ALLOCATIONS)
            raise SecateurError(f"unknown allocation '{self.allocation}': {known}")
        if self.pool == "global" and self.allocation != "uniform":
            raise SecateurError(
                f"global({self.allocation}): the model is one pool, so there is nothing to divide; "
                f"write local({self.allocation})"
            )
        if (self.pool == "groups") != bool(self.groups):
            raise SecateurError('groups need names and patterns: groups({"early": ["layer1.*"]})')
        if (self.allocation == "given") != bool(self.given):
            raise SecateurError('given shares need patterns: {"layer1.*": 0.5}')
        for pattern, share in self.given:
            check_share(share, f"the share of '{pattern}'")
        check_share(self.keep, "keep")

    @classmethod
    def parse(cls, text: str | Mapping[str, Any]) -> Context:
        """Read ``local(erk)``, ``global(keep=0.05)``, ``{"layer1.*": 0.5}``, or a mapping."""
        if isinstance(text, Mapping):
            value: Any = Table(tuple((str(key), share) for key, share in text.items()))
        else:
            value = parse_value(text)
        if isinstance(value, Table):
            return cls(pool="local", allocation="given", given=_given(value))
        if not isinstance(value, Call):
            raise SecateurError(f"unknown context '{text}': {suggestion(str(text), POOLS)}")
        return _from_call(value, str(text))

    def words(self) -> str:
        """Say in words who competes and how the budget is divided."""
        said = POOLS[self.pool]
        if self.pool != "global":
            said += f"; {ALLOCATIONS[self.allocation]}"
        if self.keep:
            said += f"; every layer keeps at least {self.keep:.3g} of its units"
        return said

    def __str__(self) -> str:
        if self.pool == "local" and self.given and not self.keep:
            return format_value(Table(self.given))
        arguments: list[Any] = []
        if self.groups:
            arguments.append(Table(self.groups))
        if self.given:
            arguments.append(Table(self.given))
        elif self.allocation != "uniform":
            arguments.append(Call(self.allocation))
        return format_call(self.pool, tuple(arguments), {"keep": self.keep} if self.keep else {})


def check_share(value: Any, what: str) -> float:
    """Return a share in [0, 1], or say what is wrong with it."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= float(value) <= 1:
        shown = format_value(value) if not isinstance(value, str) else f"'{value}'"
        hint = ""
        if number and 1 < value <= 100:
            hint = f"; for {value} percent write {value / 100:g}"
        raise SecateurError(f"{what} is {shown}: expected a fraction between 0 and 1{hint}")
    return float(value)


def _given(table: Table) -> tuple[tuple[str, float], ...]:
    return tuple(
        (pattern, check_share(share, f"the share of '{pattern}'")) for pattern, share in table.pairs
    )


def _from_call(call: Call, text: str) -> Context:
    pool = _ALIASES.get(call.name, call.name)
    if pool not in POOLS:
        raise SecateurError(f"unknown context '{text}': {suggestion(call.name, POOLS)}")
    accepted = ("groups", "allocation", "keep") if pool == "groups" else ("allocation", "keep")
    given = bind(call, accepted, "context", ordered=len(accepted) - 1)
    found: dict[str, Any] = {"pool": pool}
    if "keep" in given:
        found["keep"] = check_share(given["keep"], "keep")
    if "groups" in given:
        if not isinstance(given["groups"], Table):
            raise SecateurError('groups need names and patterns: groups({"early": ["layer1.*"]})')
        pairs = given["groups"].pairs
        found["groups"] = tuple((name, _patterns(name, items)) for name, items in pairs)
    allocation = given.get("allocation")
    if isinstance(allocation, Table):
        found.update(allocation="given", given=_given(allocation))
    elif allocation is not None:
        name = (
            allocation.name
            if allocation == Call(getattr(allocation, "name", ""))
            else (allocation if isinstance(allocation, str) else format_value(allocation))
        )
        found["allocation"] = _ALIASES.get(name, name)
    return Context(**found)


def _patterns(name: str, items: Any) -> tuple[str, ...]:
    patterns = (items,) if isinstance(items, str) else items
    if not isinstance(patterns, tuple) or not all(isinstance(item, str) for item in patterns):
        raise SecateurError(f"group '{name}' needs quoted patterns: [\"layer1.*\"]")
    return patterns
