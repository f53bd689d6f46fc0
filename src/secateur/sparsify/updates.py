"""Update rules: what becomes of survivors and of the optimiser after units were removed."""

from __future__ import annotations

import copy

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.sparsify.memory import Memory
from secateur.technique import Update


def after_removal(
    model: nn.Module, update: Update, memory: Memory, optimizer: torch.optim.Optimizer | None
) -> None:
    """Rewind or re-initialise the model, and reset or rewind the optimiser, as the update says.

    A removal before the step to rewind to leaves the weights as they are.
    """
    if update.survivors == "rewind" and memory.rewind:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(memory.rewind[name])
    elif update.survivors == "reinitialise":
        reinitialise(model, memory.updates)
    if optimizer is None:
        return
    if update.optimizer == "reset":
        optimizer.state.clear()
    elif update.optimizer == "rewind" and memory.optimizer is not None:
        optimizer.load_state_dict(copy.deepcopy(memory.optimizer))


def reinitialise(model: nn.Module, seed: int) -> None:
    """Give every module fresh initial values; the global random state stays as it was.

    Raises SecateurError where a module with parameters of its own has no ``reset_parameters``.
    """
    resets = []
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if reset is None:
            raise SecateurError(
                f"'{name or type(model).__name__}' ({type(module).__name__}) cannot be "
                "re-initialised: it has no reset_parameters()"
            )
        resets.append(reset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for reset in resets:
            reset()
