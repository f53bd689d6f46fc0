"""Operators that move, join and part dimensions and leave every entry as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.structure.rules.registry import Call, Dims, Zero, is_data, rule
from secateur.structure.terms import ClashError, Term, product, total, unify


@rule("getitem", zero="carried")
def _getitem(call: Call) -> Any:
    return call.findings.dims[call.get("input")][call.get("index")]


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "reshape_as", "view_as", "ravel",
      "_reshape_alias", "view_copy", "atleast_1d", "atleast_2d", "atleast_3d",
      zero="carried")  # fmt: skip
def _view(call: Call) -> Dims:
    return reshape(call, call.need("self"), call.shape)


@rule("view.dtype", zero="carried")
def _reinterpreted(call: Call) -> Dims:
    dims = call.need("self")
    if [term.size for term in dims] == list(call.shape):
        return dims
    call.pin(dims[-1], "its bytes are read as another type")
    return [*dims[:-1], call.fixed(call.shape[-1], "its bytes are read as another type")]


def reshape(call: Call, dims: Dims, shape: Sequence[int]) -> Dims:
    """Carry dimensions over a reshape: blocks of equal size are unified as products."""
    source = [term for term in dims if term.size != 1]
    made: list[Term | None] = [Term(1) if size == 1 else None for size in shape]
    targets = [place for place, size in enumerate(shape) if size != 1]
    while source and targets:
        taken, places = [source.pop(0)], [targets.pop(0)]
        have, want = taken[0].size, shape[places[0]]
        while have != want:
            if have < want and source:
                taken.append(source.pop(0))
                have *= taken[-1].size
            elif want < have and targets:
                places.append(targets.pop(0))
                want *= shape[places[-1]]
            else:
                break
        _regroup(call, taken, places, shape, made)
    return [term if term is not None else call.fixed(shape[place], "a reshape's remainder")
            for place, term in enumerate(made)]  # fmt: skip


def _regroup(
    call: Call, taken: Dims, places: list[int], shape: Sequence[int], made: list[Term | None]
) -> None:
    if len(places) == 1:
        made[places[0]] = product(taken)
        return
    fresh = [Term(shape[place]) for place in places]
    data = all(is_data(term) for term in taken)
    try:
        unify(product(taken), product(fresh))
    except ClashError as clash:
        for term in (*taken, *fresh):
            call.pin(term, f"{call.name}: {clash}")
        if data:
            fresh = [call.data(term.size) for term in fresh]
    for place, term in zip(places, fresh, strict=True):
        made[place] = term


@rule("permute", zero="carried")
def _permute(call: Call) -> Dims:
    dims = call.need("self")
    return [dims[place] for place in call.get("dims")]


@rule("transpose", "swapaxes", "swapdims", "t", "adjoint", "mT", "mH", "numpy_T", "matrix_H",
      zero="carried")  # fmt: skip
def _transpose(call: Call) -> Dims:
    dims = list(call.need("self"))
    if call.name == "numpy_T":
        return dims[::-1]
    one = call.get("dim0", call.get("axis0"))
    other = call.get("dim1", call.get("axis1"))
    if one is None or other is None:
        one, other = (0, 1) if call.name == "t" else (-2, -1)
    if len(dims) > 1:
        dims[one], dims[other] = dims[other], dims[one]
    return dims


@rule("movedim", "moveaxis", zero="carried")
def _movedim(call: Call) -> Dims:
    dims = call.need("self")

    def listed(value: Any) -> list[int]:
        several = value if isinstance(value, (list, tuple)) else [value]
        return [each % len(dims) for each in several]

    source, target = listed(call.get("source")), listed(call.get("destination"))
    rest = [term for place, term in enumerate(dims) if place not in source]
    moved = dict(zip(target, source, strict=True))
    return [dims[moved[place]] if place in moved else rest.pop(0) for place in range(len(dims))]


@rule("unsqueeze", zero="carried")
def _unsqueeze(call: Call) -> Dims:
    dims = list(call.need("self"))
    dims.insert(call.get("dim") % (len(dims) + 1), Term(1))
    return dims


@rule("squeeze", zero="carried")
def _squeeze(call: Call) -> Dims:
    dims, given = call.need("self"), call.get("dim")
    listed = range(len(dims)) if given is None else given
    listed = listed if isinstance(listed, (list, tuple, range)) else [listed]
    places = {place % len(dims) for place in listed} if dims else set()
    return [term for place, term in enumerate(dims) if term.size != 1 or place not in places]


@rule("view_as_real", zero="carried")
def _real_pairs(call: Call) -> Dims:
    return [*call.need("self"), call.fixed(2, "real and imaginary part")]


@rule("view_as_complex", zero="carried")
def _complex(call: Call) -> Dims:
    *dims, pair = call.need("self")
    call.pin(pair, "real and imaginary part")
    return dims


@rule("cat", "concat", "concatenate", "hstack", "vstack", "row_stack", zero="carried")
def _cat(call: Call) -> Dims:
    parts = [dims for dims in call.list_of("tensors")
             if not (len(dims) == 1 and dims[0].size == 0)]  # fmt: skip
    if any(len(dims) != len(call.shape) for dims in parts):
        raise ClashError("tensors of different ranks are joined")
    axis = call.get("dim", call.get("axis", 0)) % len(call.shape)
    if call.name == "hstack":
        axis = min(1, len(call.shape) - 1)
    out: Dims = []
    for place in range(len(call.shape)):
        if place == axis:
            out.append(total([dims[place] for dims in parts]))
            continue
        for dims in parts[1:]:
            call.unify(parts[0][place], dims[place])
        out.append(parts[0][place])
    return out


@rule("stack", zero="carried")
def _stack(call: Call) -> Dims:
    parts = call.list_of("tensors")
    axis = call.get("dim", 0) % len(call.shape)
    rest = [size for place, size in enumerate(call.shape) if place != axis]
    dims = call.broadcast(parts, rest)
    dims.insert(axis, call.fixed(call.shape[axis], "tensors are stacked along it"))
    return dims


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split",
      "unsafe_split_with_sizes", "hsplit", "vsplit", "dsplit", zero="carried")  # fmt: skip
def _split(call: Call) -> list[Dims]:
    dims = call.need("self")
    named = {"hsplit": min(1, len(dims) - 1), "vsplit": 0, "dsplit": 2}
    axis = named.get(call.name, call.get("dim", 0)) % len(dims)
    sizes = [shape[axis] for shape in call.shapes]
    pieces = _pieces(call, dims[axis], sizes)
    return [[*dims[:axis], piece, *dims[axis + 1 :]] for piece in pieces]


def _pieces(call: Call, term: Term, sizes: Sequence[int]) -> Dims:
    if is_data(term) and len(sizes) > 1:
        return [call.data(size) for size in sizes]
    return call.split(term, sizes)


@rule("unbind", zero="carried")
def _unbind(call: Call) -> list[Dims]:
    dims = call.need("self")
    axis = call.get("dim", 0) % len(dims)
    call.pin(dims[axis], "parted one by one")
    return [[*dims[:axis], *dims[axis + 1 :]] for _ in call.shapes]


@rule("select", zero="carried")
def _select(call: Call) -> Dims:
    dims = call.need("self")
    axis = call.get("dim") % len(dims)
    call.pin(dims[axis], "one of it is picked by position")
    return [*dims[:axis], *dims[axis + 1 :]]


@rule("slice", "narrow", zero="carried")
def _slice(call: Call) -> Dims:
    dims = call.need("self")
    axis = call.get("dim", 0) % len(dims)
    piece = _sliced(call, dims[axis], call.shape[axis])
    return [*dims[:axis], piece, *dims[axis + 1 :]]


def _sliced(call: Call, term: Term, length: int) -> Term:
    step = call.get("step", 1)
    if length == term.size and step == 1:
        return term
    if is_data(term):
        return call.data(length)
    if length == 0:
        return Term(0)
    start = call.get("start", 0)
    if step != 1:
        return _strided(call, term, length, start)
    start = max(0, start + term.size if start < 0 else start)
    sizes = [start, length, term.size - start - length]
    pieces = call.split(term, [each for each in sizes if each])
    return pieces[1 if start else 0]


def _strided(call: Call, term: Term, length: int, start: int) -> Term:
    """One of every so many entries: the place within a group is pinned, the groups are free."""
    reason, step = "sliced with a step", call.get("step")
    if length * step != term.size or not 0 <= start < step:
        call.pin(term, reason)
        return call.fixed(length, reason)
    groups = Term(length)
    call.unify(term, product([groups, call.fixed(step, reason)]))
    return groups


@rule("slice_scatter", zero="carried")
def _put_slice(call: Call) -> Dims:
    dims, made = call.need("self"), call.need("src")
    axis = call.get("dim", 0) % len(dims)
    piece = _sliced(call, dims[axis], made[axis].size)
    for one, other in zip([*dims[:axis], piece, *dims[axis + 1 :]], made, strict=True):
        call.unify(one, other)
    return dims


def _padded(call: Call) -> Zero:
    return "none" if call.get("value") else "carried"


@rule("pad", "constant_pad_nd", zero=_padded)
def _pad(call: Call) -> Dims:
    dims, amounts = list(call.need("self")), call.get("pad")
    plain = call.get("mode", "constant") == "constant"
    for number in range(len(amounts) // 2):
        before, after = amounts[2 * number], amounts[2 * number + 1]
        place = len(dims) - 1 - number
        if not before and not after:
            continue
        if is_data(dims[place]):
            dims[place] = call.data(call.shape[place], "an image's extent")
        elif plain and before >= 0 and after >= 0:
            ends = [_margin(call, size) for size in (before, after)]
            dims[place] = total([ends[0], dims[place], ends[1]])
        else:
            call.pin(dims[place], "padded")
            dims[place] = call.fixed(call.shape[place], "padded")
    return dims


def _margin(call: Call, size: int) -> Term:
    """Zeros may stand for channels that are not there; other values have their own place."""
    return call.fixed(size, "padded") if call.get("value") else Term(size)


@rule("roll", "flip", "fliplr", "flipud", "fft_fftshift", "fft_ifftshift", "rot90", zero="carried")
def _moved(call: Call) -> Dims:
    dims = list(call.need("self"))
    given = call.get("dims", call.get("dim", {"fliplr": 1, "flipud": 0}.get(call.name)))
    listed = given if isinstance(given, (list, tuple)) else [given]
    places = range(len(dims)) if given is None or given == [] else listed
    for place in places:
        call.pin(dims[place], f"{call.name} moves its entries")
    if call.name == "rot90" and call.get("k", 1) % 2:
        one, other = places
        dims[one], dims[other] = dims[other], dims[one]
    return dims


@rule("expand", "expand_as", "expand_copy", "broadcast_to", zero="first")
def _expand(call: Call) -> Dims:
    other = call.dims("other")
    operands = [call.need("self")] if other is None else [call.need("self"), other]
    return call.broadcast(operands, call.shape)


@rule("broadcast_tensors")
def _broadcast_tensors(call: Call) -> list[Dims]:
    parts = call.list_of("tensors")
    out = call.broadcast(parts, call.shapes[0])
    return [list(out) for _ in parts]


@rule("meshgrid")
def _meshgrid(call: Call) -> list[Dims]:
    made = [dims[0] if dims else Term(1) for dims in call.list_of("tensors")]
    if call.get("indexing", "ij") == "xy":
        made[:2] = made[1::-1]
    return [list(made) for _ in call.shapes]


@rule("repeat", "tile", zero="first")
def _repeat(call: Call) -> Dims:
    dims = call.need("self")
    dims = [*[Term(1)] * (len(call.shape) - len(dims)), *dims]
    return [
        term if term.size == size else product([Term(size // max(1, term.size)), term])
        for term, size in zip(dims, call.shape, strict=True)
    ]


@rule("repeat_interleave", zero="first")
def _repeat_interleave(call: Call) -> Dims:
    dims, repeats, axis = list(call.need("self")), call.get("repeats"), call.get("dim")
    if axis is None:
        dims, axis = reshape(call, dims, [call.shape[0] // max(1, repeats)]), 0
    if isinstance(repeats, int):
        dims[axis] = product([dims[axis], Term(repeats)])
    else:
        call.pin(dims[axis], "repeated by a tensor")
        dims[axis] = call.data(call.shape[axis])
    return dims


@rule("glu", zero="carried")
def _glu(call: Call) -> Dims:
    dims = list(call.need("self"))
    axis = call.get("dim", -1)
    half = dims[axis].size // 2
    value, gate = call.split(dims[axis], [half, half])
    call.unify(value, gate)
    dims[axis] = value
    return dims
