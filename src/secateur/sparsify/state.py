"""State: everything a sparsifier must save to go on bit for bit, and how it takes that over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.budget import Budget
from secateur.sparsify.memory import Memory
from secateur.sparsify.result import StepResult

if TYPE_CHECKING:
    from secateur.sparsify.sparsifier import Sparsifier

FORMAT = 1


def save_state(sparsifier: Sparsifier) -> dict[str, Any]:
    """Return all state, made of tensors and plain values only."""
    term, budget = sparsifier._term, sparsifier._setup.budget
    return {
        "format": FORMAT,
        "technique": str(sparsifier.technique),
        "budget": _budget_of(sparsifier),
        "macs": budget.value if budget else None,
        "masks": {name: mask.clone() for name, mask in sparsifier._masks.items()},
        "memory": sparsifier._memory.state_dict(),
        "last": asdict(sparsifier._last) if sparsifier._last else None,
        "objective": term.state() if term is not None else None,
    }


def take_state(sparsifier: Sparsifier, state: Mapping[str, Any]) -> None:
    """Take over a saved state, or raise SecateurError and leave everything as it was."""
    try:
        masks: dict[str, Tensor] = dict(state["masks"])
        memory = Memory.from_state(state["memory"])
        found = (state["format"], state["technique"], state["budget"])
        last = StepResult(**state["last"]) if state["last"] is not None else None
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise SecateurError(f"this is not a sparsifier's state: {error!r} is wrong") from error
    own = (FORMAT, str(sparsifier.technique), _budget_of(sparsifier))
    for what, theirs, ours in zip(("format", "technique", "budget"), found, own, strict=True):
        if theirs != ours:
            raise SecateurError(f"the state has the {what} {theirs}, this sparsifier {ours}")
    _check_masks(masks, sparsifier.masks)
    memory.check(sparsifier._memory, sparsifier.model)
    if sparsifier._term is not None:
        sparsifier._term.check(state.get("objective"))
    if sparsifier._attachment is not None:
        sparsifier._attachment.check(memory)
    _take_fit(sparsifier, state)
    for name, mask in masks.items():
        sparsifier._masks[name].copy_(mask)
    sparsifier._memory, sparsifier._last = memory, last
    if sparsifier._term is not None:
        sparsifier._term.load(state.get("objective"))
    sparsifier._refresh()


def _budget_of(sparsifier: Sparsifier) -> list[Any] | None:
    budget = sparsifier.budget
    return [budget.currency, budget.value] if budget else None


def _take_fit(sparsifier: Sparsifier, state: Mapping[str, Any]) -> None:
    """Go on with the share of MACs that a latency was measured at before."""
    if sparsifier.budget is not None and sparsifier.budget.currency == "latency":
        fitted = Budget("macs", float(state["macs"]))
        sparsifier._setup = replace(sparsifier._setup, budget=fitted)
        sparsifier._engine.setup = sparsifier._setup


def _check_masks(masks: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    fits = set(masks) == set(own) and all(
        isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == own[name].shape
        for name, mask in masks.items()
    )
    if not fits:
        raise SecateurError("the state's masks do not fit this model: it belongs to another")
