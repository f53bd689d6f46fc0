"""Where the outputs of a weight flow: the norms that carry its channels, and the model's output.

The walk follows a channel axis through everything that keeps it (activations, pooling, dropout,
concatenation, permutation) up to the next layer. It runs over the exported graph where there is an
example input, and over a symbolic trace of the modules otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from secateur.structure.usage import evaluating

_WEIGHTED = (
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "embedding", "einsum",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "scaled_dot_product_attention",
)  # fmt: skip
_NORMS = (
    "batch_norm", "native_batch_norm", "cudnn_batch_norm", "instance_norm", "group_norm",
    "native_group_norm", "layer_norm", "native_layer_norm", "rms_norm",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
)  # fmt: skip
_JOINS = (
    "add", "sub", "rsub", "add_", "sub_", "iadd", "maximum", "minimum", "where", "mul", "mul_",
    "imul", "div", "truediv",
)  # fmt: skip
_SHUFFLES = (
    "channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "flip", "roll",
    "sort", "glu", "cumsum", "softmax2d", "index_select", "gather", "topk",
)  # fmt: skip
_NORM_MODULES = (
    nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm,
    nn.LayerNorm,
)  # fmt: skip
_MIXING_MODULES = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag,
    nn.MultiheadAttention, nn.RNNBase, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle,
    nn.ChannelShuffle, nn.Fold, nn.Unfold, nn.LocalResponseNorm, nn.GLU,
)  # fmt: skip


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


@dataclass(frozen=True)
class _Node:
    """One operator: what it is, the parameters it owns, and where its channel axis lies."""

    kind: str  # weight, norm, join, cat, keep, move, stop or output
    parameter: str | None = None
    scale: str | None = None
    shift: str | None = None
    axis: int = 1
    order: tuple[int, ...] = ()
    size: int = 0
    per_channel: bool = True


def trace_flow(model: nn.Module, example_inputs: tuple[Any, ...] | None) -> Flow:
    """Walk from every weight to the norms behind it; see ``Flow.problem`` where that is impossible.

    The model is left as it was; ``example_inputs`` are its positional arguments.
    """
    if example_inputs is None and _stands_alone(model):
        return Flow()
    try:
        graph, nodes = (
            _from_modules(model) if example_inputs is None else _from_export(model, example_inputs)
        )
    except Exception as error:  # tracing runs the user's code, which may raise anything
        how = "torch.export" if example_inputs is not None else "a symbolic trace"
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        hint = "" if example_inputs is not None else "; pass example_inputs="
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


def _walk(start: fx.Node, axis: int, nodes: dict[fx.Node, _Node]) -> Reach:
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


def _norms(node: _Node, state: _State) -> bool:
    """Whether a norm scales along the channel axis; linear outputs may be its second axis."""
    same_axis = node.axis == state.axis
    flat = state.axis == -1 and node.axis == 1 and node.size == state.extent
    return node.per_channel and (same_axis or flat)


def _next(state: _State, user: fx.Node, node: _Node, nodes: dict[fx.Node, _Node]) -> _State:
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
    shape = _shape(step)
    if shape is not None:
        return shape[axis] if -len(shape) <= axis < len(shape) else None
    return step.meta.get("channels")


def _size_before(cat: fx.Node, source: fx.Node, axis: int) -> int | None:
    """Return how many channels a concatenation holds before one of its inputs."""
    before = 0
    for operand in _flat(cat.args[0] if cat.args else cat.kwargs.get("tensors", ())):
        if operand is source:
            return before
        extent = _extent(operand, axis)
        if extent is None:
            return None
        before += extent
    return None


def _flat(value: Any) -> Iterable[fx.Node]:
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)


def _shape(step: fx.Node) -> tuple[int, ...] | None:
    value = step.meta.get("val")
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return None


def _from_export(
    model: nn.Module, example_inputs: tuple[Any, ...]
) -> tuple[fx.Graph, dict[fx.Node, _Node]]:
    with torch.no_grad(), evaluating(model):
        program = torch.export.export(model, example_inputs, strict=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    given = program.graph_signature.inputs_to_parameters
    holders: dict[fx.Node, str] = {}
    nodes: dict[fx.Node, _Node] = {}
    for step in program.graph.nodes:
        if step.op == "placeholder" and step.name in given:
            holders[step] = names[id(every[given[step.name]])]
        elif step.op == "output":
            nodes[step] = _Node("output")
        elif step.op == "call_function":
            nodes[step] = _operator(step, holders)
    return program.graph, nodes


def _operator(step: fx.Node, holders: dict[fx.Node, str]) -> _Node:
    """Say what one ATen operator does to a channel axis."""
    packet = getattr(step.target, "overloadpacket", step.target)
    name = str(getattr(packet, "__name__", packet))
    operands = [operand for operand in step.args if isinstance(operand, fx.Node)]
    operands += [operand for operand in step.kwargs.values() if isinstance(operand, fx.Node)]
    shape = _shape(step)
    if operands and operands[0] in holders and len(operands) == 1 and name in ("t", "permute"):
        holders[step] = holders[operands[0]]
        return _Node("stop")
    if name in _WEIGHTED:
        owned = [operand for operand in operands if operand in holders]
        weights = [operand for operand in owned if len(_shape(operand) or ()) > 1]
        if not weights or shape is None:
            return _Node("stop")
        axis = 1 if name.startswith("conv") else len(shape) - 1
        return _Node("weight", holders[weights[0]], axis=axis)
    if name in _NORMS:
        return _norm(step, name, holders)
    if shape is None:
        return _Node("stop")
    if name == "cat":
        dim: Any = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        return _Node("cat", axis=int(dim) % len(shape))
    if not operands:
        return _Node("stop")
    if name in ("permute", "transpose", "t", "swapaxes", "movedim"):
        return _moved(step, name, len(shape))
    scales = name.startswith("mul")  # a product with a parameter leaves a zero channel zero
    others = [
        other
        for other in operands[1:]
        if _shape(other) not in (None, ()) and not (scales and other in holders)
    ]
    if name in _JOINS and others:
        return _Node("join")
    return _kept(name, operands, shape)


def _kept(name: str, operands: list[fx.Node], shape: tuple[int, ...]) -> _Node:
    """Keep the axes where the operator leaves rank and channel extent alone."""
    before = _shape(operands[0])
    if before is None or name in _SHUFFLES:
        return _Node("stop")
    if name in ("flatten", "view", "reshape", "squeeze", "mean"):
        shrunk = tuple(size for size in before[2:] if size != 1)
        same = before[:2] == shape[:2] and not (shrunk and name != "mean")
        return _Node("keep" if same else "stop")
    if name.startswith(("slice", "split", "chunk", "select", "unbind", "index", "roll", "unfold")):
        return _Node("stop")
    return _Node("keep" if before[:2] == shape[:2] or before == shape else "stop")


def _norm(step: fx.Node, name: str, holders: dict[fx.Node, str]) -> _Node:
    """Read which parameters a norm scales and shifts with, and along which axis."""
    operands = _flat([*step.args[1:], *step.kwargs.values()])
    vectors = [operand for operand in operands if operand in holders]
    names = [holders[operand] for operand in vectors]
    shape = _shape(vectors[0]) if vectors else None
    last = name in ("layer_norm", "native_layer_norm", "rms_norm")
    source = _shape(step.args[0]) if isinstance(step.args[0], fx.Node) else None
    axis = len(source) - 1 if last and source is not None else 1
    scale = names[0] if names else None
    return _Node(
        "norm", None, scale, names[1] if len(names) > 1 else None, axis,
        per_channel=shape is None or len(shape) == 1,
    )  # fmt: skip


def _moved(step: fx.Node, name: str, rank: int) -> _Node:
    order = list(range(rank))
    arguments: list[Any] = list(step.args[1:])
    if name == "permute":
        order = [int(dim) % rank for dim in arguments[0]]
    elif name == "t":
        order = order[::-1]
    elif name in ("transpose", "swapaxes"):
        first, second = (int(dim) % rank for dim in arguments[:2])
        order[first], order[second] = order[second], order[first]
    else:
        return _Node("stop")
    return _Node("move", order=tuple(order))


def _from_modules(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, _Node]]:
    graph = fx.Tracer().trace(model)
    modules = dict(model.named_modules())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    nodes: dict[fx.Node, _Node] = {}
    for step in graph.nodes:
        if step.op == "output":
            nodes[step] = _Node("output")
        elif step.op == "call_module":
            node = _module(modules[str(step.target)], names)
            nodes[step] = node
            _pass_channels(step, node)
        elif step.op in ("call_function", "call_method"):
            node = _function(step)
            nodes[step] = node
            _pass_channels(step, node)
    return graph, nodes


def _module(module: nn.Module, names: dict[int, str]) -> _Node:
    def name(attribute: str) -> str | None:
        value = getattr(module, attribute, None)
        return names.get(id(value)) if value is not None else None

    if isinstance(module, nn.modules.conv._ConvNd):
        return _Node("weight", name("weight"), axis=1, size=module.out_channels)
    if isinstance(module, nn.Linear):
        return _Node("weight", name("weight"), axis=-1, size=module.out_features)
    if isinstance(module, _NORM_MODULES):
        last = isinstance(module, nn.LayerNorm)
        per_channel = not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1
        size = getattr(module, "num_features", 0)
        return _Node(
            "norm", None, name("weight"), name("bias"), -1 if last else 1, size=size,
            per_channel=per_channel,
        )  # fmt: skip
    if isinstance(module, _MIXING_MODULES) or list(module.parameters()):
        return _Node("stop")
    return _Node("keep")


def _function(step: fx.Node) -> _Node:
    name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
    operands = list(step.all_input_nodes)
    if name in ("cat", "concat"):
        axis = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        return _Node("cat", axis=int(axis) if isinstance(axis, int) else 0)
    if name in _JOINS:
        return _Node("join" if len(operands) > 1 else "keep")
    keeps = ("relu", "relu_", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh", "dropout",
             "leaky_relu", "elu", "softplus", "softmax", "log_softmax", "contiguous",
             "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "pad", "float",
             "hardsigmoid", "hardtanh", "clamp", "mish", "selu", "celu", "normalize")  # fmt: skip
    return _Node("keep" if name in keeps else "stop")


def _pass_channels(step: fx.Node, node: _Node) -> None:
    """Note the number of channels on the way, which concatenation needs to count offsets."""
    known = [operand.meta.get("channels") for operand in step.all_input_nodes]
    if node.kind == "weight":
        step.meta["channels"] = node.size
    elif node.kind == "cat" and None not in known:
        operands = _flat(step.args[0] if step.args else ())
        step.meta["channels"] = sum(operand.meta["channels"] for operand in operands)
    elif node.kind in ("keep", "norm", "join") and known and known[0] is not None:
        step.meta["channels"] = known[0]
