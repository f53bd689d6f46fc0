"""Several processes: what is measured is averaged, and what is chosen is chosen once."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def over_ranks(tensors: list[Tensor], mean: bool = True) -> list[Tensor]:
    """Add up (or average) tensors over the ranks of the process group, if there is one."""
    if not grouped():
        return tensors
    for tensor in tensors:
        distributed.all_reduce(tensor)
        if mean:
            tensor.div_(distributed.get_world_size())
    return tensors


def same_on_every_rank(tensors: list[Tensor]) -> list[Tensor]:
    """Let rank 0 decide, so that rounding on another rank cannot part the masks."""
    if grouped():
        for tensor in tensors:
            sent = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
            distributed.broadcast(sent, 0)
    return tensors


def grouped() -> bool:
    """Whether this process is one of a group."""
    return distributed.is_available() and distributed.is_initialized()
