"""What a model is made of, as pruning sees it: the source of ``secateur inspect``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from secateur.structure.flow import trace_flow
from secateur.structure.usage import observe
from secateur.structure.weights import find_weights


@dataclass(frozen=True)
class InspectedWeight:
    """One prunable weight: its size, its use, and what its outputs meet."""

    name: str
    kind: str
    groups: int
    outputs: int
    inputs: int
    kernel: tuple[int, ...]
    weights: int
    macs: int
    norms: tuple[str, ...]
    to_output: bool


@dataclass(frozen=True)
class Inspection:
    """A model's prunable weights, its totals, and what cannot be pruned and why."""

    weights: tuple[InspectedWeight, ...]
    params: int
    macs: int
    skipped: tuple[tuple[str, str], ...]
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def inspect_model(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Inspection:
    """List a model's prunable weights with their multiply-accumulates for the example inputs.

    >>> import torch
    >>> found = inspect_model(nn.Sequential(nn.Linear(4, 6)), (torch.zeros(1, 4),))
    >>> found.weights[0].macs, found.weights[0].to_output
    (24, True)
    """
    found = find_weights(model)
    usage = observe(model, lambda: model(*example_inputs))
    flow = trace_flow(model, example_inputs)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    rows = []
    for weight in found.weights:
        reach = flow.of(weight.parameter)
        used = usage.by_parameter.get(weight.parameter, 0)
        groups, outputs, inputs, *kernel = weight.shape
        norms = dict.fromkeys(carrier.parameter.rpartition(".")[0] for carrier in reach.carriers)
        rows.append(
            InspectedWeight(
                weight.name,
                weight.kind,
                groups,
                groups * outputs,
                groups * inputs,
                tuple(kernel),
                weight.numel,
                used * weight.numel // sizes[weight.parameter],
                tuple(norms),
                reach.to_output,
            )
        )
    return Inspection(tuple(rows), sum(sizes.values()), usage.macs, found.skipped, flow.problem)
