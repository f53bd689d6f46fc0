"""Second derivatives of layers and of the loss: what is measured, and the evidence in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from secateur.sparsify.curvature import curvature, joined, network_elimination, unit_columns
from secateur.sparsify.fisher import fisher_blocks, fisher_surgeon
from secateur.sparsify.inputs import read_inputs
from secateur.sparsify.scoring import widen
from secateur.sparsify.setup import Prunable
from secateur.sparsify.statistics import Loss, Statistics
from secateur.sparsify.surgeon import DERIVED, derive
from secateur.technique.compensation import METHODS, Compensation

SECOND_ORDER = frozenset({*DERIVED, "fisher_surgeon"})
"""Evidence that is computed weight by weight from what ``measure`` finds."""

OF_THE_NETWORK = frozenset({"network_curvature", "network_elimination"})
"""What asks for the second derivatives between all weights of a network."""


def measure(
    model: nn.Module,
    prunables: Sequence[Prunable],
    needs: Iterable[str],
    data: Iterable[Any],
    loss: Loss | None,
    how: Compensation | None,
) -> Statistics:
    """Measure the needs that are about second derivatives and mean inputs, by name of the weight.

    ``gram`` [groups, n, n] and ``input_mean`` [groups, n] are over the n columns of a weight,
    ``fisher_blocks`` over its units, and ``network_curvature`` over all weights, with no name.
    """
    asked = set(needs)
    found: Statistics = {}
    products = bool(asked & {"gram", *DERIVED})
    if products or "input_mean" in asked:
        found |= read_inputs(model, [each.weight for each in prunables], data, products)
    if asked & {"fisher_blocks", "fisher_surgeon"}:
        settings = dict(METHODS["fisher"].settings)
        if how is not None and how.method == "fisher":
            settings = {"block": how.block, "damping": how.damping}
        found["fisher_blocks"] = fisher_blocks(model, prunables, data, loss, **settings)
    if asked & OF_THE_NETWORK:
        damping = METHODS["network"].settings["damping"]
        if how is not None and how.method == "network":
            damping = how.damping
        whole = curvature(model, prunables, data, damping)
        found["network_curvature"] = {"": whole}
        if "network_elimination" in asked:
            found["network_elimination"] = _network_elimination(model, prunables, whole)
    return found


def _network_elimination(
    model: nn.Module, prunables: Sequence[Prunable], matrix: Tensor
) -> dict[str, Tensor]:
    """Return the place of each weight's unit by the weight's name, in its layout."""
    weights = joined(prunables, dict(model.named_parameters())).detach().double()
    places = network_elimination(weights, matrix, unit_columns(prunables))
    return {
        prunable.weight.name: prunable.units.spread(place)
        for prunable, place in zip(prunables, places, strict=True)
    }


def derived(need: str, prunable: Prunable, weight: Tensor, statistics: Statistics) -> Tensor:
    """Return one piece of evidence for a weight in its layout."""
    name = prunable.weight.name
    if need == "fisher_surgeon":
        blocks = statistics["fisher_blocks"][name]
        return fisher_surgeon(widen(weight), blocks, prunable.units)
    return derive(need, weight, statistics["gram"][name], prunable.units)
