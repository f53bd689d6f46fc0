"""Hiding: removed entries are zero in the forward pass, and what they hold is kept aside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from secateur.sparsify.memory import Memory


def hide(model: nn.Module, memory: Memory, removing: Mapping[str, Tensor]) -> None:
    """Keep aside what removed entries hold, except of parameters that wait as a whole."""
    for name in removing.keys() - memory.dense.keys():
        memory.shadow[name] = model.get_parameter(name).detach() * ~removing[name]


def show(model: nn.Module, memory: Memory) -> None:
    """Give removed entries what they hold."""
    for name, held in memory.shadow.items():
        parameter = model.get_parameter(name)
        value = held.to(parameter.device)
        parameter.copy_(torch.where(value != 0, value, parameter))
    memory.shadow.clear()


def stop_learning(model: nn.Module, memory: Memory, masks: Mapping[str, Tensor]) -> None:
    """Clear the gradients of what is kept aside, so that it waits with the value it had."""
    for name in memory.shadow:
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            gradient.mul_(masks[name])


def exchange(
    model: nn.Module,
    memory: Memory,
    before: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    back: bool,
) -> None:
    """Remember what goes and, with ``back``, give it back where it returns.

    A filter whose scale and shift came back as zero could never learn again, nor could a channel
    that is zero in all layers that share it.
    """
    for name, kept_before in before.items():
        vector, kept = model.get_parameter(name), masks[name]
        stored = memory.vectors.setdefault(name, torch.zeros_like(vector.detach()))
        went, came = kept_before & ~kept, kept & ~kept_before
        stored[went] = vector[went]
        if back:
            vector[came] = stored[came]


@contextlib.contextmanager
def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Set what masks remove to zero, and everything back to what it was afterwards."""
    held = {name: model.get_parameter(name).detach().clone() for name in masks}
    try:
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).masked_fill_(~mask, 0)
        yield
    finally:
        with torch.no_grad():
            for name, value in held.items():
                model.get_parameter(name).copy_(value)
