"""Criteria that look at a channel: its input, its norm, and the other filters of its layer."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion
from secateur.technique.criteria.tails import Grid, Tails

MOST_PAIRED_UNITS = 16_384
"""Criteria that compare every pair of units refuse layers with more units than this."""


@criterion(
    "wanda",
    summary="|w| times the L2 norm of its input; published per output row, so context 'row'",
    source="Sun et al. 2024",
    needs=("input_norm",),
)
def wanda(evidence: Evidence) -> Tensor:
    """Return |w_ij| ||x_j||_2."""
    return evidence.weight.abs() * evidence.get("input_norm")


@criterion(
    "bn_scale",
    summary="|scale| of the norm that follows",
    source="Liu et al. 2017 (Network Slimming)",
    needs=("norm_scale",),
    aliases=("slimming",),
)
def bn_scale(evidence: Evidence) -> Tensor:
    """Return |gamma| of each output channel."""
    return evidence.get("norm_scale").abs()


@criterion(
    "group_magnitude",
    summary="the sum of squares of all that carries a channel: what makes it, norms, what reads it",
    source="Fang et al. 2023 (DepGraph)",
    needs=("carried",),
)
def group_magnitude(evidence: Evidence) -> Tensor:
    """Return sum of w^2 over every parameter that carries the unit's channel.

    Where layers are not coupled (no example inputs), over the unit's own weights.
    """
    return evidence.get("carried")


@criterion(
    "geometric_median",
    summary="sum of the distances to all other units of the layer",
    source="He et al. 2019 (FPGM)",
    level="unit",
    aliases=("fpgm",),
)
def geometric_median(rows: Tensor, evidence: Evidence) -> Tensor:
    """Return sum_j ||f_i - f_j||_2 [units].

    Raises SecateurError where a layer has more than 16,384 units.
    """
    refuse_many_pairs("geometric_median", len(rows))
    chunks = [
        distances(part, rows).sum(1) for part in torch.tensor_split(rows, -(-len(rows) // 1024))
    ]
    return torch.cat(chunks)


def lamp_tails(rows: Tensor) -> Tails | None:
    """Return what LAMP's scores of single weights [units, 1] are computed from, where asked."""
    return Tails.of(rows[:, 0].abs()) if rows.shape[1] == 1 else None


@criterion(
    "lamp",
    summary="a unit's squared norm over that of all units at least as large",
    source="Lee et al. 2021",
    level="unit",
    lazily=lamp_tails,
)
def lamp(rows: Tensor, evidence: Evidence) -> Tensor:
    """Return ||u||^2 / sum over v with ||v|| >= ||u|| of ||v||^2, in (0, 1]; 0 for zero units."""
    tails = lamp_tails(rows)
    if tails is not None:
        return tails.complete()
    ordered, order = torch.sort(rows.double().square().sum(1), stable=True)
    grid = Grid.of(float(ordered[-1]) if len(ordered) else 0.0, len(ordered))
    scores = torch.empty_like(ordered)
    scores[order] = grid.of_larger(ordered)
    return scores


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Return ||a_i - b_j||_2 [a, b], without the cancellation of the faster matrix form."""
    found: Tensor = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return found


def refuse_many_pairs(name: str, units: int) -> None:
    """Raise SecateurError where comparing every pair of units would take too much memory."""
    if units > MOST_PAIRED_UNITS:
        raise SecateurError(
            f"{name} compares every pair of units, and a layer has {units} of them (at most "
            f"{MOST_PAIRED_UNITS}); use a coarser granularity such as filter"
        )
