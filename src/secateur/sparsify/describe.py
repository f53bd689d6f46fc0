"""What a technique would do to each layer of a given model, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.sparsify.budget import Budget
from secateur.sparsify.setup import Prunable, prepare
from secateur.technique import Technique


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

    >>> model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> describe_layers(model, Technique("filter"))[0].words
    '6 units of 4 weights each, with the bias of each'
    """
    setup = prepare(model, technique, Budget("sparsity", 0.5), None, None, example_inputs, ())
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    described = [
        LayerDescription(
            prunable.weight.name, prunable.weight.kind, prunable.weight.shape, _words(prunable)
        )
        for prunable in setup.prunables
    ]
    described += [
        LayerDescription(name, "", shapes.get(name, ()), f"spared: {reason}")
        for name, reason in setup.passed_over
    ]
    return tuple(described)


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
