"""Repair: module attributes are set so that the user's own code computes with the new sizes.

The model runs on tensors without data and must call the same operators as before, with the shapes
that the removal leads to. Where it does not, another reading of the attributes is tried; where none
fits, the operator at which the code goes wrong is returned.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.structure.attributes import Changes, own_changes, own_groups
from secateur.structure.graft import Code, install
from secateur.structure.infer import infer
from secateur.structure.nesting import each_of
from secateur.structure.places import attributes_read_at
from secateur.structure.readings import Readings
from secateur.structure.record import record
from secateur.structure.recording import Failure, Recording
from secateur.structure.removal import Removal
from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.surgery import Undo, set_attributes
from secateur.structure.terms import Term
from secateur.structure.writer import EVENLY, CannotGraftError, make_code

_MOST_ATTEMPTS = 200
_COPIES = ("contiguous", "clone")
_VIEWS = ("view", "reshape", "expand", "unsqueeze", "squeeze", "slice", "alias")


@dataclass(frozen=True)
class Run:
    """How a recording was made, so that it can be made again."""

    recording: Recording
    inputs: tuple[Any, ...]
    real: bool
    training: bool = False
    traced: bool = False

    def again(self, model: nn.Module) -> Recording:
        """Record the model once more, in the same way."""
        return record(model, self.inputs, real=self.real, double=self.recording.doubled,
                      training=self.training, traced=self.traced)  # fmt: skip


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
    """Attribute changes that make the code fit, or the fault that no reading avoids.

    ``first`` is the fault of the same module as its attributes were.
    """

    changes: Changes = field(default_factory=dict)
    fault: Fault | None = None
    grafts: dict[str, Code] = field(default_factory=dict)
    first: Fault | None = None


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
    first: dict[str, Fault] = {}
    for _ in range(_MOST_ATTEMPTS):
        wanted = choices.changes(grafts)
        own = Undo()
        set_attributes(model, wanted, own)
        for path, code in grafts.items():
            install(model, path, code, own)
        faults = (departs(run, run.again(model), findings, removal) for run in runs)
        fault = next((found for found in faults if found is not None), None)
        if fault is None:
            undo.steps += own.steps
            return Repairs(wanted, None, grafts)
        first.setdefault(_around(fault)[0], fault)
        trial = _Trial(model, fault, findings, removal)
        around = _around(fault)
        inner = choices.read_by(around[0], attributes_read_at(fault.node.meta.get("place", "")))
        paths = [path for path in (*around, *inner) if path not in grafts]
        improved = choices.improve(paths, trial.progress)
        own.run()
        if not improved:
            new = _grafts_for(fault, findings, removal, grafts) if graft else {}
            if not new:
                break
            grafts |= new
    return Repairs({}, fault, first=first.get(_around(fault)[0]) if fault else None)


@dataclass(frozen=True)
class _Trial:
    """Tells how far the code of a module comes, by running that module alone where it can.

    ``fault`` is what is to be mended; it names the call that is made again.
    """

    model: nn.Module
    fault: Fault
    findings: Findings
    removal: Removal

    def progress(self, path: str) -> float:
        """Return the number of operators that go right, infinity where all do."""
        run = self.fault.run
        expected, actual = run.recording.steps, None
        call = self._call(path)
        if call is not None and not run.real and path:
            actual = self._alone(call)
            expected = run.recording.within(call) if actual is not None else expected
        actual = actual or run.again(self.model)
        found = departs(run, actual, self.findings, self.removal, expected)
        return float("inf") if found is None else expected.index(found.node)

    def _call(self, path: str) -> int | None:
        calls, call = self.fault.run.recording.calls, self.fault.node.meta.get("call")
        while call is not None and calls[call].path != path:
            call = calls[call].parent
        return call

    def _alone(self, number: int) -> Recording | None:
        """Record one module on inputs of the sizes that the removal leads to."""
        run = self.fault.run
        call = run.recording.calls[number]
        try:
            args, kwargs = each_of(self._input, call.inputs)
        except _UnknownInputError:
            return None
        module = self.model.get_submodule(call.path)
        return record(module, tuple(args), kwargs, double=False, training=run.training,
                      traced=run.traced)  # fmt: skip

    def _input(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            raise _UnknownInputError
        if not isinstance(value, fx.Node):
            return value
        made, shape = value.meta["val"], self.removal.shape(self.findings.dims[value])
        known = value.meta.get("value")
        if isinstance(known, Tensor) and tuple(known.shape) == shape and not known.is_meta:
            return known
        return torch.empty(shape, dtype=made.dtype, device="meta")


class _UnknownInputError(Exception):
    """A tensor goes into a module of which the recording does not know where it comes from."""


def _around(fault: Fault) -> list[str]:
    """Return the module whose code is at fault and those around it, the innermost first."""
    calls, call = fault.run.recording.calls, fault.node.meta.get("call")
    found = []
    while call is not None:
        found.append(calls[call].path)
        call = calls[call].parent
    return found or [""]


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


def departs(
    run: Run,
    actual: Recording,
    findings: Findings,
    removal: Removal,
    expected: Sequence[fx.Node] | None = None,
) -> Fault | None:
    """Return the first operator at which a new recording is not what the removal leads to.

    ``expected`` are the operators that it should have, all of the run's where they are not given.

    A pass that looks at its data may take another way by rounding alone, and is followed as far as
    it goes the same way.
    """
    expected = run.recording.steps if expected is None else expected
    pairs, missing, further = _aligned(expected, actual.steps, _needless(removal))
    for node, other in pairs:
        if not _alike(node, other):
            if run.real:
                return None
            return Fault(run, node, f"the code calls {other.target} instead", elsewhere=True)
        problem = _differs(run, node, other, findings, removal)
        if problem:
            return Fault(run, node, problem, dims=_other_dims(node, other, findings, removal))
    if actual.failure is not None:
        said = (str(actual.failure.error).strip().splitlines() or ["it ends early"])[0]
        blamed = _failing(run, missing or expected[-1:], actual.failure)
        return Fault(run, blamed, said[:200]) if blamed is not None else None
    if run.real or not expected or (not missing and not further):
        return None
    return Fault(run, expected[-1], "the code goes on differently")


def _failing(run: Run, missing: Sequence[fx.Node], failure: Failure) -> fx.Node | None:
    """Return the operator at which a pass failed: of those it may have been, the module's own."""
    own = (node for node in missing if run.recording.module(node) == failure.module)
    return next(own, missing[-1] if missing else None)


