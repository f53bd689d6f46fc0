"""The surgeon's evidence: what removing a unit costs when the others make up for it.

All of it follows from the matrix of products H of what a weight reads [groups, n, n]. A unit may
span several columns Q of a row; a unit without a named output spans them in all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.quadratic import channel_products, damped, inverse
from secateur.sparsify.scoring import widen
from secateur.sparsify.units import Units

DAMPING = 0.01
_AT_ONCE = 1 << 24


def derive(need: str, weight: Tensor, gram: Tensor, units: Units) -> Tensor:
    """Return a named evidence for a weight [groups, outputs, inputs, *kernel], laid out like it.

    Raises SecateurError where the units are none that the evidence is defined for.
    """
    rows = widen(weight).flatten(2)
    found = DERIVED[need](rows, gram.to(rows.dtype), units)
    return found.expand_as(rows).reshape(weight.shape)


def columns_of(units: Units) -> Tensor:
    """Return the columns of each unit along a row [blocks, columns of a block].

    >>> columns_of(Units((1, 2, 4), (True, True, True), (1, 1, 2)))
    tensor([[0, 1],
            [2, 3]])
    """
    if any(size % tile for size, tile in zip(units.shape[2:], units.tiles[2:], strict=True)):
        raise SecateurError("the tile does not divide every layer, so its units are not all alike")
    row = Units((1, 1, *units.shape[2:]), (False, False, *units.named[2:]),
                (1, 1, *units.tiles[2:]))  # fmt: skip
    labels = row.spread(torch.arange(row.count)).flatten()
    return torch.argsort(labels, stable=True).reshape(row.count, -1)


def surgeon(rows: Tensor, gram: Tensor, units: Units) -> Tensor:
    """Return (H^-1[Q, Q])^-1 w[Q]; times w, summed over the unit, it is twice the unit's cost.

    For single weights it is w / H^-1[q, q]: Hassibi and Stork 1993.
    """
    blocks = columns_of(units).to(rows.device)
    whole = damped(gram, DAMPING)
    if len(blocks) == 1:
        return rows @ whole
    backwards = inverse(whole)
    if blocks.shape[1] == 1:
        return rows / backwards.diagonal(dim1=1, dim2=2).unsqueeze(1)
    inside = backwards[:, blocks[:, :, None], blocks[:, None, :]]
    solved = torch.linalg.solve(inside.unsqueeze(1), rows[:, :, blocks].unsqueeze(-1)).squeeze(-1)
    found = torch.empty_like(rows)
    found[:, :, blocks] = solved
    return found


def elimination(rows: Tensor, gram: Tensor, units: Units) -> Tensor:
    """Return when each unit goes as they go one after another, the others always making up.

    The value is the greatest cost of a step up to the unit's own, so that ranking several rows by
    it is to take the cheapest next step among all rows (Frantar and Alistarh 2022). Units without
    a named output go from all rows at once (Kurtic et al. 2023; Ling et al. 2024).
    """
    if units.tiles[1] > 1:
        raise SecateurError("units of several outputs cannot go one after another: name them 'o'")
    blocks = columns_of(units).to(rows.device)
    whole = damped(gram, DAMPING)
    size = rows.shape[2]
    if len(blocks) == 1:
        costs = (rows @ whole * rows).sum(2, keepdim=True)
        joint = costs.sum(1, keepdim=True)
        return (costs if units.named[1] else joint).expand_as(rows)
    backwards = inverse(whole)
    found = torch.empty_like(rows)
    for group in range(len(rows)):
        each = rows[group].unsqueeze(1) if units.named[1] else rows[group].unsqueeze(0)
        for part in torch.arange(len(each)).split(max(1, _AT_ONCE // size**2)):
            own = backwards[group].expand(len(part), size, size).clone()
            times = _one_by_one(each[part].clone(), own, blocks)
            spread = torch.empty(len(part), size, dtype=rows.dtype, device=rows.device)
            spread[:, blocks] = times.unsqueeze(2).expand(-1, -1, blocks.shape[1])
            found[group, part if units.named[1] else slice(None)] = spread
    return found


def _one_by_one(rows: Tensor, backwards: Tensor, blocks: Tensor) -> Tensor:
    """Remove blocks of columns from rows [b, r, n] until none is left; return costs [b, blocks]."""
    cases = torch.arange(len(rows), device=rows.device)
    left = torch.ones(len(rows), len(blocks), dtype=torch.bool, device=rows.device)
    times = torch.zeros(len(rows), len(blocks), dtype=rows.dtype, device=rows.device)
    reached = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    ones = torch.eye(blocks.shape[1], dtype=rows.dtype, device=rows.device)
    for _ in range(len(blocks)):
        inside = backwards[:, blocks[:, :, None], blocks[:, None, :]]
        inside = torch.where(left[:, :, None, None], inside, ones)
        own = rows[:, :, blocks].permute(0, 2, 3, 1)
        costs = (torch.linalg.solve(inside, own) * own).sum((2, 3))
        next_ = costs.masked_fill(~left, torch.inf).argmin(1)
        reached = reached.maximum(costs[cases, next_])
        times[cases, next_] = reached
        left[cases, next_] = False
        taken = blocks[next_]
        pivot = backwards[cases[:, None, None], taken[:, :, None], taken[:, None, :]]
        across = backwards[cases[:, None], taken]
        weights = torch.linalg.solve(pivot, across)
        gone = rows.gather(2, taken[:, None, :].expand(-1, rows.shape[1], -1))
        rows -= gone @ weights
        backwards -= across.transpose(1, 2) @ weights
    return times


def greedy(rows: Tensor, gram: Tensor, units: Units) -> Tensor:
    """Return when each input channel goes, whatever the units: first what the output misses least.

    What all removed channels contributed together has the least energy (Luo et al. 2017, ThiNet).
    """
    products, width = _channels(rows, gram, units)
    times = torch.empty(products.shape[:2], dtype=rows.dtype, device=rows.device)
    for place, matrix in enumerate(products):
        costs = matrix.diagonal().clone()
        left = torch.ones_like(costs, dtype=torch.bool)
        for number in range(len(costs)):
            next_ = int(costs.masked_fill(~left, torch.inf).argmin())
            left[next_] = False
            times[place, next_] = float(number)
            costs += 2 * matrix[next_]
    return times.repeat_interleave(width, 1).unsqueeze(1)


def lasso(rows: Tensor, gram: Tensor, units: Units) -> Tensor:
    """Return the penalty at which a lasso over the input channels' contributions drops each.

    One number b per channel, least ||sum_c (1 - b_c) y_c||^2 / 2 + penalty ||b||_1, y_c what the
    channel contributes; the penalty rises until none is left (He et al. 2017).
    """
    products, width = _channels(rows, gram, units)
    found = torch.stack([_dropped_at(matrix.double()) for matrix in products]).to(rows.dtype)
    return found.repeat_interleave(width, 1).unsqueeze(1)


_PENALTIES = 64
_STEPS = 60


def _dropped_at(matrix: Tensor) -> Tensor:
    """Follow the path from no penalty to the one that drops all channels [channels].

    Each penalty takes some accelerated proximal steps, from where the one before came to.
    """
    wanted = matrix.sum(1)
    most = float(wanted.abs().max().clamp(min=1e-30))
    length = 1 / torch.linalg.matrix_norm(matrix, 2).clamp(min=1e-30)
    numbers, dropped = torch.ones_like(wanted), torch.zeros_like(wanted)
    for penalty in torch.logspace(-4, 0, _PENALTIES, dtype=torch.float64).tolist():
        ahead, pace = numbers, 1.0
        for _ in range(_STEPS):
            moved = ahead - length * (matrix @ ahead - wanted)
            after = torch.sign(moved) * (moved.abs() - length * penalty * most).clamp(min=0)
            faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
            ahead, numbers, pace = after + (pace - 1) / faster * (after - numbers), after, faster
        dropped = torch.where(numbers != 0, penalty + 1e-9 * numbers.abs(), dropped)
    return dropped


def _channels(rows: Tensor, gram: Tensor, units: Units) -> tuple[Tensor, int]:
    """Return the products of input channels' contributions, and how many columns a channel has."""
    width = rows.shape[2] // units.shape[2]
    return channel_products(gram, rows, width), width


DERIVED: dict[str, Callable[[Tensor, Tensor, Units], Tensor]] = {
    "surgeon": surgeon,
    "elimination": elimination,
    "greedy": greedy,
    "lasso": lasso,
}
"""Evidence that follows from what a weight reads, by name."""
