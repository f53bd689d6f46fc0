"""Coupling: the axes of a network as what is pruned, with the weights that score them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.budget import Budget
from secateur.sparsify.scoring import widen
from secateur.sparsify.units import Units
from secateur.structure import Axis, PrunableWeight, Removal, Trace, head_axes, positions
from secateur.structure.terms import Term
from secateur.technique.granularity import Granularity


@dataclass(frozen=True)
class Member:
    """A weight whose units score an axis; ``index`` is the axis' index of every unit, -1 for none.

    ``place`` is the weight's place among the prunable ones.
    """

    weight: PrunableWeight
    place: int
    index: Tensor


Carrier = tuple[str, int, Tensor]
"""A parameter, one of its dimensions, and the index of an axis at every position along it."""


@dataclass(frozen=True)
class Group:
    """An axis to prune: the weights that score it, and the parameters that carry it.

    ``made`` are those of the ``carriers`` that make its channels (for ``shared_kernel``, that read
    them); norms, biases, depthwise kernels and what is on the other side are not among them. At
    least ``least`` of its indices stay.
    """

    axis: Axis
    leaf: Term
    members: tuple[Member, ...]
    carriers: tuple[Carrier, ...]
    made: tuple[Carrier, ...]
    units: Units
    least: int = 1

    @property
    def weight(self) -> PrunableWeight:
        """The weight that stands for the axis where one is asked for."""
        return self.members[0].weight

    @property
    def weights(self) -> tuple[PrunableWeight, ...]:
        """The weights that score the axis."""
        return tuple(member.weight for member in self.members)

    def score(self, scores: Sequence[Tensor]) -> Tensor:
        """Average the scores of the members' units into one score per index of the axis."""
        total = torch.zeros(self.axis.size, dtype=torch.float64)
        count = torch.zeros(self.axis.size, dtype=torch.float64)
        for member in self.members:
            found = member.index >= 0
            index = member.index[found]
            total.index_add_(0, index, scores[member.place].double().cpu()[found])
            count.index_add_(0, index, torch.ones(len(index), dtype=torch.float64))
        return (total / count.clamp(min=1)).float()

    def squares(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Sum the squares of all that carries the axis: one number per index, double precision."""
        total = torch.zeros(self.axis.size, dtype=torch.float64)
        for name, dim, index in self.carriers:
            values = widen(parameters[name].detach()).transpose(0, dim)
            sums = values.reshape(len(index), -1).square().sum(1).double().cpu()
            found = index >= 0
            total.index_add_(0, index[found], sums[found])
        return total

    def gone(self, masks: Mapping[str, Tensor]) -> Tensor:
        """Return which indices the masks have removed, as a boolean vector."""
        name, dim, index = self.carriers[0]
        mask = masks[name]
        kept = mask.transpose(0, dim).reshape(mask.shape[dim], -1).any(1).cpu()
        alive = torch.zeros(self.axis.size, dtype=torch.bool)
        alive[index[(index >= 0) & kept]] = True
        return ~alive

    def write(
        self, masks: Mapping[str, Tensor], kept: Tensor, carriers: Sequence[Carrier] | None = None
    ) -> None:
        """Clear, in every carrier's mask, what belongs to the indices that are not kept."""
        for name, dim, index in self.carriers if carriers is None else carriers:
            gone = (index >= 0) & ~kept[index.clamp(min=0)]
            if bool(gone.any()):
                masks[name].index_fill_(dim, gone.nonzero().flatten().to(masks[name].device), False)


def couples(granularity: Granularity) -> bool:
    """Whether a granularity's units can be removed: filters, shared kernels, heads, whole layers.

    >>> couples(Granularity.parse("filter")), couples(Granularity.parse("weight"))
    (True, False)
    """
    plain = granularity.kept is None and not granularity.tiles
    return plain and granularity.named in (frozenset("o"), frozenset("i"), frozenset())


def find_groups(
    structure: Trace,
    weights: Sequence[PrunableWeight],
    granularity: Granularity,
    chosen: Collection[PrunableWeight],
    excluded: Collection[PrunableWeight],
    inexact: bool,
) -> tuple[tuple[Group, ...], list[tuple[str, str]]]:
    """Find the axes that the chosen weights score, and what was passed over and why.

    An axis goes with all that carries it, so one that an excluded weight makes is passed over.
    """
    side = "i" if granularity.named == frozenset("i") else "o"
    heads = head_axes(structure) if granularity.head else None
    groups: list[Group] = []
    passed: list[tuple[str, str]] = []
    for axis in structure.axes:
        leaf = structure.leaves[axis.name]
        if heads is not None and leaf not in heads:
            continue
        members = tuple(_members(structure, weights, leaf, side, axis))
        if not members and axis.why is None:
            passed.append((axis.name, _unscored(axis, side)))
        if not any(member.weight in chosen for member in members):
            continue
        reason = axis.why or _held_back(axis, members, excluded, side, inexact)
        if reason is not None:
            passed.append((axis.name, reason))
            continue
        groups.append(_group(structure, axis, leaf, members, side))
    return tuple(groups), passed


def _unscored(axis: Axis, side: str) -> str:
    """Return why an axis that could be removed is not: nothing tells what it is worth."""
    names = list(dict.fromkeys(name for name, _ in axis.carriers))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    verb = "makes" if side == "o" else "reads"
    return f"no weight of a known layer {verb} it, by which to score it: it belongs to {shown}"


def _held_back(
    axis: Axis, members: Sequence[Member], excluded: Collection[PrunableWeight], side: str,
    inexact: bool,
) -> str | None:  # fmt: skip
    """Return why the request, not the network, spares an axis."""
    if axis.inexact and not inexact:
        return f"{axis.inexact}; inexact=True removes it all the same"
    out = [member.weight.name for member in members if member.weight in excluded]
    if out:
        verb = "makes" if side == "o" else "reads"
        return f"{out[0]} {verb} the same channels and is left out: choose both or neither"
    return None


def _group(
    structure: Trace, axis: Axis, leaf: Term, members: tuple[Member, ...], side: str
) -> Group:
    carriers = tuple(
        (name, dim, positions(structure.held[name][dim], leaf))
        for name, dim in axis.carriers
        if name in structure.parameters
    )
    # A depthwise kernel hands on a channel that another layer makes.
    own = [each for each in members if not _hands_on(structure, each.weight, leaf)] or members
    places = {(each.weight.parameter, _dimension(structure, each.weight, leaf, side))
              for each in own}  # fmt: skip
    made = tuple(carrier for carrier in carriers if carrier[:2] in places)
    first = members[0].weight
    units = Units((axis.size, max(1, first.numel // axis.size)), (True, False), (1, 1))
    return Group(axis, leaf, members, carriers, made, units)


def _hands_on(structure: Trace, weight: PrunableWeight, leaf: Term) -> bool:
    """Whether the groups of a convolution are the channels of an axis, or counted by it."""
    outer = positions(structure.held[weight.parameter][0], leaf).reshape(weight.groups, -1)
    return weight.groups > 1 and bool(((outer >= 0) & (outer == outer[:, :1])).all(1).any())


def _dimension(structure: Trace, weight: PrunableWeight, leaf: Term, side: str) -> int:
    """Return the dimension of a weight's parameter along which its units carry a leaf."""
    inner = positions(structure.held[weight.parameter][1], leaf)
    outermost = "i" if weight.transposed else "o"
    return 1 if side != outermost and bool((inner >= 0).any()) else 0


def _members(
    structure: Trace, weights: Sequence[PrunableWeight], leaf: Term, side: str, axis: Axis
) -> Iterable[Member]:
    carrying = {name for name, _ in axis.carriers}
    for place, weight in enumerate(weights):
        if weight.parameter not in carrying:
            continue
        index = unit_positions(structure, weight, leaf, side)
        if bool((index >= 0).any()):
            yield Member(weight, place, index)


def unit_positions(structure: Trace, weight: PrunableWeight, leaf: Term, side: str) -> Tensor:
    """Return the index of a leaf for every output (``o``) or input (``i``) of a weight, else -1.

    Outputs and inputs are numbered over all groups [groups * outputs].
    """
    dims = structure.held[weight.parameter]
    first, second = positions(dims[0], leaf), positions(dims[1], leaf)
    if weight.rows is not None:
        first = first[weight.rows[0] : weight.rows[1]]
    outermost = "i" if weight.transposed else "o"
    if side == outermost:
        return first
    outer = first.reshape(weight.groups, -1)
    # A group's own index is the same for all its outputs, and so belongs to its inputs as well.
    group = torch.where((outer == outer[:, :1]).all(1), outer[:, 0], -1)
    if weight.groups == 1:
        group = torch.full_like(group, -1)
    return torch.where(second >= 0, second, group[:, None]).reshape(-1)


@dataclass(frozen=True)
class Measure:
    """What is left of a network in every currency, by counting its structure.

    ``itemsize`` are the bytes per element of parameters and buffers, ``loose_bytes`` those of
    buffers that no axis is known of.
    """

    structure: Trace
    prunable: tuple[str, ...]
    itemsize: Mapping[str, int]
    loose_bytes: int

    @classmethod
    def of(cls, model: nn.Module, structure: Trace, prunable: Iterable[str]) -> Measure:
        """Read the sizes off a model."""
        tensors: dict[str, Tensor] = {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
        }
        itemsize = {name: each.element_size() for name, each in tensors.items()}
        held = {name: size for name, size in itemsize.items() if name in structure.held}
        loose = sum(tensors[name].numel() * itemsize[name] for name in itemsize.keys() - held)
        return cls(structure, tuple(dict.fromkeys(prunable)), held, loose)

    def shares(self, kept: Mapping[Term, Tensor]) -> dict[str, float]:
        """Return the sparsity, and the shares of params, bytes and (if any) macs that are left."""
        removal = Removal(kept)
        currencies = ["sparsity", "params", "bytes", *(["macs"] if self.structure.macs else [])]
        return {currency: self.share(currency, removal) for currency in currencies}

    def share(self, currency: str, removal: Removal) -> float:
        """Return the share that is left of a currency; for ``sparsity`` what goes."""
        structure = self.structure
        if currency == "macs":
            return structure.count_macs(removal) / max(1, structure.macs)
        if currency == "params":
            return structure.count_params(removal) / max(1, structure.params)
        if currency == "sparsity":
            return 1 - self._elements(removal) / max(1, self._elements(Removal({})))
        return self._bytes(removal) / max(1, self._bytes(Removal({})))

    def _elements(self, removal: Removal) -> int:
        held = self.structure.held
        return sum(math.prod(removal.shape(held[name])) for name in self.prunable)

    def _bytes(self, removal: Removal) -> int:
        held = self.structure.held
        return self.loose_bytes + sum(
            size * math.prod(removal.shape(held[name])) for name, size in self.itemsize.items()
        )

    def removed(self, currency: str, kept: Mapping[Term, Tensor]) -> float:
        """Return the share that goes, in a currency."""
        share = self.share(currency, Removal(kept))
        return share if currency == "sparsity" else 1 - share

    def price(self, group: Group, currency: str) -> float:
        """Return what one index of an axis costs while everything else is whole."""
        mask = torch.ones(group.axis.size, dtype=torch.bool)
        mask[0] = False
        return max(self.removed(currency, {group.leaf: mask}), 0.0)

    def most(self, groups: Sequence[Group], currency: str, left: int = 1) -> float:
        """Return the largest share that can go, with so many indices left of every axis."""
        kept = {
            group.leaf: torch.arange(group.axis.size)
            < (fewest(group.axis.size, left) if group.least else 0)
            for group in groups
        }
        return self.removed(currency, kept)


def fewest(size: int, multiple: int) -> int:
    """Return how many indices of an axis stay at least, if widths are multiples of a number."""
    return multiple if size >= multiple else size if multiple > 1 else 1


def refuse_emptying(
    measure: Measure, groups: Sequence[Group], budget: Budget, round_to: int
) -> None:
    """Refuse a budget that is out of reach even with the fewest indices left of every axis."""
    currency = budget.currency
    most = measure.most(groups, currency, round_to)
    if budget.removed > most + 1e-9:
        possible = most if currency == "sparsity" else 1 - most
        left = "one channel" if round_to == 1 else f"round_to={round_to} channels"
        raise SecateurError(
            f"{currency}={budget.value:g} would empty a layer: with {left} left of every axis, "
            f"{currency} is {possible:.4g}; ask for less"
        )
