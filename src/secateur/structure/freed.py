"""What masks have freed: the indices of axes that can go without a difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from secateur.structure.removal import Removal, positions
from secateur.structure.terms import Term, find
from secateur.structure.trace import Axis, Trace


def plan(
    model: nn.Module, structure: Trace, masks: Mapping[str, Tensor], round_to: int
) -> tuple[Removal, dict[str, str]]:
    """Find the indices that can go, and the reasons for the masked ones that cannot."""
    kept: dict[Term, Tensor] = {}
    left: dict[str, str] = {}
    usage = _Usage(structure, dict(model.named_parameters()))
    for axis in structure.removable:
        leaf = structure.leaves[axis.name]
        gone, reason = _removable(usage, axis, leaf, masks)
        if reason:
            left[axis.name] = reason
        most = _round(int(gone.sum()), leaf.size, round_to)
        if most < int(gone.sum()):
            places = gone.nonzero().flatten()
            gone[places[most:]] = False
            why = "an axis cannot be empty" if round_to == 1 else f"round_to={round_to}"
            left[axis.name] = f"{len(places) - most} of the masked indices stay: {why}"
        if bool(gone.any()):
            kept[leaf] = ~gone
    for name, leaf, index in _hidden_to_spare(model, structure, kept):
        kept[leaf][index] = True
        left[name] = "some of the masked indices stay: a projection has to be the narrower side"
    return Removal(kept), left | _freed_but_pinned(structure, masks)


def _hidden_to_spare(
    model: nn.Module, structure: Trace, kept: Mapping[Term, Tensor]
) -> Iterator[tuple[str, Term, Tensor]]:
    """Give the hidden indices that an LSTM needs to be wider than what it projects on.

    PyTorch tells by the two widths whether there is a projection.
    """
    names = {leaf: name for name, leaf in structure.leaves.items()}
    for held, dims in structure.held.items():
        path, _, parameter = held.rpartition(".")
        if not parameter.startswith("weight_hr_l") or not _is_lstm(model, path):
            continue
        narrow, wide = (find(term) for term in dims)
        sizes = Removal(kept)
        missing = sizes.size(narrow) + 1 - sizes.size(wide)
        if wide in kept and missing > 0:
            yield names[wide], wide, (~kept[wide]).nonzero().flatten()[:missing]


def _is_lstm(model: nn.Module, path: str) -> bool:
    return isinstance(model.get_submodule(path), nn.LSTM)


class _Usage:
    """Which indices of axes tensors use, each tensor looked through once for each dimension."""

    def __init__(self, structure: Trace, tensors: Mapping[str, Tensor]) -> None:
        self.structure = structure
        self.tensors = tensors
        self.known: dict[tuple[str, int], Tensor] = {}

    def zero(self, name: str, axis: Axis, leaf: Term) -> Tensor:
        """Return, for every index of an axis, whether all that a tensor holds of it is zero."""
        zero = torch.ones(leaf.size, dtype=torch.bool)
        for carrier, dim in axis.carriers:
            if carrier == name:
                where = positions(self.structure.held[name][dim], leaf)
                zero[where[(where >= 0) & self._used(name, dim)]] = False
        return zero

    def _used(self, name: str, dim: int) -> Tensor:
        """Return at which positions along a dimension a tensor has an entry other than zero."""
        key = (name, dim)
        if key not in self.known:
            tensor = self.tensors[name].detach()
            known = tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
            largest = _largest(known, dim)
            self.known[key] = (largest != 0).cpu()
        return self.known[key]


def _largest(tensor: Tensor, dim: int) -> Tensor:
    """Return along a dimension the largest absolute value over all others, in single passes."""
    if tensor.dim() <= 1:
        return tensor
    if dim == 0:
        tensor, along = tensor.flatten(1), 1
    else:
        along = 0
    largest = tensor.amax(along)
    if tensor.dtype != torch.uint8:
        largest = largest.maximum(-tensor.amin(along))
    return largest if dim == 0 else _largest(largest, dim - 1)


def _freed_but_pinned(structure: Trace, masks: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the pinned axes of which masks have freed an index somewhere, with the reasons."""
    usage = _Usage(structure, masks)
    found = {}
    for axis in structure.axes:
        if axis.why is None or "extent" in str(axis.pinned):
            continue
        leaf = structure.leaves[axis.name]
        for name in {name for name, _ in axis.carriers} & set(masks):
            if bool(usage.zero(name, axis, leaf).any()):
                found[axis.name] = axis.why
    return found


def _round(count: int, size: int, round_to: int) -> int:
    """Return how many of an axis may go so that what stays is a multiple and not nothing."""
    stays = max(1, size - count)
    stays = -(-stays // round_to) * round_to
    return max(0, size - stays)


def _removable(
    usage: _Usage, axis: Axis, leaf: Term, masks: Mapping[str, Tensor]
) -> tuple[Tensor, str]:
    """Return which indices of an axis go unnoticed, as a boolean vector."""
    parameters, zeros = usage.tensors, usage.structure.zeros
    names = list(dict.fromkeys(name for name, _ in axis.carriers if name in parameters))
    zero = torch.stack([usage.zero(name, axis, leaf) for name in names])
    gone = torch.zeros(leaf.size, dtype=torch.bool)
    reason = ""
    patterns, which = torch.unique(zero, dim=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        pattern = patterns[:, number]
        if not bool(pattern.any()):
            continue
        zeroed = [name for name, is_zero in zip(names, pattern.tolist(), strict=True) if is_zero]
        if not any(name in masks for name in zeroed):
            continue
        noticed = zeros.noticed(leaf, zeroed)
        if not noticed or (axis.inexact and bool(pattern.all())):
            gone |= which == number
        elif any(len(parameters[name].shape) > 1 for name in zeroed):
            node, why = noticed[0]
            constant = _constant(usage, leaf, names, zeroed)
            reason = constant or f"{why} ({node.meta.get('place', '')})"
    return gone, reason


def _constant(usage: _Usage, leaf: Term, names: list[str], zeroed: list[str]) -> str:
    """Name the biases and shifts without which an index would go unnoticed, if it is they."""
    alive = [name for name in names
             if name not in zeroed and usage.tensors[name].dim() == 1]  # fmt: skip
    for some in (*([name] for name in alive), alive):
        if some and not usage.structure.zeros.noticed(leaf, [*zeroed, *some]):
            verb = "lets" if len(some) == 1 else "let"
            return f"{' and '.join(some)} {verb} a constant through, and must be masked too"
    return ""
