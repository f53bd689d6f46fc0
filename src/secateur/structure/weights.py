"""Which parameters of a model are prunable weights, each seen in one common layout.

Whatever the layer, a weight is viewed as ``[groups, outputs, inputs, *kernel]``: a linear layer
has one group and no kernel; transposed convolutions, embeddings and layers that store
``[inputs, outputs]`` are transposed; fused projections are parted into the projections they fuse.
The view shares memory with the parameter.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from secateur.errors import SecateurError, suggestion

_KERNEL_LETTERS = {0: "", 1: "w", 2: "hw", 3: "dhw"}


@dataclass(frozen=True)
class PrunableWeight:
    """A parameter, or a part of one, in the layout [groups, outputs, inputs, *kernel].

    ``name`` is the parameter's name, with the part in brackets where a parameter fuses several
    (``attention.in_proj_weight[q]``); ``rows`` is the part's range along dimension 0, and
    ``bias_rows`` that of its biases.
    """

    name: str
    parameter: str
    module: str
    kind: str
    shape: tuple[int, ...]
    transposed: bool = False
    rows: tuple[int, int] | None = None
    biases: tuple[str, ...] = ()
    bias_rows: tuple[int, int] | None = None

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.shape[0]

    @property
    def outputs(self) -> int:
        """Number of output channels, over all groups."""
        return self.shape[0] * self.shape[1]

    @property
    def axes(self) -> str:
        """One letter per dimension of the layout: g o i and the kernel's."""
        return "goi" + _KERNEL_LETTERS[len(self.shape) - 3]

    @property
    def numel(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())

    def view(self, tensor: Tensor) -> Tensor:
        """View a tensor shaped like the parameter in the layout [groups, outputs, inputs, ...]."""
        part = tensor if self.rows is None else tensor[self.rows[0] : self.rows[1]]
        split: Tensor = part.unflatten(0, (self.shape[0], part.shape[0] // self.shape[0]))
        return split.transpose(1, 2) if self.transposed else split

    def view_outputs(self, vector: Tensor) -> Tensor:
        """View a vector with one entry per output (a bias) as [groups, outputs]."""
        part = vector if self.bias_rows is None else vector[self.bias_rows[0] : self.bias_rows[1]]
        outputs: Tensor = part.unflatten(0, self.shape[:2])
        return outputs


@dataclass(frozen=True)
class FoundWeights:
    """The prunable weights of a model in registration order, and what was passed over and why."""

    weights: tuple[PrunableWeight, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())


def find_weights(model: nn.Module) -> FoundWeights:
    """List the weights of convolutions, linear layers, embeddings, attentions, recurrent layers.

    A parameter that several modules share appears once, as its first user sees it.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[int] = set()
    weights: list[PrunableWeight] = []
    skipped: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        for weight in _of_module(path, module):
            own = dict(module.named_parameters(recurse=False))
            parameter = own.get(weight.parameter.rpartition(".")[2])
            if isinstance(parameter, UninitializedParameter):
                skipped.append((weight.parameter, "it is lazy: run the model once first"))
            elif parameter is None:
                skipped.append((weight.parameter, "it is computed from other parameters"))
            elif not parameter.is_floating_point():
                skipped.append((weight.parameter, f"it holds {parameter.dtype}, not floats"))
            elif id(parameter) not in seen or weight.rows is not None:
                seen.add(id(parameter))
                weights.append(_named(weight, names[id(parameter)], names, own))
    return FoundWeights(tuple(weights), tuple(skipped))


def choose_weights(
    weights: Iterable[PrunableWeight],
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
) -> tuple[PrunableWeight, ...]:
    """Keep the weights whose name, parameter or module matches ``include`` and not ``exclude``.

    Raises SecateurError where a pattern matches nothing.
    """
    found = tuple(weights)
    if include is not None:
        found = tuple(weight for weight in found if weight in set(match_any(found, include)))
    if exclude is not None:
        dropped = set(match_any(tuple(weights), exclude))
        found = tuple(weight for weight in found if weight not in dropped)
    return found


def match_any(
    weights: tuple[PrunableWeight, ...], patterns: str | Iterable[str]
) -> list[PrunableWeight]:
    """Return the weights that one of the glob patterns matches; refuse a pattern without match."""
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    matched: list[PrunableWeight] = []
    for pattern in listed:
        hits = [weight for weight in weights if matches(weight, pattern)]
        if not hits:
            modules = [weight.module or weight.name for weight in weights]
            raise SecateurError(
                f"the pattern '{pattern}' matches no prunable layer: {suggestion(pattern, modules)}"
            )
        matched += [weight for weight in hits if weight not in matched]
    return matched


def matches(weight: PrunableWeight, pattern: str) -> bool:
    """Whether a glob pattern names the weight, its parameter or its module."""
    names = (weight.name, weight.parameter, weight.module)
    # A part's name holds brackets, which a pattern would read as a set of characters.
    return pattern in names or any(fnmatch.fnmatchcase(name, pattern) for name in names)


def _named(
    weight: PrunableWeight, name: str, names: dict[int, str], own: dict[str, nn.Parameter]
) -> PrunableWeight:
    """Give the weight and its biases the names under which the model lists them."""
    part = weight.name[weight.name.index("[") :] if weight.rows is not None else ""
    biases = tuple(names[id(own[bias])] for bias in weight.biases if own.get(bias) is not None)
    return PrunableWeight(
        name + part, name, weight.module, weight.kind, weight.shape, weight.transposed,
        weight.rows, biases, weight.bias_rows,
    )  # fmt: skip


def _of_module(path: str, module: nn.Module) -> Iterator[PrunableWeight]:
    kind = type(module).__name__

    def weight(
        name: str, shape: tuple[int, ...], transposed: bool = False, biases: tuple[str, ...] = ()
    ) -> PrunableWeight:
        full = f"{path}.{name}" if path else name
        return PrunableWeight(full, full, path, kind, shape, transposed, None, biases)

    if isinstance(module, nn.modules.conv._ConvNd):
        outputs, inputs = module.out_channels // module.groups, module.in_channels // module.groups
        shape = (module.groups, outputs, inputs, *module.kernel_size)
        yield weight("weight", shape, module.transposed, ("bias",))
    elif isinstance(module, nn.Linear):
        yield weight("weight", (1, module.out_features, module.in_features), False, ("bias",))
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield weight("weight", (1, module.embedding_dim, module.num_embeddings), True)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _of_attention(path, kind, module)
    elif isinstance(module, nn.RNNBase):
        yield from _of_recurrent(path, kind, module)
    elif isinstance(module, _input_major_linear()):
        inputs, outputs = getattr(module, "weight").shape  # noqa: B009
        yield weight("weight", (1, outputs, inputs), True, ("bias",))


def _input_major_linear() -> tuple[type[nn.Module], ...]:
    """Linear layers that store [inputs, outputs]: transformers' Conv1D, if it is in use."""
    module = sys.modules.get("transformers.pytorch_utils")
    return (module.Conv1D,) if module is not None else ()


def _parts(
    path: str, kind: str, name: str, labels: Iterable[str], sizes: tuple[int, int], bias: str
) -> Iterator[PrunableWeight]:
    full = f"{path}.{name}" if path else name
    outputs, inputs = sizes
    for place, label in enumerate(labels):
        rows = (place * outputs, (place + 1) * outputs)
        yield PrunableWeight(
            f"{full}[{label}]", full, path, kind, (1, outputs, inputs), False, rows, (bias,), rows
        )


def _of_attention(path: str, kind: str, module: nn.MultiheadAttention) -> Iterator[PrunableWeight]:
    size = module.embed_dim
    if module.in_proj_weight is not None:
        yield from _parts(path, kind, "in_proj_weight", "qkv", (size, size), "in_proj_bias")
        return
    widths = {"q": size, "k": module.kdim, "v": module.vdim}
    for place, (label, width) in enumerate(widths.items()):
        name = f"{label}_proj_weight"
        full = f"{path}.{name}" if path else name
        rows = (place * size, (place + 1) * size)
        shape = (1, size, width)
        yield PrunableWeight(full, full, path, kind, shape, False, None, ("in_proj_bias",), rows)


def _of_recurrent(path: str, kind: str, module: nn.RNNBase) -> Iterator[PrunableWeight]:
    gates = {"LSTM": "ifgo", "GRU": "rzn"}.get(module.mode, "h")
    for name, parameter in module.named_parameters(recurse=False):
        if name.startswith("weight_hr"):
            full = f"{path}.{name}" if path else name
            yield PrunableWeight(full, full, path, kind, (1, *parameter.shape))
        elif name.startswith("weight"):
            sizes = (parameter.shape[0] // len(gates), parameter.shape[1])
            bias = name.replace("weight", "bias")
            yield from _parts(path, kind, name, gates, sizes, bias)
