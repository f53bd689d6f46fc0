"""Measures of a detector: labels are 0 (real) or 1 (fake), scores are higher for fakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Measure = Callable[[Labels, Numbers], float]


def both(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Labels, Numbers]:
    """Labels and scores as arrays; a ``ValueError`` if they cannot be measured."""
    y, s = np.asarray(labels, np.int64).ravel(), np.asarray(scores, np.float64).ravel()
    if y.shape != s.shape or not np.isin(y, (0, 1)).all() or not np.isfinite(s).all():
        raise ValueError("labels are 0 or 1, scores are finite, and there are as many of each")
    return y, s


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The chance that a fake scores higher than a real one, ties counted half; nan without both.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    y, s = both(labels, scores)
    fakes = int(y.sum())
    if fakes in (0, len(y)):
        return float("nan")
    _, place, counts = np.unique(s, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    return float((ranks[y == 1].sum() - fakes * (fakes + 1) / 2) / (fakes * (len(y) - fakes)))


def average_precision(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Precision averaged over the steps of recall, sum (R_n - R_(n-1)) P_n; nan without both."""
    y, s = both(labels, scores)
    if y.sum() in (0, len(y)):
        return float("nan")
    hits, alarms = _counts(y, s)
    precision = hits / (hits + alarms)
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / y.sum())


def roc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Numbers, Numbers]:
    """False-alarm rate and recall, from none flagged to all flagged."""
    y, s = both(labels, scores)
    hits, alarms = (np.concatenate([[0.0], part]) for part in _counts(y, s))
    fakes = y.sum()
    return alarms / max(len(y) - fakes, 1), hits / max(fakes, 1)


def eer(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """The error rate where false alarms and misses are equal, between points on a straight line."""
    y, s = both(labels, scores)
    if y.sum() in (0, len(y)):
        return float("nan")
    alarms, recall = roc(y, s)
    gap = alarms - (1 - recall)
    after = int(np.argmax(gap >= 0))
    if after == 0:
        return float(alarms[0])
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(alarms[after - 1] + share * (alarms[after] - alarms[after - 1]))


def recall_at(labels: npt.ArrayLike, scores: npt.ArrayLike, alarms: float) -> float:
    """The highest recall of any threshold whose false-alarm rate is at most ``alarms``."""
    y, s = both(labels, scores)
    if y.sum() in (0, len(y)):
        return float("nan")
    rate, recall = roc(y, s)
    return float(recall[rate <= alarms + 1e-12].max())


def brier(labels: npt.ArrayLike, scores: npt.ArrayLike, even: bool = False) -> float:
    """The mean squared distance of probability and label; nan without any.

    With ``even``, real and fake weigh the same in sum, as in an even mixture of both.
    """
    y, p = both(labels, scores)
    return float(np.sum(_weights(y, even) * (p - y) ** 2)) if len(y) else float("nan")


def ece(labels: npt.ArrayLike, scores: npt.ArrayLike, bins: int = 15, even: bool = False) -> float:
    """Expected calibration error over bins of equal width (Guo et al., ICML 2017).

    With ``even``, real and fake weigh the same in sum, as in an even mixture of both.
    """
    y, p = both(labels, scores)
    if not len(y):
        return float("nan")
    place = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=_weights(y, even) * (p - y), minlength=bins)
    return float(np.abs(gaps).sum())


def _weights(y: Labels, even: bool) -> Numbers:
    """The weight of each example; they sum to one."""
    fakes = int(y.sum())
    if not even or fakes in (0, len(y)):
        return np.full(len(y), 1 / len(y))
    return np.where(y == 1, 0.5 / fakes, 0.5 / (len(y) - fakes))


def platt(labels: npt.ArrayLike, logits: npt.ArrayLike, steps: int = 50) -> tuple[float, float]:
    """Scale and shift of the logistic fit sigmoid(scale * logit + shift), by Newton's method.

    Real and fake weigh the same in sum, so that the probability is that of an even mixture; the
    targets are those of Platt (1999), which keep a perfect separation finite.
    """
    y, x = both(labels, logits)
    fakes, reals = int(y.sum()), int(len(y) - y.sum())
    if not fakes or not reals:
        raise ValueError("a calibration needs real and fake examples")
    target = np.where(y == 1, (fakes + 1) / (fakes + 2), 1 / (reals + 2))
    weight = np.where(y == 1, 0.5 / fakes, 0.5 / reals)
    design = np.stack([x, np.ones_like(x)], 1)
    fit = np.zeros(2)

    def loss(at: Numbers) -> float:
        z = design @ at
        return float(np.sum(weight * (np.logaddexp(0, z) - target * z)))

    for _ in range(steps):
        p = 0.5 * (1 + np.tanh(0.5 * (design @ fit)))
        slope = design.T @ (weight * (p - target))
        bend = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-12 * np.eye(2)
        move, size = np.linalg.solve(bend, slope), 1.0
        while size > 1e-6 and loss(fit - size * move) > loss(fit):
            size /= 2
        fit = fit - size * move
        if np.abs(size * move).max() < 1e-10:
            break
    return float(fit[0]), float(fit[1])


def interval(
    measure: Measure,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: Sequence[object] | npt.NDArray[np.str_],
    rounds: int = 500,
    seed: int = 0,
) -> list[float]:
    """The value and its 95 % interval: bootstrap over whole groups (persons), percentiles.

    Rounds in which the measure is not defined are left out; without any the ends are nan.
    """
    y, s = both(labels, scores)
    _, place = np.unique(np.asarray([str(group) for group in groups]), return_inverse=True)
    order = np.argsort(place, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(place))[:-1]) if len(y) else []
    random = np.random.default_rng(seed)
    found = []
    for _ in range(rounds if len(members) > 1 else 0):
        drawn = random.integers(len(members), size=len(members))
        rows = np.concatenate([members[index] for index in drawn])
        value = measure(y[rows], s[rows])
        if np.isfinite(value):
            found.append(value)
    low, high = np.percentile(found, [2.5, 97.5]) if found else (np.nan, np.nan)
    return [measure(y, s), float(low), float(high)]


def _counts(y: Labels, s: Numbers) -> tuple[Numbers, Numbers]:
    """Fakes and reals flagged at each distinct threshold, from the highest down."""
    order = np.argsort(-s, kind="stable")
    sorted_s, sorted_y = s[order], y[order]
    last = np.flatnonzero(np.diff(sorted_s, append=np.nan) != 0)
    hits = np.cumsum(sorted_y)[last].astype(np.float64)
    return hits, last + 1.0 - hits
