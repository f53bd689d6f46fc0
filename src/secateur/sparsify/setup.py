"""Preparation: checks a request against a model before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from secateur.errors import SecateurError
from secateur.sparsify.allocation import ends_of
from secateur.sparsify.branches import BranchMeasure, branch_groups, refuse_too_much
from secateur.sparsify.budget import Budget, Ledger
from secateur.sparsify.capabilities import lacks
from secateur.sparsify.checks import check_budget, check_coupled, check_data
from secateur.sparsify.clashes import refuse_compensation
from secateur.sparsify.coupling import (
    Group,
    Measure,
    couples,
    find_groups,
    refuse_emptying,
)
from secateur.sparsify.initial import resettable
from secateur.sparsify.ordering import Ordering
from secateur.sparsify.units import Units, check_blocks
from secateur.structure import (
    Branch,
    Flow,
    PrunableWeight,
    choose_weights,
    find_weights,
    observe,
    trace,
    trace_flow,
)
from secateur.structure.flow import Carrier, Reach
from secateur.structure.terms import Term
from secateur.structure.usage import Usage
from secateur.structure.weights import FoundWeights
from secateur.technique import Technique
from secateur.technique.criteria.evidence import FROM_OUTPUTS
from secateur.technique.granularity import Granularity

_DERIVATIVES = {
    "gradient",
    "fisher",
    "hessian",
    "hessian_gradient",
    "output_taylor",
    "synaptic_flow",
    "masked_gradient",
}


@dataclass(frozen=True)
class Prunable:
    """A weight to prune: its units, and the vectors that go with its outputs."""

    weight: PrunableWeight
    units: Units
    reach: Reach


@dataclass(frozen=True)
class Setup:
    """A request that can be carried out: what is pruned, for how much, and what was passed over.

    ``ends`` names the model's first convolution and its last layer, pruned or not; ``ordering`` is
    what channels are reordered by, where they are.
    """

    prunables: tuple[Prunable, ...]
    budget: Budget | None
    ledger: Ledger
    passed_over: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    ends: tuple[str | None, str | None] = (None, None)
    groups: tuple[Group, ...] = ()
    measure: Measure | None = None
    round_to: int = 1
    ordering: Ordering | None = None


def prepare(
    model: nn.Module,
    technique: Technique,
    budget: Budget | None,
    include: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None,
    example_inputs: tuple[Any, ...] | None,
    data: Iterable[Any] | None,
    inexact: bool = False,
    round_to: int = 1,
) -> Setup:
    """Find what can be pruned and refuse, with the reason, what cannot be carried out."""
    missing = lacks(technique)
    if missing:
        raise SecateurError(f"'{technique}' cannot run yet: it needs {'; '.join(missing)}")
    check_data(technique, data)
    refuse_compensation(technique, data)
    budget = check_budget(technique, budget, example_inputs)
    found = find_weights(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise SecateurError(
            f"{type(model).__name__} lies on the meta device and has no values: load it first"
        )
    lazy = [
        name
        for name, parameter in model.named_parameters()
        if isinstance(parameter, UninitializedParameter)
    ]
    if lazy:
        raise SecateurError(f"{lazy[0]} is lazy and has no shape yet: run the model once first")
    if technique.update.survivors == "reinitialise":
        resettable(model)
    if not found.weights:
        reasons = "".join(f"; {said}" for said in _together(found.skipped)[:3])
        raise SecateurError(
            f"{type(model).__name__} has no prunable layer (convolution, linear, embedding, "
            f"attention or recurrent){reasons}"
        )
    chosen = choose_weights(found.weights, include, exclude)
    if not chosen:
        raise SecateurError(f"include={include!r} and exclude={exclude!r} leave no layer to prune")
    if example_inputs is not None and couples(technique.granularity):
        check_coupled(technique, round_to)
        return _prepare_coupled(
            model, technique, budget, found, chosen, example_inputs, inexact, round_to
        )
    if technique.granularity.head:
        raise SecateurError(f"'{technique}' finds heads by tracing the model: pass example_inputs=")
    for name, given in (("inexact", inexact), ("round_to", round_to != 1)):
        if given:
            raise SecateurError(
                f"{name}= is for what can be removed (filter, shared_kernel, head, layer) with "
                "example_inputs="
            )
    passed_over = list(found.skipped)
    notes: list[str] = []
    flow = Flow()
    if technique.granularity.whole_outputs or _looks_at_norms(technique):
        flow = trace_flow(model, example_inputs)
        if flow.problem and include is None:
            raise SecateurError(
                f"'{technique.granularity}' must not remove the model's outputs, and where they "
                f"are made is unknown: {flow.problem}; or name the layers to prune with include="
            )
        if flow.problem:
            notes.append(f"norms behind removed outputs were not found: {flow.problem}")
    if technique.granularity.whole_outputs:
        chosen = _spare_outputs(chosen, flow, include, passed_over)
    _check_trainable(technique, model, chosen)
    for weight in chosen:
        check_blocks(weight, technique.granularity)
    carries = technique.granularity.whole_outputs or _looks_at_norms(technique)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    prunables = tuple(
        Prunable(
            weight,
            Units.of(weight, technique.granularity),
            _own_reach(weight, flow, chosen, sizes) if carries else Reach(),
        )
        for weight in chosen
    )
    _check_norms(technique, prunables)
    if technique.granularity.whole_outputs:
        notes += [
            f"the norm behind {p.weight.name} has no scale and shift, so that a removed output "
            "leaves a constant in evaluation"
            for p in prunables
            if p.reach.bare_norm
        ]
    ledger = Ledger.of(model)
    if example_inputs is not None:
        usage = _observe_example(model, example_inputs)
        ledger = Ledger.of(model, usage.by_parameter, usage.macs)
    return Setup(
        prunables, budget, ledger, tuple(passed_over), tuple(notes), ends_of(found.weights),
        ordering=Ordering.of(model, technique, chosen, example_inputs),
    )  # fmt: skip


def _prepare_coupled(
    model: nn.Module,
    technique: Technique,
    budget: Budget | None,
    found: FoundWeights,
    chosen: tuple[PrunableWeight, ...],
    example_inputs: tuple[Any, ...],
    inexact: bool,
    round_to: int,
) -> Setup:
    """Prepare for axes: every layer that shares one goes along, and budgets count what is left."""
    structure = trace(model, example_inputs)
    weights = tuple(w for w in found.weights if w.parameter in structure.held)
    excluded = set(weights) - set(chosen)
    branches: dict[Term, Branch] = {}
    if technique.granularity.named:
        groups, passed = find_groups(
            structure, weights, technique.granularity, set(chosen), excluded, inexact
        )
    else:
        groups, branches, passed = branch_groups(structure, weights, set(chosen), excluded)
    if not groups:
        raise SecateurError(_nothing_to_prune(model, technique, found.skipped, passed))
    used = {member.place for group in groups for member in group.members}
    kept = {place: number for number, place in enumerate(sorted(used))}
    groups = tuple(
        replace(group, members=tuple(
            replace(member, place=kept[member.place]) for member in group.members))
        for group in groups
    )  # fmt: skip
    flow = trace_flow(model, example_inputs) if _looks_at_norms(technique) else Flow()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    units = technique.granularity
    if units.named:
        units = Granularity.parse("shared_kernel" if units.named == {"i"} else "filter")
    prunables = tuple(
        Prunable(weights[place], Units.of(weights[place], units),
                 _own_reach(weights[place], flow, chosen, sizes))
        for place in sorted(used)
    )  # fmt: skip
    _check_trainable(technique, model, tuple(prunable.weight for prunable in prunables))
    _check_norms(technique, prunables)
    names = [prunable.weight.parameter for prunable in prunables]
    measure = Measure.of(model, structure, names)
    if branches:
        measure = BranchMeasure(**vars(measure), branches=branches)
        if budget is not None and budget.currency != "latency":
            refuse_too_much(measure, groups, budget)
    elif budget is not None and budget.currency != "latency":
        refuse_emptying(measure, groups, budget, round_to)
    notes = [f"{name} is counted nowhere: it has no rule" for name in structure.unknown]
    return Setup(
        prunables, budget, Ledger.of(model), (*found.skipped, *passed), tuple(notes),
        ends_of(found.weights), groups, measure, round_to,
    )  # fmt: skip


def _nothing_to_prune(
    model: nn.Module,
    technique: Technique,
    skipped: Sequence[tuple[str, str]],
    passed: Sequence[tuple[str, str]],
) -> str:
    """Say why no axis is left; what the user can change comes first."""
    what = "head" if technique.granularity.head else "channel"
    if not technique.granularity.named:
        what = "residual branch"
    allowed = [each for each in passed if "inexact=True" in each[1] or "left out" in each[1]]
    rest = [each for each in passed if each not in allowed]
    none = "no attention of several heads was found" if technique.granularity.head else (
        "nothing belongs to the chosen layers")  # fmt: skip
    said = [*_together([*allowed, *skipped, *rest])[:3]]
    if not passed:
        said.insert(0, none)
    return f"{type(model).__name__} has no {what} to remove: {'; '.join(said)}"


def _together(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Say each reason once, after the first few names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, reason in pairs:
        names.setdefault(reason, []).append(name)
    return [
        f"{', '.join(each[:3])}{f' and {len(each) - 3} more' if len(each) > 3 else ''}: {reason}"
        for reason, each in names.items()
    ]


def _observe_example(model: nn.Module, example_inputs: tuple[Any, ...]) -> Usage:
    try:
        return observe(model, lambda: model(*example_inputs))
    except Exception as error:  # the user's model may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SecateurError(f"the model cannot run on example_inputs: {reason}") from error


def _check_trainable(
    technique: Technique, model: nn.Module, chosen: tuple[PrunableWeight, ...]
) -> None:
    derivatives = set(technique.criteria.needs) & _DERIVATIVES
    frozen = [w.name for w in chosen if not model.get_parameter(w.parameter).requires_grad]
    if derivatives and frozen:
        raise SecateurError(
            f"the criterion '{technique.criteria}' needs gradients, and {frozen[0]} has none "
            "(requires_grad is off): exclude it or let it train"
        )


def _spare_outputs(
    chosen: tuple[PrunableWeight, ...],
    flow: Flow,
    include: str | Iterable[str] | None,
    passed_over: list[tuple[str, str]],
) -> tuple[PrunableWeight, ...]:
    """Pass over weights whose outputs are the model's, unless asked for or nothing else is left."""
    if include is not None:
        return chosen
    final = [weight for weight in chosen if flow.of(weight.parameter).to_output]
    if len(final) == len(chosen):
        return chosen
    reason = "its outputs are the model's outputs; include= names it to prune them too"
    passed_over += [(weight.name, reason) for weight in final]
    return tuple(weight for weight in chosen if weight not in final)


