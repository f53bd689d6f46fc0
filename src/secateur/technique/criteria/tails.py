"""Scores that divide a square by the sum of all that are at least as large, found where asked for.

In floating point a sum depends on the order of its terms. Here squares are rounded to a grid first,
on which they add up exactly: whichever way a sum is made, and by however many threads, a score is
the same, bit for bit.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_CHUNK = 1 << 15


@dataclass(frozen=True)
class Grid:
    """Two grids on which ``count`` squares of at most ``largest`` add up exactly in any order.

    What the coarse one rounds off goes to the fine one; what that rounds off is, of all squares
    together, at most ``count``^3 / 2^103 of the largest.
    """

    coarse: float
    fine: float

    @classmethod
    def of(cls, largest: float, count: int) -> Grid:
        """Choose powers of two of which no sum is more than 2^53, up to where doubles count on."""
        coarse = 2.0 ** (math.frexp(largest * count)[1] - 52)
        coarse = max(coarse, 2.0**-900)  # whatever is smaller counts as zero
        return cls(coarse, 2.0 ** (math.frexp(coarse * count)[1] - 52))

    def divide(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Divide numbers into multiples of the coarse and of the fine grid."""
        coarse = (squares / self.coarse).round_().mul_(self.coarse)
        return coarse, ((squares - coarse) / self.fine).round_().mul_(self.fine)

    def of_larger(self, ordered: Tensor, above: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Return squares, lowest first, over the sum of themselves, those behind, and ``above``."""
        coarse, fine = (
            part.flip(0).cumsum(0).flip(0).add_(more)
            for part, more in zip(self.divide(ordered), above, strict=True)
        )
        at_least = coarse.add_(fine)
        return ordered / at_least.masked_fill_(at_least == 0, 1)


@dataclass(frozen=True)
class Tails:
    """The scores s_u^2 / sum of s_v^2 over all v that come no sooner than u, of one layer.

    ``sizes`` [units] are finite float32 on the CPU. A unit comes sooner than another if it is
    smaller, or as large and before it; the scores rise in this order, so that one threshold on
    scores is one on sizes, and most scores need not be known.
    """

    sizes: Tensor
    grid: Grid

    @classmethod
    def of(cls, sizes: Tensor) -> Tails | None:
        """Take sizes [units]; None for those that only complete scores can be made of."""
        if sizes.dtype != torch.float32 or sizes.device.type != "cpu" or len(sizes) == 0:
            return None
        largest = float(sizes.max())
        return cls(sizes, Grid.of(largest**2, len(sizes))) if math.isfinite(largest) else None

    def __len__(self) -> int:
        return len(self.sizes)

    def complete(self) -> Tensor:
        """Return all scores [units], float64."""
        ordered, order = _sorted(self.sizes)
        scores = torch.empty(len(ordered), dtype=torch.float64)
        scores[order] = self.of_sorted(ordered)
        return scores

    def of_sorted(self, ordered: Tensor, above: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """Return the scores of neighbours in the order, ``above`` being the sums behind them."""
        return self.grid.of_larger(ordered.double().square_(), above)

    def above(self, size: float) -> tuple[float, float]:
        """Sum the squares of what is larger than a size, on each grid."""
        coarse = fine = 0.0
        for chunk in np.array_split(self.sizes.numpy(), -(-len(self) // _CHUNK)):
            larger = chunk.take(np.flatnonzero(chunk > size))
            squares = torch.from_numpy(larger).double().square_()
            more, rest = self.grid.divide(squares)
            coarse, fine = coarse + float(more.sum()), fine + float(rest.sum())
        return coarse, fine


def _sorted(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sizes in ascending order and where they come from; stable.

    A positive float's bits are ordered as it is. With the place behind them they sort as whole
    numbers, which NumPy does ten times faster than torch sorts with indices.
    """
    bits = sizes.numpy().view(np.uint32)
    keys = bits.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    # The halves of each key, whichever way round this machine keeps them.
    low, high = (0, 1) if sys.byteorder == "little" else (1, 0)
    halves = keys.view(np.uint32).reshape(-1, 2)
    ordered = torch.from_numpy(halves[:, high].copy().view(np.float32))
    return ordered, torch.from_numpy(halves[:, low].astype(np.int64))
