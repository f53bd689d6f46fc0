"""``trace``: the axes of a model, what can be removed of it, and why the rest cannot."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from secateur.structure.express import pin_what_code_cannot_express
from secateur.structure.infer import infer
from secateur.structure.record import record, record_best
from secateur.structure.recording import Recording
from secateur.structure.removal import Removal
from secateur.structure.repair import Run, again_with_data
from secateur.structure.rules import Findings
from secateur.structure.terms import Pin, Term, find, leaves, pin
from secateur.structure.wrapping import check_examples, own_module
from secateur.structure.zeros import Zeros


@dataclass(frozen=True)
class Axis:
    """One axis: its size, what carries it, and whether and how it can be removed.

    ``carriers`` pairs parameter and buffer names with dimensions. ``pinned`` is the reason why
    nothing of the axis can be removed, None where it can, and ``place`` the line of code that gave
    it. ``inexact`` is the reason why a removal changes what the masked network computes, None where
    it does not.
    """

    name: str
    size: int
    carriers: tuple[tuple[str, int], ...]
    pinned: str | None = None
    place: str = ""
    inexact: str | None = None

    @property
    def why(self) -> str | None:
        """The reason why it is pinned, with the place where there is one; None where it is not."""
        return f"{self.pinned} ({self.place})" if self.pinned and self.place else self.pinned


@dataclass
class Trace:
    """The structure of a model: its axes, its cost, and the share that is within reach.

    ``params`` and ``macs`` count the model as it is; ``reach`` gives the share of each that carries
    a removable axis. ``unknown`` counts operators without a rule.
    """

    axes: tuple[Axis, ...]
    params: int
    macs: int
    reach: dict[str, float]
    unknown: dict[str, int]
    leaves: dict[str, Term] = field(repr=False)
    held: dict[str, list[Term]] = field(repr=False)
    parameters: frozenset[str] = field(repr=False)
    findings: Findings = field(repr=False)
    runs: tuple[Run, ...] = field(repr=False)
    zeros: Zeros = field(repr=False)

    @property
    def removable(self) -> tuple[Axis, ...]:
        """The axes of which something can be removed, exactly or not."""
        return tuple(axis for axis in self.axes if axis.pinned is None)

    @property
    def pinned(self) -> tuple[tuple[str, str], ...]:
        """The names of the axes that cannot be removed, with the reasons."""
        return tuple((axis.name, axis.pinned) for axis in self.axes if axis.pinned is not None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "params": self.params,
            "macs": self.macs,
            "reach": self.reach,
            "unknown": self.unknown,
            "axes": [asdict(axis) for axis in self.axes],
        }

    def count(self, removal: Removal | None = None) -> tuple[int, int]:
        """Return the parameters and multiply-accumulates that a removal leaves."""
        removal = removal or Removal({})
        return self.count_params(removal), self.count_macs(removal)

    def count_params(self, removal: Removal) -> int:
        """Return the parameters that a removal leaves."""
        return sum(math.prod(removal.shape(self.held[name])) for name in self.parameters)

    def count_macs(self, removal: Removal, without: Collection[fx.Node] = ()) -> int:
        """Return the multiply-accumulates that a removal leaves, without some operators."""
        return _macs(self.findings, self.runs[0], removal, without)


def trace(model: nn.Module, example_inputs: Any, graft: bool = True, in_code: bool = True) -> Trace:
    """Find the axes of a model from one example of its inputs (a tensor or a tuple).

    Without ``graft``, axes that the code of a module cannot make smaller are pinned; with it, that
    module may get its recorded operators for code. Without ``in_code``, what the code can express
    does not matter, as for a rewritten graph. The model is left as it was. Raises SecateurError
    where it cannot run on them.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> [(axis.name, axis.size) for axis in trace(model, torch.zeros(1, 8)).removable]
    [('0', 16)]
    """
    model = own_module(model)
    inputs = positional(example_inputs)
    check_examples(inputs)
    findings = Findings()
    held: dict[str, list[Term]] = {}
    runs = _runs(model, inputs, findings, held)
    zeros = Zeros([run.recording.graph for run in runs], findings)
    names = frozenset(name for name, _ in model.named_parameters())
    unused = [name for name, _ in model.named_parameters() if name not in held]
    if unused and runs[0].real:
        _pin_all(held, unused, runs[0].recording.looked)
    for name in unused:
        why = Pin("the forward pass does not use it")
        held[name] = [Term(size, pinned=why) for size in model.get_parameter(name).shape]
    # In the order of the model, so that an axis is called after the first layer that makes it.
    order = [name for name, _ in model.named_parameters()]
    held = {name: held[name] for name in (*order, *held)}
    _pin_without_parameters(held, names)
    inexact = pin_what_code_cannot_express(
        model, runs, findings, held, names, zeros, graft, in_code
    )
    leaf_names = _named_leaves(held)
    axes = tuple(_axis(name, leaf, carriers, inexact) for name, leaf, carriers in leaf_names)
    params = sum(parameter.numel() for parameter in model.parameters())
    macs = _macs(findings, runs[0], Removal({}))
    return Trace(
        axes, params, macs, _reach(held, names, findings, runs[0]), findings.unknown,
        {name: leaf for name, leaf, _ in leaf_names}, held, names, findings, runs, zeros,
    )  # fmt: skip


def followed_again(model: nn.Module, structure: Trace, graft: bool = True) -> Trace:
    """Follow a pass that looks at its data once more, as the model now is.

    Where the axes are no longer what they were, the model is traced anew.
    """
    runs, findings = again_with_data(model, structure.runs, structure.held)
    now = {name: find(leaf) for name, leaf in structure.leaves.items()}
    pinned = {axis.name: axis.pinned is not None for axis in structure.axes}
    same = len(set(now.values())) == len(now) and all(
        leaf.kind == "leaf" and (leaf.pinned is not None) == pinned[name]
        for name, leaf in now.items()
    )
    if not same:
        return trace(model, runs[0].inputs, graft)
    zeros = Zeros([run.recording.graph for run in runs], findings)
    return replace(structure, leaves=now, findings=findings, runs=tuple(runs), zeros=zeros)


def positional(example_inputs: Any) -> tuple[Any, ...]:
    """Return example inputs as positional arguments."""
    if isinstance(example_inputs, tuple):
        return example_inputs
    return (example_inputs,)


def _runs(
    model: nn.Module, inputs: tuple[Any, ...], findings: Findings, held: dict[str, list[Term]]
) -> tuple[Run, ...]:
    """Record in eval mode; in training mode too where that uses further parameters.

    Code that asks whether it is being traced is also recorded while it is told so: torch.export and
    torch.compile take that way.
    """
    recording, real = record_best(model, inputs)
    runs = [Run(recording, inputs, real)]
    infer(recording, findings, held)
    if any(name not in held for name, _ in model.named_parameters()):
        double = recording.doubled
        other = record(model, inputs, real=real, double=double, training=True) if not real else None
        if other is not None and other.failure is None:
            runs.append(Run(other, inputs, real, training=True))
            infer(other, findings, held)
    if recording.asked and not real:
        other = record(model, inputs, double=recording.doubled, traced=True)
        if other.failure is None and _operators(other) != _operators(recording):
            runs.append(Run(other, inputs, real, traced=True))
            infer(other, findings, held)
    return tuple(runs)


def _operators(recording: Recording) -> list[Any]:
    return [node.target for node in recording.steps]


def _pin_all(held: dict[str, list[Term]], unused: list[str], place: str) -> None:
    """Pin everything: on other data the code may take a way that nobody has followed."""
    some = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
    why = Pin(f"the code looks at its data, and with the example inputs does not use {some}: "
              "on other data it may, with the old sizes", place=place)  # fmt: skip
    for dims in held.values():
        for term in dims:
            pin(term, why)


def _pin_without_parameters(held: dict[str, list[Term]], names: frozenset[str]) -> None:
    """Pin what buffers alone carry: tables of positions, which no mask can free."""
    carried = {leaf for name in names for term in held[name] for leaf in leaves(term)}
    for dims in held.values():
        for term in dims:
            for leaf in leaves(term):
                if leaf not in carried and leaf.pinned is None:
                    leaf.pinned = Pin("no parameter carries it")


def _named_leaves(
    held: dict[str, list[Term]],
) -> list[tuple[str, Term, tuple[tuple[str, int], ...]]]:
    """Name every leaf after the first layer that makes it, and list what carries it."""
    carriers: dict[Term, dict[tuple[str, int], None]] = {}
    titles: dict[Term, list[tuple[int, str]]] = {}
    for name, dims in held.items():
        owner = name.rpartition(".")[0] or name
        for place, term in enumerate(dims):
            own = [leaf for leaf in leaves(term) if leaf.size > 1]
            for number, leaf in enumerate(own):
                carriers.setdefault(leaf, {})[(name, place)] = None
                made = len(dims) > 1 and place == 0
                mark = f"[{number}]" if len(own) > 1 else ""
                # An axis is called after the layer that makes it before one that reads it.
                titles.setdefault(leaf, []).append((0 if made else 1, owner + mark))
    used: dict[str, int] = {}
    named = []
    for leaf, where in carriers.items():
        title = min(titles[leaf], key=lambda each: each[0])[1]
        used[title] = used.get(title, 0) + 1
        name = title if used[title] == 1 else f"{title} ({used[title]})"
        named.append((name, leaf, tuple(where)))
    return named


def _axis(
    name: str, leaf: Term, carriers: tuple[tuple[str, int], ...], inexact: dict[Term, str]
) -> Axis:
    why = leaf.pinned
    return Axis(
        name,
        leaf.size,
        carriers,
        why.reason if why else None,
        why.place if why else "",
        inexact.get(leaf) if why is None else None,
    )


def _free(terms: Sequence[Term]) -> bool:
    return any(leaf.pinned is None and leaf.size > 1 for term in terms for leaf in leaves(term))


def _reach(
    held: dict[str, list[Term]], names: frozenset[str], findings: Findings, run: Run
) -> dict[str, float]:
    """Return the shares of parameters and multiply-accumulates that carry a removable axis."""
    params = [(math.prod(term.size for term in held[name]), _free(held[name])) for name in names]
    costs = [
        (math.prod(term.size for term in terms), _free(terms))
        for node, several in findings.costs.items()
        if node.graph is run.recording.graph
        for terms in several
    ]
    return {
        name: sum(size for size, free in pairs if free) / max(1, sum(size for size, _ in pairs))
        for name, pairs in (("params", params), ("macs", costs))
    }


def _macs(findings: Findings, run: Run, removal: Removal, without: Collection[fx.Node] = ()) -> int:
    """Count multiply-accumulates for the inputs as they were given, not for a doubled batch."""
    single = torch.tensor([True, False])
    kept = dict(removal.kept)
    if run.recording.doubled:
        firsts = [findings.dims[node][0] for node in run.recording.inputs if findings.dims[node]]
        kept |= {leaf: single for term in firsts for leaf in leaves(term) if leaf.size == 2}
    sizes = Removal(kept)
    return sum(
        math.prod(map(sizes.size, terms))
        for node, costs in findings.costs.items()
        if node.graph is run.recording.graph and node not in without
        for terms in costs
    )
