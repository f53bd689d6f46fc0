"""Orders of channels under which n:m keeps more: a linear assignment of channels to blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.coupling import unit_positions
from secateur.sparsify.ranks import same_on_every_rank
from secateur.structure import Axis, PrunableWeight, Reordered, Trace, reorder, trace
from secateur.technique import Granularity, Technique

_PASSES = 12
_ROWS = 2048
"""Rows of scores that an assignment looks at, evenly spaced; the result is judged on all."""


@dataclass(frozen=True)
class Ordering:
    """The structure whose channels are reordered, and inputs on which nothing may change."""

    structure: Trace
    inputs: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        technique: Technique,
        chosen: Sequence[PrunableWeight],
        example_inputs: tuple[Any, ...] | None,
    ) -> Ordering | None:
        """Trace a model whose channels are to be reordered; refuse where none can be."""
        if technique.granularity.order == "given":
            return None
        if example_inputs is None:
            raise SecateurError(
                f"'{technique.granularity}' reorders channels with all that carries them, which is "
                "found by tracing the model: pass example_inputs="
            )
        if technique.update.survivors == "rewind":
            raise SecateurError(
                f"'{technique.update}' returns to an earlier step, and '{technique.granularity}' "
                "gives channels other places than they had: write another update, or order=given"
            )
        if "learned" in technique.criteria.needs:
            raise SecateurError(
                f"'{technique.criteria}' learns a number per unit, and '{technique.granularity}' "
                "gives the units other places: write another criterion, or order=given"
            )
        structure = trace(model, example_inputs)
        if not any(True for _ in read_axes(structure, chosen)):
            reasons = [f"{name}: {reason}" for name, reason in structure.pinned[:3]]
            raise SecateurError(
                f"no channels of {type(model).__name__} can be reordered ({'; '.join(reasons)}): "
                "write order=given"
            )
        return cls(structure, example_inputs)

    def carry_out(
        self,
        model: nn.Module,
        granularity: Granularity,
        weights: Sequence[PrunableWeight],
        scores: Sequence[Tensor],
        optimizer: torch.optim.Optimizer | None,
    ) -> Reordered:
        """Reorder the model's channels by the scores of single weights, alike on every rank."""
        assert granularity.kept is not None and granularity.block is not None
        orders = assigned_orders(
            self.structure, weights, scores, granularity.kept, granularity.block
        )
        same = same_on_every_rank(list(orders.values()))
        orders = dict(zip(orders, same, strict=True))
        return reorder(model, self.structure, orders, self.inputs, optimizer)


def kept_score(scores: Tensor, kept: int, block: int) -> float:
    """Return the sum of the ``kept`` highest of every ``block`` consecutive entries of the rows.

    >>> kept_score(torch.tensor([[4.0, 3.0, 2.0, 1.0]]), 1, 2)
    6.0
    """
    blocks = scores[:, : scores.shape[1] // block * block].unflatten(1, (-1, block))
    return float(blocks.topk(kept, dim=2).values.sum(dtype=torch.float64))


def assign(scores: Tensor, kept: int, block: int) -> Tensor:
    """Return an order of the columns of scores [rows, n] under which n:m keeps no less.

    The columns are dealt to the blocks by their sums; then, one from each block at a time, they go
    where they add most, as a linear assignment (Zhang et al. 2024). What the remaining columns of a
    block keep, and a column x adds to it, is their ``kept - 1`` highest and max(x, the next). The
    last columns, where ``block`` does not divide n, stay.

    >>> assign(torch.tensor([[9.0, 8.0, 1.0, 2.0]]), 1, 2).tolist()
    [0, 3, 1, 2]
    """
    rows, size = scores.shape
    number = size // block
    seen = scores[:: max(1, -(-rows // _ROWS)), : number * block].float()
    dealt = seen.sum(0).argsort(descending=True, stable=True)
    places = dealt.reshape(block, number).T.contiguous()  # [blocks, columns of a block]
    best, idle = kept_score(seen[:, places.reshape(-1)], kept, block), 0
    for _ in range(_PASSES):
        for slot in range(block):
            places[:, slot] = _reassigned(seen, places, slot, kept)
        # In the next pass every column meets others in its slot.
        places = torch.stack([each.roll(number) for number, each in enumerate(places)])
        before, best = best, kept_score(seen[:, places.reshape(-1)], kept, block)
        idle = 0 if best > before * (1 + 1e-6) else idle + 1
        if idle == block:
            break
    rest = torch.arange(number * block, size, device=scores.device)
    order = torch.cat([places.reshape(-1), rest])
    better = kept_score(scores[:, order], kept, block) > kept_score(scores, kept, block)
    return (order if better else torch.arange(size, device=scores.device)).cpu()


def _reassigned(seen: Tensor, places: Tensor, slot: int, kept: int) -> Tensor:
    """Return which of the columns in a slot goes to which block, the others staying."""
    from scipy.optimize import linear_sum_assignment  # most runs do without the time it takes

    others = torch.cat([places[:, :slot], places[:, slot + 1 :]], 1)
    resting = seen[:, others.reshape(-1)].unflatten(1, others.shape)
    least = resting.topk(kept, dim=2).values[:, :, -1]
    moving = seen[:, places[:, slot]]
    gains = torch.stack([torch.maximum(each[:, None], moving).sum(0) for each in least.T])
    _, chosen = linear_sum_assignment(gains.cpu().numpy(), maximize=True)
    return places[torch.from_numpy(chosen).to(places.device), slot]


def assigned_orders(
    structure: Trace,
    weights: Sequence[PrunableWeight],
    scores: Sequence[Tensor],
    kept: int,
    block: int,
) -> dict[str, Tensor]:
    """Return new orders by axis, for those that weights read as a whole; readers share one.

    ``scores`` are those of single weights, in the order of each weight's layout.
    """
    orders: dict[str, Tensor] = {}
    for axis, places in read_axes(structure, weights):
        if axis.size < 2 * block:
            continue
        rows = [
            scores[place].reshape(weights[place].shape).movedim(2, -1).reshape(-1, axis.size)
            for place in places
        ]
        orders[axis.name] = assign(torch.cat(rows), kept, block)
    return orders


def read_axes(
    structure: Trace, weights: Sequence[PrunableWeight]
) -> Iterator[tuple[Axis, list[int]]]:
    """Give the axes that can be reordered, with the places of the weights that read each whole."""
    for axis in structure.removable:
        leaf = structure.leaves[axis.name]
        places = []
        for place, weight in enumerate(weights):
            if weight.shape[2] != axis.size or weight.parameter not in structure.held:
                continue
            index = unit_positions(structure, weight, leaf, "i").reshape(weight.groups, -1)
            if bool((index == torch.arange(axis.size)).all()):
                places.append(place)
        if places:
            yield axis, places
