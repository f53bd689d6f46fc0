"""Selection: exactly so many of the lowest scores, ties broken by position."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 1 << 16
_NUMPY = (torch.float32, torch.float64)


def marked(compare: Callable[[Any, Any], Any], part: Tensor, bar: Tensor) -> Tensor:
    """Compare the entries with a 0-d tensor; NumPy does it four times faster than torch."""
    if part.device.type == "cpu" and part.dtype in _NUMPY:
        return torch.from_numpy(compare(part.numpy(), bar.numpy()))
    found: Tensor = compare(part, bar)
    return found


def places(mask: Tensor) -> Tensor:
    """Return where a 1-D mask is True; NumPy finds it many times faster than torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return torch.nonzero(mask)[:, 0]


def count_true(mask: Tensor) -> int:
    """Count the True entries; NumPy's count is several times faster than torch's on the CPU."""
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.numpy()))
    return int(torch.count_nonzero(mask))


def keep_highest(parts: Sequence[Tensor], removing: int) -> list[Tensor]:
    """Mark what is kept when the ``removing`` lowest scores of all parts together go.

    ``parts`` are 1-D and without NaN; of equal scores the one that comes first goes first.
    Returns one boolean tensor per part, True = kept; exactly ``removing`` entries are False.

    >>> [kept.tolist() for kept in keep_highest([torch.tensor([2.0, 1.0]), torch.tensor([1.0])], 1)]
    [[True, False], [True]]
    """
    total = sum(part.numel() for part in parts)
    if not 0 <= removing <= total:
        raise ValueError(f"cannot remove {removing} of {total} units")
    if removing in (0, total):
        return [torch.full_like(part, removing == 0, dtype=torch.bool) for part in parts]
    threshold = kth_smallest(parts, removing)
    kept = [marked(operator.gt, part, threshold) for part in parts]
    excess = removing - (total - sum(count_true(mask) for mask in kept))
    for part, mask in zip(reversed(parts), reversed(kept), strict=True):
        if excess == 0:
            break
        ties = places(marked(operator.eq, part, threshold))
        returned = ties[max(0, len(ties) + excess) :]
        mask[returned] = True
        excess += len(returned)
    return kept


def kth_smallest(parts: Sequence[Tensor], k: int) -> Tensor:
    """Return the k-th smallest of all entries (k from 1), as a 0-d tensor.

    A sample brackets the answer, so that only few entries are looked at twice.
    """
    total = sum(part.numel() for part in parts)
    if total <= 4 * _SAMPLE:
        return torch.cat(list(parts)).kthvalue(k).values
    stride = total // _SAMPLE
    sample = torch.cat([part[::stride] for part in parts]).sort().values
    place = k / total * len(sample)
    slack = 4 * len(sample) ** 0.5
    low = sample[int(place - slack)] if place > slack else sample.new_tensor(-torch.inf)
    high = sample[int(place + slack)] if place + slack < len(sample) else low.new_tensor(torch.inf)
    bottom = bool(low == -torch.inf)
    below = 0
    found = []
    for part in parts:
        # What is removed already stands at -inf, in numbers that are better counted than sorted.
        under = marked(operator.le if bottom else operator.lt, part, low)
        below += count_true(under)
        found.append(part[places(marked(operator.le, part, high) ^ under)])
    near = torch.cat(found)
    if bottom and k <= below:
        return low
    if 0 < k - below <= len(near):
        return near.kthvalue(k - below).values
    return torch.cat(list(parts)).kthvalue(k).values


def keep_within(parts: Sequence[Tensor], costs: Sequence[Tensor], amount: float) -> list[Tensor]:
    """Mark what is kept when the lowest go until their costs come as near to ``amount`` as can be.

    ``costs`` are the units' costs [units]; units of infinite score are never taken. Where two
    counts are equally near, the smaller is taken.
    """
    scores = torch.cat(list(parts))
    order = torch.argsort(scores, stable=True)
    spent = torch.cat(list(costs)).to(scores.device, torch.float64)[order].cumsum(0)
    count = int(torch.count_nonzero(spent <= amount + 1e-9 * max(1.0, abs(amount))))
    if count < len(scores):
        before = float(spent[count - 1]) if count else 0.0
        if float(spent[count]) - amount < amount - before - 1e-9:
            count += 1
    count = min(count, int(torch.count_nonzero(scores < torch.inf)))
    kept = torch.ones_like(scores, dtype=torch.bool)
    kept[order[:count]] = False
    return list(kept.split([part.numel() for part in parts]))


def keep_highest_rows(scores: Tensor, removing: int) -> Tensor:
    """Remove the ``removing`` lowest of every row of [rows, units]; ties go by position."""
    if removing == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(removing, dim=1, keepdim=True).values
    kept = scores > threshold
    excess = removing - (scores.shape[1] - kept.sum(1))
    if not bool(excess.any()):
        return kept
    # More are as low as the threshold than are to go: the last of them stay.
    rows = excess.nonzero()[:, 0]
    equal = scores[rows] == threshold[rows]
    behind = equal.flip(1).cumsum(1).flip(1)
    kept[rows] |= equal & (behind <= -excess[rows, None])
    return kept
