"""Depth: branches that add nothing but zeros are taken out, with all that only they need.

A residual branch is what one operand of an addition is computed from and nothing else reads. Where
it gives zeros, the sum is its other operand: the module whose code adds them gets its recorded
operators without the branch, and what no operator uses any more leaves the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, fx, nn

from secateur.structure.graft import Code, install
from secateur.structure.recording import Recording
from secateur.structure.removal import Removal
from secateur.structure.rules import arguments_of, is_in_place, operator_name
from secateur.structure.surgery import Undo
from secateur.structure.trace import Trace
from secateur.structure.writer import CannotGraftError, make_code
from secateur.structure.zeros import zero_nodes


@dataclass(frozen=True)
class Branch:
    """One operand of an addition that can go: ``added`` becomes ``stays``.

    ``module`` is the path of the module whose own code adds, ``gone`` the operators that nothing
    else reads, and ``parameters`` those that only they use.
    """

    module: str
    added: fx.Node
    stays: fx.Node
    gone: frozenset[fx.Node]
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Dropped:
    """What left a model: modules and parameters by name, the code that does without them.

    ``left`` tells which branches stay although they add zeros, by module, and why.
    """

    names: tuple[str, ...] = ()
    grafts: Mapping[str, Code] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)


def find_branches(structure: Trace) -> list[Branch]:
    """Return the residual branches that would add zeros if all that only they use were zero.

    Of the two operands of an addition the one with more parameters counts; of branches that share
    parameters the innermost.
    """
    recording = structure.runs[0].recording
    if structure.runs[0].real or len(structure.runs) > 1:
        return []
    found = []
    for node in _additions(recording):
        both = [_branch(structure, node, place) for place in (0, 1)]
        sizes = [sum(_numel(structure, name) for name in each.parameters) for each in both]
        branch = both[0] if sizes[0] > sizes[1] else both[1]
        zero = zero_nodes(recording.graph, structure.findings, branch.parameters)
        if branch.parameters and _operand(node, branch) in zero:
            found.append(branch)
    chosen: list[Branch] = []
    for branch in sorted(found, key=lambda each: len(each.gone)):
        apart = all(set(branch.parameters).isdisjoint(other.parameters) for other in chosen)
        if apart and _code(structure, branch.module, [branch]) is not None:
            chosen.append(branch)
    order = {node: place for place, node in enumerate(recording.graph.nodes)}
    return sorted(chosen, key=lambda each: order[each.added])


def dead_branches(model: nn.Module, structure: Trace, masks: Mapping[str, Tensor]) -> list[Branch]:
    """Return the branches that give nothing but zeros because of masks, which are applied already.

    What is zero without them, such as the last scale of a branch that has not been trained yet,
    may still learn.
    """
    run = structure.runs[0]
    masked = {name for name, mask in masks.items() if not bool(mask.any())}
    if not masked or run.real or len(structure.runs) > 1:
        return []
    graph, findings = run.recording.graph, structure.findings
    zeros = {name for name, parameter in model.named_parameters() if not bool(parameter.any())}
    zero = zero_nodes(graph, findings, zeros) - zero_nodes(graph, findings, zeros - masked)
    found = []
    for node in _additions(run.recording):
        dead = [operand in zero for operand in _operands(node)]
        if any(dead) and not all(dead):
            branch = _branch(structure, node, dead.index(True))
            if branch.parameters:
                found.append(branch)
    return found


def drop(model: nn.Module, structure: Trace, branches: Iterable[Branch], undo: Undo) -> Dropped:
    """Take branches out of a model; modules that nothing calls any more leave it."""
    by_module: dict[str, list[Branch]] = {}
    for branch in branches:
        by_module.setdefault(branch.module, []).append(branch)
    grafts: dict[str, Code] = {}
    left: dict[str, str] = {}
    for path, several in by_module.items():
        code = _code(structure, path, several)
        if code is None:
            left[path or "the model"] = "a branch adds only zeros and its code cannot be replaced"
            continue
        install(model, path, code, undo)
        grafts[path] = code
    if not grafts:
        return Dropped(left=left)
    run = structure.runs[0]
    recording = run.again(model)
    unused = _used(run.recording) - _used(recording)
    names = tuple(_removable(model, recording, unused, grafts))
    for name in names:
        _delete(model, name, undo)
    return Dropped(names, grafts, left)


def forget(optimizer: torch.optim.Optimizer, gone: Collection[Tensor], undo: Undo) -> None:
    """Take parameters out of an optimiser's groups and state."""
    marks = {id(each) for each in gone}
    for group in optimizer.param_groups:
        before = group["params"]
        undo.add(partial(group.update, params=before))
        group["params"] = [each for each in before if id(each) not in marks]
    for parameter in gone:
        if parameter in optimizer.state:
            state = optimizer.state.pop(parameter)
            undo.add(partial(optimizer.state.update, {parameter: state}))


