"""Operators that take an axis of the data and an axis of a weight together: the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.structure.rules.registry import Call, Dims, Zero, free_leaves, rule
from secateur.structure.terms import Term, product

_KERNEL = "a kernel's extent"


def _layer_zero(call: Call) -> Zero:
    """A weight's zeros count only for the output's channels, not for what the data passes on."""
    made, weight = call.findings.dims[call.node], call.need("weight")
    channel = len(made) - 1 - max(0, len(weight) - 2)
    passed = free_leaves([*made[:channel], *made[channel + 1 :]])
    return "none" if passed & free_leaves(weight) else "weighted"


def _product_zero(call: Call) -> Zero:
    """One operand's zeros are enough, unless it may carry the channel where it is added up only."""
    added = free_leaves(each.term for each in call.findings.reductions.get(call.node, ()))
    return "carried" if added & free_leaves(call.findings.dims[call.node]) else "any"


def _sum_zero(call: Call) -> Zero:
    """What is added must carry the channel too."""
    made: Dims = call.findings.dims[call.node]
    return "carried" if free_leaves(made) <= free_leaves(call.need("self")) else "none"


@rule("conv1d", "conv2d", "conv3d", "convolution", "_convolution_mode", zero=_layer_zero)
def _convolution(call: Call) -> Dims:
    if call.get("transposed", False):
        return _transposed(call)
    data, weight, bias = call.need("input"), call.need("weight"), call.dims("bias")
    groups = call.get("groups", 1)
    kernel = weight[2:]
    channel = len(data) - len(kernel) - 1
    for extent in kernel:
        call.pin(extent, _KERNEL)
    if groups == 1:
        call.unify(data[channel], weight[1])
    else:
        group = Term(groups)
        call.unify(data[channel], product([group, weight[1]]))
        call.unify(weight[0], product([group, Term(weight[0].size // groups)]))
    call.reduce(weight[1], "contract", ("input", "weight"))
    if bias is not None:
        call.unify(bias[0], weight[0])
    extents = call.window(data[channel + 1 :], call.shape[channel + 1 :], _pointwise(call, kernel))
    call.cost(*data[:channel], weight[0], *extents, weight[1], *kernel)
    return [*data[:channel], weight[0], *extents]


def _pointwise(call: Call, kernel: Dims) -> bool:
    """Whether a convolution looks at single positions, one after the other."""
    plain = _same(call.get("stride", 1), 1)
    padding = call.get("padding", 0)
    unpadded = padding in ("valid", "same") if isinstance(padding, str) else _same(padding, 0)
    return plain and unpadded and all(extent.size == 1 for extent in kernel)


def _same(value: Any, wanted: int) -> bool:
    return all(each == wanted for each in (value if isinstance(value, (list, tuple)) else [value]))


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", zero=_layer_zero)
def _transposed(call: Call) -> Dims:
    data, weight, bias = call.need("input"), call.need("weight"), call.dims("bias")
    groups = call.get("groups", 1)
    kernel = weight[2:]
    channel = len(data) - len(kernel) - 1
    for extent in kernel:
        call.pin(extent, _KERNEL)
    call.unify(data[channel], weight[0])
    made = weight[1]
    if groups != 1:
        group = Term(groups)
        call.unify(weight[0], product([group, Term(weight[0].size // groups)]))
        made = product([group, weight[1]])
    # Every group adds up only its own inputs, which is the whole of what is left of the axis.
    call.reduce(weight[0], "contract", ("input", "weight"))
    if bias is not None:
        call.unify(bias[0], made)
    extents = call.window(data[channel + 1 :], call.shape[channel + 1 :])
    call.cost(*data, weight[1], *kernel)
    return [*data[:channel], made, *extents]


@rule("torchvision::deform_conv2d", zero=_layer_zero)
def _deformable(call: Call) -> Dims:
    data, weight, bias = call.need("input"), call.need("weight"), call.dims("bias")
    if call.get("groups", 1) != 1:
        for term in (data[1], weight[0], weight[1]):
            call.pin(term, "grouped deformable convolution")
    else:
        call.unify(data[1], weight[1])
    if call.get("offset_groups", 1) != 1:
        call.pin(data[1], "its channels share offsets in groups")
    for name in ("offset", "mask"):
        for term in call.dims(name) or ():
            call.pin(term, "offsets of a deformable convolution")
    call.reduce(weight[1], "contract", ("input", "weight"))
    for extent in weight[2:]:
        call.pin(extent, _KERNEL)
    if bias is not None:
        call.unify(bias[0], weight[0])
    extents = call.window(data[2:], call.shape[2:])
    call.cost(data[0], weight[0], *extents, weight[1], *weight[2:])
    return [data[0], weight[0], *extents]


@rule("linear", zero=_layer_zero)
def _linear(call: Call) -> Dims:
    data, weight, bias = call.need("input"), call.need("weight"), call.dims("bias")
    call.unify(data[-1], weight[-1])
    call.reduce(weight[-1], "contract", ("input", "weight"))
    if len(weight) == 1:
        return data[:-1]
    if bias is not None:
        call.unify(bias[0], weight[0])
    call.cost(*data[:-1], weight[0], weight[1])
    return [*data[:-1], weight[0]]


@rule("bilinear")
def _bilinear(call: Call) -> Dims:
    one, other, weight = call.need("input1"), call.need("input2"), call.need("weight")
    bias = call.dims("bias")
    call.unify(one[-1], weight[1])
    call.unify(other[-1], weight[2])
    call.reduce(weight[1], "contract", ("input1", "weight"))
    call.reduce(weight[2], "contract", ("input2", "weight"))
    if bias is not None:
        call.unify(bias[0], weight[0])
    call.cost(*one[:-1], *weight)
    return [*call.broadcast([one[:-1], other[:-1]], call.shape[:-1]), weight[0]]


_FACTORS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "addmm": ("mat1", "mat2"),
    "addmv": ("mat", "vec"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
}


@rule("matmul", "linalg_matmul", "mm", "bmm", "mv", "dot", "vdot", zero=_product_zero)
def _matmul(call: Call) -> Dims:
    return _multiply(call, *_FACTORS.get(call.name, ("self", "other")), call.shape)


def _multiply(call: Call, left: str, right: str, shape: Sequence[int]) -> Dims:
    one, other = call.need(left), call.need(right)
    inner = other[-2] if len(other) > 1 else other[-1]
    call.unify(one[-1], inner)
    call.reduce(inner, "contract", (left, right))
    rows = [one[-2]] if len(one) > 1 else []
    columns = [other[-1]] if len(other) > 1 else []
    count = len(shape) - len(rows) - len(columns)
    batch = call.broadcast([one[:-2], other[:-2]], shape[:count])
    call.cost(*batch, *rows, *columns, inner)
    return [*batch, *rows, *columns]


@rule("addmm", "baddbmm", "addmv", zero=_sum_zero)
def _add_multiplied(call: Call) -> Dims:
    made = _multiply(call, *_FACTORS[call.name], call.shape)
    return call.broadcast([made, call.need("self")], call.shape)


@rule("addbmm", zero=_sum_zero)
def _add_batches(call: Call) -> Dims:
    batch = call.need("batch1")[0]
    made = _multiply(call, *_FACTORS[call.name], [batch.size, *call.shape])
    call.reduce(made[0], "contract", ("batch1", "batch2"))
    return call.broadcast([made[1:], call.need("self")], call.shape)


@rule("_grouped_mm", zero=_product_zero)
def _grouped(call: Call) -> Dims:
    """Experts: rows of the data, or columns, or entries added up, belong to one matrix each."""
    one, other = call.need("self"), call.need("mat2")
    offsets, bias = call.dims("offs"), call.dims("bias")
    groups = [*(offsets or ()), *one[:-2], *other[:-2]]
    for term in groups:
        call.pin(term, "its matrices are told apart by offsets")
    if len(one) == len(other) == 2:
        call.pin(one[-1], "parted by offsets")
    elif len(one) == 3 and len(other) == 2:
        call.pin(other[-1], "parted by offsets")
    elif len(one) == 2:
        call.pin(one[0], "parted by offsets")
    call.unify(one[-1], other[-2])
    call.reduce(other[-2], "contract", ("self", "mat2"))
    if bias is not None:
        call.unify(bias[-1], other[-1])
    call.cost(one[-2], other[-1], other[-2])
    made = [one[-2], other[-1]]
    if len(call.shape) == 2:
        return made
    return [call.fixed(call.shape[0], "its matrices are told apart by offsets"), *made]


@rule("inner", zero=_product_zero)
def _inner(call: Call) -> Dims:
    one, other = call.need("self"), call.need("other")
    call.unify(one[-1], other[-1])
    call.reduce(one[-1], "contract", ("self", "other"))
    return [*one[:-1], *other[:-1]]


@rule("outer", "ger", zero="any")
def _outer(call: Call) -> Dims:
    return [*call.need("self"), *call.need("vec2")]


@rule("tensordot", zero=_product_zero)
def _tensordot(call: Call) -> Dims:
    one, other = call.need("self"), call.need("other")
    left = [place % len(one) for place in call.get("dims_self")]
    right = [place % len(other) for place in call.get("dims_other")]
    for place, match in zip(left, right, strict=True):
        call.unify(one[place], other[match])
        call.reduce(one[place], "contract", ("self", "other"))
    return [
        *(term for place, term in enumerate(one) if place not in left),
        *(term for place, term in enumerate(other) if place not in right),
    ]


@rule("einsum", zero=_product_zero)
def _einsum(call: Call) -> Dims:
    left, arrow, right = str(call.get("equation")).replace(" ", "").partition("->")
    operands, nodes = call.list_of("tensors"), list(call.get("tensors"))
    known: dict[str, Term] = {}
    specs = [_spell(spec, len(dims))
             for spec, dims in zip(left.split(","), operands, strict=True)]  # fmt: skip
    for letters, dims in zip(specs, operands, strict=True):
        for letter, term in zip(letters, dims, strict=True):
            if letter not in known or known[letter].size == 1:
                known[letter] = term
            elif term.size != 1:
                call.unify(known[letter], term)
    made = _spell(right, len(call.shape)) if arrow else _alphabetical(specs)
    for letter, term in known.items():
        if letter not in made:
            carriers = [node for node, letters in zip(nodes, specs, strict=True)
                        if letter in letters]  # fmt: skip
            call.reduce_nodes(term, "contract", carriers)
    if len(operands) > 1:
        call.cost(*known.values())
    return [known[letter] for letter in made]


def _alphabetical(specs: Sequence[Sequence[str]]) -> list[str]:
    """Return the letters of an output that is not spelled: those that occur once, in order."""
    every = [letter for letters in specs for letter in letters]
    dots = sorted({each for each in every if len(each) > 1})
    return dots + sorted({each for each in every if every.count(each) == 1} - set(dots))


def _spell(spec: str, rank: int) -> list[str]:
    """Give every dimension a letter; an ellipsis becomes numbered ones, aligned from the right."""
    if "..." not in spec:
        return list(spec)
    before, _, after = spec.partition("...")
    count = rank - len(before) - len(after)
    return [*before, *(f".{count - place:02d}" for place in range(count)), *after]


def _attention_zero(call: Call) -> Zero:
    """The value's zeros go through, where query and key bring no channel of their own."""
    value = free_leaves(call.need("value"))
    made = call.findings.dims[call.node]
    return "carried" if free_leaves(made) <= value and not free_leaves(made[-2:-1]) else "none"


@rule("scaled_dot_product_attention", zero=_attention_zero)
def _attention(call: Call) -> Dims:
    query, key, value = call.need("query"), call.need("key"), call.need("value")
    mask = call.dims("attn_mask")
    call.unify(query[-1], key[-1])
    call.unify(key[-2], value[-2])
    call.reduce(key[-1], "contract", ("query", "key"))
    call.reduce(key[-2], "size", reason="softmax over it")
    if call.get("is_causal", False):
        for term in (query[-2], key[-2]):
            call.pin(term, "a causal mask looks at positions")
    if call.get("scale") is None:
        call.pin(query[-1], "attention's default scale depends on its size")
    grouped = bool(call.get("enable_gqa", False))
    heads = [
        _head(call, query[place], key[place], value[place], grouped)
        for place in range(len(query) - 2)
    ]
    if mask is not None:
        scores = [*heads, query[-2], key[-2]]
        call.broadcast([mask, scores], [term.size for term in scores])
    call.cost(*heads, query[-2], key[-2], key[-1])
    call.cost(*heads, query[-2], key[-2], value[-1])
    return [*heads, query[-2], value[-1]]


def _head(call: Call, query: Term, key: Term, value: Term, grouped: bool) -> Term:
    """Unify one batch dimension of attention; several queries may share a key and value."""
    if grouped and 1 < key.size < query.size:
        call.unify(key, value)
        call.unify(query, product([key, Term(query.size // key.size)]))
        return query
    size = max(query.size, key.size, value.size)
    return call.broadcast([[query], [key], [value]], [size])[0]


@rule("embedding", zero="carried")
def _embedding(call: Call) -> Dims:
    weight, index = call.need("weight"), call.need("indices")
    call.pin(weight[0], "looked up by index")
    return [*index, weight[1]]


@rule("embedding_bag", zero="carried")
def _embedding_bag(call: Call) -> list[Dims]:
    weight = call.need("weight")
    call.pin(weight[0], "looked up by index")
    bags = call.data(call.shapes[0][0])
    rest = [[call.data(size) for size in shape] for shape in call.shapes[1:]]
    return [[bags, weight[1]], *rest]


@rule("_weight_norm", zero="any")
def _weight_norm(call: Call) -> Dims:
    """w = g v / |v|, the norm taken over all dimensions but one."""
    direction, length, kept = call.need("v"), call.need("g"), call.get("dim", 0)
    for place, term in enumerate(direction):
        if place != kept % len(direction) or kept == -1:
            call.reduce(term, "sum", ("v",), "a weight's norm is taken over it")
    return call.broadcast([direction, length], call.shape)
