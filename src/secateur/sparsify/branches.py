"""Branches: whole layers as what is pruned, where the network has a way around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from secateur.errors import SecateurError
from secateur.sparsify.budget import Budget
from secateur.sparsify.coupling import Group, Measure, Member
from secateur.sparsify.units import Units
from secateur.structure import Axis, Branch, PrunableWeight, Removal, Trace, find_branches
from secateur.structure.terms import Term

_NO_WAY_AROUND = "no residual branch: nothing goes around it"


@dataclass(frozen=True)
class BranchMeasure(Measure):
    """What is left of a network without some of its branches, which share no parameters."""

    branches: Mapping[Term, Branch] = field(default_factory=dict)

    def share(self, currency: str, removal: Removal) -> float:
        """Return the share that is left of a currency; for ``sparsity`` what goes."""
        gone = [branch for leaf, branch in self.branches.items() if not removal.size(leaf)]
        if currency == "macs":
            structure = self.structure
            nodes = {node for branch in gone for node in branch.gone}
            return structure.count_macs(Removal({}), nodes) / max(1, structure.macs)
        if currency == "params":
            lost = sum(self._numel(name) for branch in gone for name in branch.parameters)
            return 1 - lost / max(1, self.structure.params)
        if currency == "sparsity":
            names = {name for branch in gone for name in branch.parameters}
            total = sum(map(self._numel, self.prunable))
            return sum(self._numel(name) for name in self.prunable if name in names) / max(1, total)
        held = {str(node.target) for branch in gone for node in branch.gone}
        lost = sum(size * self._numel(name) for name, size in self.itemsize.items() if name in held)
        return 1 - lost / max(1, self._bytes(Removal({})))

    def _numel(self, name: str) -> int:
        return torch.Size(term.size for term in self.structure.held[name]).numel()


def branch_groups(
    structure: Trace,
    weights: Sequence[PrunableWeight],
    chosen: Collection[PrunableWeight],
    excluded: Collection[PrunableWeight],
) -> tuple[tuple[Group, ...], dict[Term, Branch], list[tuple[str, str]]]:
    """Return a group of one index for every branch, and the chosen weights outside with reasons."""
    groups: list[Group] = []
    by_leaf: dict[Term, Branch] = {}
    passed: list[tuple[str, str]] = []
    inside: set[str] = set()
    used: dict[str, int] = {}
    for branch in find_branches(structure):
        own = [(place, weight) for place, weight in enumerate(weights)
               if weight.parameter in branch.parameters]  # fmt: skip
        inside.update(branch.parameters)
        if not any(weight in chosen for _, weight in own):
            continue
        number = used[branch.module] = used.get(branch.module, 0) + 1
        name = branch.module if number == 1 else f"{branch.module} ({number})"
        out = [weight.name for _, weight in own if weight in excluded]
        if out:
            passed.append((name, f"{out[0]} is in the same branch and is left out"))
            continue
        leaf = Term(1)
        by_leaf[leaf] = branch
        groups.append(_group(structure, name, leaf, branch, own))
    outside = [w.name for w in weights if w in chosen and w.parameter not in inside]
    return tuple(groups), by_leaf, [*passed, *((name, _NO_WAY_AROUND) for name in outside)]


def _group(
    structure: Trace,
    name: str,
    leaf: Term,
    branch: Branch,
    own: Sequence[tuple[int, PrunableWeight]],
) -> Group:
    carriers = tuple(
        (parameter, 0, torch.zeros(structure.held[parameter][0].size, dtype=torch.long))
        for parameter in branch.parameters
        if structure.held[parameter]
    )
    index = torch.zeros(1, dtype=torch.long)
    members = tuple(Member(weight, place, index) for place, weight in own)
    axis = Axis(name, 1, tuple((parameter, 0) for parameter, _, _ in carriers))
    units = Units((1, sum(weight.numel for _, weight in own)), (True, False), (1, 1))
    return Group(axis, leaf, members, carriers, carriers, units, least=0)


def refuse_too_much(measure: BranchMeasure, groups: Sequence[Group], budget: Budget) -> None:
    """Refuse a budget that is out of reach even without any of the branches."""
    most = measure.most(groups, budget.currency)
    if budget.removed > most + 1e-9:
        possible = most if budget.currency == "sparsity" else 1 - most
        raise SecateurError(
            f"{budget.currency}={budget.value:g} is out of reach by whole layers: without any of "
            f"the {len(groups)} residual branches, {budget.currency} is {possible:.4g}"
        )
