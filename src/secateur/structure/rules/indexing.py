"""Operators that pick, place or order entries by position: what they look along is pinned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx

from secateur.structure.rules.registry import Call, Dims, is_data, rule
from secateur.structure.terms import Term

_BY_INDEX = "looked up by index"
_MASKS = (torch.bool, torch.uint8)


@rule("index", zero="carried")
def _index(call: Call) -> Dims:
    return _looked_up(call, call.shape)


@rule("index_put")
def _index_put(call: Call) -> Dims:
    dims = call.need("self")
    values = call.need("values")
    made = _looked_up(call, None)
    for place in range(1, min(len(values), len(made)) + 1):
        if 1 != values[-place].size == made[-place].size:
            call.unify(values[-place], made[-place])
    return dims


def _looked_up(call: Call, shape: Sequence[int] | None) -> Dims:
    """Return what indexing gives: index tensors bring their dimensions for those they look up."""
    dims, given = call.need("self"), list(call.get("indices"))
    covered: list[int] = []
    looked: list[Dims] = []
    masked, place = False, 0
    for each in given:
        if not isinstance(each, fx.Node):
            place += 1
            continue
        mask = each.meta["val"].dtype in _MASKS
        rank = len(call.findings.dims[each]) if mask else 1
        covered += range(place, place + rank)
        looked.append(call.findings.dims[each])
        masked, place = masked or mask, place + rank
    _pin(call, (dims[at] for at in covered), _BY_INDEX)
    if masked:
        _pin(call, (term for each in looked for term in each), "entries are picked by a mask")
    start = covered[0] if covered == list(range(covered[0], covered[-1] + 1)) else 0
    rest = [term for at, term in enumerate(dims) if at not in covered]
    if masked:
        count = 1 if shape is None else len(shape) - len(rest)
        sizes = [-1] * count if shape is None else shape[start : start + count]
        made = [call.data(size) for size in sizes]
    else:
        made = call.broadcast(looked, _common(looked))
    return [*rest[:start], *made, *rest[start:]]


def _common(operands: Sequence[Dims]) -> list[int]:
    """Return the shape that operands have under broadcasting."""
    return list(torch.broadcast_shapes(*([term.size for term in dims] for dims in operands)))


def _pin(call: Call, terms: Iterable[Term], reason: str) -> None:
    for term in terms:
        call.pin(term, reason)


@rule("index_select", zero="carried")
def _index_select(call: Call) -> Dims:
    dims, index = list(call.need("self")), call.need("index")
    axis = call.get("dim")
    call.pin(dims[axis], _BY_INDEX)
    dims[axis] = index[0] if index else Term(1)
    return dims


@rule("gather", "take_along_dim", zero="first")
def _gather(call: Call) -> Dims:
    dims = call.need("self")
    index = call.dims("index") or call.need("indices")
    along = call.get("dim") % len(dims)
    made: Dims = []
    for place, (one, other) in enumerate(zip(dims, index, strict=True)):
        if place != along and one.size == other.size:
            call.unify(one, other)
        elif place != along and other.size == 1 and call.name == "take_along_dim":
            made.append(one)
            continue
        else:
            call.pin(one, _BY_INDEX)
        made.append(other)
    return made


@rule("scatter", "scatter_add", "scatter_reduce")
def _scatter(call: Call) -> Dims:
    dims, index, source = call.need("self"), call.need("index"), call.dims("src")
    along = call.get("dim") % len(dims)
    for place, term in enumerate(dims):
        others = [index[place], *([source[place]] if source else [])]
        if place == along or any(other.size != term.size for other in others):
            _pin(call, (term, *others), "placed by index")
            continue
        for other in others:
            call.unify(term, other)
    return dims


@rule("index_add", "index_copy", zero="carried")
def _index_add(call: Call) -> Dims:
    dims, source = call.need("self"), call.need("source")
    along = call.get("dim") % len(dims)
    for place, (one, other) in enumerate(zip(dims, source, strict=True)):
        if place == along:
            _pin(call, (one, other, *call.need("index")), "placed by index")
        else:
            call.unify(one, other)
    return dims


@rule("index_fill")
def _index_fill(call: Call) -> Dims:
    dims = call.need("self")
    call.pin(dims[call.get("dim")], "placed by index")
    return dims


@rule("select_scatter", zero="carried")
def _select_scatter(call: Call) -> Dims:
    dims, source = call.need("self"), call.need("src")
    along = call.get("dim") % len(dims)
    call.pin(dims[along], "placed by index")
    for one, other in zip([*dims[:along], *dims[along + 1 :]], source, strict=True):
        call.unify(one, other)
    return dims


@rule("topk", "sort", "argsort", "msort")
def _ordered(call: Call) -> Any:
    dims = call.need("self")
    along = (0 if call.name == "msort" else call.get("dim", -1)) % max(1, len(dims))
    reason = f"{call.name} orders its entries"
    _pin(call, dims[along : along + 1], reason)
    value = call.node.meta["val"]
    size = (value[0] if call.several else value).shape[along] if dims else 1
    kept = [call.data(size) if is_data(term) else call.fixed(size, reason)
            for term in dims[along : along + 1]]  # fmt: skip
    made = [*dims[:along], *kept, *dims[along + 1 :]]
    return [list(made) for _ in value] if call.several else made


@rule("one_hot")
def _one_hot(call: Call) -> Dims:
    return [*call.need("self"), call.fixed(call.shape[-1], "one_hot makes values by position")]


@rule("tril", "triu", zero="carried")
def _triangle(call: Call) -> Dims:
    dims = call.need("self")
    _pin(call, dims[-2:], f"{call.name} looks at positions")
    return dims


@rule("diagonal", zero="carried")
def _diagonal(call: Call) -> Dims:
    dims = call.need("self")
    crossed = {call.get(name) % len(dims) for name in ("dim1", "dim2")}
    _pin(call, (dims[place] for place in crossed), "its diagonal is taken")
    rest = [term for place, term in enumerate(dims) if place not in crossed]
    return [*rest, call.fixed(call.shape[-1], "its diagonal is taken")]


@rule("cross", "linalg_cross", zero="any")
def _cross(call: Call) -> Dims:
    dims = call.broadcast(call.operands, call.shape)
    along = call.get("dim")
    _pin(call, dims if along is None else [dims[along]], "a cross product is taken along it")
    return dims


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2",
      "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn",
      zero="carried")  # fmt: skip
def _fourier(call: Call) -> Dims:
    dims, given = list(call.need("self")), call.get("dim")
    listed = given if isinstance(given, (list, tuple)) else [given]
    for place in range(len(dims)) if given is None else listed:
        reason = "a Fourier transform is taken along it"
        data = is_data(dims[place])
        call.pin(dims[place], reason)
        size = call.shape[place]
        dims[place] = call.data(size) if data else call.fixed(size, reason)
    return dims


@rule("diff", zero="carried")
def _differences(call: Call) -> Dims:
    dims = list(call.need("self"))
    along = call.get("dim", -1) % len(dims)
    for each in call.operands:
        for place, (one, other) in enumerate(zip(dims, each, strict=True)):
            if place == along:
                call.pin(other, "differences are taken along it")
            else:
                call.unify(one, other)
    dims[along] = call.fixed(call.shape[along], "differences are taken along it")
    return dims


@rule("masked_select", "masked_scatter", "take", "put", "searchsorted", "bucketize", "unique",
      "unique_consecutive", "unique_dim", "_unique2", "nonzero", "nonzero_numpy", "nonzero_static",
      "argwhere", "bincount", "histc", "isin", "diag", "diagflat", "diag_embed", "trace",
      "multinomial", "block_diag", "cartesian_prod")  # fmt: skip
def _by_position(call: Call) -> Any:
    """Entries are picked or placed one by one: every dimension that takes part is pinned."""
    for dims in call.operands:
        _pin(call, dims, f"{call.name} picks entries by position")
    value = call.node.meta["val"]
    if call.several:
        return [[call.data(size) for size in each.shape] for each in value]
    return [call.data(size) for size in call.shape]
