"""Writing grafts: what a module's own code does in a recording, as steps of plain values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from secateur.structure.graft import Code, Step, nodes_or_tensors
from secateur.structure.recording import ModuleCall, Recording
from secateur.structure.removal import Removal, resized
from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.terms import Term, factors, leaves

_VIEWS = ("view", "reshape", "_unsafe_view")
"""Operators of which one size may be left open."""
EVENLY = ("chunk", "split", "unsafe_chunk", "unsafe_split", "tensor_split")
_MODE = ("train", "training")
_PARTED = "aten.split_with_sizes.default"


class CannotGraftError(Exception):
    """A module's own code cannot be replaced, with the reason."""


def make_code(
    recording: Recording,
    path: str,
    findings: Findings,
    removal: Removal,
    aliases: Mapping[fx.Node, fx.Node] | None = None,
    copied: Collection[fx.Node] = (),
) -> Code:
    """Write down what a module's own code does, with the sizes that a removal leads to.

    ``aliases`` are operators of which an operand takes the place, as a copy for those in
    ``copied``; what nothing needs then is left out. Raises CannotGraftError where the code does not
    do the same in every call, or reaches outside.
    """
    if not path:
        raise CannotGraftError("it is the whole model")
    numbers = [number for number, call in enumerate(recording.calls) if call.path == path]
    codes = [
        _Writer(recording, number, findings, removal, aliases or {}, copied).write()
        for number in numbers
    ]
    if not codes or any(code != codes[0] for code in codes[1:]):
        raise CannotGraftError("it is called in different ways")
    return codes[0]


