"""Search: divisions of a budget among layers, tried on the model and compared by their loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.sparsify.allocation import Layer, by_ranking, fill
from secateur.sparsify.statistics import run_model

CANDIDATES = 24
"""How many divisions a search tries."""

PARENTS, MUTATED = 6, 0.3
"""The evolutionary search changes one of the best so many, in so large a share of the layers."""

Division = Callable[[float], list[float]]
"""The shares of all layers whose costs add up to an amount."""

Trial = Callable[[Division], float]


def search(
    name: str,
    layers: Sequence[Layer],
    scores: Sequence[Tensor],
    spent: Sequence[float],
    amount: float,
    trial: Trial,
    generator: torch.Generator,
) -> Division:
    """Return the best division that a search by this name finds for an amount.

    ``scores`` are those of each layer's units, with -inf for what is gone, ``spent`` the cost of
    that; ``trial`` returns the loss under a division.
    """
    if name == "sampled":
        return sampled([layer.cost for layer in layers], trial, generator)
    if name == "greedy":
        return greedy([layer.cost for layer in layers], spent, amount, trial)
    return ranking(layers, scores, trial, generator)


def sampled(costs: Sequence[float], trial: Trial, generator: torch.Generator) -> Division:
    """Try shares in proportion to random rates; the first candidate gives equal shares."""
    rates = [torch.ones(len(costs))]
    rates += [torch.rand(len(costs), generator=generator) for _ in range(CANDIDATES - 1)]
    return min((partial(fill, rate.tolist(), costs) for rate in rates), key=trial)


def greedy(costs: Sequence[float], spent: Sequence[float], amount: float, trial: Trial) -> Division:
    """Take what is new of the amount from a single layer, the one that does the least harm.

    Where none holds so much, all give alike.
    """
    extra = amount - sum(spent)
    room = [cost - gone for cost, gone in zip(costs, spent, strict=True)]
    able = [place for place, left in enumerate(room) if extra < left * (1 - 1e-9)]
    if extra <= 0 or not able:
        return partial(_more, costs, spent, None)
    return min((partial(_more, costs, spent, place) for place in able), key=trial)


def _more(
    costs: Sequence[float], spent: Sequence[float], first: int | None, amount: float
) -> list[float]:
    """Add what is new of an amount to one layer's share, and what that cannot hold to all."""
    room = [cost - gone for cost, gone in zip(costs, spent, strict=True)]
    extra = max(0.0, amount - sum(spent))
    taken = [0.0] * len(costs)
    if first is not None:
        taken[first] = min(extra, room[first])
    left = [part - own for part, own in zip(room, taken, strict=True)]
    rest = fill([1.0] * len(costs), left, extra - sum(taken))
    return [
        (gone + own + part * share) / cost if cost else 0.0
        for gone, own, part, share, cost in zip(spent, taken, left, rest, costs, strict=True)
    ]


def ranking(
    layers: Sequence[Layer], scores: Sequence[Tensor], trial: Trial, generator: torch.Generator
) -> Division:
    """Rank all units together after a_l s + k_l; an evolutionary search finds a and k.

    One of the best parents so far is changed in some layers, a by a log-normal factor and k by a
    normal number in units of the layer's standard deviation (Chin et al. 2020).
    """
    count = len(layers)
    spreads = torch.tensor([_spread(part) for part in scores])

    def normal() -> Tensor:
        return torch.randn(count, generator=generator)

    def division(scales: Tensor, shifts: Tensor) -> Division:
        ranked = zip(scores, scales.tolist(), shifts.tolist(), strict=True)
        changed = [scale * part + shift for part, scale, shift in ranked]
        return lambda amount: by_ranking(layers, amount, changed)

    tried: list[tuple[float, tuple[Tensor, Tensor]]] = []
    for _ in range(CANDIDATES):
        genes = (torch.ones(count), torch.zeros(count))
        if tried:
            best = sorted(tried, key=lambda each: each[0])[:PARENTS]
            parent = best[int(torch.randint(len(best), (), generator=generator))][1]
            changed = (torch.rand(count, generator=generator) < MUTATED).float()
            genes = (
                parent[0] * (changed * normal()).exp(),
                parent[1] + changed * spreads * normal(),
            )
        tried.append((trial(division(*genes)), genes))
    return division(*min(tried, key=lambda each: each[0])[1])


def _spread(scores: Tensor) -> float:
    finite = scores[scores.isfinite()].double()
    return float(finite.std(correction=0)) if len(finite) else 0.0


@contextlib.contextmanager
def recalibrated(model: nn.Module, data: Iterable[Any]) -> Iterator[None]:
    """Take the statistics of all batch norms anew on the data, and put the old ones back later."""
    norms = [
        module for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]  # fmt: skip
    held = [({n: b.clone() for n, b in norm.named_buffers()}, norm.momentum) for norm in norms]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        with torch.no_grad():
            for batch in data if norms else ():
                run_model(model, batch)
        yield
    finally:
        for norm, (buffers, momentum) in zip(norms, held, strict=True):
            norm.momentum = momentum
            for name, value in buffers.items():
                norm.get_buffer(name).copy_(value)
        for module, mode in modes:
            module.training = mode


def by_momentum(
    costs: Sequence[float],
    spent: Sequence[float],
    amount: float,
    exchanged: float,
    momenta: Sequence[float],
) -> list[float]:
    """Return shares after each layer has dropped so much of its survivors, and got its part back.

    What may stay beyond the survivors that were not dropped is divided in proportion to the mean
    momentum of the layers' survivors (Dettmers and Zettlemoyer 2019).
    """
    kept = [(1 - exchanged) * (cost - gone) for cost, gone in zip(costs, spent, strict=True)]
    room = [cost - stays for cost, stays in zip(costs, kept, strict=True)]
    free = max(0.0, sum(costs) - amount - sum(kept))
    rates = [momentum / part if part > 0 else 0.0
             for momentum, part in zip(momenta, room, strict=True)]  # fmt: skip
    if not any(rates):
        rates = [1.0] * len(costs)
    back = fill(rates, room, free)
    return [
        1 - (stays + part * place) / cost if cost else 0.0
        for stays, part, place, cost in zip(kept, back, room, costs, strict=True)
    ]
