"""Inputs: what every weight reads over some batches, as a mean and a matrix of products.

The columns of a weight [groups, outputs, inputs, *kernel] are its inputs and kernel positions; a
convolution's input is unfolded into them. Weights that always read the same tensor share one
matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import SecateurError
from secateur.sparsify.ranks import over_ranks
from secateur.sparsify.scoring import widen
from secateur.sparsify.statistics import run_model
from secateur.structure.usage import Usage, _Watch, evaluating
from secateur.structure.weights import PrunableWeight

_LARGEST_PIECE = 1 << 24
"""Numbers of an unfolded input that are held at once."""

Place = tuple[str, int, int, int]
"""A parameter, its first and last row, and the number of columns that are read."""


@dataclass
class _Sums:
    """Sums over the rows that were read: how many, of x [groups, n], of x x^T [groups, n, n]."""

    count: int
    total: Tensor
    products: Tensor | None

    def copy(self) -> _Sums:
        products = None if self.products is None else self.products.clone()
        return _Sums(self.count, self.total.clone(), products)


def read_inputs(
    model: nn.Module,
    weights: Sequence[PrunableWeight],
    batches: Iterable[Any],
    products: bool = True,
) -> dict[str, dict[str, Tensor]]:
    """Return ``input_mean`` [groups, n] by weight, and ``gram``: mean x x^T [groups, n, n].

    The model runs in eval mode without gradients. Raises SecateurError for a weight that the data
    does not pass through as a matrix product or a convolution.
    """
    watch = _Reader(model, products)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it hides which weight it multiplies by
    try:
        with evaluating(model), torch.no_grad(), watch:
            for batch in batches:
                run_model(model, batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    rows = {name: parameter.shape[0] for name, parameter in model.named_parameters()}
    found = {weight.name: watch.sums_of(weight, rows[weight.parameter]) for weight in weights}
    return _averaged(found, products)


def _averaged(found: dict[str, _Sums], products: bool) -> dict[str, dict[str, Tensor]]:
    """Divide the sums over all ranks by their counts, once for all weights that share them."""
    shared = {id(sums): sums for sums in found.values()}
    for sums in shared.values():
        counts = torch.tensor(float(sums.count), dtype=torch.float64, device=sums.total.device)
        parts = [counts, sums.total, *([] if sums.products is None else [sums.products])]
        over_ranks(parts, mean=False)
        for part in parts[1:]:
            part.div_(float(counts))
    means = {name: sums.total for name, sums in found.items()}
    if not products:
        return {"input_mean": means}
    grams = {name: sums.products for name, sums in found.items() if sums.products is not None}
    return {"input_mean": means, "gram": grams}


class _Reader(_Watch):
    """Adds up what the watched operators read, one sum for all weights of the same history."""

    def __init__(self, model: nn.Module, products: bool) -> None:
        super().__init__(model, Usage(), inputs=True)
        self.products = products
        self.last: tuple[Any, ...] = ()
        self.number = 0
        self.histories: dict[Place, tuple[int, ...]] = {}
        self.sums: dict[tuple[int, ...], _Sums] = {}

    def attribute(self, operator: str, args: tuple[Any, ...], _: int) -> None:
        if operator in ("mm", "addmm", "bmm", "baddbmm"):
            first = 0 if operator in ("mm", "bmm") else 1
            data, weight = args[first], args[first + 1]
            named = self.owner(weight)
            if named is not None:
                self.note(named, weight, data, _Rows(1))
        elif operator == "convolution" and not args[6]:
            data, weight = args[0], args[1]
            named = self.owner(weight)
            if named is not None:
                kernel = tuple(weight.shape[2:])
                self.note(named, weight, data, _Rows(args[8], kernel, *map(tuple, args[3:6])))

    def note(self, named: tuple[str, Tensor], used: Tensor, data: Tensor, rows: _Rows) -> None:
        """Add the data to the sums of the weight, unless another weight's sums hold it already."""
        name, parameter = named
        width = max(1, parameter.numel() // parameter.shape[0])
        start = int(used.storage_offset() - parameter.storage_offset()) // width
        place = (name, start, start + max(1, used.numel() // width), rows.columns(data))
        before = self.histories.get(place, ())
        after = (*before, self.identify(data, rows))
        self.histories[place] = after
        if after in self.sums:
            self.forget(before)
            return
        sums = self.sums.get(before)
        if sums is not None and before in self.histories.values():
            sums = sums.copy()
        elif sums is not None:
            del self.sums[before]
        self.sums[after] = rows.added(sums, data, self.products)

    def identify(self, data: Tensor, rows: _Rows) -> int:
        """Number the tensors that are read; the same one read again keeps its number.

        The last one is held on to, so that its memory is not given to another.
        """
        key = (data.data_ptr(), data.shape, data.stride(), data._version, rows)
        if not self.last or self.last[0] != key:
            self.number += 1
            self.last = (key, data)
        return self.number

    def forget(self, history: tuple[int, ...]) -> None:
        """Drop sums that no weight is at any more."""
        if history in self.sums and history not in self.histories.values():
            del self.sums[history]

    def sums_of(self, weight: PrunableWeight, rows: int) -> _Sums:
        """Return the sums of a weight, added up where it is used in several places."""
        start, stop = weight.rows or (0, rows)
        columns = math.prod(weight.shape[2:])
        found = [
            self.sums[history]
            for (name, first, last, wide), history in self.histories.items()
            if name == weight.parameter and first < stop and start < last and wide == columns
        ]
        if not found:
            raise SecateurError(
                f"the data never passes through {weight.name} as a matrix product or a "
                "convolution, so what it reads is unknown; exclude it"
            )
        if len(found) == 1:
            return found[0]
        products = [sums.products for sums in found if sums.products is not None]
        return _Sums(
            sum(sums.count for sums in found),
            torch.stack([sums.total for sums in found]).sum(0),
            torch.stack(products).sum(0) if products else None,
        )


@dataclass(frozen=True)
class _Rows:
    """How an operator's input becomes rows [groups, rows, columns]: as it is, or unfolded."""

    groups: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = field(default=())
    padding: tuple[int, ...] = field(default=())
    dilation: tuple[int, ...] = field(default=())

    def columns(self, data: Tensor) -> int:
        if not self.kernel:
            return int(data.shape[-1])
        return int(data.shape[1]) // self.groups * math.prod(self.kernel)

    def added(self, sums: _Sums | None, data: Tensor, products: bool) -> _Sums:
        """Add an input to sums, in place; a piece at a time where it has to be unfolded."""
        for rows in self.pieces(widen(data)):
            if sums is None:
                groups, _, columns = rows.shape
                total = rows.new_zeros(groups, columns)
                square = rows.new_zeros(groups, columns, columns) if products else None
                sums = _Sums(0, total, square)
            sums.count += rows.shape[1]
            sums.total += rows.sum(1)
            if sums.products is not None:
                if len(rows) == 1:
                    sums.products[0].addmm_(rows[0].T, rows[0])
                else:
                    sums.products.baddbmm_(rows.transpose(1, 2), rows)
        assert sums is not None
        return sums

    def pieces(self, data: Tensor) -> Iterable[Tensor]:
        if not self.kernel:
            yield data.reshape(1, -1, data.shape[-1])
            return
        if data.ndim == len(self.kernel) + 1:
            data = data.unsqueeze(0)
        examples = max(1, _LARGEST_PIECE // max(1, data[0].numel() * math.prod(self.kernel)))
        for part in data.split(examples):
            yield self.unfold(part)

    def unfold(self, data: Tensor) -> Tensor:
        """Return [groups, examples x positions, inputs x kernel] of [examples, channels, ...]."""
        if any(self.padding):
            data = functional.pad(data, [side for each in reversed(self.padding)
                                         for side in (each, each)])  # fmt: skip
        settings = zip(self.kernel, self.stride, self.dilation, strict=True)
        for dim, (kernel, stride, dilation) in enumerate(settings, 2):
            data = data.unfold(dim, (kernel - 1) * dilation + 1, stride)[..., ::dilation]
        places = len(self.kernel)
        data = data.unflatten(1, (self.groups, -1))
        order = [1, 0, *range(3, 3 + places), 2, *range(3 + places, 3 + 2 * places)]
        return data.permute(order).flatten(2 + places).flatten(1, 1 + places)
