"""Batches of training, made on the fly; batch ``n`` of a seed is always the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from train.blend import apply_geometry, apply_shared, draw_shared, self_blend
from train.data import Cache
from unmask.crops import SIZE

MAP = SIZE // 4


@dataclass(frozen=True)
class Batch:
    """Real faces, their self-blended twins in the same order, and wholly generated faces."""

    real: Tensor
    """uint8 P x 3 x S x S, like the other pictures."""
    fake: Tensor
    maps: Tensor
    """Seam and inside of the blends, float P x 2 x S/4 x S/4 in 0..1."""
    generated: Tensor

    @property
    def faces(self) -> Tensor:
        """All pictures as the network takes them: real, fake, generated; float in 0..1."""
        faces = torch.cat([self.real, self.fake, self.generated]).float().div_(255)
        return faces.contiguous(memory_format=torch.channels_last)

    def part(self, side: int, seed: int) -> Batch:
        """The same square of ``side`` pixels out of every picture and its maps."""
        most = (self.real.shape[-1] - side) // 4
        y, x = np.random.default_rng((seed, side)).integers(0, most + 1, 2).tolist()
        rows, columns = slice(4 * y, 4 * y + side), slice(4 * x, 4 * x + side)
        narrow = (..., slice(y, y + side // 4), slice(x, x + side // 4))
        real, fake, generated = (
            images[..., rows, columns] for images in (self.real, self.fake, self.generated)
        )
        return Batch(real, fake, self.maps[narrow], generated)


class Batches(Dataset[Batch]):
    """Every batch by its number: ``pairs`` real faces with twins and ``generated`` others.

    The degradations grow from none to their full share over the first ``ramp`` batches.
    """

    def __init__(self, cache: Cache, pairs: int, generated: int, ramp: int, seed: int) -> None:
        self.cache, self.pairs, self.extra, self.ramp, self.seed = (
            cache, pairs, generated, ramp, seed,
        )  # fmt: skip
        self.real = np.flatnonzero(~cache.generated)
        self.generated = np.flatnonzero(cache.generated)

    @property
    def per_epoch(self) -> int:
        """Batches that show every real face once."""
        return len(self.real) // self.pairs

    def __getitem__(self, number: int) -> Batch:
        random = np.random.default_rng((self.seed, number))
        epoch, place = divmod(number, self.per_epoch)
        order = np.random.default_rng((self.seed, 1, epoch)).permutation(self.real)
        hard = min(number / max(self.ramp, 1), 1.0)
        real, fake, maps, generated = [], [], [], []
        for index in order[place * self.pairs : (place + 1) * self.pairs]:
            pair = self_blend(np.array(self.cache.windows[index]), self.cache.points[index], random)
            shared = draw_shared(self.cache.boxes[index], random, hard)
            real.append(apply_shared(pair.real, shared))
            fake.append(apply_shared(pair.fake, shared))
            maps.append([apply_geometry(m, shared, MAP) for m in (pair.boundary, pair.mask)])
        for index in random.choice(self.generated, self.extra, replace=False):
            shared = draw_shared(self.cache.boxes[index], random, hard)
            generated.append(apply_shared(np.array(self.cache.windows[index]), shared))
        return Batch(
            pictures(real), pictures(fake), torch.from_numpy(np.array(maps)), pictures(generated)
        )


def pictures(images: list[np.ndarray]) -> Tensor:
    """Pictures (uint8 S x S x 3) as one tensor N x 3 x S x S."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def one_thread(_: int = 0) -> None:
    """Keep OpenCV and PyTorch to one thread."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def stream(batches: Batches, first: int, last: int) -> Iterator[Batch]:
    """Batches ``first`` to ``last - 1``, made by one process beside the training."""
    loader: DataLoader[Batch] = DataLoader(
        batches, batch_size=None, sampler=range(first, last), num_workers=1,
        prefetch_factor=8, worker_init_fn=one_thread,
    )  # fmt: skip
    yield from loader
