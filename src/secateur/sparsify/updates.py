"""Update rules: what becomes of survivors and of the optimiser after units were removed."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from secateur.sparsify.initial import reinitialise
from secateur.sparsify.memory import Memory
from secateur.sparsify.ranks import same_on_every_rank
from secateur.technique import Update


def after_removal(
    model: nn.Module,
    update: Update,
    memory: Memory,
    optimizer: torch.optim.Optimizer | None,
    pruned: Iterable[str] = (),
) -> None:
    """Rewind or re-initialise the model, and reset or rewind the optimiser, as the update says.

    ``pruned`` names the parameters that are pruned.
    A removal before the step to rewind to leaves the weights as they are. A learning-rate scheduler
    goes back when the optimiser begins its next step, as the training loop moves it before.
    """
    if update.survivors == "rewind" and memory.rewind:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in memory.rewind:
                    tensor.copy_(memory.rewind[name])
    elif update.survivors == "sign":
        _take_signs(model, memory, set(pruned))
    elif update.survivors == "reinitialise":
        generator = torch.Generator()
        generator.set_state(memory.generator)
        seed = torch.randint(0, 2**62, (), generator=generator)
        memory.generator = generator.get_state()
        place = next((parameter.device for parameter in model.parameters()), seed.device)
        reinitialise(model, int(same_on_every_rank([seed.to(place)])[0]))
    if optimizer is not None and update.optimizer == "reset":
        optimizer.state.clear()
    if optimizer is not None and update.optimizer == "rewind" and memory.optimizer is not None:
        optimizer.load_state_dict(copy.deepcopy(memory.optimizer))
        memory.returning = True
    if optimizer is not None and update.optimizer == "rewind_rate":
        memory.returning = memory.scheduler is not None


@torch.no_grad()
def _take_signs(model: nn.Module, memory: Memory, pruned: set[str]) -> None:
    """Set pruned parameters to +-s with their first signs, s their first standard deviation.

    The rest returns to the start, and nothing is trained from here on (Zhou et al. 2019).
    """
    for name, _ in model.named_parameters():
        first = memory.rewind[name]
        size = first.std(correction=0) if name in pruned else None
        memory.fixed[name] = first.clone() if size is None else first.sign() * size
    hold(model, memory)


@torch.no_grad()
def hold(model: nn.Module, memory: Memory) -> None:
    """Give parameters that are not trained the values that they are to keep."""
    for name, value in memory.fixed.items():
        parameter = model.get_parameter(name)
        parameter.copy_(value.to(parameter.device))
