"""How a forward pass uses each parameter: its multiply-accumulates and what it reads.

A dispatch mode watches the operators beneath the model, so that a weight is seen wherever it is
used: in a module's forward, through ``torch.nn.functional``, or inside an attention.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import UninitializedParameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from secateur.structure.weights import PrunableWeight

_MATRIX_AT = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2)}
_TRACING = (
    (torch.compiler, "is_compiling"), (torch.compiler, "is_dynamo_compiling"),
    (torch.compiler, "is_exporting"), (torch.jit, "is_tracing"),
)  # fmt: skip
_CONTAINERS = (dict, OrderedDict, list, set)


@dataclass
class Usage:
    """Multiply-accumulates in all and by parameter; squared inputs by parameter and rows."""

    macs: int = 0
    by_parameter: dict[str, int] = field(default_factory=dict)
    squares: dict[tuple[str, int, int, int], Tensor] = field(default_factory=dict)

    def input_squares(self, weight: PrunableWeight, rows: int) -> Tensor | None:
        """Return sum over data of x^2 for each input of the weight, None if it was not seen."""
        start, stop = weight.rows or (0, rows)
        found = [
            total
            for (name, first, last, _), total in self.squares.items()
            if name == weight.parameter
            and first < stop
            and start < last
            # A tied embedding is read both by token and by feature: as long as the inputs it is.
            and total.numel() == weight.groups * weight.shape[2]
        ]
        return torch.stack(found).sum(0) if found else None


class _Watch(TorchDispatchMode):
    def __init__(self, model: nn.Module, usage: Usage, inputs: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.usage = usage
        self.inputs = inputs
        self.names: dict[int, list[tuple[str, Tensor]]] = {}
        for name, parameter in model.named_parameters():
            if not isinstance(parameter, UninitializedParameter):
                pointer = parameter.untyped_storage().data_ptr()
                self.names.setdefault(pointer, []).append((name, parameter))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        macs = 0
        if packet in flop_registry:
            macs = flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
            self.usage.macs += macs
        self.attribute(packet.__name__, args, macs)
        return result

    def attribute(self, operator: str, args: tuple[Any, ...], macs: int) -> None:
        if operator in _MATRIX_AT:
            data, weight = (args[place] for place in _MATRIX_AT[operator])
            named = self.owner(weight)
            if named is not None:
                self.count(named[0], macs)
                self.read(named, weight, lambda: data.flatten(0, -2).square().sum(0))
        elif operator == "convolution":
            data, weight = args[0], args[1]
            named = self.owner(weight)
            if named is not None:
                self.count(named[0], macs)
                dims = [dim for dim in range(data.dim()) if dim != 1]
                self.read(named, weight, lambda: data.square().sum(dims))
        elif operator == "embedding":
            weight, index = args[0], args[1]
            named = self.owner(weight)
            if named is not None:
                size = weight.shape[0]
                counts = torch.bincount
                self.read(named, weight, lambda: counts(index.flatten(), minlength=size).float())

    def owner(self, tensor: Any) -> tuple[str, Tensor] | None:
        if not isinstance(tensor, Tensor):
            return None
        place = tensor.storage_offset()
        for name, parameter in self.names.get(tensor.untyped_storage().data_ptr(), []):
            # Several parameters may lie in one flat buffer.
            start = parameter.storage_offset()
            if start <= place < start + parameter.numel():
                return name, parameter
        return None

    def count(self, name: str, macs: int) -> None:
        self.usage.by_parameter[name] = self.usage.by_parameter.get(name, 0) + macs

    def read(self, named: tuple[str, Tensor], used: Tensor, squares: Callable[[], Tensor]) -> None:
        if not self.inputs:
            return
        name, parameter = named
        width = max(1, parameter.numel() // parameter.shape[0])
        start = int(used.storage_offset() - parameter.storage_offset()) // width
        total = squares().double()
        key = (name, start, start + max(1, used.numel() // width), total.numel())
        self.usage.squares[key] = self.usage.squares.get(key, torch.zeros_like(total)) + total


def observe(model: nn.Module, run: Callable[[], object], *, inputs: bool = False) -> Usage:
    """Run something that calls the model, in eval mode without gradients, and return its usage.

    With ``inputs``, the squares of what each weight reads are summed too.
    """
    usage = Usage()
    with evaluating(model), torch.no_grad(), transparent(model), _Watch(model, usage, inputs):
        run()
    return usage


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def transparent(model: nn.Module) -> Iterator[None]:
    """Switch off fused kernels that hide which weight they use."""
    fast = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.ExitStack() as stack:
            # Older versions of torch do not count the fused attention kernels' products.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if recurrent:
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def answering(traced: bool, asked: Callable[[], None]) -> Iterator[None]:
    """Tell the model's code whether it is being traced, where it asks PyTorch; note that it did."""
    # Dynamo looks these functions up when it is first imported, and has to find the real ones.
    importlib.import_module("torch._dynamo")
    places = [(each, name, vars(each)[name]) for each, name in _TRACING if hasattr(each, name)]

    def answer(own: Callable[[], bool]) -> Callable[[], bool]:
        def question() -> bool:
            who = sys._getframe(1).f_globals.get("__name__", "")
            if who.partition(".")[0] == "torch":
                return own()
            asked()
            return traced or own()

        return question

    try:
        for module, name, own in places:
            setattr(module, name, answer(own))
        yield
    finally:
        for module, name, own in places:
            setattr(module, name, own)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back the attributes that a pass sets on the modules, and what it stores in containers."""
    held: list[tuple[Any, Any]] = []
    for module in model.modules():
        attributes = vars(module)
        plainly = (each for each in attributes.values() if type(each) in _CONTAINERS)
        held += [(each, each.copy()) for each in (attributes, *plainly)]
    try:
        yield
    finally:
        for container, content in held:
            if isinstance(container, list):
                container[:] = content
            elif list(map(id, _entries(container))) != list(map(id, _entries(content))):
                container.clear()
                container.update(content)


def _entries(container: Any) -> list[Any]:
    values = container.values() if isinstance(container, dict) else ()
    return [*container, *values]
