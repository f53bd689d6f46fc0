"""The pass over all weights after every optimiser step, made as short as memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PIECE = 1 << 18
"""Weights that are multiplied at once on the CPU, so that a piece and its mask stay in a cache."""


@dataclass(frozen=True)
class Pieces:
    """Parameters and byte masks cut into pieces, as views of the memory at ``places``."""

    places: tuple[int, ...] = ()
    weights: list[Tensor] = field(default_factory=list)
    masks: list[Tensor] = field(default_factory=list)

    def renewed(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> Pieces:
        """Return pieces of these parameters and masks: the same ones while their memory is."""
        places = tuple(tensor.data_ptr() for pair in pairs for tensor in pair)
        if places == self.places:
            return self
        weights: list[Tensor] = []
        masks: list[Tensor] = []
        # The optimiser writes the last parameters last, so that the caches still hold them.
        for parameter, mask in reversed(pairs):
            whole = parameter.device.type != "cpu" or parameter.numel() <= PIECE
            if whole or not (parameter.is_contiguous() and mask.is_contiguous()):
                weights.append(parameter)
                masks.append(mask)
                continue
            weights += torch.split(parameter.view(-1), PIECE)
            masks += torch.split(mask.view(-1), PIECE)
        return Pieces(places, weights, masks)

    def multiply(self) -> None:
        """Multiply every piece by its mask, in place."""
        if self.weights:
            torch._foreach_mul_(self.weights, self.masks)
