"""Augmentation whose randomness depends on the image and the epoch alone, not on the order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Augment:
    """Random shifts of up to (rows, columns) pixels with zeros moving in, and mirroring."""

    shift: tuple[int, int]
    flip: bool
    seed: int

    def __str__(self) -> str:
        rows, columns = self.shift
        far = f"{rows} px" if rows == columns else f"{rows} px down and {columns} px across"
        mirrored = ", mirrored left to right half of the time" if self.flip else ""
        return f"shifted at random by up to {far}, zeros moving in{mirrored}"

    def __call__(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """Augment images [B, C, H, W]; image i depends on nothing but (seed, epoch, indices[i])."""
        bits = random_bits(self.seed, epoch, indices)
        # Three disjoint ranges of 64 random bits; the remainder's bias is below 2^-20.
        down = (bits[:, None] >> 32) % (2 * self.shift[0] + 1) - self.shift[0]
        across = (bits[:, None] >> 1 & 0x7FFFFFFF) % (2 * self.shift[1] + 1) - self.shift[1]
        height, width = images.shape[2:]
        rows = torch.arange(height) - down
        columns = torch.arange(width) - across
        if self.flip:
            columns = torch.where(bits[:, None] & 1 == 1, width - 1 - columns, columns)
        within_rows, within_columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
        source = (within_rows[:, :, None] * width + within_columns[:, None, :]).flatten(1)
        moved = images.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1))
        inside = (rows == within_rows)[:, :, None] & (columns == within_columns)[:, None, :]
        return moved.view_as(images) * inside[:, None]


def random_bits(seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return 63 random bits for each index [B], as int64 that depends on the three numbers only.

    Each number in turn is added to the state of SplitMix64, which is then mixed (Steele, Lea and
    Flood 2014, "Fast splittable pseudorandom number generators").
    """
    state = np.zeros(len(indices), np.uint64)
    for word in (seed % 2**64, epoch % 2**64, indices.numpy().astype(np.uint64)):
        state = state + np.uint64(0x9E3779B97F4A7C15) + np.asarray(word, np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return torch.from_numpy((state >> np.uint64(1)).astype(np.int64))
