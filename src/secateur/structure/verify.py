"""Verification: two states of a model are run on the same inputs.

Their own precision tells most errors at half the cost; where it leaves a doubt, double settles it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from secateur.structure.usage import evaluating

EXACT = 1e-6
"""The largest relative difference, in double precision, that counts as none."""


@dataclass(frozen=True)
class Outputs:
    """What a model gives for its inputs, and the precision it was computed in."""

    tensors: list[Tensor]
    dtype: torch.dtype


def run(model: nn.Module, inputs: tuple[Any, ...], double: bool, seed: int = 0) -> Outputs:
    """Run a model in eval mode, in its own precision or in double where its code allows that.

    Half precision cannot tell a difference from rounding, and is always taken to double.
    """
    first = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if double or first not in (torch.float32, torch.float64):
        try:
            return _run(model, inputs, seed, torch.float64)
        except Exception:  # code that mixes precisions may raise anything
            return _run(model, inputs, seed, None)
    return _run(model, inputs, seed, None)


def _run(
    model: nn.Module, inputs: tuple[Any, ...], seed: int, dtype: torch.dtype | None
) -> Outputs:
    devices = {each.device.index for each in model.parameters() if each.is_cuda}
    with (
        _precision(model, dtype) as used,
        evaluating(model),
        torch.no_grad(),
        torch.random.fork_rng(sorted(index for index in devices if index is not None)),
    ):
        torch.manual_seed(seed)
        result = model(*tree_map(lambda each: _cast(each, dtype), inputs))
    return Outputs([each.detach() for each in _tensors(result)], used)


def difference(one: Outputs, other: Outputs) -> float:
    """Return the largest difference of two outputs, relative to the largest entry.

    Infinity where shapes differ or entries are not finite in one of them alone.
    """
    worst = 0.0
    if len(one.tensors) != len(other.tensors):
        return float("inf")
    for left, right in zip(one.tensors, other.tensors, strict=True):
        if left.shape != right.shape:
            return float("inf")
        if not left.numel() or not left.is_floating_point():
            continue
        same = (left == right) | (left.isnan() & right.isnan())
        gap = torch.where(same, 0.0, (left - right).abs().double())
        scale = left.abs().double().nan_to_num(0.0, 0.0, 0.0).max().clamp(min=1e-30)
        worst = max(worst, float((gap / scale).nan_to_num(float("inf")).max()))
    return worst


def tolerance(outputs: Outputs) -> float:
    """Return the difference that counts as none in the precision that was used."""
    return EXACT if outputs.dtype is torch.float64 else 1e3 * torch.finfo(outputs.dtype).eps


def _tensors(value: Any) -> list[Tensor]:
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    return [each for each in tree_flatten(value)[0] if isinstance(each, Tensor)]


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


@contextlib.contextmanager
def _precision(model: nn.Module, dtype: torch.dtype | None) -> Iterator[torch.dtype]:
    """Give every parameter and buffer a precision for as long as the context runs."""
    first = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype is None:
        yield first
        return
    saved = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())
             if tensor.is_floating_point() and tensor.dtype != dtype]  # fmt: skip
    gradients = [(p, p.grad) for p in model.parameters() if p.grad is not None]
    default = torch.get_default_dtype()
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        for tensor, data in saved:
            tensor.data = data.to(dtype)
        torch.set_default_dtype(dtype)
        yield dtype
    finally:
        torch.set_default_dtype(default)
        for tensor, data in saved:
            tensor.data = data
        for parameter, gradient in gradients:
            parameter.grad = gradient
