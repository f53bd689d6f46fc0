"""Operators on tensors without data: what they give is known by shape.

Torch works many of them out in Python, at a thousand times the cost of making the result. So what
an operator gave for some shapes is remembered, and activations are known by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_LIKE_FIRST = (
    "relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "relu6",
    "elu", "leaky_relu", "mish", "dropout", "batch_norm", "instance_norm", "layer_norm",
    "group_norm",
)  # fmt: skip
"""Operators that give floats of the shape and layout that they are given."""

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class Dataless:
    """Runs operators of which every tensor operand is without data; remembers what they gave."""

    def __init__(self) -> None:
        self._known: dict[Any, _Layout] = {}
        self._kinds: dict[Any, str] = {}

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Return what an operator gives; raises what the operator raises."""
        kind = self._kinds.get(func)
        if kind is None:
            kind = self._kinds[func] = _kind(func)
        if kind == "other":
            return func(*args, **kwargs)
        first = args[0] if args else None
        if kind != "pure" and isinstance(first, Tensor) and first.is_floating_point():
            if kind == "like first, in place":
                return first
            if _is_dense(first):
                return _empty((first.shape, first.stride(), first.dtype))
        key = (func, *_marks(args), *_marks(sorted(kwargs.items())))
        try:
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be compared
            return func(*args, **kwargs)
        if known is not None:
            return _empty(known)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and kind != "like first, in place":
            self._known[key] = (result.shape, result.stride(), result.dtype)
        return result


def _kind(func: Any) -> str:
    """Say whether an operator's result is a tensor of its own, and whether it is like the first."""
    schema = func._schema
    name = schema.name.partition("::")[2]
    alike = schema.name.startswith("aten::") and name.rstrip("_") in _LIKE_FIRST
    values = (*schema.arguments, *schema.returns)
    if alike and schema.is_mutable and name.endswith("_") and func._overloadname != "out":
        return "like first, in place"
    if any(each.alias_info is not None for each in values):
        return "other"
    return "like first" if alike else "pure"


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has no holes and no entry twice, so that its layout is passed on."""
    sizes = zip(tensor.stride(), tensor.shape, strict=True)
    expected = 1
    for stride, size in sorted(each for each in sizes if each[1] != 1):
        if stride != expected:
            return False
        expected *= size
    return expected == math.prod(tensor.shape)


def _marks(values: Any) -> Iterator[Any]:
    """Give what an operator's result depends on: of tensors shape, layout and type."""
    for value in values:
        if isinstance(value, Tensor):
            yield (value.shape, value.stride(), value.dtype)
        elif isinstance(value, (list, tuple)):
            yield tuple(_marks(value))
        else:
            yield (type(value), value)


def _empty(layout: _Layout) -> Tensor:
    shape, stride, dtype = layout
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
