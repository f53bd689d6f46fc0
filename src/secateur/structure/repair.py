"""Repair: module attributes are set so that the user's own code computes with the new sizes.

The model runs on tensors without data and must call the same operators as before, with the shapes
that the removal leads to. Where it does not, another reading of the attributes is tried; where none
fits, the operator at which the code goes wrong is returned.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.structure.attributes import Changes, own_changes, own_groups
from secateur.structure.graft import Code, install
from secateur.structure.infer import infer
from secateur.structure.readings import Progress, Readings
from secateur.structure.record import Recording, record
from secateur.structure.removal import Removal
from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.surgery import Undo, set_attributes
from secateur.structure.terms import Term
from secateur.structure.writer import EVENLY, CannotGraftError, make_code

_MOST_ATTEMPTS = 200


@dataclass(frozen=True)
class Run:
    """How a recording was made, so that it can be made again."""

    recording: Recording
    inputs: tuple[Any, ...]
    real: bool
    training: bool = False

    def again(self, model: nn.Module) -> Recording:
        """Record the model once more, in the same way."""
        return record(model, self.inputs, real=self.real, double=self.recording.doubled,
                      training=self.training)  # fmt: skip


def again_with_data(
    model: nn.Module, runs: Sequence[Run], held: Mapping[str, list[Term]]
) -> tuple[list[Run], Findings]:
    """Record once more a pass that looks at its data, as the model now is."""
    run = runs[0]
    recording = run.again(model)
    findings = infer(recording, Findings(), dict(held))
    return [Run(recording, run.inputs, run.real)], findings


@dataclass(frozen=True)
class Fault:
    """The operator at which the code departs from what a removal needs, and what went wrong.

    ``elsewhere`` says that the code took another way, so that the cause may lie before; ``dims``
    are the dimensions that have another size than they should, where that is what went wrong.
    """

    run: Run
    node: fx.Node
    reason: str
    elsewhere: bool = False
    dims: tuple[int, ...] = ()


@dataclass
class Repairs:
    """Attribute changes that make the code fit, or the fault that no reading avoids."""

    changes: Changes = field(default_factory=dict)
    fault: Fault | None = None
    grafts: dict[str, Code] = field(default_factory=dict)


def repair(
    model: nn.Module,
    runs: Sequence[Run],
    findings: Findings,
    removal: Removal,
    undo: Undo,
    graft: bool = True,
) -> Repairs:
    """Set attributes of a model whose parameters have their new shapes; see ``Repairs``.

    With ``graft``, a module that no reading fits gets its recorded operators for code. What was set
    is noted in ``undo``; on a fault everything set here is put back.
    """
    choices = _readings(model, runs, findings, removal)
    grafts: dict[str, Code] = {}
    fault: Fault | None = None
    for _ in range(_MOST_ATTEMPTS):
        wanted = choices.changes(grafts)
        own = Undo()
        set_attributes(model, wanted, own)
        for path, code in grafts.items():
            install(model, path, code, own)
        faults = (departs(run, run.again(model), findings, removal) for run in runs)
        number, fault = next(((n, found) for n, found in enumerate(faults) if found), (0, None))
        if fault is None:
            undo.steps += own.steps
            return Repairs(wanted, None, grafts)
        own.run()
        if not choices.advance(_around(fault), _progress(number, fault)):
            new = _grafts_for(fault, findings, removal, grafts) if graft else {}
            if not new:
                break
            grafts |= new
    return Repairs({}, fault)


def _progress(number: int, fault: Fault) -> Progress:
    """Return how far the code has come, as something that can be compared."""
    return number, fault.run.recording.steps.index(fault.node)


def _around(fault: Fault) -> list[str]:
    """Return the module whose code is at fault and those around it, the innermost first."""
    calls, call = fault.run.recording.calls, fault.node.meta.get("call")
    found = []
    while call is not None:
        found.append(calls[call].path)
        call = calls[call].parent
    return found


def _grafts_for(
    fault: Fault, findings: Findings, removal: Removal, present: Mapping[str, Code]
) -> dict[str, Code]:
    """Write code for the module at fault, and for those of its class that have some in common."""
    recording = fault.run.recording
    path = recording.module(fault.node)
    if path in present or fault.run.real:
        return {}
    kind = next(call.kind for call in recording.calls if call.path == path)
    twins = dict.fromkeys(call.path for call in recording.calls if call.kind == kind)
    try:
        found = {path: make_code(recording, path, findings, removal)}
    except CannotGraftError:
        return {}
    for twin in twins:
        if twin not in present and twin != path:
            with contextlib.suppress(CannotGraftError):
                found[twin] = make_code(recording, twin, findings, removal)
    return found


def _readings(
    model: nn.Module, runs: Sequence[Run], findings: Findings, removal: Removal
) -> Readings:
    sizes: dict[str, dict[int, set[int]]] = {}
    groups: dict[str, int] = {}
    for run in runs:
        groups.update(own_groups(run.recording, findings, removal))
        for path, found in own_changes(run.recording, findings, removal).items():
            for old, news in found.items():
                sizes.setdefault(path, {}).setdefault(old, set()).update(news)
    return Readings(model, sizes, groups)


def departs(run: Run, actual: Recording, findings: Findings, removal: Removal) -> Fault | None:
    """Return the first operator at which a new recording is not what the removal leads to.

    A pass that looks at its data may take another way by rounding alone, and is followed as far as
    it goes the same way.
    """
    expected, found = run.recording.steps, actual.steps
    for place, node in enumerate(expected):
        if place >= len(found):
            break
        other = found[place]
        if node.target is not other.target and not _parts_alike(node, other):
            if run.real:
                return None
            return Fault(run, node, f"the code calls {other.target} instead", elsewhere=True)
        problem = _differs(run, node, other, findings, removal)
        if problem:
            return Fault(run, node, problem, dims=_other_dims(node, other, findings, removal))
    if actual.failure is None and len(found) == len(expected):
        return None
    if actual.failure is None:
        return None if run.real else Fault(run, expected[-1], "the code goes on differently")
    said = (str(actual.failure.error).strip().splitlines() or ["it ends early"])[0]
    return Fault(run, expected[min(len(found), len(expected) - 1)], said[:200])


def _parts_alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether a graft parts a tensor by sizes where the code parted it evenly."""
    return operator_name(node) in EVENLY and operator_name(other) == "split_with_sizes"


