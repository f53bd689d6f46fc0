"""The empirical Fisher matrix in blocks along its diagonal, as WoodFisher and oBERT use it.

The weights of a tensor are taken in the order of their units, so that a unit lies in one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import SecateurError
from secateur.sparsify.quadratic import factor, inverse
from secateur.sparsify.ranks import over_ranks
from secateur.sparsify.scoring import widen
from secateur.sparsify.setup import Prunable
from secateur.sparsify.statistics import Loss, _examples, _grads, _wanted
from secateur.sparsify.units import Units
from secateur.structure.usage import evaluating


def fisher_blocks(
    model: nn.Module,
    prunables: Sequence[Prunable],
    batches: Iterable[Any],
    loss: Loss | None,
    block: int,
    damping: float,
) -> dict[str, Tensor]:
    """Return the mean of g g^T over single examples by weight, [blocks, size, size], damped.

    ``damping`` is added to the diagonal as a share of its mean over all of a weight's blocks; the
    size is ``block``, brought to a multiple of the unit's.
    """
    weights = [prunable.weight for prunable in prunables]
    names, tensors = _wanted(model, weights)
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluating(model):
        for example in _examples(batches):
            gradients = dict(zip(names, _grads(model, tensors, example, loss), strict=True))
            count += 1
            for prunable in prunables:
                weight = prunable.weight
                own = _blocks(weight.view(gradients[weight.parameter]), prunable.units, block)
                products = own.unsqueeze(2) * own.unsqueeze(1)
                sums[weight.name] = sums.get(weight.name, 0) + products
    means = over_ranks([sums[weight.name] / count for weight in weights])
    for weight, mean in zip(weights, means, strict=True):
        diagonal = mean.diagonal(dim1=1, dim2=2)
        diagonal += damping * max(float(diagonal.sum()) / weight.numel, 1e-30)
    return {weight.name: mean for weight, mean in zip(weights, means, strict=True)}


def fisher_surgeon(weight: Tensor, blocks: Tensor, units: Units) -> Tensor:
    """Return (F^-1[Q, Q])^-1 w[Q] of each unit Q, laid out like the weight."""
    size = units.largest
    rows = _blocks(weight, units, blocks.shape[1])
    backwards = inverse(blocks)
    split = backwards.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    inside = torch.diagonal(split, dim1=1, dim2=3).permute(0, 3, 1, 2)
    solved = torch.linalg.solve(inside, rows.unflatten(1, (-1, size)).unsqueeze(-1))
    return _unblocked(solved.flatten(1), units)


def refit_blocks(weight: Tensor, kept: Tensor, units: Units, blocks: Tensor) -> Tensor:
    """Return the weight at the least of its quadratic model, zero where nothing is kept."""
    rows = _blocks(weight, units, blocks.shape[1]).double()
    stays = _blocks(kept.to(weight.dtype), units, blocks.shape[1]) > 0
    both = stays.unsqueeze(2) & stays.unsqueeze(1)
    inside = torch.where(both, blocks.double(), 0.0)
    inside.diagonal(dim1=1, dim2=2)[~stays] = 1
    gone = (rows * ~stays).unsqueeze(2)
    missed = (blocks.double() @ gone).squeeze(2) * stays
    solved = rows * stays + torch.cholesky_solve(missed.unsqueeze(2), factor(inside)).squeeze(2)
    return _unblocked(solved, units)


def _blocks(tensor: Tensor, units: Units, block: int) -> Tensor:
    """Return a tensor of the weight's layout as blocks of its units in order; zeros at the end."""
    if not units.equal:
        raise SecateurError("the tile does not divide every layer, so its units are not all alike")
    rows, _ = units.rows(widen(tensor))
    size = max(1, round(block / units.largest)) * units.largest
    flat = rows.reshape(-1)
    return functional.pad(flat, (0, -len(flat) % size)).reshape(-1, size)


def _unblocked(blocks: Tensor, units: Units) -> Tensor:
    places = torch.arange(units.count * units.largest, device=blocks.device)
    order, _ = units.rows(places.reshape(units.shape))
    flat = torch.empty_like(places, dtype=blocks.dtype)
    flat[order.reshape(-1)] = blocks.reshape(-1)[: len(places)]
    return flat.reshape(units.shape)
