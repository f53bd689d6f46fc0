"""Reducers: from the scores of a unit's weights to one score."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.technique.criteria.record import reducer


def _beyond(rows: Tensor, counts: Tensor) -> Tensor:
    """Mark the places behind the end of shorter rows."""
    return torch.arange(rows.shape[1], device=rows.device) >= counts


@reducer("mean", summary="the mean")
def mean(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the mean of each row."""
    return rows.mean(1) if counts is None else rows.sum(1) / counts[:, 0]


@reducer("sum", summary="the sum")
def total(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the sum of each row."""
    return rows.sum(1)


@reducer("l2", summary="the root of the sum of squares")
def l2(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the L2 norm of each row."""
    return rows.square().sum(1).sqrt()


@reducer("squared_sum", summary="the square of the sum", source="Molchanov et al. 2019")
def squared_sum(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the square of each row's sum."""
    return rows.sum(1).square()


@reducer("max", summary="the largest")
def largest(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the largest of each row."""
    if counts is not None:
        rows = rows.masked_fill(_beyond(rows, counts), -torch.inf)
    return rows.amax(1)


@reducer("min", summary="the smallest")
def smallest(rows: Tensor, counts: Tensor | None) -> Tensor:
    """Return the smallest of each row."""
    if counts is not None:
        rows = rows.masked_fill(_beyond(rows, counts), torch.inf)
    return rows.amin(1)
