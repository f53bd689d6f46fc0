"""Grafts: a module whose own code cannot express a new size runs its recorded operators instead.

Children, parameters and their names stay; only the module's own code is replaced, by a list of
steps of plain values, which is saved with the model.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.structure.nesting import plain
from secateur.structure.surgery import Undo

Step = dict[str, Any]
Code = dict[str, Any]
"""What a graft runs: ``steps``, each an operator or a child, and the ``result``; plain values."""

DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}
LAYOUTS = {str(each): each for each in vars(torch).values() if isinstance(each, torch.layout)}
FORMATS = {str(each): each for each in vars(torch).values()
            if isinstance(each, torch.memory_format)}  # fmt: skip
NAMED: dict[str, Any] = DTYPES | LAYOUTS | FORMATS


class Graft(nn.Module):
    """A module that runs recorded operators on its own parameters and children."""

    grafted_class: type[nn.Module]
    grafted_code: Code

    def __init__(self, original: nn.Module, code: Code) -> None:
        super().__init__()
        own = self._forward_pre_hooks
        # Hooks and the marks of buffers that are not saved stay too, not the children alone.
        self.__dict__.update({name: value for name, value in vars(original).items()
                              if name != "forward"})  # fmt: skip
        before = original.grafted_class if isinstance(original, Graft) else type(original)
        self.grafted_class, self.grafted_code = before, code
        if not self._forward_pre_hooks:
            # A hook tells torch's own fused layers that this child has to be called.
            self._forward_pre_hooks = own
            self.register_forward_pre_hook(_called)

    def __getattr__(self, name: str) -> Any:
        """Find what the original's class has: its other methods, its constants."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            kind = self.__dict__.get("grafted_class")
            if kind is None or not hasattr(kind, name):
                raise
            found = inspect.getattr_static(kind, name)
            return found.__get__(self, kind) if hasattr(found, "__get__") else found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps on what the original would have been given."""
        inputs = _given((plain(args), plain(kwargs)))
        if len(inputs) != self.grafted_code["inputs"]:
            raise ValueError(
                f"the code of this {self.grafted_class.__name__} was replaced for "
                f"{self.grafted_code['inputs']} tensors and got {len(inputs)}"
            )
        known: dict[str, Any] = {f"input {place}": each for place, each in enumerate(inputs)}
        for step in self.grafted_code["steps"]:
            known[step["name"]] = self._run(step, known)
        return _decode(self.grafted_code["result"], self, known)

    def _run(self, step: Step, known: dict[str, Any]) -> Any:
        args = _decode(step["args"], self, known)
        kwargs = {name: _decode(each, self, known) for name, each in step["kwargs"].items()}
        # Plain loops throughout, without generators: torch.compile follows these in one graph.
        if "module" in step:
            return self.get_submodule(step["module"])(*args, **kwargs)
        if "item" in step:
            return args[0][step["item"]]
        return operator_of(step["operator"])(*args, **kwargs)

    def extra_repr(self) -> str:
        """Say what was replaced."""
        return f"in place of {self.grafted_class.__name__}, {len(self.grafted_code['steps'])} steps"


def _called(module: nn.Module, inputs: Any) -> None:
    """Change nothing."""


def operator_of(name: str) -> Any:
    """Return the operator of torch that a name such as ``aten.linear.default`` stands for."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def nodes_or_tensors(value: Any) -> Iterator[Any]:
    """Give the nodes and tensors in nested arguments, in order."""
    if isinstance(value, (fx.Node, Tensor)):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from nodes_or_tensors(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from nodes_or_tensors(each)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Give the tensors in nested arguments, in order."""
    return (each for each in nodes_or_tensors(value) if isinstance(each, Tensor))


def _decode(value: Any, module: nn.Module, known: Mapping[str, Any]) -> Any:
    """Turn what was written down into values, in a call of a graft."""
    if isinstance(value, list):
        return [_decode(each, module, known) for each in value]
    if not isinstance(value, dict):
        return value
    if "value" in value:
        return known[value["value"]]
    if "held" in value:
        path, _, name = value["held"].rpartition(".")
        return getattr(module.get_submodule(path), name)
    if "size" in value:
        name, dim = value["size"]
        return known[name].shape[dim]
    if "product" in value:
        product = 1
        for each in value["product"]:
            product = product * _decode(each, module, known)
        return product
    if "tuple" in value:
        return tuple([_decode(each, module, known) for each in value["tuple"]])
    if "dict" in value:
        return {key: _decode(each, module, known) for key, each in value["dict"].items()}
    if "constant" in value:
        return torch.tensor(value["constant"], dtype=DTYPES[value["dtype"]], device=_device(known))
    if "mode" in value:
        return module.training
    if "device" in value:
        return _device(known)
    return NAMED[value["torch"]]


def _given(value: Any) -> list[Tensor]:
    """List the tensors in nested arguments as ``tensors_in`` gives them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    found: list[Tensor] = []
    if isinstance(value, (tuple, list)):
        for each in value:
            found = found + _given(each)
    return found


def _device(known: Mapping[str, Any]) -> torch.device:
    for each in known.values():
        if isinstance(each, Tensor):
            return each.device
    return torch.device("cpu")


def install(model: nn.Module, path: str, code: Code, undo: Undo | None = None) -> None:
    """Put a graft in the place of a module."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before: nn.Module = getattr(owner, name)
    owner._modules[name] = Graft(before, code)
    if undo is not None:
        undo.add(partial(owner._modules.update, {name: before}))