def _aligned(
    expected: Sequence[fx.Node], found: Sequence[fx.Node], needless: Collection[str]
) -> tuple[list[tuple[fx.Node, fx.Node]], list[fx.Node], bool]:
    """Pair operators in order; the ``needless`` ones may be absent on either side.

    Returns the first operator that must have a counterpart and has none, after the needless ones
    before it, and whether more were found than expected.
    """

    def spared(node: fx.Node) -> bool:
        return operator_name(node) in needless

    pairs: list[tuple[fx.Node, fx.Node]] = []
    one = other = 0
    while one < len(expected) and other < len(found):
        node, made = expected[one], found[other]
        if _alike(node, made) or not (spared(node) or spared(made)):
            pairs.append((node, made))
            one, other = one + 1, other + 1
        elif spared(node):
            one += 1
        else:
            other += 1
    rest = list(expected[one:])
    needed = next((place for place, node in enumerate(rest) if not spared(node)), None)
    missing = [] if needed is None else rest[: needed + 1]
    further = any(not spared(node) for node in found[other:])
    return pairs, missing, further


def _needless(removal: Removal) -> tuple[str, ...]:
    """Return the operators that code may leave out: copies, and views where an axis becomes one."""
    lonely = any(int(mask.sum()) == 1 for mask in removal.kept.values())
    return _COPIES + _VIEWS if lonely else _COPIES


def _alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether two operators are the same, or stand for each other."""
    return node.target is other.target or _parts_alike(node, other)


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
