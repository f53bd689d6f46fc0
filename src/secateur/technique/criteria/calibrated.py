"""Criteria for trained networks that weigh a weight's size by what a few batches tell of it."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion


@criterion(
    "ria",
    summary="|w| relative to its row and to its column, times its input's norm to the power a",
    source="Zhang et al. 2024 (a = 1/2)",
    needs=("input_norm",),
)
def ria(evidence: Evidence, a: float = 0.5) -> Tensor:
    """Return (|w_ij| / sum_j |w_ij| + |w_ij| / sum_i |w_ij|) ||x_j||_2^a.

    A column is one position of the kernel at one input; sums of zero give a score of zero.
    """
    size = evidence.weight.abs()
    rows = size.flatten(2).sum(2).reshape(*size.shape[:2], *[1] * (size.ndim - 2))
    columns = size.sum(1, keepdim=True)
    tiny = torch.finfo(size.dtype).tiny
    relative = size / rows.clamp(min=tiny) + size / columns.clamp(min=tiny)
    return relative * evidence.get("input_norm").pow(a)


@criterion(
    "gblm",
    summary="|w| times the sum of its input's norm and alpha times its gradient's",
    source="Das et al. 2023 (alpha = 100)",
    needs=("input_norm", "fisher"),
)
def gblm(evidence: Evidence, alpha: float = 100.0) -> Tensor:
    """Return |w| (||x|| + alpha rms(g)), the root mean square taken over examples."""
    size = evidence.get("fisher").sqrt()
    return evidence.weight.abs() * (evidence.get("input_norm") + alpha * size)


@criterion(
    "pruner_zero",
    summary="w^2 times the gradient's size, scaled to 0 to 1 within the layer",
    source="Dong et al. 2024 (found by genetic programming)",
    needs=("gradient",),
)
def pruner_zero(evidence: Evidence) -> Tensor:
    """Return |w| |w| (|g| - min |g|) / (max |g| - min |g|)."""
    size = evidence.get("gradient").abs()
    low, high = size.min(), size.max()
    scaled = (size - low) / (high - low).clamp(min=torch.finfo(size.dtype).tiny)
    return evidence.weight.square() * scaled
