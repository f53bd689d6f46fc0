"""Where the outputs of a weight flow: the norms that carry its channels, and the model's output.

The walk follows a channel axis through everything that keeps it (activations, pooling, dropout,
concatenation, permutation) up to the next layer. It runs over the exported graph where there is an
example input, and over a symbolic trace of the modules otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from secateur.structure.graph import Node, flat, from_export, from_modules, shape_of


@dataclass(frozen=True)
class Carrier:
    """A parameter with one entry per channel: the norm's scale or shift, from ``offset`` on."""

    parameter: str
    offset: int
    scale: bool


@dataclass(frozen=True)
class Reach:
    """What the outputs of one parameter meet on their way to the next layer.

    ``bare_norm`` says that a norm without scale and shift is among it.
    """

    carriers: tuple[Carrier, ...] = ()
    to_output: bool = False
    bare_norm: bool = False


@dataclass(frozen=True)
class Flow:
    """Reach by parameter name; ``problem`` says why nothing is known where the walk failed."""

    reach: dict[str, Reach] = field(default_factory=dict)
    problem: str | None = None

    def of(self, parameter: str) -> Reach:
        """Return the reach of a parameter, an empty one where it was not met."""
        return self.reach.get(parameter, Reach())


def trace_flow(model: nn.Module, example_inputs: tuple[Any, ...] | None) -> Flow:
    """Walk from every weight to the norms behind it; see ``Flow.problem`` where that is impossible.

    The model is left as it was; ``example_inputs`` are its positional arguments.
    """
    if example_inputs is None and _stands_alone(model):
        return Flow()
    try:
        graph, nodes = (
            from_modules(model) if example_inputs is None else from_export(model, example_inputs)
        )
    except Exception as error:  # tracing runs the user's code, which may raise anything
        how = "torch.export" if example_inputs is not None else "a symbolic trace"
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        hint = "" if example_inputs is not None else "; pass example_inputs="
        if "Cache" in reason:
            hint = "; switch the cache off, as in model.config.use_cache = False"
        return Flow({}, f"{how} of {type(model).__name__} failed ({reason}){hint}")
    found: dict[str, Reach] = {}
    for step in graph.nodes:
        node = nodes.get(step)
        if node is not None and node.kind == "weight" and node.parameter is not None:
            reach = _walk(step, node.axis, nodes)
            before = found.get(node.parameter, Reach())
            merged = tuple(dict.fromkeys((*before.carriers, *reach.carriers)))
            found[node.parameter] = Reach(
                merged,
                before.to_output or reach.to_output,
                before.bare_norm or reach.bare_norm,
            )
    return Flow(found)


def _stands_alone(model: nn.Module) -> bool:
    """Whether the model is a bare layer of torch, or a holder of layers without a forward.

    Such a model has no layer behind another, so there is nothing to follow and nothing to spare.
    """
    bare = type(model).__module__.startswith("torch.nn.modules")
    composed = isinstance(model, (nn.Sequential, nn.Transformer, nn.TransformerEncoder))
    return (bare and not composed) or type(model).forward is nn.Module.forward


@dataclass(frozen=True)
class _State:
    """Where a walk stands: the channel axis (None once it is lost), and the channels' place there.

    ``own`` holds while nothing but the channel itself can make its values differ from zero.
    """

    step: fx.Node
    axis: int | None
    offset: int = 0
    extent: int | None = None
    own: bool = True


def _walk(start: fx.Node, axis: int, nodes: dict[fx.Node, Node]) -> Reach:
    """Follow one channel axis from an operator to its readers, and on to the model's output."""
    carriers: list[Carrier] = []
    to_output = bare_norm = False
    todo = [_State(start, axis, extent=_extent(start, axis))]
    seen: set[_State] = set()
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        for user in state.step.users:
            node = nodes.get(user)
            if node is None or node.kind == "weight":
                continue
            if node.kind == "output":
                to_output = True
                continue
            if node.kind == "norm" and state.own and _norms(node, state):
                pairs = ((node.scale, True), (node.shift, False))
                carriers += [Carrier(name, state.offset, big) for name, big in pairs if name]
                bare_norm = bare_norm or node.scale is None
            todo.append(_next(state, user, node, nodes))
    return Reach(tuple(dict.fromkeys(carriers)), to_output, bare_norm)


def _norms(node: Node, state: _State) -> bool:
    """Whether a norm scales along the channel axis; linear outputs may be its second axis."""
    same_axis = node.axis == state.axis
    flat = state.axis == -1 and node.axis == 1 and node.size == state.extent
    return node.per_channel and (same_axis or flat)


def _next(state: _State, user: fx.Node, node: Node, nodes: dict[fx.Node, Node]) -> _State:
    """Carry the walk over one operator; where the channels cannot be followed, the axis is lost."""
    lost = _State(user, None, own=False)
    if state.axis is None or node.kind == "stop":
        return lost
    if node.kind == "cat" and node.axis == state.axis:
        before = _size_before(user, state.step, state.axis)
        if before is None:
            return lost
        extent = _extent(user, state.axis)
        return _State(user, state.axis, state.offset + before, extent, state.own)
    axis = node.order.index(state.axis) if node.kind == "move" else state.axis
    extent = _extent(user, axis)
    if extent != state.extent:
        return lost
    own = state.own and node.kind not in ("join", "cat")
    return _State(user, axis, state.offset, extent, own)


def _extent(step: fx.Node, axis: int) -> int | None:
    """Return how many channels a tensor has along an axis, None where that is not known."""
    shape = shape_of(step)
    if shape is not None:
        return shape[axis] if -len(shape) <= axis < len(shape) else None
    return step.meta.get("channels")


def _size_before(cat: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Return how many channels a concatenation holds before one of its inputs."""
    before = 0
    for operand in flat(cat.args[0] if cat.args else cat.kwargs.get("tensors", ())):
        if operand is source:
            return before
        extent = _extent(operand, axis)
        if extent is None:
            return None
        before += extent
    return None
