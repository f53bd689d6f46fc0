"""Inference: the terms of every tensor's dimensions, by one rule per recorded operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from secateur.structure.recording import Recording
from secateur.structure.rules import (
    Call,
    Findings,
    arguments_of,
    find_rule,
    is_in_place,
    operator_name,
)
from secateur.structure.terms import ClashError, Pin, Term, flat_terms, pin

_FAILURES = (ClashError, LookupError, TypeError, ValueError, AttributeError, RuntimeError)
"""What a rule may raise on a call that it was not made for."""


def infer(
    recording: Recording,
    findings: Findings | None = None,
    held: dict[str, list[Term]] | None = None,
) -> Findings:
    """Infer the terms of every dimension in a recording; see ``Findings``.

    ``findings`` are added to, and ``held`` (terms of parameters and buffers by name) is shared with
    other recordings of the same model.
    """
    findings = Findings() if findings is None else findings
    held = {} if held is None else held
    read = _read(recording)
    for node in recording.graph.nodes:
        if node.op == "placeholder":
            findings.dims[node] = [
                Term(size, pinned=Pin("the model's input", data=True))
                for size in node.meta["val"].shape
            ]
        elif node.op == "get_attr":
            findings.dims[node] = _held(node, held)
        elif node.op == "call_function":
            findings.dims[node] = _call(recording, node, findings, node in read)
        elif node.op == "output":
            _outputs(node, findings)
    return findings


def _read(recording: Recording) -> set[fx.Node]:
    """Return the nodes whose values reach an output, or a tensor that is written to.

    Of the rest the code has taken only the shape, as far as it ran without data.
    """
    nodes = recording.graph.nodes
    if recording.real:
        return set(nodes)
    found: set[fx.Node] = set()
    for node in reversed(nodes):
        writes = node.op == "call_function" and is_in_place(node)
        if node.op == "output" or writes or any(user in found for user in node.users):
            found.add(node)
    return found


def _held(node: fx.Node, held: dict[str, list[Term]]) -> list[Term]:
    shape = node.meta["val"].shape
    if node.meta["constant"]:
        return [Term(size, pinned=Pin("a constant in the code")) for size in shape]
    return held.setdefault(str(node.target), [Term(size) for size in shape])


def _call(recording: Recording, node: fx.Node, findings: Findings, read: bool) -> Any:
    """Apply the operator's rule; without one, everything that meets in the operator is pinned."""
    found = find_rule(node)
    module, place = recording.module(node), node.meta.get("place", "")
    call = Call(node, arguments_of(node), findings, module, place, read)
    if found is None:
        name = operator_name(node)
        findings.unknown[name] = findings.unknown.get(name, 0) + 1
        return _unknown(call, f"the operator {name} has no rule")
    try:
        dims = found.infer(call)
    except _FAILURES as error:
        return _unknown(call, f"{call.name} could not be followed: {error}")
    if not _agrees(dims, node.meta["val"]):
        return _unknown(call, f"{call.name} could not be followed")
    return dims


def _unknown(call: Call, reason: str) -> Any:
    for dims in call.operands:
        for term in flat_terms(dims):
            call.pin(term, reason)

    def pinned(value: Any) -> Any:
        if isinstance(value, Tensor):
            return [call.fixed(size, reason) for size in value.shape]
        if isinstance(value, (list, tuple)):
            return [pinned(each) for each in value]
        return []

    return pinned(call.node.meta["val"])


def _agrees(dims: Any, value: Any) -> bool:
    """Whether the inferred sizes are those of the tensors."""
    if isinstance(value, Tensor):
        return isinstance(dims, list) and [
            term.size if isinstance(term, Term) else -1 for term in dims
        ] == list(value.shape)
    if isinstance(value, (list, tuple)):
        return len(dims) >= len(value) and all(
            _agrees(one, each) for one, each in zip(dims, value, strict=False)
        )
    return True


def _outputs(node: fx.Node, findings: Findings) -> None:
    """Pin what comes out; where nothing does that can be seen, anything may."""
    seen = list(node.all_input_nodes) or list(findings.dims)
    for each in seen:
        for term in flat_terms(findings.dims.get(each)):
            pin(term, Pin("the model's output"))


def held_terms(recording: Recording, findings: Findings) -> Mapping[str, list[Term]]:
    """Return the terms of the parameters and buffers by name."""
    return {
        str(node.target): findings.dims[node]
        for node in recording.graph.nodes
        if node.op == "get_attr" and not node.meta["constant"]
    }
