"""Gates on a model: what the forward pass uses, and what is learned from it.

Between two steps of the optimiser a parameter holds what the gate makes of it, and the parameter's
own values wait in the memory. Before the next step, the gradient at what was used is carried back
to both by the chain rule, the learned numbers take their step, and the parameter gets its own
values and gradient for the optimiser's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.memory import Memory
from secateur.sparsify.setup import Setup
from secateur.sparsify.sites import Site, find_sites
from secateur.technique import Technique
from secateur.technique.criteria.gate import Gate, zeros

_PLACES = 128


def _dropped(
    weight: Tensor,
    learned: Tensor,
    mask: Tensor,
    noise: Tensor,
    time: float,
    drop: float = 0.0,
    **parameters: float,
) -> Tensor:
    return weight * mask * (noise >= drop)


def _nothing(weight: Tensor, learned: Tensor, time: float, **parameters: float) -> Tensor:
    return torch.zeros_like(weight)


DROPPING = Gate(_dropped, _nothing, zeros, "nothing", noisy=True)
"""The gate of ``drop=``, which learns nothing: a unit is there or not, by chance."""


class Gates:
    """The gates of a technique on one model; what changes lies in the memory."""

    def __init__(self, model: nn.Module, technique: Technique, setup: Setup) -> None:
        _check(technique)
        self.model = model
        self.technique = technique
        self.gate = technique.criteria.gate or DROPPING
        self.options: dict[str, Any] = dict(technique.criteria.innermost.parameters)
        if technique.criteria.gate is None:
            self.options = {"rate": 0.0, "drop": technique.update.drop}
        self.sites = find_sites(model, technique, setup, self.gate.shared)
        self.by_parameter: dict[str, list[Site]] = {}
        for site in self.sites:
            for name in site.entries:
                self.by_parameter.setdefault(name, []).append(site)
        schedule = technique.schedule
        places = (place / _PLACES for place in range(_PLACES + 1))
        self.end = next((each for each in places if schedule.settles(each)), 1.0)

    def begin(self, memory: Memory, seed: int) -> None:
        """Give the learned numbers their first values."""
        generator = torch.Generator().manual_seed(seed)
        for site in self.sites:
            first = self.gate.start(site.count, site.inputs, generator, **self.options)
            place = self.model.get_parameter(site.first).device
            memory.learned[site.name] = first.to(place)

    def time(self, progress: float) -> float:
        """Return the share of the gates' life that is over."""
        return min(1.0, progress / self.end) if self.end else 1.0

    def hide(self, memory: Memory, masks: Mapping[str, Tensor], progress: float) -> None:
        """Put what the forward pass uses into the parameters; their own values wait."""
        if self.gate.noisy:
            generator = torch.Generator()
            generator.set_state(memory.generator)
            for site in self.sites:
                uniform = torch.rand(site.count, generator=generator).clamp(1e-6, 1 - 1e-6)
                memory.noise[site.name] = uniform.to(memory.learned[site.name].device)
            memory.generator = generator.get_state()
        frozen = self.technique.update.removed == "frozen"
        for name in self.by_parameter:
            parameter = self.model.get_parameter(name)
            mask = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
            held = parameter.detach() * mask if frozen else parameter.detach().clone()
            memory.dense[name] = held
            parameter.copy_(self._used(name, held, memory.learned, mask, memory, progress))

    def show(self, memory: Memory) -> None:
        """Give the parameters their own values back."""
        for name, held in memory.dense.items():
            parameter = self.model.get_parameter(name)
            parameter.copy_(held.to(parameter.device))
        memory.dense.clear()

    def learn(
        self,
        memory: Memory,
        masks: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        progress: float,
        penalty: float,
    ) -> None:
        """Carry the gradients at what was used back, and let the learned numbers take a step."""
        own = {name: numbers.requires_grad_() for name, numbers in memory.learned.items()}
        grads = {name: torch.zeros_like(numbers) for name, numbers in own.items()}
        for name, kept_back in memory.dense.items():
            parameter = self.model.get_parameter(name)
            if parameter.grad is None:
                continue
            held = kept_back.to(parameter.device).requires_grad_()
            mask = masks[name] if name in masks else torch.ones_like(parameter, dtype=torch.bool)
            sites = self.by_parameter[name]
            with torch.enable_grad():
                used = self._used(name, held, own, mask, memory, progress)
                value = (used * parameter.grad.detach()).sum()
                if penalty:
                    looked = [site for site in sites if site.first == name]
                    value = value + penalty * self._penalty(looked, own, held, progress)
            wanted = [held, *(own[site.name] for site in sites)]
            found = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
            parameter.grad.copy_(found[0])
            for site, gradient in zip(sites, found[1:], strict=True):
                grads[site.name] += gradient.to(grads[site.name].device)
        rates = _rates(optimizer)
        for site in self.sites:
            numbers = memory.learned[site.name].detach()
            rate = rates.get(id(self.model.get_parameter(site.first)), 0.0) * self.options["rate"]
            memory.learned[site.name] = numbers - rate * grads[site.name]

    def penalty(self, memory: Memory, progress: float) -> Tensor:
        """Return what the objective ``gates`` adds to the loss, before its weight."""
        with torch.no_grad():
            return self._penalty(self.sites, memory.learned, None, progress, memory)

    def settle(self, memory: Memory) -> None:
        """Let the gates stand as they are for good: their part goes into the weights."""
        final = self.gate.final
        for name, sites in self.by_parameter.items() if final is not None else ():
            parameter = self.model.get_parameter(name)
            value = parameter.detach().clone()
            for site in sites:
                numbers = site.spread(name, memory.learned[site.name])
                assert final is not None
                ruled = _ruled(site, name, value)
                value = torch.where(ruled, final(value, numbers, **self.options), value)
            parameter.copy_(value)
        memory.noise.clear()

    def _used(
        self,
        name: str,
        held: Tensor,
        learned: Mapping[str, Tensor],
        mask: Tensor,
        memory: Memory,
        progress: float,
    ) -> Tensor:
        """Return what the forward pass uses of a parameter: gated, and without what is masked."""
        kept = mask.to(held.dtype)
        used = held * kept
        straight = self.technique.update.removed == "straight_through"
        for site in self.by_parameter[name]:
            numbers = site.spread(name, learned[site.name]).to(held.dtype)
            noise = memory.noise.get(site.name)
            noise = torch.zeros(()) if noise is None else site.spread(name, noise)
            gated = self.gate.used(held, numbers, kept, noise, self.time(progress), **self.options)
            used = torch.where(_ruled(site, name, held), gated, used)
        return used + (held - held.detach()) * (1 - kept) if straight else used

    def _penalty(
        self,
        sites: Any,
        learned: Mapping[str, Tensor],
        held: Tensor | None,
        progress: float,
        memory: Memory | None = None,
    ) -> Tensor:
        """Sum the gate's penalty over numbers, or over the weights that they stand for."""
        total = torch.zeros(())
        for site in sites:
            name, numbers = site.first, learned[site.name]
            weight = held
            if weight is None:
                assert memory is not None
                weight = memory.dense.get(name, self.model.get_parameter(name).detach())
            places = site.entries[name]
            per_number = torch.bincount(places[places >= 0].flatten(), minlength=site.count)
            share = (site.sizes if self.gate.by_size else 1) / per_number.clamp(min=1)
            each = self.gate.penalty(
                weight, site.spread(name, numbers), self.time(progress), **self.options
            )
            counted = each * site.spread(name, share.to(each)) * _ruled(site, name, each)
            total = total.to(each.device) + counted.sum()
        return total


def _check(technique: Technique) -> None:
    """Refuse what cannot go with learned numbers, naming both parts."""
    if technique.update.removed == "learning":
        raise SecateurError(
            f"'{technique.criteria}' learns while training, and '{technique.update}' sets weights "
            "to zero at updates only: write removed=held or removed=straight_through"
        )
    if technique.criteria.gate is not None and technique.update.drop:
        raise SecateurError(
            f"'{technique.criteria}' gates the weights of the forward pass, and so does "
            f"'{technique.update}': leave drop= out, or choose another criterion"
        )


def _ruled(site: Site, name: str, like: Tensor) -> Tensor:
    return (site.entries[name] >= 0).to(like.device)


def _rates(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {
        id(parameter): float(group["lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
