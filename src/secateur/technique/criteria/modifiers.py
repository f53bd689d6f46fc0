"""Modifiers: wrap a criterion and change which units its scores send away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.errors import SecateurError, suggestion
from secateur.technique.criteria.channels import distances, refuse_many_pairs
from secateur.technique.criteria.record import modifier

_VARIANTS = ("pairwise", "candidates", "reweighted")
_SIMILARITIES = ("cosine", "distance")


@modifier("negate", summary="the highest scores go first")
def negate(scores: Tensor, rows: Tensor, removing: int) -> Tensor:
    """Return the scores with the opposite sign."""
    return -scores


@modifier(
    "variety",
    summary="keeps rare units: only units that resemble another one may go early",
    source="after the abstract of Hubens et al. 2022 (Maximizing Filter Variety)",
)
def variety(
    scores: Tensor,
    rows: Tensor,
    removing: int,
    variant: str = "pairwise",
    similarity: str = "cosine",
    ratio: float = 1.5,
    gamma: float = 1.0,
) -> Tensor:
    """Return scores under which redundant units go first, in one of three ways.

    With S_ij = |cos(f_i, f_j)| (or -||f_i - f_j||) and r_i = max_j S_ij over the units that are
    still there:

    - ``pairwise``: again and again, of the two most similar units left, the one with the lower
      score goes; the score is that order, as a rank in (0, 1].
    - ``candidates``: the ceil(ratio * n) units with the largest r are candidates, n being the
      number still to go; they go before all others, in the order of their scores.
    - ``reweighted``: score - |score| (1 - (1 - r)^gamma), which is score (1 - r)^gamma where the
      score is positive; with distances r is 1 / (1 + the smallest distance).

    Raises SecateurError for an unknown variant or similarity, and for too many units.
    """
    if variant not in _VARIANTS:
        known = suggestion(variant, _VARIANTS)
        raise SecateurError(f"variety: unknown variant '{variant}': {known}")
    if not ratio >= 1:
        raise SecateurError(f"variety: ratio is {ratio:g}: expected at least 1")
    refuse_many_pairs("variety", len(rows))
    gone = ~rows.any(1)
    alike = _similarities(rows, similarity).masked_fill(gone, -torch.inf)
    if variant == "pairwise":
        return _elimination_order(alike, scores)
    redundancy = alike.amax(1)
    if variant == "reweighted":
        if similarity == "distance":
            redundancy = 1 / (1 - redundancy)
        lowered = 1 - (1 - redundancy.clamp(0, 1)).pow(gamma)
        return scores - scores.abs() * lowered
    number = int(gone.sum())
    candidates = number + math.ceil(round(ratio * max(0, removing - number), 9))
    redundancy = redundancy.masked_fill(gone, torch.inf)
    by_redundancy = torch.argsort(redundancy, descending=True, stable=True)
    spared = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    spared[by_redundancy[:candidates]] = False
    order = torch.argsort(scores, stable=True)
    order = order[torch.argsort(spared[order].to(torch.uint8), stable=True)]
    return _ranks(order, scores)


def _similarities(rows: Tensor, similarity: str) -> Tensor:
    """Return S [units, units] with -inf on the diagonal."""
    if similarity == "cosine":
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit = rows / torch.where(lengths == 0, torch.ones_like(lengths), lengths)
        alike = (unit @ unit.T).abs()
    elif similarity == "distance":
        alike = -distances(rows, rows)
    else:
        raise SecateurError(
            f"variety: unknown similarity '{similarity}': {suggestion(similarity, _SIMILARITIES)}"
        )
    return alike.fill_diagonal_(-torch.inf)


def _elimination_order(alike: Tensor, scores: Tensor) -> Tensor:
    """Remove the lower-scored one of the most similar pair until one unit is left."""
    count = len(scores)
    alike = alike.clone()
    best, partner = (t.tolist() for t in alike.max(1)) if count > 1 else ([-math.inf], [0])
    values = scores.tolist()
    gone = [False] * count
    order: list[int] = []
    while len(order) < count - 1:
        first = max((unit for unit in range(count) if not gone[unit]), key=lambda unit: best[unit])
        second = partner[first]
        low, high = sorted((first, second))
        loser = high if values[high] < values[low] else low
        gone[loser] = True
        order.append(loser)
        alike[loser, :] = -torch.inf
        alike[:, loser] = -torch.inf
        for unit in range(count):
            if not gone[unit] and partner[unit] == loser:
                nearest = alike[unit].max(0)
                best[unit], partner[unit] = nearest.values.item(), int(nearest.indices)
    order += [unit for unit in range(count) if not gone[unit]]
    return _ranks(torch.tensor(order, device=scores.device), scores)


def _ranks(order: Tensor, like: Tensor) -> Tensor:
    ranks = torch.empty_like(like)
    places = torch.arange(1, len(order) + 1, dtype=like.dtype, device=like.device)
    ranks[order] = places
    return ranks / len(order)
