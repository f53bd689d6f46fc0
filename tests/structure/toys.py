"""What toy blocks are made of: sizes, norms, activations, and the table of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda width: nn.ReLU(),
    "none": lambda width: nn.Identity(),
    "gelu": lambda width: nn.GELU(),
    "silu": lambda width: nn.SiLU(inplace=True),
    "sigmoid": lambda width: nn.Sigmoid(),
    "softplus": lambda width: nn.Softplus(),
    "hardswish": lambda width: nn.Hardswish(),
    "prelu": nn.PReLU,
    "prelu of one": lambda width: nn.PReLU(),
}
NORMS = (
    "batch", "none", "batch without affine", "group few", "group all", "group one",
    "instance", "instance with statistics", "layer",
)  # fmt: skip
KEEPING = ("batch", "none", "group few", "group all", "instance with statistics")
"""Norms that leave an exact removal of whole groups or channels possible."""

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class Size:
    """Channels and extent of an image, or width and length of a row of tokens."""

    width: int
    extent: tuple[int, ...]

    @property
    def rank(self) -> int:
        """The number of dimensions of the extent, from 1."""
        return len(self.extent)

    def with_width(self, width: int) -> Size:
        """Return the same extent with other channels."""
        return Size(width, self.extent)


@dataclass(frozen=True)
class Block:
    """How a kind of block is made, and the values that each of its options takes, simple first."""

    make: Callable[..., Any]
    options: dict[str, tuple[Any, ...]]
    fits: Callable[[Size], bool]


def block(
    registry: dict[str, Block], fits: Callable[[Size], bool] = lambda size: True, **options: Any
) -> Callable[[Any], Any]:
    """Register a module as a block; its name becomes lower case with spaces."""

    def register(made: Any) -> Any:
        words = "".join(f" {each.lower()}" if each.isupper() else each for each in made.__name__)
        registry[words.strip()] = Block(made, options, fits)
        return made

    return register


def groups_for(width: int, wanted: int, other: int = 0) -> int:
    """Return the number of groups nearest below what is wanted that divides the widths."""
    return math.gcd(math.gcd(width, wanted), other)


class ChannelsLast(nn.Module):
    """Moves channels to the end, applies a module, and moves them back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.movedim(1, -1)).movedim(-1, 1)


def make_norm(kind: str, width: int, rank: int) -> nn.Module:
    """Make a norm over the channels of images of a rank."""
    made: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: BATCH_NORMS[rank - 1](width),
        "none": nn.Identity,
        "batch without affine": lambda: BATCH_NORMS[rank - 1](width, affine=False),
        "group few": lambda: nn.GroupNorm(groups_for(width, 4), width),
        "group all": lambda: nn.GroupNorm(width, width),
        "group one": lambda: nn.GroupNorm(1, width),
        "instance": lambda: INSTANCE_NORMS[rank - 1](width),
        "instance with statistics": lambda: INSTANCE_NORMS[rank - 1](
            width, affine=True, track_running_stats=True
        ),
        "layer": lambda: ChannelsLast(nn.LayerNorm(width)),
    }
    return made[kind]()


def make_act(kind: str, width: int) -> nn.Module:
    """Make an activation for images with so many channels."""
    return ACTIVATIONS[kind](width)


def conv(size: Size, out: int, kernel: int = 3, **options: Any) -> nn.Module:
    """Make a convolution that keeps the extent, unless it has a stride."""
    padding = options.pop("padding", options.get("dilation", 1) * (kernel - 1) // 2)
    return CONVS[size.rank - 1](size.width, out, kernel, padding=padding, **options)


def even(size: Size) -> bool:
    """Whether every extent can be halved."""
    return all(each % 2 == 0 and each > 2 for each in size.extent)


def small(size: Size) -> bool:
    """Whether every extent may be doubled."""
    return all(each <= 8 for each in size.extent)


def halved(size: Size) -> Size:
    """Return the size with half the extent."""
    return Size(size.width, tuple(each // 2 for each in size.extent))


def doubled(size: Size) -> Size:
    """Return the size with twice the extent."""
    return Size(size.width, tuple(each * 2 for each in size.extent))
