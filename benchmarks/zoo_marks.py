"""What the marks of the zoo are made of: outputs, differences, counts, and the row they end in."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

POINTS = (
    "plan reaches 95 % of the MACs or says why not",
    "params and MACs fall to the request",
    "outputs keep their shape and are finite",
    "masked and shrunk agree in float64",
    "one optimiser step changes every parameter with a gradient",
    "saved, loaded in a fresh process: same bits",
    "torch.export, ONNX and ONNX Runtime agree",
    "runs in train and eval mode",
    "within the time limit",
)
PLACES = (Path(torch.__file__).parents[1], Path(__file__).resolve().parents[1])
BUDGETS = (("params", 0.5), ("params", 0.3), ("macs", 0.5), ("macs", 0.3))
EXACT = 1e-6
SAMPLED = 1024


@dataclass
class Row:
    """One model's row; ``judge`` fills it point by point, ``save`` writes what is known so far.

    A point is True, False, or None where it does not apply or was not reached.
    """

    name: str
    library: str
    points: list[bool | None] = field(default_factory=lambda: [None] * len(POINTS))
    reason: str | None = None
    params: list[int | None] = field(default_factory=lambda: [None, None])
    macs: list[int | None] = field(default_factory=lambda: [None, None])
    seconds: float | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def judge(self, point: int, passed: bool | None, why: str = "") -> None:
        """Note the verdict on a point, counted from 1, with a reason if it is not a pass.

        A failure stays, a pass outlives a null.
        """
        before = self.points[point - 1]
        if passed is False:
            if before is not False and why:
                self.reason = "; ".join(filter(None, (self.reason, f"{point}: {short(why)}")))
            self.points[point - 1] = False
        elif passed is None:
            self.detail.setdefault("null", {}).setdefault(str(point), short(why))
        elif before is None:
            self.points[point - 1] = True

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Name what is being done, save the row, and time it."""
        self.detail["stage"] = name
        self.save()
        start = time.perf_counter()
        try:
            yield
        finally:
            stages = self.detail.setdefault("stages", {})
            took = time.perf_counter() - start
            stages[name] = round(stages.get(name, 0.0) + took, 3)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[list[float]]:
        """Be at a stage, and hand out its seconds: by the clock, and of the processor."""
        seconds: list[float] = []
        with self.stage(name):
            start, busy = time.perf_counter(), time.process_time()
            yield seconds
            seconds += (time.perf_counter() - start, time.process_time() - busy)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as it is published."""
        return {key: value for key, value in vars(self).items() if key != "path"}

    def save(self) -> None:
        """Write the row where a path was given."""
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.to_dict()))


def short(why: object, length: int = 300) -> str:
    """Return a reason on one line, with the kind of an exception before it.

    Colours and the places where this machine keeps its files are left out.
    """
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(why)).split())
    for folder in PLACES:
        text = text.replace(f"{folder}/", "")
    if isinstance(why, BaseException):
        text = f"{type(why).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= length else text[: length - 1] + "…"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old text or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an output in order, whatever holds them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in tensors(part)]
    return []


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode without gradients, and every part back into its own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def plain_kernels(model: nn.Module) -> Iterator[None]:
    """Keep torch from fused kernels whose work its counter does not see."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if any(isinstance(module, nn.RNNBase) for module in model.modules()):
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the tensors that a model gives in eval mode."""
    torch.manual_seed(0)
    with evaluating(model):
        return [tensor.detach().clone() for tensor in tensors(model(*inputs))]


def relative_error(expected: list[Tensor], got: list[Tensor]) -> float:
    """Return the largest difference relative to the largest entry of its tensor.

    Infinite where numbers, shapes or integers differ, or where something is not a number.
    """
    worst = 0.0
    if len(expected) != len(got):
        return float("inf")
    for one, other in zip(expected, got, strict=True):
        if one.shape != other.shape or one.is_floating_point() != other.is_floating_point():
            return float("inf")
        if not one.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(one, other) else float("inf"))
        elif one.numel():
            # Masked positions may be minus infinity on both sides.
            gap = torch.where(one == other, 0.0, (one - other).abs())
            scale = one[one.isfinite()].abs().max() if one.isfinite().any() else one.new_ones(())
            error = float(gap.max() / scale.clamp(min=1e-30))
            worst = max(worst, float("inf") if math.isnan(error) else error)
    return worst


def misshapen(expected: list[Tensor], got: list[Tensor], ragged: bool = False) -> str | None:
    """Return how outputs differ in shape or are not finite, None where they are in order.

    With ``ragged`` the first extents, the numbers of things found, may differ.
    """
    if len(expected) != len(got):
        return f"{len(got)} outputs instead of {len(expected)}"
    for one, other in zip(expected, got, strict=True):
        start = 1 if ragged else 0
        if one.dim() != other.dim() or one.shape[start:] != other.shape[start:]:
            return f"an output of shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        if one.isfinite().all() and not other.isfinite().all():
            return "an output is not finite"
    return None


def count_params(model: nn.Module) -> int:
    """Return the number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def counted(model: nn.Module, inputs: Any) -> tuple[list[Tensor], int]:
    """Return what a model gives and its multiply-accumulates, by torch's own counter."""
    counter = FlopCounterMode(display=False)
    # The counter cannot watch a module that is given a parameter that learns.
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with plain_kernels(model), counter:
            found = outputs(model, inputs)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    return found, int(counter.get_total_flops()) // 2


