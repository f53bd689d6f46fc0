"""Reordering: channels in another order, with all that makes and reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.structure import verify
from secateur.structure.removal import Removal
from secateur.structure.surgery import Undo, cut_optimizer, keep
from secateur.structure.terms import Term, find
from secateur.structure.trace import Trace


class Reordering(Removal):
    """New orders of leaves, as the old index at every new place; other leaves stay as they are."""

    def __init__(self, orders: Mapping[Term, Tensor]) -> None:
        super().__init__({})
        self.orders = {find(leaf): order for leaf, order in orders.items()}

    def indices(self, term: Term) -> Tensor | None:
        """Return the old position at every new one along a term, None where nothing moves."""
        term = find(term)
        if term.kind == "leaf":
            return self.orders.get(term)
        parts = [self.indices(part) for part in term.parts]
        if all(part is None for part in parts):
            return None
        whole: Tensor | None = None
        first = 0
        for part, each in zip(term.parts, parts, strict=True):
            own = torch.arange(find(part).size) if each is None else each
            if whole is None:
                whole = own
            elif term.kind == "sum":
                whole = torch.cat([whole, own + first])
            else:
                whole = (whole[:, None] * len(own) + own[None, :]).reshape(-1)
            first += len(own)
        return whole


@dataclass(frozen=True)
class Reordered:
    """What was reordered, so that what lies beside a model can follow."""

    reordering: Reordering
    held: Mapping[str, Sequence[Term]]

    def follow(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor that lies along a parameter or buffer, in the new order."""
        dims = self.held.get(name)
        return tensor if dims is None else keep(tensor, list(dims), self.reordering)


@torch.no_grad()
def reorder(
    model: nn.Module,
    structure: Trace,
    orders: Mapping[str, Tensor],
    example_inputs: tuple[Any, ...],
    optimizer: torch.optim.Optimizer | None = None,
) -> Reordered:
    """Bring axes of a model into another order, in place; the model computes what it did.

    ``orders`` holds, by the axis' name, the old index at every new place. Gradients and the
    optimiser's state follow. Raises SecateurError, with the model as it was, where an axis is
    pinned, or where the outputs differ.

    >>> from secateur.structure import trace
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> inputs, before = (torch.ones(1, 2),), model[2].weight.detach().clone()
    >>> done = reorder(model, trace(model, inputs), {"0": torch.tensor([2, 0, 1])}, inputs)
    >>> torch.equal(model[2].weight, before[:, [2, 0, 1]])
    True
    """
    pinned = dict(structure.pinned)
    for name in orders:
        if name in pinned:
            raise SecateurError(f"the axis '{name}' cannot be reordered: {pinned[name]}")
    moves = Reordering({structure.leaves[name]: order for name, order in orders.items()})
    reordered = Reordered(moves, _with_tied(model, structure))
    before = verify.run(model, example_inputs, double=True)
    undo = Undo()
    try:
        _move(model, structure, moves, optimizer, undo)
        gap = verify.difference(before, verify.run(model, example_inputs, double=True))
        if gap > verify.tolerance(before):
            raise SecateurError(
                f"in another order the network's outputs differ by {gap:.2g} (relative), so the "
                "model was left as it was"
            )
        undo.steps.clear()
        return reordered
    finally:
        undo.run()


def _move(
    model: nn.Module,
    structure: Trace,
    moves: Reordering,
    optimizer: torch.optim.Optimizer | None,
    undo: Undo,
) -> None:
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    done: dict[str, tuple[Tensor, list[Term]]] = {}
    for name, dims in structure.held.items():
        tensor = own.get(name)
        if tensor is None or all(moves.indices(term) is None for term in dims):
            continue
        done[name] = (tensor, dims)
        for each in (tensor, tensor.grad):
            if each is not None:
                undo.add(partial(_put_back, each.detach(), each.detach().clone()))
                each.detach().copy_(keep(each.detach(), dims, moves))
    if optimizer is not None:
        cut_optimizer(optimizer, done, moves, undo)


def _put_back(tensor: Tensor, values: Tensor) -> None:
    tensor.copy_(values)


def _with_tied(model: nn.Module, structure: Trace) -> dict[str, list[Term]]:
    """Return the terms of every parameter and buffer, under all of its names."""
    first = {id(each): name for name, each in model.named_parameters()}
    held = dict(structure.held)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first[id(parameter)] in held:
            held[name] = held[first[id(parameter)]]
    return held
