"""Data specs: from a line such as `cifar10:DIR` to images for training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from secateur.errors import SecateurError, suggestion
from secateur.train.augment import Augment
from secateur.train.folders import image_folder
from secateur.train.hub import hub
from secateur.train.images import Images, read_images
from secateur.train.sources import Source, Split, cifar10, digits, fashion_mnist, stratified_order

ACCEPTED = ("digits", "fashion-mnist:DIR", "cifar10:DIR", "imagefolder:DIR", "hf:NAME")
SMALLEST, LARGEST = 8, 4096
_CHUNK = 1024
_SAMPLED = 2048


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images as normalised float32 [C, H, W], each with its label.

    The images are held as uint8 [N, C, H, W] and become floats batch by batch: given to a
    DataLoader together with `collate`, a batch is one operation on one tensor.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        augment: Augment | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.mean = mean
        self.std = std
        self.augment = augment
        # In shared memory, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (>= 0) whose augmentation the images get from here on."""
        self._epoch.fill_(epoch)

    def with_channels(self, channels: int) -> ImageDataset:
        """Return the same images, grey repeated to this number of channels."""
        mean, std = self.mean * channels, self.std * channels
        return ImageDataset(self.images, self.labels, mean, std, self.augment)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        images, labels = self.__getitems__([index % len(self)])
        return images[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images [B, C, H, W] and labels int64 [B], for the indices 0 <= i < len(self)."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[rows]
        if self.augment is not None:
            images = self.augment(images, rows, int(self._epoch))
        mean, std = (torch.tensor(one)[:, None, None] for one in (self.mean, self.std))
        return (images.float() / 255 - mean) / std, self.labels[rows]


def collate(batch: Any) -> tuple[Tensor, Tensor]:
    """Return images float32 [B, C, H, W] and labels int64 [B], for a DataLoader's collate_fn.

    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(load_data("digits").valid, batch_size=32, collate_fn=collate)
    >>> [tuple(part.shape) for part in next(iter(loader))]
    [(32, 1, 8, 8), (32,)]
    """
    if isinstance(batch, tuple):
        return batch
    # Some loaders fetch one by one, for instance through a wrapped data set.
    return torch.stack([image for image, _ in batch]), torch.tensor([label for _, label in batch])


@dataclass(frozen=True)
class Data:
    """Images for training and validation, all of one size (H, W), and what was done to them.

    Pixels are divided by 255, then normalised by `mean` and `std` per channel; `augment` says in
    words what happens to the training images, `digest` is a SHA-256 of the images and labels.
    """

    name: str
    train: ImageDataset
    valid: ImageDataset
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    augment: str

    def with_channels(self, channels: int) -> Data:
        """Return the data with grey images repeated to this number of channels.

        Raises SecateurError for colour images that have another number already.

        >>> load_data("digits").with_channels(3).train[0][0].shape
        torch.Size([3, 8, 8])
        """
        if channels == self.channels:
            return self
        if self.channels != 1 or channels < 1:
            raise SecateurError(
                f"{self.name} has {self.channels} channels, which cannot become {channels}; "
                "only grey images can be repeated"
            )
        return replace(
            self,
            train=self.train.with_channels(channels),
            valid=self.valid.with_channels(channels),
            channels=channels,
            mean=self.mean * channels,
            std=self.std * channels,
        )


def load_data(
    spec: str, *, size: int | None = None, limit: int | None = None, seed: int = 0
) -> Data:
    """Load the data that a spec names; nothing is downloaded, but for a hub name after `hf:`.

    `spec` is `digits`, `fashion-mnist:DIR`, `cifar10:DIR`, `imagefolder:DIR` or `hf:NAME`; `size`
    scales the images to size x size pixels; `limit` takes at most this many images of each split,
    with the classes in proportion; `seed` chooses them, the validation images of a set that has
    none, and the augmentation. Raises SecateurError for a spec that is not known and for data
    that is missing, empty or damaged.

    >>> data = load_data("digits")
    >>> len(data.train), len(data.valid), data.channels, data.size
    (1438, 359, 1, (8, 8))
    >>> data.augment
    'shifted at random by up to 1 px, zeros moving in'
    """
    if size is not None and not SMALLEST <= size <= LARGEST:
        raise SecateurError(f"size {size} should be {SMALLEST} to {LARGEST} pixels")
    if limit is not None and limit < 1:
        raise SecateurError(f"limit {limit} should be at least 1 image")
    name, source = _find(spec, seed)
    chosen = [_limited(split, limit, seed) for split in (source.train, source.valid)]
    train, valid = _pixels(chosen, size)
    height, width = train.shape[2:]
    mean, std = (source.mean, source.std) if source.mean else _statistics(train)
    augment = Augment((max(1, height // 8), max(1, width // 8)), source.flip, seed)
    return Data(
        name=name,
        train=ImageDataset(train, chosen[0].labels, mean, std, augment),
        valid=ImageDataset(valid, chosen[1].labels, mean, std),
        classes=source.classes,
        channels=train.shape[1],
        size=(height, width),
        mean=mean,
        std=std,
        digest=_digest((train, valid), chosen),
        augment=str(augment),
    )


def _find(spec: str, seed: int) -> tuple[str, Source]:
    """Return a short name for a spec and the images that it stands for."""
    kind, colon, place = spec.partition(":")
    if kind not in {known.partition(":")[0] for known in ACCEPTED}:
        raise SecateurError(f"unknown data '{spec}': {suggestion(kind, ACCEPTED)}")
    if kind == "digits":
        if colon:
            raise SecateurError(f"data '{spec}': digits comes with secateur and takes no folder")
        return kind, digits()
    if not place:
        missing = "NAME" if kind == "hf" else "DIR"
        raise SecateurError(f"data '{spec}' names no place; write {kind}:{missing}")
    folder = Path(place).expanduser()
    if kind == "fashion-mnist":
        return kind, fashion_mnist(folder)
    if kind == "cifar10":
        return kind, cifar10(folder)
    if kind == "imagefolder":
        return f"{kind}:{folder.resolve().name}", image_folder(folder, seed)
    local = folder.is_dir()
    return f"hf:{folder.resolve().name}" if local else spec, hub(
        str(folder) if local else place, seed
    )


def _limited(split: Split, limit: int | None, seed: int) -> Split:
    if limit is None or limit >= len(split.labels):
        return split
    return split.pick(stratified_order(split.labels, seed)[:limit].sort().values)


def _pixels(splits: Sequence[Split], size: int | None) -> list[Images]:
    encoded = [split.images for split in splits if not isinstance(split.images, Tensor)]
    if encoded:
        return read_images(encoded, size)
    images = [split.images for split in splits if isinstance(split.images, Tensor)]
    return [one if size is None else _scaled(one, size) for one in images]


def _scaled(images: Tensor, size: int) -> Tensor:
    if images.shape[2:] == (size, size):
        return images
    chunks = [
        F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
        for chunk in torch.split(images, _CHUNK)
    ]
    return torch.cat([chunk.round().clamp(0, 255).byte() for chunk in chunks])


def _statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel, exact in memory, else of a sample."""
    count = images.shape[0]
    rows = torch.arange(count)
    if not isinstance(images, Tensor) and count > _SAMPLED:
        # Files are sorted by class, so evenly spaced rows are in proportion.
        rows = torch.linspace(0, count - 1, _SAMPLED).long()
    counts = torch.zeros(images.shape[1], 256, dtype=torch.float64)
    for part in torch.split(rows, _CHUNK):
        for channel, values in enumerate(images[part].transpose(0, 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    shares = counts / counts.sum(1, keepdim=True)
    values = torch.arange(256) / 255.0
    mean = shares @ values.double()
    variance = shares @ values.double() ** 2 - mean**2
    # Images of one flat colour have no spread to divide by; one grey level stands in for it.
    std = variance.clamp(min=1 / 255**2).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def _digest(images: Sequence[Images], splits: Sequence[Split]) -> str:
    sha = hashlib.sha256()
    for pixels, split in zip(images, splits, strict=True):
        sha.update(f"{tuple(pixels.shape)}".encode())
        sha.update(split.labels.numpy().tobytes())
        if isinstance(pixels, Tensor):
            sha.update(np.ascontiguousarray(pixels.numpy()).data)
        else:
            sha.update(pixels.fingerprint.encode())
    return sha.hexdigest()