def _own_reach(
    weight: PrunableWeight,
    flow: Flow,
    chosen: tuple[PrunableWeight, ...],
    sizes: Mapping[str, int],
) -> Reach:
    """Return the carriers that this weight's outputs, and no spared weight's, are carried by.

    The carriers of a fused parameter's part are shifted to where its outputs start.
    """
    names = {other.parameter for other in chosen}
    shared = {
        (carrier.parameter, carrier.offset)
        for name, reach in flow.reach.items()
        if name not in names
        for carrier in reach.carriers
    }
    start = weight.rows[0] if weight.rows is not None else 0
    reach = flow.of(weight.parameter)
    own = tuple(
        Carrier(carrier.parameter, carrier.offset + start, carrier.scale)
        for carrier in reach.carriers
        if (carrier.parameter, carrier.offset) not in shared
        and carrier.offset + start + weight.outputs <= sizes.get(carrier.parameter, 0)
    )
    return replace(reach, carriers=own)


def _looks_at_norms(technique: Technique) -> bool:
    needs = set(technique.criteria.needs)
    return (
        bool(needs & {"norm_scale", "scale_taylor", *FROM_OUTPUTS})
        or technique.objective.name == "l1_scale"
    )


def _check_norms(technique: Technique, prunables: tuple[Prunable, ...]) -> None:
    if not {"norm_scale", "scale_taylor"} & set(technique.criteria.needs):
        return
    bare = [
        prunable.weight.name
        for prunable in prunables
        if not any(carrier.scale for carrier in prunable.reach.carriers)
    ]
    if bare:
        shown = ", ".join(bare[:4]) + (", ..." if len(bare) > 4 else "")
        raise SecateurError(
            f"the criterion '{technique.criteria}' needs a norm with a scale behind every layer, "
            f"and finds none behind {shown}; exclude them (or pass example_inputs= if the norm is "
            "applied outside a module)"
        )
