"""Activations: what layers answer and read on some batches, for the criteria that ask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.errors import SecateurError
from secateur.sparsify.ranks import over_ranks
from secateur.sparsify.setup import Prunable
from secateur.sparsify.statistics import Statistics, flow_of_ones, run_model
from secateur.structure.usage import evaluating

_CHANNELS_SECOND = (_ConvNd, _NormBase, nn.GroupNorm)


def look(
    model: nn.Module, prunables: Sequence[Prunable], needs: Iterable[str], data: Iterable[Any]
) -> Statistics:
    """Measure the needs that are about activations, in eval mode without gradients.

    Raises SecateurError where a layer's module is not called, or answers no single tensor.
    """
    asked = sorted(set(needs) & {*_OF_OUTPUTS, "input_spread"})
    found = {need: _measure(model, prunables, need, data) for need in asked}
    if "propagated" in needs:
        found["propagated"] = propagated(model, prunables, data)
    return found


def active(maps: Tensor) -> Tensor:
    """Return the share of values above zero, of maps [examples, channels, *positions]."""
    return (maps.flatten(2) > 0).to(maps.dtype).mean((0, 2))


def rank(maps: Tensor) -> Tensor:
    """Return the mean rank of each channel's map; a single value has rank 0 or 1."""
    spatial = maps.flatten(3) if maps.ndim > 3 else maps.flatten(2).unsqueeze(2)
    ranks: Tensor = torch.linalg.matrix_rank(spatial)
    return ranks.to(maps.dtype).mean(0)


def independence(maps: Tensor) -> Tensor:
    """Return the mean of ||A||_* - ||A without row c||_* for each channel c.

    >>> maps = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [0.0, 4.0]]])
    >>> independence(maps)
    tensor([1., 1., 2.])
    """
    rows = maps.flatten(2)
    whole: Tensor = torch.linalg.svdvals(rows).sum(1)
    without = []
    for channel in range(rows.shape[1]):
        left = rows.clone()
        left[:, channel] = 0
        without.append(torch.linalg.svdvals(left).sum(1))
    return (whole[:, None] - torch.stack(without, 1)).mean(0)


_OF_OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "output_active": active,
    "output_rank": rank,
    "output_independence": independence,
}


def _measure(
    model: nn.Module, prunables: Sequence[Prunable], need: str, data: Iterable[Any]
) -> dict[str, Tensor]:
    gathered: dict[str, list[tuple[int, Tensor]]] = {each.weight.name: [] for each in prunables}
    handles = []
    for prunable in prunables:
        module, start = _place(model, prunable, need)
        keep = gathered[prunable.weight.name]
        handles.append(module.register_forward_hook(_watch(prunable, need, start, keep)))
    try:
        with evaluating(model), torch.no_grad():
            for batch in data:
                run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for prunable in prunables:
        seen = gathered[prunable.weight.name]
        if not seen:
            raise SecateurError(
                f"the data never passes through {prunable.weight.module} as a module, so what "
                f"{prunable.weight.name} answers is unknown; exclude it"
            )
        count = sum(number for number, _ in seen)
        found.append(torch.stack([number / count * part for number, part in seen]).sum(0))
    means = over_ranks(found)
    return {
        prunable.weight.name: _laid_out(prunable, mean, need)
        for prunable, mean in zip(prunables, means, strict=True)
    }


@torch.enable_grad()
def propagated(
    model: nn.Module, prunables: Sequence[Prunable], data: Iterable[Any]
) -> dict[str, Tensor]:
    """Return dR/dz of each output, summed over its positions, R the sum of the last answers.

    All parameters are absolute, and what goes in is ones: so no activation holds anything back,
    and every derivative is a sum over paths of products of absolute weights (Yu et al. 2018).
    """
    answers: dict[str, Tensor] = {}
    handles = []
    for prunable in prunables:
        module, _ = _place(model, prunable, "propagated")
        name = prunable.weight.name

        def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            answers[name] = output

        handles.append(module.register_forward_hook(keep))
    try:
        with evaluating(model):
            total = flow_of_ones(model, data, {})[0]
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for prunable in prunables:
        weight = prunable.weight
        module, start = _place(model, prunable, "propagated")
        answer = answers.get(weight.name)
        dim = 1 if isinstance(module, _CHANNELS_SECOND) else -1
        if not isinstance(answer, Tensor) or answer.shape[dim] < start + weight.outputs:
            raise SecateurError(
                f"{weight.name} is not read off one tensor of {weight.outputs} channels, so "
                "'propagated' is unknown; exclude it"
            )
        (flow,) = torch.autograd.grad(
            total, [answer], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        by_channel = flow.movedim(dim, 0).flatten(1).sum(1)[start : start + weight.outputs]
        found[weight.name] = _laid_out(prunable, by_channel.float(), "propagated")
    return found


def _place(model: nn.Module, prunable: Prunable, need: str) -> tuple[nn.Module, int]:
    """Return the module to watch and the first of its channels: the last norm behind, or itself."""
    carriers = [carrier for carrier in prunable.reach.carriers if carrier.scale]
    if need == "input_spread" or not carriers:
        return model.get_submodule(prunable.weight.module), 0
    last = carriers[-1]
    return model.get_submodule(last.parameter.rpartition(".")[0]), last.offset


def _watch(
    prunable: Prunable, need: str, start: int, keep: list[tuple[int, Tensor]]
) -> Callable[[nn.Module, Any, Any], None]:
    weight = prunable.weight
    wanted = weight.groups * weight.shape[2] if need == "input_spread" else weight.outputs

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        seen = (inputs[0] if inputs else None) if need == "input_spread" else output
        dim = 1 if isinstance(module, _CHANNELS_SECOND) else -1
        plain = isinstance(seen, Tensor) and seen.ndim >= 2 and seen.is_floating_point()
        if not isinstance(seen, Tensor) or not plain or seen.shape[dim] < start + wanted:
            raise SecateurError(
                f"{weight.name} is not read off one tensor of {wanted} channels, so '{need}' is "
                "unknown; exclude it"
            )
        maps = seen.detach().float().movedim(dim, 1).narrow(1, start, wanted)
        maps = maps.unsqueeze(-1) if maps.ndim == 2 else maps
        if need == "input_spread":
            flat = maps.flatten(2).transpose(0, 1).flatten(1)
            keep.append((flat.shape[1], torch.stack([flat.mean(1), flat.square().mean(1)])))
        else:
            keep.append((len(maps), _OF_OUTPUTS[need](maps.clamp(min=0))))

    return see


def _laid_out(prunable: Prunable, mean: Tensor, need: str) -> Tensor:
    """Lay a vector over channels out like the weight, with extent 1 on the other axes."""
    groups, outputs, inputs, *kernel = prunable.weight.shape
    ones = [1] * len(kernel)
    if need == "input_spread":
        deviation = (mean[1] - mean[0].square()).clamp(min=0).sqrt()
        return deviation.reshape(groups, 1, inputs, *ones)
    return mean.reshape(groups, outputs, 1, *ones)
