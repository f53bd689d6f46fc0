"""Search: divisions of a budget among layers, tried on the model and compared by their loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
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

Trial = Callable[[Sequence[float]], float]


def search(
    name: str,
    layers: Sequence[Layer],
    scores: Sequence[Tensor],
    spent: Sequence[float],
    amount: float,
    trial: Trial,
    generator: torch.Generator,
) -> list[float]:
    """Return the shares of the best division of an amount that a search by this name finds.

    ``scores`` are those of each layer's units, with -inf for what is gone, ``spent`` the cost of
    that; ``trial`` returns the loss under some shares.
    """
    if name == "sampled":
        return sampled([layer.cost for layer in layers], amount, trial, generator)
    if name == "greedy":
        return greedy([layer.cost for layer in layers], spent, amount, trial)
    return ranking(layers, scores, amount, trial, generator)


def sampled(
    costs: Sequence[float], amount: float, trial: Trial, generator: torch.Generator
) -> list[float]:
    """Try shares in proportion to random rates; the first candidate gives equal shares."""
    rates = [torch.ones(len(costs))]
    rates += [torch.rand(len(costs), generator=generator) for _ in range(CANDIDATES - 1)]
    candidates = [fill(rate.tolist(), costs, amount) for rate in rates]
    return min(candidates, key=trial)


def greedy(
    costs: Sequence[float], spent: Sequence[float], amount: float, trial: Trial
) -> list[float]:
    """Take what is new of the amount from a single layer, the one that does the least harm.

    Where none holds so much, all give alike.
    """
    now = [gone / cost if cost else 0.0 for gone, cost in zip(spent, costs, strict=True)]
    extra = amount - sum(spent)
    candidates = []
    for place, cost in enumerate(costs):
        share = now[place] + extra / cost if cost else 2.0
        if share <= 1 - 1e-9:
            candidates.append([*now[:place], share, *now[place + 1 :]])
    if extra <= 0 or not candidates:
        left = [cost * (1 - share) for cost, share in zip(costs, now, strict=True)]
        more = fill([1.0] * len(costs), left, max(0.0, extra))
        return [share + (1 - share) * part for share, part in zip(now, more, strict=True)]
    return min(candidates, key=trial)


def ranking(
    layers: Sequence[Layer],
    scores: Sequence[Tensor],
    amount: float,
    trial: Trial,
    generator: torch.Generator,
) -> list[float]:
    """Rank all units together after a_l s + k_l; an evolutionary search finds a and k.

    One of the best parents so far is changed in some layers, a by a log-normal factor and k by a
    normal number in units of the layer's standard deviation (Chin et al. 2020).
    """
    count = len(layers)
    spreads = torch.tensor([_spread(part) for part in scores])

    def normal() -> Tensor:
        return torch.randn(count, generator=generator)

    def divide(genes: tuple[Tensor, Tensor]) -> list[float]:
        pairs = zip(scores, genes[0].tolist(), genes[1].tolist(), strict=True)
        return by_ranking(layers, amount, [scale * part + shift for part, scale, shift in pairs])

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
        tried.append((trial(divide(genes)), genes))
    return divide(min(tried, key=lambda each: each[0])[1])


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