def count_macs(model: nn.Module, inputs: Any) -> int:
    """Return the multiply-accumulates of one forward pass."""
    return counted(model, inputs)[1]


def alignment_unit(model: nn.Module, inputs: Any, axes: Any) -> dict[str, float]:
    """Return the smallest shares of parameters and MACs that one index of a free axis carries."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    usage = importlib.import_module("secateur.structure.usage").observe(
        model, lambda: model(*inputs)
    )
    least = {"params": 1.0, "macs": 1.0}
    wholes = {"params": sum(sizes.values()), "macs": usage.macs}
    for axis in axes:
        if axis.pinned is None:
            names = {name for name, _ in axis.carriers}
            for currency, costs in (("params", sizes), ("macs", usage.by_parameter)):
                carried = sum(costs.get(name, 0) for name in names) / axis.size
                share = carried / max(1, wholes[currency])
                least[currency] = min(least[currency], share)
    return least


def sampled_by_module(model: nn.Module, inputs: Any) -> dict[str, tuple[Any, list[Tensor]]]:
    """Return shapes and evenly spaced entries of what every layer gives, by its path."""
    seen: dict[str, tuple[Any, list[Tensor]]] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            found = tensors(result)
            shapes, values = seen.setdefault(path, ([], []))
            shapes.extend(tuple(each.shape) for each in found)
            step = [max(1, each.numel() // SAMPLED) for each in found]
            values.extend(
                each.detach().flatten()[::k].clone() for each, k in zip(found, step, strict=True)
            )

        return hook

    layers = {path: part for path, part in model.named_modules() if part._parameters}
    handles = [part.register_forward_hook(watch(path)) for path, part in layers.items()]
    try:
        outputs(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def inner_error(
    expected: Mapping[str, tuple[Any, list[Tensor]]], got: Mapping[str, tuple[Any, list[Tensor]]]
) -> float:
    """Return the largest relative error over the layers whose outputs kept their shapes."""
    same = [path for path in expected if path in got and expected[path][0] == got[path][0]]
    return max((relative_error(expected[path][1], got[path][1]) for path in same), default=0.0)


class _Double(TorchFunctionMode):
    """Reads every float32 that a model's code names as float64."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()

        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        named = {key: wide(value) for key, value in (kwargs or {}).items()}
        return func(*(wide(value) for value in args), **named)


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Make double precision the default, also for code that asks for single precision by name."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Double():
            yield
    finally:
        torch.set_default_dtype(default)
