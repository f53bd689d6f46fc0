"""Gates: how a number that is trained along with the weights enters the forward pass.

A gate is a pure function from weights and learned numbers to the weights that the network uses.
What the loss says of those is carried back to both by the chain rule, so that a criterion can
score a unit by a number which training itself has chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Gate:
    """What a learned number does to the weights of its unit.

    ``used(weight, learned, mask, noise, time, **parameters)`` returns the weights of the forward
    pass, all tensors of one shape: ``mask`` is 1 where kept, ``noise`` uniform on (0, 1), drawn
    for every unit and step, and ``time`` the share of the gates' life, 0 to 1. ``final`` does so
    for good, when the choice has been made. ``penalty(weight, learned, time, **parameters)`` is
    what the objective ``gates`` adds, of a unit or, with ``by_size``, of each of its weights.
    ``start`` gives the first values from (count, inputs of an output, generator, **parameters);
    ``shared`` learns one number per layer. Functions of learned numbers must be differentiable.
    """

    used: Forward
    penalty: Forward
    start: Callable[..., Tensor]
    said: str
    final: Forward | None = None
    by_size: bool = False
    noisy: bool = False
    shared: bool = False


def constant(name: str) -> Callable[..., Tensor]:
    """Return a start at the criterion's parameter of that name, the same for all."""

    def start(count: int, inputs: int, generator: torch.Generator, **parameters: float) -> Tensor:
        return torch.full((count,), float(parameters[name]))

    return start


def zeros(count: int, inputs: int, generator: torch.Generator, **parameters: float) -> Tensor:
    """Start at zero."""
    return torch.zeros(count)


def drawn(count: int, inputs: int, generator: torch.Generator, **parameters: float) -> Tensor:
    """Start uniform on +-1 / sqrt(inputs), as PyTorch's layers do."""
    return (2 * torch.rand(count, generator=generator) - 1) / math.sqrt(max(1, inputs))


def through(mask: Tensor, learned: Tensor) -> Tensor:
    """Return the mask, with the gradient of the learned numbers: the straight-through estimator."""
    return mask + (learned - learned.detach())  # so bracketed it is the mask to the last bit
