"""What a technique would do to each layer of a given model, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.sparsify.budget import Budget
from secateur.sparsify.setup import Prunable, Setup, prepare
from secateur.technique import Technique

_SHOWN = 4


@dataclass(frozen=True)
class LayerDescription:
    """One layer: its weight, and what the technique means for it."""

    name: str
    kind: str
    shape: tuple[int, ...]
    words: str


def describe_layers(
    model: nn.Module, technique: Technique, example_inputs: tuple[Any, ...] | None = None
) -> tuple[LayerDescription, ...]:
    """Say for each prunable layer which units it has, and for the others why they are spared.

    Raises SecateurError where the technique cannot be carried out on the model.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> describe_layers(model, Technique("filter"))[0].words
    '6 units of 4 weights each, with the bias of each'

    With example inputs, whole channels go with all layers that share their axis.

    >>> describe_layers(model, Technique("filter"), (torch.zeros(1, 4),))[0].words
    '6 units of 4 weights each, each with its part of 2'
    """
    emerges = technique.context.allocation == "threshold"
    budget = None if emerges else Budget("sparsity", 0.0)
    setup = prepare(model, technique, budget, None, None, example_inputs, ())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    described = [
        LayerDescription(
            prunable.weight.name,
            prunable.weight.kind,
            prunable.weight.shape,
            _coupled_words(place, setup) if setup.groups else _words(prunable),
        )
        for place, prunable in enumerate(setup.prunables)
    ]
    described += [
        LayerDescription(name, "", shapes.get(name, ()), f"spared: {reason}")
        for name, reason in setup.passed_over
    ]
    return tuple(described)


def _coupled_words(place: int, setup: Setup) -> str:
    """Say which axes the units of a weight belong to, and which layers share them."""
    weight = setup.prunables[place].weight
    said = []
    for group in setup.groups:
        member = next((each for each in group.members if each.place == place), None)
        if member is None:
            continue
        if not group.least:
            said.append(f"goes with the branch of {group.axis.name}")
            continue
        share = weight.numel * int((member.index >= 0).sum()) // len(member.index)
        units = f"{group.axis.size} units of {share // group.axis.size} weights each"
        layers = dict.fromkeys(name.rpartition(".")[0] or name for name, _, _ in group.carriers)
        others = [name for name in layers if name != weight.module]
        if others:
            more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
            units += f", each with its part of {', '.join(others[:_SHOWN])}{more}"
        said.append(units)
    return "; ".join(said)


def _words(prunable: Prunable) -> str:
    units = prunable.units
    if units.single:
        said = f"{units.count} single weights"
    else:
        size = f"{units.largest} weights" if units.largest > 1 else "1 weight"
        said = f"{units.count} units of {size}" + (" each" if units.equal else " or fewer")
    if prunable.weight.groups > 1:
        said += f", in {prunable.weight.groups} groups"
    carriers = [carrier.parameter for carrier in prunable.reach.carriers]
    if prunable.units.named[0] and not any(prunable.units.named[2:]):
        if prunable.weight.biases:
            said += ", with the bias of each"
        if carriers:
            said += f", with the entries of {', '.join(carriers[:4])}"
            said += ", ..." if len(carriers) > 4 else ""
    return said
