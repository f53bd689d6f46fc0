"""Blocks: the repeated part of a model, and what the rest of the model gives to each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the model's longest list of like modules, of equal ones that with most parameters.

    Lists within such a list (a block's experts) are left out. Raises SecateurError where the model
    has no list of at least two like modules.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(3)))
    >>> find_blocks(model)[0]
    '1'
    """
    lists = [
        (name, each)
        for name, each in model.named_modules()
        if isinstance(each, nn.ModuleList)
        and len(each) > 1
        and len({type(part) for part in each}) == 1
        and any(True for _ in each.parameters())
    ]
    outer = [
        (name, each)
        for name, each in lists
        if not any(name.startswith(f"{other}.") for other, _ in lists)
    ]
    if not outer:
        raise SecateurError(
            f"{type(model).__name__} has no nn.ModuleList of like modules to go through: use "
            "a Sparsifier on the whole model"
        )

    def size(found: tuple[str, nn.ModuleList]) -> tuple[int, int]:
        return len(found[1]), sum(parameter.numel() for parameter in found[1].parameters())

    return max(outer, key=size)


class _ReachedError(Exception):
    """The last block was reached: the rest of the model need not run."""


class _Stand(nn.Module):
    """Stands in for a block: notes what it is given, and passes on what would come first."""

    def __init__(self, block: nn.Module, keep: list[Any], answer: Any, last: bool) -> None:
        super().__init__()
        self._signature = inspect.signature(block.forward)
        self._block, self._keep, self._answer, self._last = [block], keep, answer, last

    def __getattr__(self, name: str) -> Any:
        """Answer what a model asks of its blocks beside calling them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._block[0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._keep.append(named_arguments(self._signature, args, kwargs))
        if self._last:
            raise _ReachedError
        return self._answer(args[0] if args else next(iter(kwargs.values())))


def named_arguments(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a call's arguments by name; raise SecateurError where some can have none."""
    bound = signature.bind(*args, **kwargs)
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            raise SecateurError(f"a block takes *{name}, which cannot be given to it by name")
        found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


def first_of(answer: Any) -> Tensor:
    """Return the tensor that a block passes on: its answer, or the first part of it."""
    found = answer[0] if isinstance(answer, (tuple, list)) and answer else answer
    if not isinstance(found, Tensor):
        raise SecateurError(f"a block answers a {type(answer).__name__}, not a tensor")
    return found


@dataclass(frozen=True)
class Calls:
    """What each block is given, for every batch: ``[block][batch]`` to arguments by name.

    ``carried`` is the name of the argument that the block before answers.
    """

    arguments: list[list[dict[str, Any]]]
    carried: str

    def of(self, block: int, batch: int, state: Tensor) -> dict[str, Any]:
        """Return the arguments of one call, with the state that was carried to it."""
        return {**self.arguments[block][batch], self.carried: state}


def record_calls(
    model: nn.Module,
    name: str,
    data: Iterable[Any],
    form: Callable[[nn.Module, dict[str, Any]], Any],
) -> tuple[Calls, list[Tensor]]:
    """Run all but the blocks, and return what each is given and the states that enter the first.

    ``form`` runs the first block on its first arguments, to see whether it answers a tensor or a
    tuple.
    """
    blocks = model.get_submodule(name)
    assert isinstance(blocks, nn.ModuleList)
    parent, _, attribute = name.rpartition(".")
    holder = model.get_submodule(parent) if parent else model
    answer: Any = None
    arguments: list[list[dict[str, Any]]] = [[] for _ in blocks]
    states: list[Tensor] = []
    carried = ""
    try:
        for batch in data:
            if answer is None:
                first: list[Any] = []
                stand = _Stand(blocks[0], first, None, True)
                _run(model, holder, attribute, [stand, *blocks[1:]], batch)
                carried = next(iter(first[0]))
                answer = _same_form(form(blocks[0], first[0]))
            stands = [
                _Stand(block, keep, answer, place == len(blocks) - 1)
                for place, (block, keep) in enumerate(zip(blocks, arguments, strict=True))
            ]
            _run(model, holder, attribute, stands, batch)
            states.append(arguments[0][-1][carried])
            for own in arguments:
                own[-1][carried] = None
    finally:
        setattr(holder, attribute, blocks)
    if not states:
        raise SecateurError("the data holds no batch; pass data= with at least one")
    return Calls(arguments, carried), states


def _same_form(answer: Any) -> Callable[[Tensor], Any]:
    """Return how a state is passed on: as the block does, in a tuple or alone."""
    first_of(answer)
    if isinstance(answer, Tensor):
        return lambda state: state
    return lambda state: (state, *answer[1:])


def _run(
    model: nn.Module, holder: nn.Module, attribute: str, stands: list[Any], batch: Any
) -> None:
    setattr(holder, attribute, nn.ModuleList(stands))
    try:
        with torch.no_grad():
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    except _ReachedError:
        return
    raise SecateurError("the model does not run its last block on this data")
