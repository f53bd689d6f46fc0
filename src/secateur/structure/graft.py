"""Grafts: a module whose own code cannot express a new size runs its recorded operators instead.

Children, parameters and their names stay; only the module's own code is replaced, by a list of
steps of plain values, which is saved with the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.structure.nesting import plain
from secateur.structure.record import ModuleCall, Recording
from secateur.structure.removal import Removal, resized
from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.terms import Term, factors, leaves

Step = dict[str, Any]
Code = dict[str, Any]
"""What a graft runs: ``steps``, each an operator or a child, and the ``result``; plain values."""

DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}
LAYOUTS = {str(each): each for each in vars(torch).values() if isinstance(each, torch.layout)}
FORMATS = {str(each): each for each in vars(torch).values()
            if isinstance(each, torch.memory_format)}  # fmt: skip
_VIEWS = ("view", "reshape", "_unsafe_view")
"""Operators of which one size may be left open."""
EVENLY = ("chunk", "split", "unsafe_chunk", "unsafe_split", "tensor_split")
_MODE = ("train", "training")
_PARTED = "aten.split_with_sizes.default"


class CannotGraftError(Exception):
    """A module's own code cannot be replaced, with the reason."""


class Graft(nn.Module):
    """A module that runs recorded operators on its own parameters and children."""

    def __init__(self, original: nn.Module, code: Code) -> None:
        super().__init__()
        # Hooks and the marks of buffers that are not saved stay too, not the children alone.
        self.__dict__.update({name: value for name, value in vars(original).items()
                              if name != "forward"})  # fmt: skip
        self.replaces = getattr(original, "replaces", type(original).__name__)
        self.code = code

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the steps on what the original would have been given."""
        inputs = list(tensors_in((plain(args), plain(kwargs))))
        if len(inputs) != self.code["inputs"]:
            raise ValueError(
                f"the code of this {self.replaces} was replaced for {self.code['inputs']} tensors "
                f"and got {len(inputs)}"
            )
        known: dict[str, Any] = {f"input {place}": each for place, each in enumerate(inputs)}
        for step in self.code["steps"]:
            known[step["name"]] = self._run(step, known)
        return _decode(self.code["result"], self, known)

    def _run(self, step: Step, known: dict[str, Any]) -> Any:
        args = _decode(step["args"], self, known)
        kwargs = {name: _decode(each, self, known) for name, each in step["kwargs"].items()}
        if "module" in step:
            return self.get_submodule(step["module"])(*args, **kwargs)
        if "item" in step:
            return args[0][step["item"]]
        return operator_of(step["operator"])(*args, **kwargs)

    def extra_repr(self) -> str:
        """Say what was replaced."""
        return f"in place of {self.replaces}, {len(self.code['steps'])} steps"


def operator_of(name: str) -> Any:
    """Return the operator of torch that a name such as ``aten.linear.default`` stands for."""
    namespace, packet, overload = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def make_code(recording: Recording, path: str, findings: Findings, removal: Removal) -> Code:
    """Write down what a module's own code does, with the sizes that a removal leads to.

    Raises CannotGraftError where it does not do the same in every call, or reaches outside.
    """
    if not path:
        raise CannotGraftError("it is the whole model")
    numbers = [number for number, call in enumerate(recording.calls) if call.path == path]
    codes = [_Writer(recording, number, findings, removal).write() for number in numbers]
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

    def write(self) -> Code:
        call = self.recording.calls[self.number]
        self.names: dict[fx.Node, str] = {}
        self.inputs: list[fx.Node] = []
        self.count = 0
        for place, value in enumerate(_nodes_or_tensors(call.inputs)):
            if not isinstance(value, fx.Node):
                raise CannotGraftError("an input of it is a constant")
            self.names.setdefault(value, f"input {place}")
            self.inputs.append(value)
        steps = [step for event in self._events() for step in self._step(event)]
        return {"inputs": len(self.inputs), "steps": steps, "result": self._encode(call.outputs)}

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
        if not call.path.startswith(f"{own}."):
            raise CannotGraftError("it calls a module that is not inside it")
        name = self._next()
        args, kwargs = call.inputs
        encoded = (
            self._encode(list(args)),
            {key: self._encode(each) for key, each in kwargs.items()},
        )
        path = call.path[len(own) + 1 :]
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


def _mode(node: fx.Node) -> Any:
    """Encode the mode of a module, which was recorded in evaluation."""
    if "batch_norm" in operator_name(node):
        raise CannotGraftError("its own code has a norm that may or may not learn in training")
    return {"mode": "here"}


def _is_data(term: Term) -> bool:
    return any(leaf.pinned is not None and leaf.pinned.data for leaf in leaves(term))


def _nodes_or_tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, (fx.Node, Tensor)):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _nodes_or_tensors(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _nodes_or_tensors(each)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Give the tensors in nested arguments, in order."""
    return (each for each in _nodes_or_tensors(value) if isinstance(each, Tensor))


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
        return math.prod(_decode(each, module, known) for each in value["product"])
    if "tuple" in value:
        return tuple(_decode(each, module, known) for each in value["tuple"])
    if "dict" in value:
        return {key: _decode(each, module, known) for key, each in value["dict"].items()}
    if "constant" in value:
        return torch.tensor(value["constant"], dtype=DTYPES[value["dtype"]], device=_device(known))
    if "mode" in value:
        return module.training
    if "device" in value:
        return _device(known)
    return (DTYPES | LAYOUTS | FORMATS)[value["torch"]]


def _device(known: Mapping[str, Any]) -> torch.device:
    first = next((each for each in known.values() if isinstance(each, Tensor)), None)
    return first.device if first is not None else torch.device("cpu")


def install(model: nn.Module, path: str, code: Code) -> nn.Module:
    """Put a graft in the place of a module; return the module that was there."""
    parent, _, name = path.rpartition(".")
    owner = model.get_submodule(parent)
    before: nn.Module = getattr(owner, name)
    owner._modules[name] = Graft(before, code)
    return before
