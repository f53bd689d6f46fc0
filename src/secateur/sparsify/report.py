"""The sparsifier's report: what is removed where, and what was passed over and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.sparsify.budget import Budget, count_kept
from secateur.sparsify.setup import Setup
from secateur.technique import Technique


@dataclass(frozen=True)
class LayerReport:
    """One weight: how many weights and units it has and how many are kept.

    ``shape`` is [outputs, inputs of a group, *kernel].
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    kept: int
    units: int
    units_kept: int


@dataclass(frozen=True)
class Report:
    """The state of a pruned model; ``str`` gives a table."""

    technique: str
    budget: Budget | None
    achieved: Mapping[str, float]
    layers: tuple[LayerReport, ...]
    passed_over: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [self.technique, f"{'layer':{width}}  weights kept           units kept"]
        lines += [
            f"{layer.name:{width}}  {layer.kept:>9} of {layer.weights:<9} "
            f"{layer.units_kept:>9} of {layer.units}"
            for layer in self.layers
        ]
        lines += [f"passed over: {name}: {reason}" for name, reason in self.passed_over]
        lines += [f"note: {note}" for note in self.notes]
        shares = ", ".join(f"{name} {share:.4f}" for name, share in self.achieved.items())
        return "\n".join([*lines, f"achieved: {shares}"])


def make_report(technique: Technique, setup: Setup, masks: Mapping[str, Tensor]) -> Report:
    """Count what is kept in every weight."""
    layers = []
    for prunable in setup.prunables:
        weight, units = prunable.weight, prunable.units
        view = weight.view(masks[weight.parameter])
        layers.append(
            LayerReport(
                weight.name,
                weight.kind,
                (weight.outputs, *weight.shape[2:]),
                weight.numel,
                int(torch.count_nonzero(view)),
                units.count,
                int(
                    torch.count_nonzero(
                        units.rows(view)[0].any(1) if setup.groups else units.pick(view)
                    )
                ),
            )
        )
    if setup.measure is not None:
        gone = {group.leaf: ~group.gone(masks) for group in setup.groups}
        achieved = setup.measure.shares(gone)
    else:
        achieved = setup.ledger.achieved(count_kept(masks), prunable_elements(setup))
    return Report(
        str(technique), setup.budget, achieved, tuple(layers), setup.passed_over, setup.notes
    )


def prunable_elements(setup: Setup) -> dict[str, int]:
    """Return how many elements of each parameter are prunable."""
    elements: dict[str, int] = {}
    for prunable in setup.prunables:
        name = prunable.weight.parameter
        elements[name] = elements.get(name, 0) + prunable.weight.numel
    return elements
