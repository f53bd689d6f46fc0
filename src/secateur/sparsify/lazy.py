"""Selection by scores that are computed only near the threshold."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from secateur.sparsify.select import count_true, keep_highest, marked, places
from secateur.technique.criteria.tails import Tails

Scores = Tensor | Tails
"""The scores of a layer's units [units], or what they can be computed from."""

_SAMPLE = 1 << 16


def complete(scores: Scores) -> Tensor:
    """Return all scores [units]."""
    return scores.complete() if isinstance(scores, Tails) else scores


def keep_best(parts: Sequence[Scores], removing: int) -> list[Tensor]:
    """Do as ``keep_highest``; where all parts are lazy, without the scores far from the threshold.

    >>> sizes = Tails.of(torch.tensor([3.0, 1.0, 2.0]))
    >>> [kept.tolist() for kept in keep_best([sizes], 2)]
    [[True, False, False]]
    """
    lazy = [part for part in parts if isinstance(part, Tails)]
    if not lazy or len(lazy) < len(parts):
        return keep_highest([complete(part) for part in parts], removing)
    # Within a layer the scores are in the order of the sizes.
    counts: list[int] | None = [removing]
    if len(lazy) > 1:
        counts = _counts(lazy, removing, _brackets(lazy, removing))
    if counts is None:
        counts = _counts(lazy, removing, [(-torch.inf, torch.inf)] * len(lazy))
    assert counts is not None  # nothing lies outside the widest brackets
    return [keep_highest([part.sizes], count)[0] for part, count in zip(lazy, counts, strict=True)]


def _brackets(parts: Sequence[Tails], removing: int) -> list[tuple[float, float]]:
    """Guess, from samples, between which sizes each part's threshold lies."""
    samples, scores, weights = [], [], []
    for part in parts:
        stride = -(-len(part) // _SAMPLE)
        samples.append(torch.from_numpy(np.sort(part.sizes.numpy()[::stride])))
        scores.append(part.of_sorted(samples[-1]) / stride)
        weights.append(torch.full_like(scores[-1], stride))
    ordered, order = torch.cat(scores).sort()
    reached = int(torch.searchsorted(torch.cat(weights)[order].cumsum(0), removing))
    level = ordered[min(reached, len(ordered) - 1)]
    found = []
    for sample, own in zip(samples, scores, strict=True):
        place, slack = int(torch.searchsorted(own, level)), int(4 * len(own) ** 0.5)
        low = float(sample[place - slack]) if place > slack else -torch.inf
        high = float(sample[place + slack]) if place + slack < len(own) else torch.inf
        found.append((low, high))
    return found


def _counts(
    parts: Sequence[Tails], removing: int, brackets: Sequence[tuple[float, float]]
) -> list[int] | None:
    """Count how many of each part are among the lowest; None if a bracket misses the threshold."""
    below, behind, scores = [], [], []
    for part, (low, high) in zip(parts, brackets, strict=True):
        under = marked(operator.le, part.sizes, torch.tensor(low))
        inside = marked(operator.le, part.sizes, torch.tensor(high)) ^ under
        ordered = torch.from_numpy(np.sort(part.sizes[places(inside)].numpy()))
        below.append(count_true(under))
        behind.append(len(part) - below[-1] - len(ordered))
        scores.append(part.of_sorted(ordered, part.above(high)))
    left = removing - sum(below)
    if (left < 0 and any(below)) or (left > sum(map(len, scores)) and any(behind)):
        return None
    kept = [count_true(mask) for mask in keep_highest(scores, left)]
    gone = [len(own) - stay for own, stay in zip(scores, kept, strict=True)]
    # What lies below a removed unit is lower still, and what lies behind a kept one is higher.
    if any(under and not own for under, own in zip(below, gone, strict=True)):
        return None
    if any(rest and not stay for rest, stay in zip(behind, kept, strict=True)):
        return None
    return [under + own for under, own in zip(below, gone, strict=True)]