@dataclass
class _Writer:
    """Writes one call of a module as steps."""

    recording: Recording
    number: int
    findings: Findings
    removal: Removal
    aliases: Mapping[fx.Node, fx.Node]
    copied: Collection[fx.Node]

    def write(self) -> Code:
        call = self.recording.calls[self.number]
        self.names: dict[fx.Node, str] = {}
        self.inputs: list[fx.Node] = []
        self.count = 0
        for place, value in enumerate(nodes_or_tensors(call.inputs)):
            if not isinstance(value, fx.Node):
                raise CannotGraftError("an input of it is a constant")
            self.names.setdefault(value, f"input {place}")
            self.inputs.append(value)
        steps = [step for event in self._events() for step in self._step(event)]
        result = self._encode(call.outputs)
        if self.aliases:
            steps = _needed(steps, result)
        return {"inputs": len(self.inputs), "steps": steps, "result": result}

    def _events(self) -> Iterator[fx.Node | ModuleCall]:
        """Give own operators and calls of children, in the order in which they happened."""
        seen: set[int] = set()
        for node in self.recording.steps:
            chain = list(self._chain(node.meta.get("call")))
            if self.number not in chain:
                continue
            place = chain.index(self.number)
            if place == 0:
                yield node
            elif chain[place - 1] not in seen:
                seen.add(chain[place - 1])
                yield self.recording.calls[chain[place - 1]]

    def _chain(self, number: int | None) -> Iterator[int]:
        while number is not None:
            yield number
            number = self.recording.calls[number].parent

    def _step(self, event: fx.Node | ModuleCall) -> Iterator[Step]:
        if isinstance(event, ModuleCall):
            yield from self._child(event)
            return
        if event in self.aliases:
            yield from self._alias(event)
            return
        name = self._next()
        if operator_name(event) == "getitem":
            source = self._encode(event.args[0])
            self.names[event] = name
            yield {"name": name, "item": event.args[1], "args": [source], "kwargs": {}}
            return
        arguments = arguments_of(event)
        sizes = self._parts(event, arguments)
        if len(set(sizes)) > 1:
            # Halves of different sizes are no halves any more.
            args = [self._encode(arguments["self"]), sizes, arguments.get("dim", 0)]
            self.names[event] = name
            yield {"name": name, "operator": _PARTED, "args": args, "kwargs": {}}
            return
        changed = resized(event, self.findings, self.removal)
        schema = event.target._schema  # type: ignore[union-attr]
        args, kwargs = [], {}
        for place, argument in enumerate(schema.arguments):
            if argument.name not in arguments:
                continue
            given = place < len(event.args) or argument.name in event.kwargs
            if not given and argument.name not in changed:
                continue
            value = changed.get(argument.name, arguments[argument.name])
            value = self._sized(event, argument.name, value)
            if argument.name in _MODE and value is False:
                value = _mode(event)
            if place < len(event.args) and not argument.kwarg_only:
                args.append(value)
            else:
                kwargs[argument.name] = value
        self.names[event] = name
        yield {"name": name, "operator": str(event.target), "args": args, "kwargs": kwargs}

    def _alias(self, event: fx.Node) -> Iterator[Step]:
        source = self._encode(self.aliases[event])
        if event not in self.copied and "value" in source:
            self.names[event] = source["value"]
            return
        name = self.names[event] = self._next()
        yield {"name": name, "operator": "aten.clone.default", "args": [source], "kwargs": {}}

    def _parts(self, node: fx.Node, arguments: Mapping[str, Any]) -> list[int]:
        """Return the sizes of the parts that a tensor is parted into evenly."""
        if operator_name(node) not in EVENLY or not isinstance(arguments["self"], fx.Node):
            return []
        axis = arguments.get("dim", 0)
        return [self.removal.size(dims[axis]) for dims in self.findings.dims[node]]

    def _next(self) -> str:
        self.count += 1
        return f"step {self.count}"

    def _child(self, call: ModuleCall) -> Iterator[Step]:
        own = self.recording.calls[self.number].path
        names = (call.path, *self.recording.shared.get(call.path, ()))
        inside = next((each for each in names if each.startswith(f"{own}.")), None)
        if inside is None:
            raise CannotGraftError("it calls a module that is not inside it")
        name = self._next()
        args, kwargs = call.inputs
        encoded = (
            self._encode(list(args)),
            {key: self._encode(each) for key, each in kwargs.items()},
        )
        path = inside[len(own) + 1 :]
        yield {"name": name, "module": path, "args": encoded[0], "kwargs": encoded[1]}
        if isinstance(call.outputs, fx.Node):
            self.names[call.outputs] = name
            return
        if not isinstance(call.outputs, (tuple, list)):
            raise CannotGraftError("a child of it returns neither a tensor nor a tuple of tensors")
        for place, each in enumerate(call.outputs):
            if isinstance(each, fx.Node):
                item = self.names[each] = self._next()
                yield {"name": item, "item": place, "args": [{"value": name}], "kwargs": {}}

    def _sized(self, node: fx.Node, name: str, value: Any) -> Any:
        """Encode an argument; written sizes that come with the data are read off what is known."""
        if name not in ("size", "shape") or not isinstance(value, (list, tuple)):
            return self._encode(value)
        dims = self.findings.dims[node]
        offset = len(dims) - len(value)
        sizes = [
            size if size == -1 else self._size(term)
            for size, term in zip(value, dims[offset:], strict=True)
        ]
        open_ = [place for place, size in enumerate(sizes)
                 if size is None and self._has_batch(dims[offset + place])]  # fmt: skip
        if open_ and (len(open_) > 1 or -1 in sizes or operator_name(node) not in _VIEWS):
            raise CannotGraftError(
                "a size comes with the batch, and nothing that it is given has it"
            )
        for place, written in enumerate(value):
            if sizes[place] is None:
                sizes[place] = -1 if place in open_ else written
        return sizes

    def _has_batch(self, term: Term) -> bool:
        batch = {leaf for node in self.recording.inputs if self.findings.dims[node]
                 for leaf in leaves(self.findings.dims[node][0])}  # fmt: skip
        return any(leaf in batch for leaf in leaves(term))

    def _size(self, term: Term) -> Any:
        """Encode one size, None where it comes with the data and nothing known has it."""
        parts, made = factors(term), []
        while parts:
            if not _is_data(parts[0]):
                made.append(self.removal.size(parts.pop(0)))
                continue
            for stop in range(len(parts), 0, -1):
                found = self._found([leaf for part in parts[:stop] for leaf in leaves(part)])
                if found is not None:
                    made.append(found)
                    del parts[:stop]
                    break
            else:
                return None
        return made[0] if len(made) == 1 else {"product": made}

    def _found(self, wanted: list[Term]) -> Any:
        """Look for a dimension of these leaves among the inputs, then in what was made of them."""
        for node, name in self.names.items():
            if isinstance(node.meta["val"], Tensor):
                for dim, other in enumerate(self.findings.dims[node]):
                    if list(leaves(other)) == wanted:
                        return {"size": [name, dim]}
        return None

    def _encode(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value in self.names:
                return {"value": self.names[value]}
            if value.op == "get_attr":
                return self._held(value)
            raise CannotGraftError("it reads a tensor that it was not given")
        if isinstance(value, (list, tuple)):
            encoded = [self._encode(each) for each in value]
            return {"tuple": encoded} if isinstance(value, tuple) else encoded
        if isinstance(value, dict):
            return {"dict": {str(key): self._encode(each) for key, each in value.items()}}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return {"torch": str(value)}
        if isinstance(value, torch.device):
            return {"device": "here"}
        raise CannotGraftError(f"it passes a {type(value).__name__}")

    def _held(self, node: fx.Node) -> Any:
        own, name = self.recording.calls[self.number].path, str(node.target)
        if name.startswith(f"{own}."):
            return {"held": name[len(own) + 1 :]}
        value = node.meta.get("value")
        if node.meta["constant"] and isinstance(value, Tensor) and value.numel() <= 64:
            return {"constant": value.tolist(), "dtype": str(value.dtype)}
        raise CannotGraftError("it reads a tensor of another module")


def _needed(steps: list[Step], result: Any) -> list[Step]:
    """Return the steps that a result is computed from."""
    wanted, kept = set(_names_in(result)), []
    for step in reversed(steps):
        if step["name"] in wanted:
            kept.append(step)
            wanted.update(_names_in([*step["args"], *step["kwargs"].values()]))
    return kept[::-1]


def _names_in(value: Any) -> Iterator[str]:
    """Give the names of the values that encoded arguments read."""
    if isinstance(value, list):
        for each in value:
            yield from _names_in(each)
    elif isinstance(value, dict):
        if "value" in value:
            yield value["value"]
        elif "size" in value:
            yield value["size"][0]
        else:
            (held,) = list(value.values())[:1]
            yield from _names_in(list(held.values()) if isinstance(held, dict) else held)


def _mode(node: fx.Node) -> Any:
    """Encode the mode of a module, which was recorded in evaluation."""
    if "batch_norm" in operator_name(node):
        raise CannotGraftError("its own code has a norm that may or may not learn in training")
    return {"mode": "here"}


def _is_data(term: Term) -> bool:
    return any(leaf.pinned is not None and leaf.pinned.data for leaf in leaves(term))
