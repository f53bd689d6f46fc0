"""Influence: what whole layers and norms do to what passes through, and to the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.ranks import over_ranks
from secateur.sparsify.setup import Prunable, Setup
from secateur.sparsify.statistics import Loss, Statistics, compute_loss, mean_loss, run_model
from secateur.structure.usage import evaluating

INFLUENCES = frozenset({"block_influence", "removal_loss", "scale_taylor"})
"""The needs that this module measures."""


def influences(
    model: nn.Module, setup: Setup, needs: Iterable[str], data: Iterable[Any], loss: Loss | None
) -> Statistics:
    """Measure the needs that are about whole layers, in eval mode."""
    found: Statistics = {}
    asked = set(needs)
    if "block_influence" in asked:
        found["block_influence"] = _laid_out(setup, block_influence(model, setup, data))
    if "removal_loss" in asked:
        found["removal_loss"] = _laid_out(setup, removal_loss(model, setup, data, loss))
    if "scale_taylor" in asked:
        found["scale_taylor"] = scale_taylor(model, setup.prunables, data, loss)
    return found


@torch.no_grad()
def block_influence(model: nn.Module, setup: Setup, data: Iterable[Any]) -> list[float]:
    """Return 1 - the mean cosine of what enters and leaves the module around each weight.

    That is the module whose code adds the branch, or the weight's own where nothing is coupled. A
    module that changes the shape could not be left out: its influence is 1.
    """
    paths = _around(setup)
    sums = {path: [0.0, 0] for path in paths}
    handles = [
        model.get_submodule(path).register_forward_hook(_compare(sums[path])) for path in set(paths)
    ]
    try:
        with evaluating(model):
            for batch in data:
                run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    means = [1.0 - sums[path][0] / sums[path][1] if sums[path][1] else 1.0 for path in paths]
    return [float(mean) for mean in over_ranks([torch.tensor(mean) for mean in means])]


def _around(setup: Setup) -> list[str]:
    paths = [prunable.weight.module for prunable in setup.prunables]
    for group in setup.groups if setup.measure is not None else ():
        branches = getattr(setup.measure, "branches", {})
        if group.leaf in branches:
            for member in group.members:
                paths[member.place] = branches[group.leaf].module
    return paths


def _compare(total: list[float]) -> Callable[[nn.Module, Any, Any], None]:
    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        before = inputs[0] if inputs else None
        after = output[0] if isinstance(output, tuple) else output
        if not (isinstance(before, Tensor) and isinstance(after, Tensor)):
            return
        if before.shape != after.shape or not before.is_floating_point():
            return
        cosine = torch.cosine_similarity(before.float(), after.float(), 1 if after.ndim > 3 else -1)
        total[0] += float(cosine.sum())
        total[1] += cosine.numel()

    return see


@torch.no_grad()
def removal_loss(
    model: nn.Module, setup: Setup, data: Iterable[Any], loss: Loss | None
) -> list[float]:
    """Return the loss without each layer, or each branch where branches are pruned."""
    parts: list[tuple[list[int], list[str]]] = [
        ([place], [each.weight.parameter, *each.weight.biases])
        for place, each in enumerate(setup.prunables)
    ]
    if setup.groups:
        parts = [
            ([member.place for member in group.members], [name for name, _, _ in group.carriers])
            for group in setup.groups
        ]
    found = [0.0] * len(setup.prunables)
    for places, names in parts:
        held = {name: model.get_parameter(name).detach().clone() for name in names}
        try:
            for name in held:
                model.get_parameter(name).zero_()
            without = mean_loss(model, data, loss)
        finally:
            for name, value in held.items():
                model.get_parameter(name).copy_(value)
        for place in places:
            found[place] = without
    return found


def scale_taylor(
    model: nn.Module, prunables: Sequence[Prunable], data: Iterable[Any], loss: Loss | None
) -> dict[str, Tensor]:
    """Return the mean over batches of |scale times its gradient|, of the norm behind each output.

    Raises SecateurError where a scale takes no gradient.
    """
    scales = {
        prunable.weight.name: next(c for c in prunable.reach.carriers if c.scale)
        for prunable in prunables
    }
    names = sorted({carrier.parameter for carrier in scales.values()})
    tensors = [model.get_parameter(name) for name in names]
    for name, tensor in zip(names, tensors, strict=True):
        if not tensor.requires_grad:
            raise SecateurError(f"{name} has no gradient (requires_grad is off): let it train")
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    count = 0
    with evaluating(model):
        for batch in data:
            count += 1
            with torch.enable_grad():
                value = compute_loss(model, batch, loss)
                gradients = torch.autograd.grad(
                    value, tensors, allow_unused=True, materialize_grads=True
                )
            for total, tensor, gradient in zip(totals, tensors, gradients, strict=True):
                total.add_((tensor.detach() * gradient).abs())
    means = dict(zip(names, over_ranks([total / count for total in totals]), strict=True))
    found = {}
    for prunable in prunables:
        weight, carrier = prunable.weight, scales[prunable.weight.name]
        own = means[carrier.parameter][carrier.offset : carrier.offset + weight.outputs]
        found[weight.name] = own.reshape(*weight.shape[:2], *[1] * (len(weight.shape) - 2))
    return found


def _laid_out(setup: Setup, values: Sequence[float]) -> dict[str, Tensor]:
    return {
        prunable.weight.name: torch.full([1] * len(prunable.weight.shape), value)
        for prunable, value in zip(setup.prunables, values, strict=True)
    }
