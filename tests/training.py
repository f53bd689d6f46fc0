"""What tests of runs share: seeded networks and batches, a training loop, and counts of masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from networks import NETWORKS
from torch import Tensor, nn

from secateur import Sparsifier


def fresh(name: str = "small_cnn", seed: int = 0) -> nn.Module:
    """Return the network of that name as the seed initialises it."""
    torch.manual_seed(seed)
    return NETWORKS[name]()


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return the images [size, 1, 8, 8] and labels [size] of a step."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(size, 1, 8, 8, generator=generator)
    return inputs, torch.randint(10, (size,), generator=generator)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int], scheduler: Any = None
) -> None:
    """Train for the steps of these numbers, each with its own batch."""
    for step in steps:
        inputs, targets = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def shift(model: nn.Module) -> None:
    """Add one to every parameter."""
    for parameter in model.parameters():
        parameter.data += 1


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every tensor in the model's state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def masked(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with zeros where the masks remove."""
    return {
        name: tensor * masks[name] if name in masks else tensor for name, tensor in state.items()
    }


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether both hold the same tensors under the same names."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def zeros_match(model: nn.Module, sparsifier: Sparsifier) -> bool:
    """Return whether every weight that a mask removes is zero."""
    return all(
        bool((model.get_parameter(name)[~mask] == 0).all())
        for name, mask in sparsifier.masks.items()
    )


def zero_share(model: nn.Module, sparsifier: Sparsifier) -> float:
    """Return the share of zeros in the masked weights, vectors left out."""
    weights = [p for n, p in model.named_parameters() if n in sparsifier.masks and p.dim() > 1]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def removed(sparsifier: Sparsifier) -> int:
    """Return how many values the masks remove."""
    return sum(int((~mask).sum()) for mask in sparsifier.masks.values())


def total(sparsifier: Sparsifier) -> int:
    """Return how many values the masks cover."""
    return sum(mask.numel() for mask in sparsifier.masks.values())
