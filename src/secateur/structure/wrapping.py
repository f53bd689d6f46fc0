"""Models under wrappers: data parallelism, compilation; and those that cannot be followed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from secateur.errors import SecateurError


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's own module from under DistributedDataParallel, DataParallel or compile."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            inner = getattr(model, "_orig_mod", None)
            if not isinstance(inner, nn.Module):
                return model
            model = inner


def own_module(model: Any) -> nn.Module:
    """Return the user's own module; raises SecateurError for none, and for one without code."""
    if not isinstance(model, nn.Module):
        raise SecateurError(f"the model is a {type(model).__name__}: expected an nn.Module")
    own: nn.Module = unwrap(model)
    for path, module in own.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and any(True for _ in module.parameters()):
            where = f"'{path}'" if path else "the model"
            raise SecateurError(
                f"{where} is scripted (torch.jit), and has no code to follow: give the original "
                "module"
            )
    return own


def check_examples(inputs: Any) -> None:
    """Refuse example inputs without an example: nothing could be compared on them."""
    for each in tree_flatten(inputs)[0]:
        if isinstance(each, Tensor) and each.dim() and not each.shape[0]:
            raise SecateurError(
                f"the example inputs are empty: a tensor of them is {tuple(each.shape)}; give at "
                "least one example"
            )
