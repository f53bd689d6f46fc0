"""Verification: two states of a model are run on the same inputs.

Their own precision tells most errors at half the cost; where it leaves a doubt, double settles it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from secateur.structure.nesting import plain
from secateur.structure.usage import evaluating

_SAMPLED = 4096
EXACT = 1e-6
"""The largest relative difference, in double precision, that counts as none."""


@dataclass(frozen=True)
class Outputs:
    """What a model gives for its inputs, the precision it was computed in, and what went before.

    ``calls`` holds samples of what the modules with parameters were given and gave, where asked.
    """

    tensors: list[Tensor]
    dtype: torch.dtype
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """One call of a module: the shapes and samples of the tensors that went in and came out."""

    path: str
    given: list[Sample]
    made: list[Sample]


Sample = tuple[torch.Size, Tensor]


def run(
    model: nn.Module,
    inputs: tuple[Any, ...],
    double: bool,
    seed: int = 0,
    inside: bool = False,
) -> Outputs:
    """Run a model in eval mode, in its own precision or in double where its code allows that.

    Half precision cannot tell a difference from rounding, and is always taken to double. With
    ``inside``, the modules are watched too.
    """
    calls: list[Call] = []
    with _watching(model, calls) if inside else contextlib.nullcontext():
        found = _run_double(model, inputs, double, seed, calls)
    return replace(found, calls=calls)


def _run_double(
    model: nn.Module, inputs: tuple[Any, ...], double: bool, seed: int, calls: list[Call]
) -> Outputs:
    first = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if double or first not in (torch.float32, torch.float64):
        try:
            return _run(model, inputs, seed, torch.float64)
        except Exception:  # code that mixes precisions may raise anything
            calls.clear()
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


@contextlib.contextmanager
def _watching(model: nn.Module, calls: list[Call]) -> Iterator[None]:
    """Note what modules with parameters are given and give, for as long as the context runs."""

    def note(path: str) -> Callable[..., None]:
        def after(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            calls.append(Call(path, _samples((args, kwargs)), _samples(result)))

        return after

    handles = [
        module.register_forward_hook(note(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and any(True for _ in module.parameters())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _samples(value: Any) -> list[Sample]:
    found = []
    for tensor in _tensors(plain(value)):
        flat = tensor.detach().flatten()
        step = max(1, flat.numel() // _SAMPLED)
        found.append((tensor.shape, flat[::step].clone()))
    return found


def difference_inside(one: Outputs, other: Outputs) -> float:
    """Return the largest difference of what modules make of the same, relative as above.

    What a network's own code chooses by values, such as the best boxes, may turn on rounding:
    modules that are given other choices are passed over. Infinity where none can be compared.
    """
    if [call.path for call in one.calls] != [call.path for call in other.calls]:
        return float("inf")
    worst, compared = 0.0, False
    for left, right in zip(one.calls, other.calls, strict=True):
        if _gap(left.given, right.given) > EXACT:
            continue
        gap = _gap(left.made, right.made)
        worst, compared = max(worst, gap), True
    return worst if compared else float("inf")


def _gap(left: list[Sample], right: list[Sample]) -> float:
    """Compare samples of tensors that have kept their shapes."""
    kept = [(a[1], b[1]) for a, b in zip(left, right, strict=False) if a[0] == b[0]]
    dtype = torch.float64
    return difference(Outputs([a for a, _ in kept], dtype), Outputs([b for _, b in kept], dtype))


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