def _shape_differs(run: Run, value: Tensor, dims: Sequence[Term], removal: Removal) -> bool:
    wanted = removal.shape(dims)
    if not run.real:
        return tuple(value.shape) != wanted
    changed = [place for place, term in enumerate(dims) if wanted[place] != term.size]
    return value.dim() != len(dims) or any(value.shape[each] != wanted[each] for each in changed)


def _other_dims(
    node: fx.Node, other: fx.Node, findings: Findings, removal: Removal
) -> tuple[int, ...]:
    """Return the dimensions in which an operator's result has another size than it should."""
    value, dims = other.meta["val"], findings.dims[node]
    if not isinstance(value, Tensor) or value.dim() != len(dims):
        return ()
    wanted = removal.shape(dims)
    return tuple(place for place, size in enumerate(value.shape) if size != wanted[place])


def _differs(
    run: Run, node: fx.Node, other: fx.Node, findings: Findings, removal: Removal
) -> str | None:
    value, dims = other.meta["val"], findings.dims[node]
    if isinstance(value, Tensor) and _shape_differs(run, value, dims, removal):
        return f"the shape is {tuple(value.shape)} instead of {removal.shape(dims)}"
    if _constant_changed(node.meta.get("value"), other.meta.get("value")):
        return "a constant is computed from a size"
    if node.target is operator.getitem:
        return None
    for one, two in zip(node.all_input_nodes, other.all_input_nodes, strict=False):
        constant = one.op == "get_attr" and one.meta["constant"]
        if constant and _constant_changed(one.meta.get("value"), two.meta.get("value")):
            return "a constant is computed from a size"
    before, after = arguments_of(node), arguments_of(other)
    for name, old in before.items():
        new = after.get(name)
        if isinstance(old, float) and isinstance(new, (int, float)) and old != new:
            return f"the number {old:g} is computed from a size and becomes {new:g}"
    return None


def _constant_changed(one: Any, other: Any) -> bool:
    """Whether a tensor that the code computes by itself has kept its shape and lost its value."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and not bool(torch.equal(one, other))