def delete_named(model: nn.Module, name: str) -> None:
    """Delete a module or a parameter of a model by its dotted name."""
    _delete(model, name, Undo())


def _additions(recording: Recording) -> Iterator[fx.Node]:
    for node in recording.steps:
        if operator_name(node) != "add" or node.meta.get("written", False):
            continue
        operands = _operands(node)
        shapes = {each.meta["val"].shape for each in (node, *operands)}
        plain = arguments_of(node).get("alpha", 1) == 1 and len(shapes) == 1
        if plain and len(set(operands)) == 2:
            yield node


def _operands(node: fx.Node) -> list[fx.Node]:
    arguments = arguments_of(node)
    both = (arguments.get("self"), arguments.get("other"))
    return [each for each in both if isinstance(each, fx.Node)]


def _operand(node: fx.Node, branch: Branch) -> fx.Node:
    return next(each for each in _operands(node) if each is not branch.stays)


def _branch(structure: Trace, added: fx.Node, place: int) -> Branch:
    """Describe what goes if an addition loses one of its operands."""
    recording = structure.runs[0].recording
    stays = _operands(added)[1 - place]
    gone = _needed(recording, {}) - _needed(recording, {added: stays})
    read = dict.fromkeys(str(node.target) for node in recording.graph.nodes
                         if node in gone and node.op == "get_attr")  # fmt: skip
    parameters = tuple(name for name in read if name in structure.parameters)
    return Branch(recording.module(added), added, stays, frozenset(gone), parameters)


def _needed(recording: Recording, aliases: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """Return what the outputs are computed from, where some nodes stand for others."""
    waiting = [node for node in recording.graph.nodes if node.op == "output"]
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [aliases[node]] if node in aliases else node.all_input_nodes
    return found


def _code(structure: Trace, path: str, branches: Iterable[Branch]) -> Code | None:
    """Write a module's code without branches, None where that cannot be done."""
    recording = structure.runs[0].recording
    aliases = {branch.added: branch.stays for branch in branches}
    gone = {node for branch in branches for node in branch.gone}
    if any(is_in_place(node) and node.args[0] not in gone for node in gone):
        return None
    copied = {added for added in aliases if _is_written_to(added)}
    try:
        return make_code(recording, path, structure.findings, Removal({}), aliases, copied)
    except CannotGraftError:
        return None


def _is_written_to(node: fx.Node) -> bool:
    """Whether an operator changes a tensor in place, or what may be a view of it."""
    return any(is_in_place(user) or (_may_view(user) and _is_written_to(user))
               for user in node.users if user.op == "call_function")  # fmt: skip


def _may_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(each.alias_info is not None for each in schema.returns)


def _used(recording: Recording) -> set[str]:
    needed = _needed(recording, {})
    return {str(node.target) for node in needed if node.op == "get_attr"}


def _removable(
    model: nn.Module, recording: Recording, unused: Collection[str], grafts: Mapping[str, Code]
) -> Iterator[str]:
    """Give the outermost modules, and the grafts' own parameters, that nothing uses any more."""
    called = {call.path for call in recording.calls}
    found: list[str] = []
    for path, module in model.named_modules():
        if any(path.startswith(f"{outer}.") for outer in found):
            continue
        own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters()]
        busy = any(each == path or each.startswith(f"{path}.") for each in called)
        if path and own and set(own) <= set(unused) and not busy:
            found.append(path)
            yield path
        elif path in grafts:
            for name in list(module._parameters):
                if f"{path}.{name}" in unused:
                    yield f"{path}.{name}"


def _delete(model: nn.Module, name: str, undo: Undo) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    table: dict[str, object] = owner._modules if attribute in owner._modules else owner._parameters  # type: ignore[assignment]
    before = dict(table)

    def put_back() -> None:
        table.clear()
        table.update(before)

    undo.add(put_back)
    del table[attribute]


def _numel(structure: Trace, name: str) -> int:
    total = 1
    for term in structure.held.get(name, ()):
        total *= term.size
    return total
