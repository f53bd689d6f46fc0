"""Normalisers: make the scores of different layers comparable before they share a pool.

A divisor of zero (all scores equal, or all zero) is taken as one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.technique.criteria.record import normalizer


def _divide(scores: Tensor, by: Tensor) -> Tensor:
    return scores / torch.where(by == 0, torch.ones_like(by), by)


@normalizer("sum", summary="divided by the sum of their absolute values")
def by_sum(scores: Tensor) -> Tensor:
    """Return scores whose absolute values sum to one; the order of signed scores stays."""
    return _divide(scores, scores.abs().sum())


@normalizer("mean", summary="divided by the mean of their absolute values")
def by_mean(scores: Tensor) -> Tensor:
    """Return scores of mean absolute value one; the order of signed scores stays."""
    return _divide(scores, scores.abs().mean())


@normalizer("max", summary="divided by the largest absolute value")
def by_max(scores: Tensor) -> Tensor:
    """Return scores of at most one."""
    return _divide(scores, scores.abs().max())


@normalizer("l2", summary="divided by their L2 norm", source="Molchanov et al. 2017")
def by_l2(scores: Tensor) -> Tensor:
    """Return scores of L2 norm one."""
    return _divide(scores, torch.linalg.vector_norm(scores))


@normalizer("std", summary="divided by their standard deviation", source="Han et al. 2015")
def by_deviation(scores: Tensor) -> Tensor:
    """Return scores of standard deviation one."""
    return _divide(scores, scores.std(correction=0))


@normalizer("minmax", summary="mapped to [0, 1]")
def to_unit_range(scores: Tensor) -> Tensor:
    """Return scores from zero to one."""
    return _divide(scores - scores.min(), scores.max() - scores.min())


@normalizer("standard", summary="less the mean, divided by the standard deviation")
def to_standard(scores: Tensor) -> Tensor:
    """Return scores of mean zero and standard deviation one."""
    return _divide(scores - scores.mean(), scores.std(correction=0))


@normalizer("rank", summary="replaced by their rank within the layer, in (0, 1]")
def to_rank(scores: Tensor) -> Tensor:
    """Return (rank + 1) / n; ties rank by position."""
    order = torch.argsort(scores, stable=True)
    ranks = torch.empty_like(scores)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=scores.dtype, device=scores.device)
    return ranks / len(scores)
