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
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from secateur.errors import SecateurError, suggestion
from secateur.structure.graft import Graft

_PLAIN = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag)
_RAW = "it belongs to no layer whose weights are known"
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

    Sizes are the parameters' own. A parameter that several modules share appears once, as its first
    user sees it; a matrix that belongs to no known layer is among what was passed over.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen: set[int] = set()
    weights: list[PrunableWeight] = []
    skipped: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        own = {name: each for name, each in module._parameters.items() if each is not None}
        for name in _names_of(module):
            reason = _why_not(module, name)
            if reason is not None:
                skipped.append((_join(path, name), reason))
            elif id(own[name]) not in seen:
                seen.add(id(own[name]))
                weights += [_named(weight, names[id(own[name])], names, own)
                            for weight in _views(path, module, name, own[name])]  # fmt: skip
    # Last, as a parameter of no layer may be the weight of one that comes later.
    skipped += [(name, _RAW) for name, each in _raw(model) if id(each) not in seen]
    return FoundWeights(tuple(weights), tuple(skipped))


def _why_not(module: nn.Module, name: str) -> str | None:
    """Return why a weight cannot be pruned, None where it can."""
    parameter = module._parameters.get(name)
    if parameter is None:
        hint = ""
        if is_parametrized(module, name):
            hint = " (torch.nn.utils.parametrize.remove_parametrizations makes it plain)"
        return f"it is computed from other parameters{hint}"
    if isinstance(parameter, UninitializedParameter):
        return "it is lazy: run the model once first"
    if not parameter.is_floating_point():
        return f"it holds {parameter.dtype}, not floats"
    return None


def _raw(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Give the matrices of modules whose weights are not known.

    Norms hold none, and what a weight is computed from is told of with the weight.
    """
    told = (ParametrizationList, nn.LayerNorm, nn.RMSNorm)
    for path, module in model.named_modules():
        if _names_of(module) or isinstance(module, told):
            continue
        for name, each in module.named_parameters(recurse=False):
            lazy = isinstance(each, UninitializedParameter)
            if not lazy and sum(size > 1 for size in each.shape) > 1:
                yield _join(path, name), each


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


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


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module; of one whose code was replaced, the class that it had."""
    return module.grafted_class if isinstance(module, Graft) else type(module)


def _names_of(module: nn.Module) -> tuple[str, ...]:
    """Name the weights that a module has by its class."""
    kind = kind_of(module)
    if issubclass(kind, nn.MultiheadAttention):
        if getattr(module, "in_proj_weight", None) is not None:
            return ("in_proj_weight",)
        return ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    if issubclass(kind, nn.RNNBase):
        return tuple(name for name in module._parameters if name.startswith("weight"))
    if issubclass(kind, nn.RNNCellBase):
        return ("weight_ih", "weight_hh")
    return ("weight",) if issubclass(kind, (*_PLAIN, *_input_major_linear())) else ()


def _views(
    path: str, module: nn.Module, name: str, parameter: nn.Parameter
) -> Iterator[PrunableWeight]:
    """View a parameter as one weight, or several; sizes are its own, as attributes may be old."""
    kind, full, shape = kind_of(module), _join(path, name), tuple(parameter.shape)

    def weight(
        shape: tuple[int, ...], transposed: bool = False, bias: tuple[str, ...] = ("bias",)
    ) -> PrunableWeight:
        return PrunableWeight(full, full, path, kind.__name__, shape, transposed, None, bias)

    if issubclass(kind, nn.modules.conv._ConvNd):
        yield weight(_of_convolution(module, shape), _is_transposed(module))
    elif issubclass(kind, nn.Linear):
        yield weight((1, *shape))
    elif issubclass(kind, (nn.Embedding, nn.EmbeddingBag)):
        yield weight((1, shape[1], shape[0]), True, ())
    elif issubclass(kind, nn.MultiheadAttention):
        yield from _of_attention(full, path, kind.__name__, module, shape)
    elif issubclass(kind, (nn.RNNBase, nn.RNNCellBase)):
        yield from _of_recurrent(full, path, kind.__name__, module, shape)
    else:
        yield weight((1, shape[1], shape[0]), True)


def _is_transposed(module: nn.Module) -> bool:
    return bool(getattr(module, "transposed", False))


def _of_convolution(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    groups = int(getattr(module, "groups", 1))
    if shape[0] % groups:
        groups = 1
    one, other = shape[0] // groups, shape[1]
    sizes = (other, one) if _is_transposed(module) else (one, other)
    return (groups, *sizes, *shape[2:])


def _input_major_linear() -> tuple[type[nn.Module], ...]:
    """Linear layers that store [inputs, outputs]: transformers' Conv1D, if it is in use."""
    module = sys.modules.get("transformers.pytorch_utils")
    return (module.Conv1D,) if module is not None else ()


def _of_attention(
    full: str, path: str, kind: str, module: nn.Module, shape: tuple[int, ...]
) -> Iterator[PrunableWeight]:
    """Part the projections; queries and keys are as wide as each other, values may be less."""
    name = full.rpartition(".")[2]
    if name == "in_proj_weight":
        widths = _widths(module, shape[0])
        start = 0
        for label, width in zip("qkv", widths, strict=True):
            rows = (start, start + width)
            start += width
            yield PrunableWeight(f"{full}[{label}]", full, path, kind, (1, width, *shape[1:]),
                                 False, rows, ("in_proj_bias",), rows)  # fmt: skip
        return
    before = {"q": (), "k": ("q",), "v": ("q", "k")}[name[0]]
    start = sum(getattr(module, f"{each}_proj_weight").shape[0] for each in before)
    rows = (start, start + shape[0])
    yield PrunableWeight(full, full, path, kind, (1, *shape), False, None, ("in_proj_bias",), rows)


def _widths(module: nn.Module, rows: int) -> tuple[int, int, int]:
    """Return the rows of queries, keys and values; what comes out of the heads are the values."""
    values = int(getattr(module, "out_proj").weight.shape[1])  # noqa: B009
    if values >= rows or (rows - values) % 2:
        values = rows // 3
    keys = (rows - values) // 2
    return keys, keys, rows - 2 * keys


def _of_recurrent(
    full: str, path: str, kind: str, module: nn.Module, shape: tuple[int, ...]
) -> Iterator[PrunableWeight]:
    name = full.rpartition(".")[2]
    if name.startswith("weight_hr"):
        yield PrunableWeight(full, full, path, kind, (1, *shape))
        return
    gates = _gates(module)
    rows = shape[0] // len(gates)
    for place, label in enumerate(gates):
        own = (place * rows, (place + 1) * rows)
        bias = (name.replace("weight", "bias"),)
        yield PrunableWeight(f"{full}[{label}]", full, path, kind, (1, rows, *shape[1:]),
                             False, own, bias, own)  # fmt: skip


def _gates(module: nn.Module) -> str:
    """Return a letter for each gate, in the order in which they are stored."""
    kind = kind_of(module)
    if issubclass(kind, nn.LSTMCell) or getattr(module, "mode", "") == "LSTM":
        return "ifgo"
    return "rzn" if issubclass(kind, nn.GRUCell) or getattr(module, "mode", "") == "GRU" else "h"
