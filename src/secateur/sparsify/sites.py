"""Sites: where the learned numbers of a technique meet the parameters of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.coupling import Group
from secateur.sparsify.setup import Prunable, Setup
from secateur.structure import find_weights
from secateur.structure.flow import Carrier
from secateur.technique import Technique


@dataclass(frozen=True)
class Site:
    """Numbers that are learned together, and the entries of parameters that each one rules.

    ``entries`` maps parameters to tensors of their shape with the place of each entry's number,
    -1 where it has none; ``sizes`` counts the weights that each number stands for [count].
    """

    name: str
    entries: Mapping[str, Tensor]
    sizes: Tensor
    inputs: int

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self.sizes)

    @property
    def first(self) -> str:
        """The parameter that the objective looks at."""
        return next(iter(self.entries))

    def spread(self, parameter: str, numbers: Tensor) -> Tensor:
        """Give every entry of a parameter the number that rules it (the first, where none does)."""
        place = self.entries[parameter].to(numbers.device)
        if self.count == 1:
            return numbers.expand(place.shape)
        return numbers[place.clamp(min=0)]


def find_sites(
    model: nn.Module, technique: Technique, setup: Setup, shared: bool
) -> tuple[Site, ...]:
    """Return a site per weight to prune, or per axis where layers are coupled.

    Raises SecateurError where nothing that is known reads an axis.
    """
    if not setup.groups:
        whole = technique.granularity.whole_outputs
        return tuple(_of_weight(model, each, whole, shared) for each in setup.prunables)
    transposed = {w.parameter: w.transposed for w in find_weights(model).weights if w.groups == 1}
    return tuple(_of_group(model, group, transposed) for group in setup.groups)


def learned_of(setup: Setup, prunable: Prunable, learned: Mapping[str, Tensor]) -> Tensor:
    """Lay the learned numbers of a weight's units out like the weight."""
    units = prunable.units
    if not setup.groups:
        numbers = learned[prunable.weight.name]
        return numbers.expand(units.shape) if len(numbers) == 1 else units.spread(numbers)
    first = next(iter(learned.values()))
    found = first.new_zeros(units.count)
    for group in setup.groups:
        for member in group.members:
            if setup.prunables[member.place] is prunable:
                own = member.index.to(first.device)
                numbers = learned[group.axis.name][own.clamp(min=0)]
                found = torch.where(own >= 0, numbers, found)
    return units.spread(found)


def _of_weight(model: nn.Module, prunable: Prunable, whole: bool, shared: bool) -> Site:
    """Rule the weights of each unit; for filters the last norm behind them, where there is one.

    A norm would undo any factor before it.
    """
    weight, units = prunable.weight, prunable.units
    inputs = weight.numel // weight.outputs
    if shared:
        entries = {weight.parameter: _places(model, weight.parameter)}
        weight.view(entries[weight.parameter]).fill_(0)
        return Site(weight.name, entries, torch.tensor([weight.numel]), inputs)
    sizes = units.sizes()
    carriers = _last_norm(prunable.reach.carriers) if whole else []
    if carriers:
        outputs = units.spread(torch.arange(units.count)).flatten(2)[:, :, 0].flatten()
        entries = {carrier.parameter: _places(model, carrier.parameter) for carrier in carriers}
        for carrier in carriers:
            end = carrier.offset + weight.outputs
            entries[carrier.parameter][carrier.offset : end] = outputs
        return Site(weight.name, entries, sizes, inputs)
    entries = {weight.parameter: _places(model, weight.parameter)}
    numbered = units.spread(torch.arange(units.count))
    weight.view(entries[weight.parameter]).copy_(numbered)
    for bias in weight.biases if whole else ():
        entries[bias] = _places(model, bias)
        weight.view_outputs(entries[bias]).copy_(numbered.flatten(2)[:, :, 0])
    return Site(weight.name, entries, sizes, inputs)


def _last_norm(carriers: Sequence[Carrier]) -> list[Carrier]:
    scales = [carrier.parameter for carrier in carriers if carrier.scale]
    module = scales[-1].rpartition(".")[0] if scales else None
    return [each for each in carriers if each.parameter.rpartition(".")[0] == module]


def _of_group(model: nn.Module, group: Group, transposed: Mapping[str, bool]) -> Site:
    """Rule what reads an axis; of a branch, which nothing reads, all that it is made of."""
    reading = [
        carrier
        for carrier in group.carriers
        if carrier[0] in transposed and carrier[1] == (0 if transposed[carrier[0]] else 1)
    ]
    chosen = reading if group.least else list(group.carriers)
    if not chosen:
        raise SecateurError(
            f"no linear layer or convolution reads the axis {group.axis.name}, so that nothing can "
            "be gated there: exclude it, or leave example_inputs out"
        )
    entries = {}
    for name, dim, index in chosen:
        shape = [1] * model.get_parameter(name).ndim
        shape[dim] = -1
        entries[name] = index.reshape(shape).expand(model.get_parameter(name).shape).clone()
    sizes = torch.full((group.axis.size,), group.units.largest)
    return Site(group.axis.name, entries, sizes, group.units.largest)


def _places(model: nn.Module, name: str) -> Tensor:
    return torch.full(model.get_parameter(name).shape, -1, dtype=torch.long)
