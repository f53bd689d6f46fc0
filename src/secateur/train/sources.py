"""What a set of images is made of, and the sets with files of their own: digits, Fashion, CIFAR."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.extras import need
from secateur.train.images import LARGEST_FILE, Encoded

VALID_SHARE = 0.2
VALID_NAMES = ("valid", "val", "test")


@dataclass(frozen=True)
class Split:
    """Images, decoded as uint8 [N, C, H, W] or still in their files, with int64 labels [N]."""

    images: Tensor | Encoded
    labels: Tensor

    def pick(self, rows: Tensor) -> Split:
        """Return the images and labels of these rows [M], in this order."""
        images = self.images
        chosen = images[rows] if isinstance(images, Tensor) else images.pick(rows.tolist())
        return Split(chosen, self.labels[rows])


@dataclass(frozen=True)
class Source:
    """A set of images as it was found, before scaling and normalisation.

    `mean` and `std` are given where a set has constants that everyone uses, else empty.
    """

    train: Split
    valid: Split
    classes: tuple[str, ...]
    flip: bool = True
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Order labels [N] at random so that every prefix holds the classes in their proportions.

    The j-th image of a class of n, after a shuffle by seed, is placed at (j + 1/2) / n.

    >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_order(labels, seed=0)].tolist()
    [0, 1, 0, 0, 1, 0]
    """
    return torch.argsort(_places(labels, seed), stable=True)


def divide(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows for training (80 %) and validation (20 %), both stratified and sorted.

    >>> [len(rows) for rows in divide(torch.arange(10).repeat(10), seed=0)]
    [80, 20]
    """
    valid = _places(labels, seed) < VALID_SHARE
    return (~valid).nonzero().flatten(), valid.nonzero().flatten()


def _places(labels: Tensor, seed: int) -> Tensor:
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    counts = torch.bincount(labels)
    size = counts.repeat_interleave(counts)
    rank = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    places = torch.empty(len(labels), dtype=torch.float64)
    places[by_class] = (rank + 0.5).double() / size
    return places


def divided(whole: Split, seed: int, where: str) -> tuple[Split, Split]:
    """Divide one split in two; raise SecateurError if it is too small for that."""
    train, valid = divide(whole.labels, seed)
    if not len(valid):
        raise SecateurError(
            f"{where} has too few images to hold 20 % of each class back for validation; "
            "add images, at least 3 to a class"
        )
    return whole.pick(train), whole.pick(valid)


def digits() -> Source:
    """Read scikit-learn's 1797 handwritten digits, 8x8 grey; divided 80/20, always alike."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    whole = Split(torch.from_numpy(grey)[:, None], torch.from_numpy(bunch.target).long())
    train, valid = divided(whole, 0, "digits")
    return Source(train, valid, tuple(str(name) for name in bunch.target_names), flip=False)


_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def fashion_mnist(folder: Path) -> Source:
    """Read Fashion-MNIST, 28x28 grey, from torchvision's files, FOLDER/FashionMNIST/raw/*."""
    mnist = need("torchvision.datasets.mnist", "vision", "fashion-mnist")
    raw = folder / "FashionMNIST" / "raw"

    # torchvision's FashionMNIST class would first unpickle a FOLDER/FashionMNIST/processed of
    # older versions; its readers of the plain files below cannot run anything.
    def read(prefix: str) -> Split:
        files = raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"
        for file in files:
            if not file.is_file():
                raise SecateurError(
                    f"fashion-mnist expects the unpacked file {file}, which does not exist; "
                    "name the folder that torchvision.datasets.FashionMNIST(root=...) filled"
                )
            if file.stat().st_size > LARGEST_FILE:
                raise SecateurError(f"{file} is over 64 MiB, so it is not of Fashion-MNIST")
        try:
            images, labels = (
                mnist.read_image_file(str(files[0])),
                mnist.read_label_file(str(files[1])),
            )
        except (AssertionError, RuntimeError, ValueError, KeyError, IndexError, OSError) as error:
            raise SecateurError(
                f"fashion-mnist: {files[0]} or {files[1].name} is damaged or cut short; "
                "unpack it again"
            ) from error
        if images.shape != (len(labels), 28, 28) or not len(labels) or labels.max() > 9:
            raise SecateurError(
                f"fashion-mnist expects 28x28 images with as many labels 0 to 9, but {files[0]} "
                f"has shape {tuple(images.shape)} and {files[1].name} has {len(labels)} labels; "
                "unpack it again"
            )
        return Split(images[:, None], labels.long())

    return Source(read("train"), read("t10k"), _FASHION)


def cifar10(folder: Path) -> Source:
    """Read CIFAR-10, 32x32 RGB, from torchvision's files, FOLDER/cifar-10-batches-py/*."""
    datasets = need("torchvision.datasets", "vision", "cifar10")
    check = need("torchvision.datasets.utils", "vision", "cifar10").check_integrity
    kind = datasets.CIFAR10
    batches = folder / kind.base_folder
    # The files are pickles. torchvision unpickles none whose MD5 is not the official one, and
    # the same check here, before it, names the file that fails.
    official = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    for name, md5 in official:
        if not (batches / name).is_file():
            raise SecateurError(
                f"cifar10 expects the file {batches / name}, which does not exist; name the "
                "folder that torchvision.datasets.CIFAR10(root=...) filled"
            )
        if not check(str(batches / name), md5):
            raise SecateurError(
                f"cifar10: {batches / name} is not the official file (its MD5 differs); "
                "unpack it again"
            )

    def read(train: bool) -> Split:
        found = kind(root=str(folder), train=train, download=False)
        pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2).contiguous()
        return Split(pixels, torch.tensor(found.targets))

    # The constants of ImageNet, which published CIFAR-10 weights expect.
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Source(read(True), read(False), _CIFAR10, mean=mean, std=std)


def few(words: Iterable[str], most: int = 5) -> str:
    """Join some words with commas, and say how many more there are."""
    listed = list(words)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
