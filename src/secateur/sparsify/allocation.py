"""Allocation: how a budget is divided among layers, as pure arithmetic on their shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.lazy import Scores, keep_best
from secateur.structure.weights import PrunableWeight, matches
from secateur.technique.context import Context

OUTLIERS_ABOVE, OUTLIERS_SPREAD = 5.0, 0.08
"""OWL's outliers are so many times the layer's mean; densities differ by at most twice the other
(M and lambda of Yin et al. 2024)."""

TAIL_SPREAD = 0.3
"""How far layers' shares lie from the mean by their spectrum's tail (tau of Lu et al. 2024)."""

SINGLE = ("owl", "tail", "momentum", "threshold")
"""Allocations that look at one weight matrix at a time, which coupled layers are not."""

UNIFORM_PLUS_LAST = 0.8
"""The most that uniform+ takes from the last layer (Gale, Elsen, Hooker 2019)."""


@dataclass(frozen=True)
class Layer:
    """What allocation knows of one layer: its weight, and its cost in the budget's currency.

    ``coupled`` are the weights whose units are the same, this one among them, where there are more.
    """

    weight: PrunableWeight
    cost: float
    coupled: tuple[PrunableWeight, ...] = ()

    def named(self, pattern: str) -> bool:
        """Whether a glob pattern names the weight, or one that is coupled with it."""
        return any(matches(weight, pattern) for weight in self.coupled or (self.weight,))


def shares(
    context: Context,
    layers: Sequence[Layer],
    amount: float,
    claimed: float = 1.0,
    lamp_scores: Sequence[Scores] = (),
    damage: Mapping[str, float] | None = None,
    ends: tuple[str | None, str | None] | None = None,
    traits: Sequence[float] = (),
) -> list[float]:
    """Return the share of each layer's units to remove so that their costs add up to ``amount``.

    Where the layers cannot give so much (each gives at most 1), every layer gives all that it may.
    ``claimed`` is the schedule's share, by which given shares are multiplied; ``ends`` names the
    model's first convolution and last layer for uniform+, else they are looked for in ``layers``.
    ``traits`` holds one number per layer for owl (``outliers``) and tail (``tail_exponent``).
    """
    name = context.allocation
    if name == "threshold":
        return [0.0] * len(layers)  # what scores below zero is known once there are scores
    if name == "given":
        return _given(context, layers, amount, claimed)
    if name in ("erk", "er"):
        return _by_density([_erdos_renyi(layer.weight, name == "erk") for layer in layers], layers,
                           amount)  # fmt: skip
    if name == "lamp":
        return by_ranking(layers, amount, lamp_scores)
    if name == "sensitivity":
        rates = [1 / (1e-3 + max(0.0, (damage or {})[layer.weight.name])) for layer in layers]
        return fill(rates, [layer.cost for layer in layers], amount)
    if name == "owl":
        return _by_outliers(traits, [layer.cost for layer in layers], amount)
    if name == "tail":
        rates = [1 + TAIL_SPREAD * (2 * place - 1) for place in _scaled(traits)]
        return fill(rates, [layer.cost for layer in layers], amount)
    limits = [1.0] * len(layers)
    if name == "uniform_plus":
        limits = _limits_of_uniform_plus(layers, ends or ends_of([each.weight for each in layers]))
    return fill([1.0] * len(layers), [layer.cost for layer in layers], amount, limits)


def fill(
    rates: Sequence[float],
    costs: Sequence[float],
    amount: float,
    limits: Sequence[float] | None = None,
) -> list[float]:
    """Return min(limit_l, z rate_l) with z such that sum cost_l share_l = amount.

    >>> fill([1, 3], [10, 10], 10)
    [0.25, 0.75]
    >>> fill([1, 9], [10, 10], 15)
    [0.5, 1.0]
    """
    most = list(limits) if limits is not None else [1.0] * len(rates)
    full = {place for place, rate in enumerate(rates) if rate <= 0 or most[place] <= 0}
    fixed = dict.fromkeys(full, 0.0)
    while True:
        free = [place for place in range(len(rates)) if place not in fixed]
        left = amount - sum(costs[place] * share for place, share in fixed.items())
        weighted = sum(costs[place] * rates[place] for place in free)
        scale = max(0.0, left / weighted) if weighted > 0 else 0.0
        over = [place for place in free if scale * rates[place] > most[place]]
        if not over:
            break
        fixed.update({place: most[place] for place in over})
    return [fixed.get(place, scale * rates[place]) for place in range(len(rates))]


def outliers(scores: Tensor) -> float:
    """Return the share of scores above five times their mean.

    >>> outliers(torch.tensor([1.0] * 9 + [91.0]))
    0.1
    """
    return float((scores > OUTLIERS_ABOVE * scores.mean()).double().mean())


def tail_exponent(matrix: Tensor) -> float:
    """Return Hill's estimate of the exponent of the matrix' spectrum; low means heavy-tailed.

    With the squared singular values in rising order and k half their number it is
    1 + k / sum over i <= k of ln(l_(n-i+1) / l_(n-k)) (Lu et al. 2024).
    """
    values = torch.linalg.svdvals(matrix.double()).square().flip(0)
    values = values[values > 0]
    half = len(values) // 2
    if half == 0:
        return math.inf
    total = float((values[-half:] / values[-half - 1]).log().sum())
    return 1 + half / total if total > 0 else math.inf


def _scaled(traits: Sequence[float]) -> list[float]:
    """Map numbers to 0 to 1; what is infinite counts as the largest, and equals as the middle."""
    finite = [trait for trait in traits if math.isfinite(trait)] or [0.0]
    low, high = min(finite), max(finite)
    if high == low:
        return [0.5] * len(traits)
    return [(min(trait, high) - low) / (high - low) for trait in traits]


def _by_outliers(traits: Sequence[float], costs: Sequence[float], amount: float) -> list[float]:
    """Return shares min(1, max(0, z - offset)) that cost ``amount``, offsets by the outliers."""
    offsets = [2 * OUTLIERS_SPREAD * place for place in _scaled(traits)]

    def shifted(level: float) -> list[float]:
        return [min(1.0, max(0.0, level - offset)) for offset in offsets]

    low, high = 0.0, 1.0 + max(offsets, default=0.0)
    for _ in range(60):
        middle = (low + high) / 2
        spent = sum(cost * share for cost, share in zip(costs, shifted(middle), strict=True))
        low, high = (middle, high) if spent < amount else (low, middle)
    return shifted(high)


def densities(rates: Sequence[float], costs: Sequence[float], kept: float) -> list[float]:
    """Return densities min(1, z rate_l) whose costs add up to ``kept``: the rule of ERK."""
    return fill(rates, costs, kept)


def _by_density(rates: Sequence[float], layers: Sequence[Layer], amount: float) -> list[float]:
    costs = [layer.cost for layer in layers]
    return [1 - density for density in densities(rates, costs, max(0.0, sum(costs) - amount))]


def _erdos_renyi(weight: PrunableWeight, kernel: bool) -> float:
    """Return (o + i + kernel) / (o i kernel) of the stored tensor, or (o + i) / (o i)."""
    sizes = [weight.outputs, *weight.shape[2:]] if kernel else [weight.outputs, weight.shape[2]]
    return sum(sizes) / math.prod(sizes)


def ends_of(weights: Sequence[PrunableWeight]) -> tuple[str | None, str | None]:
    """Return the names of the first convolution and of the last layer."""
    convolutions = [weight.name for weight in weights if len(weight.shape) > 3]
    return (convolutions[0] if convolutions else None, weights[-1].name if weights else None)


def _limits_of_uniform_plus(
    layers: Sequence[Layer], ends: tuple[str | None, str | None]
) -> list[float]:
    limits = {ends[1]: UNIFORM_PLUS_LAST, ends[0]: 0.0}
    return [limits.get(layer.weight.name, 1.0) for layer in layers]


def by_ranking(layers: Sequence[Layer], amount: float, scores: Sequence[Scores]) -> list[float]:
    """Rank all units together and count how many of each layer are among the lowest.

    Where layers cost differently per unit, the number of units is found by bisection.
    """
    costs = [layer.cost / max(1, len(part)) for layer, part in zip(layers, scores, strict=True)]

    def taken(count: int) -> list[int]:
        return [len(kept) - int(torch.count_nonzero(kept)) for kept in keep_best(scores, count)]

    low, high = 0, sum(len(part) for part in scores)
    if max(costs) - min(costs) < 1e-12 * max(costs):
        low = min(high, round(amount / costs[0]))
    else:
        while low < high:
            middle = (low + high + 1) // 2
            spent = sum(c * k for c, k in zip(costs, taken(middle), strict=True))
            low, high = (middle, high) if spent <= amount + 1e-9 else (low, middle - 1)
    counts = taken(low)
    return [count / max(1, len(part)) for count, part in zip(counts, scores, strict=True)]


def written(context: Context, layers: Sequence[Layer], claimed: float) -> float:
    """Return what the shares that a context gives layer by layer cost together."""
    spent = _given(context, layers, -1.0, claimed)
    return sum(layer.cost * share for layer, share in zip(layers, spent, strict=True))


def _given(context: Context, layers: Sequence[Layer], amount: float, claimed: float) -> list[float]:
    """Take the shares as written; the other layers share what is left of the budget, if any."""
    for pattern, _ in context.given:
        if not any(layer.named(pattern) for layer in layers):
            raise SecateurError(
                f"the pattern '{pattern}' of {context} matches no prunable layer; layers are "
                + ", ".join(layer.weight.name for layer in layers[:6])
            )
    written: list[float | None] = []
    for layer in layers:
        hits = [share for pattern, share in context.given if layer.named(pattern)]
        written.append(hits[0] * claimed if hits else None)
    spent = sum(
        layer.cost * share
        for layer, share in zip(layers, written, strict=True)
        if share is not None
    )
    if amount < 0:
        return [0.0 if share is None else share for share in written]
    if spent > amount * (1 + 1e-6) + 1e-6:
        total = sum(layer.cost for layer in layers)
        raise SecateurError(
            f"the shares written in {context} remove {spent / total:.4g} of what is prunable, more "
            f"than the budget's {amount / total:.4g}; give one of them"
        )
    limits = [1.0 if share is None else 0.0 for share in written]
    rest = fill([1.0] * len(layers), [layer.cost for layer in layers], amount - spent, limits)
    return [own if own is not None else other for own, other in zip(written, rest, strict=True)]
