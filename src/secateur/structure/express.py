"""What the user's code can express: axes whose sizes it computes in its own way are pinned.

The graph may allow what the code does not: heads cannot go where the code computes a head's width
from the width of the input. So every free axis is made smaller at once, without data, and the code
must follow. Where it does not, the axes that meet there are pinned, in all modules of that class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from secateur.errors import SecateurError
from secateur.structure.recording import Recording
from secateur.structure.removal import Removal
from secateur.structure.repair import Fault, Run, again_with_data, repair
from secateur.structure.rules import Findings, operator_name
from secateur.structure.surgery import Undo, made_smaller, zeroed
from secateur.structure.terms import Pin, Term, find, flat_terms, leaves
from secateur.structure.zeros import Zeros

_PARTING = ("chunk", "split", "split_with_sizes", "unsafe_split", "tensor_split", "slice", "narrow",
            "glu")  # fmt: skip


def pin_what_code_cannot_express(
    model: nn.Module,
    runs: Sequence[Run],
    findings: Findings,
    held: Mapping[str, list[Term]],
    parameters: Collection[str],
    zeros: Zeros,
    graft: bool,
    in_code: bool,
) -> dict[Term, str]:
    """Pin axes that the code cannot make smaller; return the inexact ones with the reasons.

    Exact axes are settled first, so that none is lost for the sake of an inexact one. Code is
    replaced (``graft``) only for parameters of which nothing could be removed otherwise.
    """
    free = _free_leaves({name: held[name] for name in sorted(parameters)})
    inexact: dict[Term, str] = {}
    for leaf in free:
        noticed = zeros.noticed(leaf, parameters)
        if noticed:
            inexact[leaf] = noticed[0][1]
    if not in_code:
        return inexact
    exact = [leaf for leaf in free if leaf not in inexact]
    plain = _Prober(model, runs, findings, held, graft=False)
    _settle(plain, exact, exact)
    if graft:
        stuck = _stuck(held, parameters, exact)
        for leaf in stuck:
            leaf.pinned = None
        if stuck:
            _settle(replace(plain, graft=True), exact, stuck)
    if inexact:
        _settle(replace(plain, graft=graft), free, list(inexact))
    return {
        part: reason
        for leaf, reason in inexact.items()
        for part in leaves(leaf)
        if part.pinned is None
    }


def _stuck(
    held: Mapping[str, list[Term]], parameters: Collection[str], exact: Sequence[Term]
) -> list[Term]:
    """Return the leaves whose code is in the way of parameters that nothing else makes smaller."""
    chosen = set(exact)
    found: dict[Term, None] = {}
    for name in parameters:
        own = [leaf for term in held[name] for leaf in leaves(term) if leaf in chosen]
        if len(held[name]) > 1 and own and all(leaf.pinned is not None for leaf in own):
            found |= dict.fromkeys(own)
    return list(found)


def _free_leaves(held: Mapping[str, list[Term]]) -> list[Term]:
    found: dict[Term, None] = {}
    for dims in held.values():
        for term in dims:
            for leaf in leaves(term):
                if leaf.pinned is None and leaf.size > 1:
                    found[leaf] = None
    return list(found)


@dataclass(frozen=True)
class _Outcome:
    """What came of making leaves smaller: the fault, if any, and the findings that name it."""

    removal: Removal
    findings: Findings
    fault: Fault | None = None
    first: Fault | None = None

    @property
    def progress(self) -> float:
        """How far the code came, as a number that can be compared."""
        if self.fault is None:
            return float("inf")
        run = self.fault.run
        return (run.training + 2 * run.traced) * 1e9 + run.recording.steps.index(self.fault.node)


@dataclass(frozen=True)
class _Prober:
    """Makes leaves of a model smaller, and sees whether its code follows."""

    model: nn.Module
    runs: Sequence[Run]
    findings: Findings
    held: Mapping[str, list[Term]]
    graft: bool
    backwards: bool = False

    def attempt(self, chosen: Iterable[Term]) -> _Outcome:
        """Make the leaves that are not pinned smaller for a moment."""
        removal = _probe([leaf for leaf in chosen if leaf.pinned is None], self.backwards)
        if not removal:
            return _Outcome(removal, self.findings)
        runs, findings, real = self.runs, self.findings, self.runs[0].real
        if real:
            # The way through data has to be that of the network whose channels are zero.
            with zeroed(self.model, self.held, removal):
                runs, findings = again_with_data(self.model, runs, self.held)
            refined = _refined(removal.kept)
            if len(refined) != len(removal.kept) or any(leaf.pinned for leaf in refined):
                # The new pass has shown couplings that the first one had not.
                return self.attempt(refined)
            removal = Removal(dict(zip(refined, removal.kept.values(), strict=True)))
        undo = Undo()
        with made_smaller(self.model, self.held, removal, data=real):
            try:
                done = repair(self.model, runs, findings, removal, undo, self.graft)
            finally:
                undo.run()
        return _Outcome(removal, findings, done.fault, done.first)

    def bisect(self, shrunk: Sequence[Term], blamable: Sequence[Term]) -> Term | None:
        """Find one leaf without which the code follows better, by halving the suspects."""
        suspects = [leaf for leaf in _refined(blamable) if leaf.pinned is None]
        others = [leaf for leaf in shrunk if leaf not in set(suspects)]
        while len(suspects) > 1:
            half = suspects[: len(suspects) // 2]
            failed = self.attempt([*half, *others]).fault is not None
            suspects = half if failed else suspects[len(half) :]
        return next(leaves(suspects[0])) if suspects else None


def _refined(found: Iterable[Term]) -> list[Term]:
    """Return the leaves that leaves have become: others, where they were bound or parted since."""
    return list(dict.fromkeys(part for leaf in found for part in leaves(leaf)))


def _settle(prober: _Prober, shrunk: Sequence[Term], blamable: Sequence[Term]) -> None:
    """Pin leaves among the blamable until the code follows.

    Code that parts an axis in halves rounds one way, and follows if that half happens to be the
    larger one; so it is tried the other way round too.
    """
    ways = [prober, replace(prober, backwards=True)] if _parts_sums(prober) else [prober]
    followed = 0
    while followed < len(ways):
        pinned = _settle_one_way(ways[0], shrunk, blamable)
        followed = 1 if pinned else followed + 1
        ways = [*ways[1:], ways[0]]


def _parts_sums(prober: _Prober) -> bool:
    """Whether an operator parts an axis of which the parts may become smaller by themselves."""
    dims = prober.findings.dims
    return any(
        operator_name(node) in _PARTING
        and any(each.kind == "sum" for each in map(find, flat_terms(dims.get(source))))
        for run in prober.runs
        for node in run.recording.steps
        for source in node.all_input_nodes[:1]
    )


def _settle_one_way(prober: _Prober, shrunk: Sequence[Term], blamable: Sequence[Term]) -> bool:
    """Pin leaves for one way of making them smaller; return whether any had to be pinned."""
    pinned = False
    while True:
        shrunk, blamable = _refined(shrunk), _refined(blamable)
        outcome = prober.attempt(shrunk)
        fault = outcome.fault
        if fault is None:
            return pinned
        pinned = True
        blamed = _blamed(prober, outcome, shrunk, set(blamable))
        if blamed:
            for leaf, node in blamed.items():
                leaf.pinned = _pin_at(fault, node)
            continue
        culprit = prober.bisect(shrunk, blamable)
        if culprit is None:
            raise SecateurError(
                f"the model's code cannot be followed in {fault.run.recording.module(fault.node)} "
                f"({fault.node.meta.get('place', '')}): {fault.reason}"
            )
        for leaf in _alike(culprit, prober.model, prober.held, blamable):
            leaf.pinned = _pin_at(fault, fault.node)


def _alike(
    culprit: Term, model: nn.Module, held: Mapping[str, list[Term]], blamable: Sequence[Term]
) -> list[Term]:
    """Return a leaf and those that modules of the same classes carry in the same places."""
    kinds = {path: type(module).__name__ for path, module in model.named_modules()}
    marks: dict[Term, set[tuple[object, ...]]] = {}
    for name, dims in held.items():
        parts = name.split(".")
        classes = tuple(kinds.get(".".join(parts[:count]), "") for count in range(len(parts)))
        for place, term in enumerate(dims):
            for number, leaf in enumerate(leaves(term)):
                marks.setdefault(leaf, set()).add((*classes, parts[-1], place, number))
    wanted = marks[culprit]
    free = [leaf for leaf in blamable if leaf is not culprit and leaf.pinned is None]

    return [culprit, *(leaf for leaf in free if marks.get(leaf) == wanted)]


def _probe(free: Sequence[Term], backwards: bool) -> Removal:
    """Make every leaf smaller, leaves of one size by different amounts where there is room."""
    used: dict[int, int] = {}
    kept: dict[Term, Tensor] = {}
    for leaf in free:
        count = used.setdefault(leaf.size, 0)
        used[leaf.size] += 1
        room = max(1 + (backwards and leaf.size > 2), leaf.size // 3)
        less = room - 1 - count % room if backwards else count % room
        smaller = max(1, leaf.size - 1 - less)
        mask = torch.zeros(leaf.size, dtype=torch.bool)
        mask[:smaller] = True
        kept[leaf] = mask
    return Removal(kept)


def _blamed(
    prober: _Prober, outcome: _Outcome, shrunk: Sequence[Term], blamable: set[Term]
) -> dict[Term, fx.Node]:
    """Choose what to blame: the leaves at the fault, or at the first one of the same module.

    An attribute that two widths share fits one of them, and then the other one seems at fault.
    Where the two differ, that without which the code comes further is to blame.
    """
    found: list[dict[Term, fx.Node]] = []
    for fault in (outcome.fault, outcome.first):
        if fault is not None and not fault.elsewhere:
            suspects = _suspects(outcome, fault, blamable)
            if suspects and all(suspects.keys() != other.keys() for other in found):
                found.append(suspects)
    if len(found) < 2:
        return found[0] if found else {}

    def without(suspects: Mapping[Term, fx.Node]) -> float:
        return prober.attempt([leaf for leaf in shrunk if leaf not in suspects]).progress

    return max(found, key=without)


def _suspects(outcome: _Outcome, fault: Fault, blamable: set[Term]) -> dict[Term, fx.Node]:
    """Return the innermost blamable leaf that meets at a fault, and its like in twin modules."""
    findings, removal = outcome.findings, outcome.removal
    found: dict[Term, fx.Node] = {}
    for node in _twins(fault.run.recording, fault.node):
        suspects = _changed((node, *node.all_input_nodes), findings, removal) & blamable
        # Of a wrong size only what makes up that size is to blame, if it may be blamed at all.
        own = {leaf for place in fault.dims for leaf in leaves(findings.dims[node][place])}
        chosen = _innermost(node, findings, (suspects & own) or suspects)
        if chosen is not None:
            found.setdefault(chosen, node)
        elif node is fault.node:
            return {}
    return found


def _pin_at(fault: Fault, node: fx.Node) -> Pin:
    reason = f"the code cannot express another size: {fault.reason}"
    return Pin(reason, fault.run.recording.module(node), node.meta.get("place", ""))


def _changed(nodes: Iterable[fx.Node], findings: Findings, removal: Removal) -> set[Term]:
    return {
        leaf
        for node in nodes
        for term in flat_terms(findings.dims.get(node))
        for leaf in leaves(term)
        if leaf in removal.kept and leaf.pinned is None
    }


def _innermost(node: fx.Node, findings: Findings, suspects: set[Term]) -> Term | None:
    """Return the suspect that comes last in what the operator gives, else in what it reads."""
    for each in (node, *node.all_input_nodes):
        order = [leaf for term in flat_terms(findings.dims.get(each))
                 for leaf in leaves(term)]  # fmt: skip
        for leaf in reversed(order):
            if leaf in suspects:
                return leaf
    return None


def _twins(recording: Recording, node: fx.Node) -> list[fx.Node]:
    """Return the operators at the same place in every call of a module of the same class."""
    call = node.meta.get("call")
    if call is None:
        return [node]
    own: dict[int, list[fx.Node]] = {}
    for each in recording.steps:
        number = each.meta.get("call")
        if number is not None and recording.calls[number].kind == recording.calls[call].kind:
            own.setdefault(number, []).append(each)
    place = own[call].index(node)
    others = [nodes for number, nodes in own.items() if number != call and place < len(nodes)]
    return [node, *(nodes[place] for nodes in others if nodes[place].target is node.target)]
