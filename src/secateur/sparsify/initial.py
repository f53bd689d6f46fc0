"""Fresh initial values for a whole model, through its modules' own reset functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from secateur.errors import SecateurError


def resettable(model: nn.Module) -> list[Callable[[], object]]:
    """Return the reset function of every module that has parameters of its own.

    Raises SecateurError where a module has none.
    """
    resets: list[Callable[[], object]] = []
    for name, module in model.named_modules():
        if not any(True for _ in module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None)
        reset = reset or getattr(module, "_reset_parameters", None)
        if reset is None:
            raise SecateurError(
                f"'{name or type(model).__name__}' ({type(module).__name__}) cannot be "
                "re-initialised: it has no reset_parameters()"
            )
        resets.append(reset)
    return resets


def reinitialise(model: nn.Module, seed: int) -> None:
    """Draw new initial values from a seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for reset in resettable(model):
            reset()
