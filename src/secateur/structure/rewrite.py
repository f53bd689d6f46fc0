"""The recorded graph, rewritten with the sizes that a removal leads to.

It needs none of the user's code, so that everything that the graph can express can be removed. It
is the network in evaluation mode, for export.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.errors import SecateurError
from secateur.structure import verify
from secateur.structure.recording import Recording
from secateur.structure.removal import Removal, resized
from secateur.structure.repair import Run
from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.surgery import keep
from secateur.structure.terms import Term, factors, find, leaves

_WRITTEN = ("size", "shape")


def as_graph(
    model: nn.Module,
    run: Run,
    findings: Findings,
    held: Mapping[str, list[Term]],
    removal: Removal,
) -> fx.GraphModule:
    """Return the network as a graph with its own, smaller tensors; the model is not touched.

    Raises SecateurError where the forward pass looked at its data, as the graph would then hold for
    that data alone.
    """
    if run.real:
        raise SecateurError(
            "as_graph=True needs a forward pass that does not look at its data; shrink in place"
        )
    writer = _Writer(run.recording, findings, removal)
    graph = writer.write()
    tensors = {
        name: _smaller(_held(model, name), dims, removal) for name, dims in held.items()
        if name in writer.used
    }  # fmt: skip
    tensors |= writer.constants
    return fx.GraphModule(tensors, graph, type(model).__name__)


class _Interpreter(fx.Interpreter):
    place = ""

    def run_node(self, n: fx.Node) -> Any:
        self.place = n.meta.get("place", "")
        return super().run_node(n)


def run_graph(graph: fx.GraphModule, inputs: tuple[Any, ...], double: bool) -> verify.Outputs:
    """Run a rewritten graph; raises SecateurError with the place in the code where it fails."""
    try:
        return verify.run(graph, inputs, double)
    except Exception as error:  # an operator may raise anything
        interpreter = _Interpreter(graph)
        with contextlib.suppress(Exception), torch.no_grad():
            interpreter.run(*inputs)
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        where = f" ({interpreter.place})" if interpreter.place else ""
        raise SecateurError(
            f"the rewritten graph cannot run: {said}{where}; shrink in place"
        ) from error


def _held(model: nn.Module, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), attribute)
    return tensor


def _smaller(tensor: Tensor, dims: list[Term], removal: Removal) -> Tensor:
    smaller = keep(tensor.detach(), dims, removal).clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    return smaller


class _Writer:
    """Copies a recording node by node, with new sizes."""

    def __init__(self, recording: Recording, findings: Findings, removal: Removal) -> None:
        self.recording, self.findings, self.removal = recording, findings, removal
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.used: set[str] = set()
        self.constants: dict[str, Tensor] = {}
        self.extents: dict[tuple[int, int], fx.Node] = {}

    def write(self) -> fx.Graph:
        """Return the new graph; inputs first, then what is held, then the operators."""
        for node in self.recording.inputs:
            self.copies[node] = self.graph.placeholder(node.name)
        for node in self.recording.graph.nodes:
            if node.op == "get_attr":
                self.copies[node] = self._attribute(node)
        here = self._device()
        for node in self.recording.steps:
            self.copies[node] = self._operator(node, here)
            self.copies[node].meta["place"] = node.meta.get("place", "")
        self.graph.output(fx.node.map_arg(self.recording.outputs, self.copies.__getitem__))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return self.graph

    def _attribute(self, node: fx.Node) -> fx.Node:
        name = str(node.target)
        if node.meta["constant"]:
            self.constants[name] = node.meta["value"]
        else:
            self.used.add(name)
        return self.graph.create_node("get_attr", name)

    def _device(self) -> fx.Node | torch.device:
        """Read the device off the first tensor: what was recorded ran on tensors without data."""
        first = next(iter(self.copies.values()), None)
        if first is None:
            return torch.device("cpu")
        return self.graph.call_function(getattr, (first, "device"))

    def _operator(self, node: fx.Node, here: fx.Node | torch.device) -> fx.Node:
        def new(value: Any) -> Any:
            if isinstance(value, torch.device):
                return here
            return self.copies[value] if isinstance(value, fx.Node) else value

        args: Any = fx.node.map_aggregate(node.args, new)
        kwargs: Any = fx.node.map_aggregate(node.kwargs, new)
        if node.target is operator.getitem:
            return self.graph.call_function(operator.getitem, args)
        arguments = arguments_of(node)
        changed = resized(node, self.findings, self.removal)
        for name in _WRITTEN:
            if isinstance(arguments.get(name), (list, tuple)):
                changed[name] = self._sizes(node, changed.get(name, arguments[name]))
        placed = list(args)
        named = dict(kwargs)
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        for place, argument in enumerate(schema):
            if argument.name in changed:
                if place < len(placed):
                    placed[place] = changed[argument.name]
                else:
                    named[argument.name] = changed[argument.name]
        if operator_name(node) == "scaled_dot_product_attention" and named.get("scale") is None:
            # The default would be computed from the new width.
            named["scale"] = arguments["query"].meta["val"].shape[-1] ** -0.5
        return self.graph.call_function(node.target, tuple(placed), named)  # type: ignore[arg-type]

    def _sizes(self, node: fx.Node, written: Any) -> list[Any]:
        dims = self.findings.dims[node]
        offset = len(dims) - len(written)
        return [size if size == -1 else self._size(term, size)
                for size, term in zip(written, dims[offset:], strict=True)]  # fmt: skip

    def _size(self, term: Term, size: int) -> Any:
        """Read a size that comes with the data off the inputs, so that another batch fits too."""
        if not _is_data(term):
            return size
        found = self._extent(term)
        if found is not None:
            return found
        parts = [self._extent(part) if _is_data(part) else self.removal.size(part)
                 for part in factors(term)]  # fmt: skip
        if len(parts) < 2 or any(part is None for part in parts):
            return size
        whole = parts[0]
        for part in parts[1:]:
            whole = self.graph.call_function(operator.mul, (whole, part))
        return whole

    def _extent(self, term: Term) -> fx.Node | None:
        for number, node in enumerate(self.recording.inputs):
            for dim, other in enumerate(self.findings.dims[node]):
                if find(other) is find(term):
                    key = (number, dim)
                    if key not in self.extents:
                        self.extents[key] = self.graph.call_function(
                            torch.ops.aten.sym_size.int, (self.copies[node], dim)
                        )
                    return self.extents[key]
        return None


def _is_data(term: Term) -> bool:
    return any(leaf.pinned is not None and leaf.pinned.data for leaf in leaves(term))
