"""A model's operators as seen by a channel axis: what keeps it, moves it, norms it or ends it.

The same few kinds of node are read from an exported graph (ATen operators, with shapes) and from a
symbolic trace (modules, without).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from secateur.structure.graft import Graft
from secateur.structure.usage import evaluating

_WEIGHTED = (
    "conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "embedding", "einsum",
    "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell",
    "rnn_relu_cell", "scaled_dot_product_attention",
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
class Node:
    """One operator: what it is, the parameters it owns, and where its channel axis lies."""

    kind: str  # weight, norm, join, cat, keep, move, stop or output
    parameter: str | None = None
    scale: str | None = None
    shift: str | None = None
    axis: int = 1
    order: tuple[int, ...] = ()
    size: int = 0
    per_channel: bool = True


def flat(value: Any) -> Iterable[fx.Node]:
    """Give the nodes in nested arguments, in order."""
    if isinstance(value, fx.Node):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flat(item)


def shape_of(step: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of what a node gives, None where it is not known."""
    value = step.meta.get("val")
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return None


def from_export(
    model: nn.Module, example_inputs: tuple[Any, ...]
) -> tuple[fx.Graph, dict[fx.Node, Node]]:
    """Export the model and say what each of its ATen operators does to a channel axis."""
    with torch.no_grad(), evaluating(model):
        program = torch.export.export(model, example_inputs, strict=False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = dict(model.named_parameters(remove_duplicate=False))
    given = program.graph_signature.inputs_to_parameters
    holders: dict[fx.Node, str] = {}
    nodes: dict[fx.Node, Node] = {}
    for step in program.graph.nodes:
        if step.op == "placeholder" and step.name in given:
            holders[step] = names[id(every[given[step.name]])]
        elif step.op == "output":
            nodes[step] = Node("output")
        elif step.op == "call_function":
            nodes[step] = _operator(step, holders)
    return program.graph, nodes


def _operator(step: fx.Node, holders: dict[fx.Node, str]) -> Node:
    """Say what one ATen operator does to a channel axis."""
    packet = getattr(step.target, "overloadpacket", step.target)
    name = str(getattr(packet, "__name__", packet))
    operands = [operand for operand in step.args if isinstance(operand, fx.Node)]
    operands += [operand for operand in step.kwargs.values() if isinstance(operand, fx.Node)]
    shape = shape_of(step)
    if operands and operands[0] in holders and len(operands) == 1 and name in ("t", "permute"):
        holders[step] = holders[operands[0]]
        return Node("stop")
    if name in _WEIGHTED:
        owned = [operand for operand in operands if operand in holders]
        weights = [operand for operand in owned if len(shape_of(operand) or ()) > 1]
        if not weights or shape is None:
            return Node("stop")
        axis = 1 if name.startswith("conv") else len(shape) - 1
        return Node("weight", holders[weights[0]], axis=axis)
    if name in _NORMS:
        return _norm(step, name, holders)
    if shape is None:
        return Node("stop")
    if name == "cat":
        dim: Any = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        return Node("cat", axis=int(dim) % len(shape))
    if not operands:
        return Node("stop")
    if name in ("permute", "transpose", "t", "swapaxes", "movedim"):
        return _moved(step, name, len(shape))
    scales = name.startswith("mul")  # a product with a parameter leaves a zero channel zero
    others = [
        other
        for other in operands[1:]
        if shape_of(other) not in (None, ()) and not (scales and other in holders)
    ]
    if name in _JOINS and others:
        return Node("join")
    return _kept(name, operands, shape)


def _kept(name: str, operands: list[fx.Node], shape: tuple[int, ...]) -> Node:
    """Keep the axes where the operator leaves rank and channel extent alone."""
    before = shape_of(operands[0])
    if before is None or name in _SHUFFLES:
        return Node("stop")
    if name in ("flatten", "view", "reshape", "squeeze", "mean"):
        shrunk = tuple(size for size in before[2:] if size != 1)
        same = before[:2] == shape[:2] and not (shrunk and name != "mean")
        return Node("keep" if same else "stop")
    if name.startswith(("slice", "split", "chunk", "select", "unbind", "index", "roll", "unfold")):
        return Node("stop")
    return Node("keep" if before[:2] == shape[:2] or before == shape else "stop")


def _norm(step: fx.Node, name: str, holders: dict[fx.Node, str]) -> Node:
    """Read which parameters a norm scales and shifts with, and along which axis."""
    operands = flat([*step.args[1:], *step.kwargs.values()])
    vectors = [operand for operand in operands if operand in holders]
    names = [holders[operand] for operand in vectors]
    shape = shape_of(vectors[0]) if vectors else None
    last = name in ("layer_norm", "native_layer_norm", "rms_norm")
    source = shape_of(step.args[0]) if isinstance(step.args[0], fx.Node) else None
    axis = len(source) - 1 if last and source is not None else 1
    scale = names[0] if names else None
    return Node(
        "norm", None, scale, names[1] if len(names) > 1 else None, axis,
        per_channel=shape is None or len(shape) == 1,
    )  # fmt: skip


def _moved(step: fx.Node, name: str, rank: int) -> Node:
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
        return Node("stop")
    return Node("move", order=tuple(order))


class _Tracer(fx.Tracer):
    """Takes a module whose code was replaced for one piece: its steps need tensors."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Graft) or super().is_leaf_module(m, module_qualified_name)


def from_modules(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, Node]]:
    """Trace the model symbolically and say what each of its modules does to a channel axis."""
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    nodes: dict[fx.Node, Node] = {}
    for step in graph.nodes:
        if step.op == "output":
            nodes[step] = Node("output")
        elif step.op == "call_module":
            node = _module(modules[str(step.target)], names)
            nodes[step] = node
            _pass_channels(step, node)
        elif step.op in ("call_function", "call_method"):
            node = _function(step)
            nodes[step] = node
            _pass_channels(step, node)
    return graph, nodes


def _module(module: nn.Module, names: dict[int, str]) -> Node:
    def name(attribute: str) -> str | None:
        value = getattr(module, attribute, None)
        return names.get(id(value)) if value is not None else None

    if isinstance(module, nn.modules.conv._ConvNd):
        return Node("weight", name("weight"), axis=1, size=module.out_channels)
    if isinstance(module, nn.Linear):
        return Node("weight", name("weight"), axis=-1, size=module.out_features)
    if isinstance(module, _NORM_MODULES):
        last = isinstance(module, nn.LayerNorm)
        per_channel = not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1
        size = getattr(module, "num_features", 0)
        return Node(
            "norm", None, name("weight"), name("bias"), -1 if last else 1, size=size,
            per_channel=per_channel,
        )  # fmt: skip
    if isinstance(module, _MIXING_MODULES) or list(module.parameters()):
        return Node("stop")
    return Node("keep")


def _function(step: fx.Node) -> Node:
    name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
    operands = list(step.all_input_nodes)
    if name in ("cat", "concat"):
        axis = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        return Node("cat", axis=int(axis) if isinstance(axis, int) else 0)
    if name in _JOINS:
        return Node("join" if len(operands) > 1 else "keep")
    keeps = ("relu", "relu_", "relu6", "hardswish", "silu", "gelu", "sigmoid", "tanh", "dropout",
             "leaky_relu", "elu", "softplus", "softmax", "log_softmax", "contiguous",
             "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate", "pad", "float",
             "hardsigmoid", "hardtanh", "clamp", "mish", "selu", "celu", "normalize")  # fmt: skip
    return Node("keep" if name in keeps else "stop")


def _pass_channels(step: fx.Node, node: Node) -> None:
    """Note the number of channels on the way, which concatenation needs to count offsets."""
    known = [operand.meta.get("channels") for operand in step.all_input_nodes]
    if node.kind == "weight":
        step.meta["channels"] = node.size
    elif node.kind == "cat" and None not in known:
        operands = flat(step.args[0] if step.args else ())
        step.meta["channels"] = sum(operand.meta["channels"] for operand in operands)
    elif node.kind in ("keep", "norm", "join") and known and known[0] is not None:
        step.meta["channels"] = known[0]
