"""Means with intervals over seeds, paired tests over seeds, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from secateur.errors import SecateurError

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` values and its 95 % interval; one value has no interval (None)."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half(self) -> float | None:
        """Half of the interval's width."""
        return None if self.high is None else self.high - self.mean


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean and its interval after Student's t: mean ± t(n - 1) s / sqrt(n).

    >>> found = interval([0.90, 0.92, 0.94])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.92, 0.87, 0.97)
    """
    if not values:
        raise SecateurError("there are no values to average")
    if not 0 < level < 1:
        raise SecateurError(f"level is {level}: expected 0 < level < 1")
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, None, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Paired:
    """The mean difference a - b over common seeds, its interval, and the p value of a t test.

    ``p`` is None where nothing can be tested: fewer than two common seeds, or differences that do
    not vary at all although they are not zero.
    """

    difference: Interval
    p: float | None


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    """Compare two techniques over the seeds that both have; None where they have none in common.

    The two-sided paired t test (Student 1908): t = mean(d) / (s / sqrt(n)) with n - 1 degrees of
    freedom, for the differences d.

    >>> found = paired({0: 0.9, 1: 0.8, 2: 0.85}, {0: 0.7, 1: 0.65, 2: 0.6})
    >>> round(found.difference.mean, 3), round(found.p, 3)
    (0.2, 0.02)
    >>> paired({0: 0.9}, {1: 0.9}) is None
    True
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    differences = [a[seed] - b[seed] for seed in seeds]
    found = interval(differences)
    n = found.n
    if n < 2:
        return Paired(found, None)
    largest = max(map(abs, differences))
    spread = math.sqrt(math.fsum((each - found.mean) ** 2 for each in differences) / (n - 1))
    # Below this a spread is the rounding of floats that were meant to be equal.
    if spread <= 1e-12 * max(1.0, largest):
        return Paired(found, 1.0 if largest <= 1e-12 else None)
    p = 2 * float(stats.t.sf(abs(found.mean) / (spread / math.sqrt(n)), n - 1))
    return Paired(found, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for being many, after Holm (1979); None stays None and does not count.

    The k-th smallest of m becomes max over j <= k of min(1, (m - j + 1) p_j).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    for p in p_values:
        if p is not None and not 0 <= p <= 1:
            raise SecateurError(f"{p} is not a p value: expected 0 to 1")
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted
