"""Units: how a granularity partitions one weight, as pure reshaping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from secateur.errors import SecateurError
from secateur.structure.weights import PrunableWeight
from secateur.technique.granularity import Granularity


@dataclass(frozen=True)
class Units:
    """The partition of a weight [groups, outputs, inputs, *kernel] into units.

    Units are numbered row-major over the named axes; ``tiles`` holds the block length of every
    dimension (1 without a tile), and the last block of a dimension may be smaller.
    """

    shape: tuple[int, ...]
    named: tuple[bool, ...]
    tiles: tuple[int, ...]

    @classmethod
    def of(cls, weight: PrunableWeight, granularity: Granularity) -> Units:
        """Partition a weight; the group goes with the outputs and inputs, as it numbers both."""
        letters = weight.axes
        either = bool(granularity.named & {"o", "i"})
        named = tuple(
            either if letter == "g" else letter in granularity.named for letter in letters
        )
        tiles = tuple(
            1 if letter == "g" else min(size, granularity.tile(letter))
            for letter, size in zip(letters, weight.shape, strict=True)
        )
        return cls(weight.shape, named, tiles)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of units along each dimension; 1 along those that do not name a unit."""
        return tuple(
            math.ceil(size / tile) if named else 1
            for size, named, tile in zip(self.shape, self.named, self.tiles, strict=True)
        )

    @property
    def count(self) -> int:
        """Number of units."""
        return math.prod(self.grid)

    @property
    def single(self) -> bool:
        """Whether every unit is one weight."""
        return self.count == math.prod(self.shape)

    @property
    def equal(self) -> bool:
        """Whether all units hold equally many weights."""
        return all(size % tile == 0 for size, tile in zip(self.shape, self.tiles, strict=True))

    @property
    def extent(self) -> tuple[int, ...]:
        """Shape of a complete unit: how far it reaches along each dimension."""
        return tuple(
            tile if named else size
            for size, named, tile in zip(self.shape, self.named, self.tiles, strict=True)
        )

    @property
    def largest(self) -> int:
        """Number of weights of a complete unit."""
        return math.prod(self.extent)

    def sizes(self) -> Tensor:
        """Return the number of weights of each unit [units], int64."""
        if self.equal:
            return torch.full((self.count,), self.largest)
        sizes = torch.ones(())
        for size, named, tile in zip(self.shape, self.named, self.tiles, strict=True):
            blocks = torch.tensor([float(size)])
            if named:
                starts = torch.arange(0, size, tile)
                blocks = (size - starts).clamp(max=tile).float()
            sizes = sizes[..., None] * blocks
        return sizes.flatten().long()

    def rows(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gather a tensor in the weight's layout as [units, weights of a unit].

        Smaller units end in zeros; the second value then holds their sizes [units, 1], else None.
        """
        full = tensor.expand(self.shape)
        if self.single:
            return full.reshape(-1, 1), None
        split: list[int] = []
        padding: list[int] = []
        for size, tile in zip(self.shape, self.tiles, strict=True):
            blocks = math.ceil(size / tile)
            split += [blocks, tile]
            padding = [0, blocks * tile - size, *padding]
        if not self.equal:
            full = functional.pad(full, padding)
        full = full.reshape(split)
        first = [2 * dim for dim, named in enumerate(self.named) if named]
        rest = [dim for dim in range(len(split)) if dim not in first]
        rows = full.permute(*first, *rest).reshape(self.count, -1)
        if self.equal:
            return rows, None
        real = functional.pad(torch.ones(self.shape, device=full.device), padding).reshape(split)
        inside = real.permute(*first, *rest).reshape(self.count, -1)
        # Tiles along several axes leave their padding in between; it is brought to the end.
        order = torch.argsort(inside, dim=1, descending=True, stable=True)
        return rows.gather(1, order), inside.sum(1, keepdim=True).to(rows)

    def spread(self, units: Tensor) -> Tensor:
        """Give every weight the value of its unit: [units] to the weight's layout (a view)."""
        spread = units.reshape(self.grid)
        for dim, (size, tile) in enumerate(zip(self.shape, self.tiles, strict=True)):
            if tile > 1:
                spread = spread.repeat_interleave(tile, dim).narrow(dim, 0, size)
        return spread.expand(self.shape)

    def pick(self, tensor: Tensor) -> Tensor:
        """Return the value at the first weight of every unit [units]."""
        index = tuple(
            slice(None, None, tile) if named else slice(0, 1)
            for named, tile in zip(self.named, self.tiles, strict=True)
        )
        return tensor[index].reshape(-1)

    @property
    def per_output(self) -> int:
        """Number of units of one output, for the granularities that part an output."""
        return self.count // max(1, self.grid[0] * self.grid[1])


def check_blocks(weight: PrunableWeight, granularity: Granularity) -> None:
    """Refuse n:m where m does not divide the axis, unless the remainder is to be kept dense."""
    if granularity.block is None:
        return
    there = granularity.along in weight.axes
    extent = weight.shape[weight.axes.index(granularity.along)] if there else 1
    if extent % granularity.block and granularity.remainder == "error":
        nm = f"{granularity.kept}:{granularity.block}"
        raise SecateurError(
            f"{nm} does not divide {weight.name}: it has {extent} weights along "
            f"'{granularity.along}'; write {nm}(remainder=keep) to leave the rest dense, or "
            "exclude the layer"
        )


def removable(scores: Tensor, weight: PrunableWeight, granularity: Granularity) -> Tensor:
    """Mark the weights that n:m lets go: the lowest m - n of each complete block [units].

    Ties within a block break by position.
    """
    if granularity.block is None or granularity.kept is None:
        return torch.ones_like(scores, dtype=torch.bool)
    block = granularity.block
    layout = scores.reshape(weight.shape)
    allowed = torch.zeros(weight.shape, dtype=torch.bool, device=scores.device)
    if granularity.along in weight.axes:
        dim = weight.axes.index(granularity.along)
        complete = weight.shape[dim] // block * block
        if complete:
            blocks = layout.narrow(dim, 0, complete).unflatten(dim, (-1, block))
            order = torch.argsort(blocks, dim=dim + 1, stable=True)
            lowest = order.narrow(dim + 1, 0, block - granularity.kept)
            target = allowed.narrow(dim, 0, complete).unflatten(dim, (-1, block))
            target.scatter_(dim + 1, lowest, True)
    return allowed.reshape(-1)
