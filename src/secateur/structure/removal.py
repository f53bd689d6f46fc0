"""A removal: which indices of which axes stay, and what that makes of every size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.terms import Term, factors, find


class Removal:
    """Indices that stay, by leaf, as boolean vectors; leaves that are not named stay whole."""

    def __init__(self, kept: Mapping[Term, Tensor]) -> None:
        self.kept = {find(leaf): mask for leaf, mask in kept.items() if not bool(mask.all())}
        self._sizes: dict[Term, int] = {}

    def __bool__(self) -> bool:
        return bool(self.kept)

    def size(self, term: Term) -> int:
        """Return the size of a term after the removal."""
        term = find(term)
        known = self._sizes.get(term)
        if known is None:
            known = self._sizes[term] = self._measure(term)
        return known

    def _measure(self, term: Term) -> int:
        if term.kind == "leaf":
            mask = self.kept.get(term)
            return term.size if mask is None else int(mask.sum())
        sizes = [self.size(part) for part in term.parts]
        return math.prod(sizes) if term.kind == "product" else sum(sizes)

    def shape(self, dims: Sequence[Term]) -> tuple[int, ...]:
        """Return the sizes of several terms after the removal."""
        return tuple(self.size(term) for term in dims)

    def mask(self, term: Term) -> Tensor:
        """Return which positions along a term stay, as a boolean vector."""
        term = find(term)
        if term.kind == "leaf":
            mask = self.kept.get(term)
            return torch.ones(term.size, dtype=torch.bool) if mask is None else mask
        masks = [self.mask(part) for part in term.parts]
        if term.kind == "sum":
            return torch.cat(masks)
        whole = masks[0]
        for mask in masks[1:]:
            whole = (whole[:, None] & mask[None, :]).reshape(-1)
        return whole

    def indices(self, term: Term) -> Tensor | None:
        """Return the positions along a term that stay, None where all do."""
        if self.size(term) == find(term).size:
            return None
        return self.mask(term).nonzero().flatten()


def positions(term: Term, leaf: Term) -> Tensor:
    """Return the index of a leaf at every position along a term, -1 where it is not carried."""
    term = find(term)
    if term is leaf:
        return torch.arange(term.size)
    if term.kind == "leaf":
        return torch.full((term.size,), -1)
    parts = [positions(part, leaf) for part in term.parts]
    if term.kind == "sum":
        return torch.cat(parts)
    whole = parts[0]
    for part in parts[1:]:
        one, other = whole[:, None].expand(-1, len(part)), part[None, :].expand(len(whole), -1)
        whole = torch.where(one >= 0, one, other).reshape(-1)
    return whole


def resized(node: fx.Node, findings: Findings, removal: Removal) -> dict[str, Any]:
    """Return the arguments of an operator that a removal changes, by name, with their new values.

    These are the sizes that the user's code wrote down: shapes of views, widths of splits, bounds
    of slices, numbers of groups.
    """
    change = _RESIZE.get(operator_name(node))
    if change is None:
        return {}
    dims = findings.dims[node]
    arguments = arguments_of(node)
    made = change(arguments, dims, _operand(arguments, findings), removal, findings)
    return {name: value for name, value in made.items() if value != arguments.get(name)}


def _operand(arguments: Mapping[str, Any], findings: Findings) -> Any:
    for name in ("self", "input", "tensor"):
        value = arguments.get(name)
        if isinstance(value, fx.Node):
            return findings.dims[value]
    return None


def _shape(arguments: Any, dims: Any, _: Any, removal: Removal, __: Any) -> dict[str, Any]:
    name = next(key for key in ("size", "shape", "sizes") if key in arguments)
    written = list(arguments[name])
    offset = len(dims) - len(written)
    return {
        name: [
            old if old == -1 else removal.size(term)
            for old, term in zip(written, dims[offset:], strict=True)
        ]
    }


def _unflatten(arguments: Any, dims: Any, source: Any, removal: Removal, _: Any) -> dict[str, Any]:
    written = list(arguments["sizes"])
    axis = arguments["dim"] % len(source)
    made = dims[axis : axis + len(written)]
    return {
        "sizes": [old if old == -1 else removal.size(term)
                  for old, term in zip(written, made, strict=True)]
    }  # fmt: skip


def _split(arguments: Any, dims: Any, source: Any, removal: Removal, _: Any) -> dict[str, Any]:
    axis = arguments.get("dim", 0) % len(source)
    sizes = [removal.size(piece[axis]) for piece in dims]
    name = next(key for key in ("split_size", "split_sizes", "sizes") if key in arguments)
    return {name: max(sizes) if isinstance(arguments[name], int) else sizes}


def _slice(arguments: Any, dims: Any, source: Any, removal: Removal, _: Any) -> dict[str, Any]:
    axis = arguments.get("dim", 0) % len(source)
    term = source[axis]
    stepped = arguments.get("step", 1) != 1
    if stepped or removal.size(term) == find(term).size:
        return {}
    kept = removal.mask(term)

    def moved(bound: Any) -> Any:
        if not isinstance(bound, int) or bound >= term.size:
            return bound
        if bound < 0:
            return -int(kept[bound:].sum()) or len(kept)
        return int(kept[:bound].sum())

    if "length" in arguments:
        return {"start": moved(arguments["start"]), "length": removal.size(dims[axis])}
    return {"start": moved(arguments.get("start")), "end": moved(arguments.get("end"))}


def _conv(
    arguments: Any, dims: Any, source: Any, removal: Removal, findings: Any
) -> dict[str, Any]:
    if arguments.get("groups", 1) == 1:
        return {}
    weight = findings.dims[arguments["weight"]]
    channel = len(source) - (len(weight) - 2) - 1
    return {"groups": removal.size(source[channel]) // removal.size(weight[1])}


def _conv_transpose(
    arguments: Any, dims: Any, source: Any, removal: Removal, findings: Any
) -> dict[str, Any]:
    if arguments.get("groups", 1) == 1:
        return {}
    weight = findings.dims[arguments["weight"]]
    channel = len(source) - (len(weight) - 2) - 1
    return {"groups": removal.size(dims[channel]) // removal.size(weight[1])}


def _group_norm(arguments: Any, dims: Any, _: Any, removal: Removal, __: Any) -> dict[str, Any]:
    groups, reached, made = arguments["num_groups"], 1, 1
    for factor in factors(dims[1]):
        if reached == groups:
            break
        reached *= factor.size
        made *= removal.size(factor)
    return {"num_groups": made if reached == groups else groups}


def _norm(arguments: Any, dims: Any, _: Any, removal: Removal, __: Any) -> dict[str, Any]:
    count = len(arguments["normalized_shape"])
    return {"normalized_shape": [removal.size(term) for term in dims[-count:]]}


def _repeat(arguments: Any, dims: Any, source: Any, removal: Removal, _: Any) -> dict[str, Any]:
    name = "repeats" if "repeats" in arguments else "dims"
    written = list(arguments[name])
    own = [1] * (len(dims) - len(source)) + [removal.size(term) for term in source]
    last = -len(written) or None  # tile may name fewer dimensions than there are
    return {name: [removal.size(term) // max(1, size) if old != 1 else 1
                   for old, term, size in zip(written, dims[last:], own[last:], strict=True)]}  # fmt: skip  # noqa: E501


def _repeat_each(
    arguments: Any, dims: Any, source: Any, removal: Removal, _: Any
) -> dict[str, Any]:
    axis = arguments.get("dim")
    if axis is None or not isinstance(arguments.get("repeats"), int):
        return {}
    return {"repeats": removal.size(dims[axis]) // removal.size(source[axis])}


def _pad(arguments: Any, dims: Any, source: Any, removal: Removal, _: Any) -> dict[str, Any]:
    amounts = list(arguments["pad"])
    for number in range(len(amounts) // 2):
        term = dims[len(dims) - 1 - number]
        if removal.size(term) != find(term).size:
            kept = removal.mask(term)
            before, after = amounts[2 * number], amounts[2 * number + 1]
            amounts[2 * number] = int(kept[:before].sum())
            amounts[2 * number + 1] = int(kept[len(kept) - after :].sum())
    return {"pad": amounts}


_RESIZE: dict[str, Any] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand", "broadcast_to", "zeros", "ones",
                     "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full"), _shape),
    "unflatten": _unflatten,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), _split),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "group_norm": _group_norm,
    **dict.fromkeys(("layer_norm", "rms_norm"), _norm),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    "repeat_interleave": _repeat_each,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
}  # fmt: skip
