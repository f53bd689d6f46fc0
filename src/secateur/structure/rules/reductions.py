"""Operators that take an axis of the data together: sums, means, norms, softmax."""

from __future__ import annotations

from typing import Any

from secateur.structure.rules.registry import Call, Dims, ReductionKind, Zero, rule
from secateur.structure.terms import Term, product

_NORMS = ("linalg_vector_norm", "linalg_norm", "linalg_matrix_norm", "norm", "frobenius_norm")
_SUMS = ("sum", "nansum", "any", "count_nonzero")


@rule("mean", "nanmean", "sum", "nansum", "amax", "amin", "aminmax", "max", "min", "median",
      "nanmedian", "mode", "prod", "var", "std", "var_mean", "std_mean", "any", "all",
      "count_nonzero", "kthvalue", *_NORMS, zero="carried")  # fmt: skip
@rule("logsumexp", "argmax", "argmin")
def _reduce(call: Call) -> Any:
    data = call.need("self")
    gone = _dims_of(call, len(data))
    for place in sorted(gone):
        call.reduce(data[place], _kind(call), ("self",), f"{call.name} over it")
    value = call.node.meta["val"]
    rank = len((value[0] if call.several else value).shape)
    kept = rank == len(data) and bool(gone)
    out = [Term(1) if place in gone else term for place, term in enumerate(data)
           if kept or place not in gone]  # fmt: skip
    return [list(out) for _ in value] if call.several else out


def _kind(call: Call) -> ReductionKind:
    """Zeros add nothing to sums and to norms, unless a norm's order is negative."""
    if call.name in _NORMS:
        order = call.get("ord", call.get("p", 2))
        return "sum" if not isinstance(order, (int, float)) or order >= 0 else "size"
    return "sum" if call.name in _SUMS else "size"


def _dims_of(call: Call, rank: int) -> set[int]:
    given = call.get("dim", call.get("dims"))
    if given is None or given == []:
        return set(range(rank))
    listed = given if isinstance(given, (list, tuple)) else [given]
    return {place % rank for place in listed} if rank else set()


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def _softmax(call: Call) -> Dims:
    data = call.need("self")
    if data:
        call.reduce(data[call.get("dim", -1)], "size", ("self",), "softmax over it")
    return data


@rule("cumsum", "cumprod", "cummax", "cummin", zero="carried")
@rule("logcumsumexp")
def _running(call: Call) -> Any:
    data = call.need("self")
    if data:
        call.pin(data[call.get("dim")], f"{call.name} along it")
    return [list(data), list(data)] if call.several else data


def _batch_norm_zero(call: Call) -> Zero:
    """Without a scale, a zero channel stays zero only where its own statistics are subtracted."""
    if call.dims("weight") is not None:
        return "weighted"
    return "first" if _own_statistics(call) and call.dims("bias") is None else "none"


def _own_statistics(call: Call) -> bool:
    name = "use_input_stats" if call.name == "instance_norm" else "training"
    return bool(call.get(name, False)) or call.dims("running_mean") is None


@rule("batch_norm", "cudnn_batch_norm", "instance_norm", zero=_batch_norm_zero)
@rule("native_batch_norm")
def _batch_norm(call: Call) -> Any:
    data = call.need("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        vector = call.dims(name)
        if vector is not None:
            call.unify(vector[0], data[1])
    if _own_statistics(call):
        for place, term in enumerate(data):
            averaged = place > 1 or (place == 0 and call.name != "instance_norm")
            if averaged:
                call.reduce(term, "size", ("input",), "a norm averages over it")
    if call.several:
        return [data, *([data[1]] if shape else [] for shape in call.shapes[1:])]
    return data


def _scaled_zero(call: Call) -> Zero:
    if call.dims("weight") is not None:
        return "weighted"
    return "first" if "rms_norm" in call.name else "none"


@rule("group_norm", zero=_scaled_zero)
def _group_norm(call: Call) -> Dims:
    data, groups = call.need("input"), call.get("num_groups")
    for name in ("weight", "bias"):
        vector = call.dims(name)
        if vector is not None:
            call.unify(vector[0], data[1])
    inner = data[1]
    if groups > 1:
        inner = Term(data[1].size // groups)
        call.unify(data[1], product([Term(groups), inner]))
    averaged = [inner, *data[2:]] if groups != data[1].size else data[2:]
    for term in averaged:
        call.reduce(term, "size", ("input",), "a norm averages over it")
    return data


@rule("layer_norm", "rms_norm", "_fused_rms_norm", zero=_scaled_zero)
def _layer_norm(call: Call) -> Any:
    data = call.need("input")
    count = len(call.get("normalized_shape"))
    for name in ("weight", "bias"):
        vector = call.dims(name)
        if vector is not None:
            for one, other in zip(data[-count:], vector, strict=True):
                call.unify(one, other)
    for term in data[-count:]:
        call.reduce(term, "size", ("input",), "a norm averages over it")
    if call.several:
        return [data, [*data[:-count], *[Term(1)] * count]]
    return data


@rule("cosine_similarity", zero="any")
def _cosine(call: Call) -> Dims:
    one, other = call.need("x1"), call.need("x2")
    rank = max(len(one), len(other))
    axis = call.get("dim", 1) % rank
    sizes = list(call.shape)
    wide = max(dims[axis - rank].size for dims in (one, other) if len(dims) >= rank - axis)
    made = call.broadcast([one, other], [*sizes[:axis], wide, *sizes[axis:]])
    call.reduce(made[axis], "sum", ("x1", "x2"), "lengths are taken over it")
    return [*made[:axis], *made[axis + 1 :]]


@rule("cdist", "_euclidean_dist")
def _distances(call: Call) -> Dims:
    one, other = call.need("x1"), call.need("x2")
    call.unify(one[-1], other[-1])
    call.reduce(one[-1], "sum", ("x1", "x2"), "distances are taken over it")
    batch = call.broadcast([one[:-2], other[:-2]], call.shape[:-2])
    return [*batch, one[-2], other[-2]]


@rule("local_response_norm", "pairwise_distance", "pdist")
def _neighbours(call: Call) -> Dims:
    for dims in call.operands:
        for term in dims:
            call.pin(term, f"{call.name} compares along it")
    return [call.data(size) for size in call.shape]
