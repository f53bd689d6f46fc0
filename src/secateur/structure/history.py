"""History: what was removed from a model, kept with it as plain values.

It travels with copies of the model, and is what a saved model needs to be built again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from secateur.structure.shrink import ShrinkResult
    from secateur.structure.trace import Trace

_ATTRIBUTE = "_secateur_history"


def note(model: nn.Module, original: Trace, structure: Trace, result: ShrinkResult) -> None:
    """Add a removal to a model's history; ``structure`` is that without what was dropped."""
    before = history(model)
    shapes = before.get("shapes") or {
        name: [term.size for term in dims]
        for name, dims in original.held.items()
        if name in original.parameters
    }
    attributes = {path: dict(names) for path, names in before.get("attributes", {}).items()}
    for path, names in result.attributes.items():
        attributes.setdefault(path, {}).update(names)
    grafts = {**before.get("grafts", {}), **result.grafts}
    removals = [*before.get("removals", ()), result.removed]
    # What a model holds as plain attributes is not among its parameters and buffers.
    named = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    plain = {name for axis in structure.axes if axis.name in result.removed
             for name, _ in axis.carriers if name not in named}  # fmt: skip
    plain |= {name for name in before.get("plain", ()) if not inside(name, result.dropped)}
    model.__dict__[_ATTRIBUTE] = {
        "shapes": shapes, "attributes": attributes, "removals": removals, "grafts": grafts,
        "plain": sorted(plain),
        "dropped": [*before.get("dropped", ()), *result.dropped],
    }  # fmt: skip


def inside(name: str, places: Iterable[str]) -> bool:
    """Whether a dotted name is one of some places, or within one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def history(model: nn.Module) -> dict[str, Any]:
    """Return what was removed from a model so far, empty where nothing was."""
    found = model.__dict__.get(_ATTRIBUTE, {})
    return dict(found)


def restore(model: nn.Module, noted: dict[str, Any]) -> None:
    """Give a model the history of another."""
    model.__dict__[_ATTRIBUTE] = noted
