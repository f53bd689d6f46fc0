"""Surgery: parameters and buffers cut to what a removal leaves of them, and put back if need be.

Parameters stay the objects they are, so that optimisers, tied weights and the lists of recurrent
layers keep pointing at them; only their data is exchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.structure.removal import Removal
from secateur.structure.terms import Term


@dataclass
class Undo:
    """The steps that put a model back, in the order in which they were noted."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def add(self, step: Callable[[], None]) -> None:
        """Note how to put one thing back."""
        self.steps.append(step)

    def run(self) -> None:
        """Put everything back, the last change first."""
        while self.steps:
            self.steps.pop()()


def keep(tensor: Tensor, dims: list[Term], removal: Removal) -> Tensor:
    """Return what a removal leaves of a tensor whose dimensions have these terms."""
    for place, term in enumerate(dims):
        indices = removal.indices(term)
        if indices is not None:
            tensor = tensor.index_select(place, indices.to(tensor.device))
    return tensor.contiguous()


def cut(
    model: nn.Module, held: Mapping[str, list[Term]], removal: Removal, undo: Undo
) -> dict[str, tuple[Tensor, list[Term]]]:
    """Cut every parameter and buffer that carries a removed index; return those that were cut."""
    done: dict[str, tuple[Tensor, list[Term]]] = {}
    holders = Holders(model)
    seen: set[int] = set()
    for name, dims in held.items():
        if all(removal.size(term) == term.size for term in dims):
            continue
        owner, attribute = _owner(model, name)
        tensor = getattr(owner, attribute)
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        smaller = keep(tensor.detach(), dims, removal)
        if isinstance(tensor, nn.Parameter):
            _exchange(tensor, smaller, dims, removal, undo)
        else:
            holders.replace(tensor, smaller, undo)
        done[name] = (tensor, dims)
    return done


def _exchange(
    parameter: nn.Parameter, smaller: Tensor, dims: list[Term], removal: Removal, undo: Undo
) -> None:
    data, gradient = parameter.data, parameter.grad
    undo.add(lambda: set_data(parameter, data, gradient))
    shrunk = None if gradient is None else keep(gradient, dims, removal)
    set_data(parameter, smaller, shrunk)


def set_data(parameter: nn.Parameter, data: Tensor, gradient: Tensor | None) -> None:
    """Give a parameter other data and another gradient, of whatever shape, in place."""
    parameter.grad = None
    # A change of type makes autograd forget the shape that it remembers from earlier steps.
    other = torch.float64 if data.dtype != torch.float64 else torch.float32
    parameter.data = torch.empty(0, dtype=other, device=data.device)
    parameter.data = data
    parameter.grad = gradient


class Holders:
    """Where the modules of a model hold each tensor: under which names, in which lists."""

    def __init__(self, model: nn.Module) -> None:
        self.places: dict[int, list[tuple[Any, Any]]] = {}
        for module in model.modules():
            for table in (module._parameters, module._buffers, vars(module)):
                for name, value in table.items():
                    if isinstance(value, Tensor):
                        self.places.setdefault(id(value), []).append((table, name))
                    elif isinstance(value, list):
                        for place, each in enumerate(value):
                            if isinstance(each, Tensor):
                                self.places.setdefault(id(each), []).append((value, place))

    def replace(self, old: Tensor, new: Tensor, undo: Undo) -> None:
        """Put a tensor in the place of another wherever modules hold it."""
        places = self.places.pop(id(old), [])
        self.places[id(new)] = places

        def put(tensor: Tensor) -> None:
            for table, name in places:
                table[name] = tensor

        undo.add(lambda: put(old))
        put(new)


def set_attributes(model: nn.Module, changes: Mapping[tuple[str, str], Any], undo: Undo) -> None:
    """Set attributes of modules, by module path and name."""
    for (path, name), value in changes.items():
        module = model.get_submodule(path)
        before = getattr(module, name)
        if before != value:
            undo.add(lambda module=module, name=name, before=before: setattr(module, name, before))  # type: ignore[misc]
            setattr(module, name, value)


@contextlib.contextmanager
def made_smaller(
    model: nn.Module, held: Mapping[str, list[Term]], removal: Removal, data: bool = False
) -> Iterator[None]:
    """Give the model tensors of the new shapes for as long as the context runs.

    They have no data, or with ``data`` what the removal leaves of their own. Without data, no
    parameter has any, so that code which computes one from another finds both alike.
    """
    undo = Undo()
    holders = Holders(model)
    try:
        for name, dims in held.items():
            owner, attribute = _owner(model, name)
            tensor = getattr(owner, attribute)
            # A parametrised weight is computed from its tensors wherever it is read.
            alone = isinstance(tensor, nn.Parameter) or "parametrizations." in name
            emptied = alone and not data and not tensor.is_meta
            if tuple(tensor.shape) == removal.shape(dims) and not emptied:
                continue
            smaller = (
                keep(tensor.detach(), dims, removal)
                if data
                else torch.empty(removal.shape(dims), dtype=tensor.dtype, device="meta")
            )
            if isinstance(tensor, nn.Parameter):
                smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
            holders.replace(tensor, smaller, undo)
        yield
    finally:
        undo.run()


@contextlib.contextmanager
def zeroed(model: nn.Module, held: Mapping[str, list[Term]], removal: Removal) -> Iterator[None]:
    """Set what a removal takes from the parameters to zero for as long as the context runs."""
    parameters = dict(model.named_parameters())
    saved = {}
    try:
        for name, dims in held.items():
            if name not in parameters or all(removal.size(t) == t.size for t in dims):
                continue
            parameter = parameters[name]
            saved[name] = parameter.data
            copy = parameter.data.clone()
            for place, term in enumerate(dims):
                gone = (~removal.mask(term)).nonzero().flatten()
                copy.index_fill_(place, gone.to(copy.device), 0)
            parameter.data = copy
        yield
    finally:
        for name, data in saved.items():
            parameters[name].data = data


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    return model.get_submodule(path), attribute


def cut_optimizer(
    optimizer: torch.optim.Optimizer,
    done: Mapping[str, tuple[Tensor, list[Term]]],
    removal: Removal,
    undo: Undo,
) -> None:
    """Cut an optimiser's state along with the parameters, dimension by dimension.

    Raises SecateurError where a state does not lie along its parameter.
    """
    for where, (parameter, dims) in done.items():
        state = optimizer.state.get(parameter)
        if not state:
            continue
        for name, value in list(state.items()):
            if not isinstance(value, Tensor) or value.numel() <= 1:
                continue
            # What is factored, or averaged over a dimension, has the size one there.
            along = len(dims) == value.dim() and all(
                size in (1, term.size) for size, term in zip(value.shape, dims, strict=True)
            )
            if not along:
                raise SecateurError(
                    f"the optimizer's '{name}' of '{where}' has the shape {tuple(value.shape)}, "
                    "which cannot be cut along with the parameter: clear its state first"
                )
            undo.add(lambda state=state, name=name, value=value: state.update({name: value}))  # type: ignore[misc]
            held = [term if size > 1 else Term(1)
                    for size, term in zip(value.shape, dims, strict=True)]  # fmt: skip
            state[name] = keep(value, held, removal)
