"""Where zeros go: whether a channel whose weights are zero can be removed without a difference.

A channel is followed from the parameters that are zero for it through every operator. It may go
unnoticed by an operator that takes its axis together (a matrix product whose weights are zero for
it), or not (a norm that averages over the axis): then removing it changes what is computed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import fx

from secateur.structure.rules import Findings, arguments_of, operator_name
from secateur.structure.rules.registry import Reduction, zero_of
from secateur.structure.terms import Term, flat_terms, leaves


class Zeros:
    """Answers, for one leaf at a time, what a removal would change."""

    def __init__(self, graphs: Iterable[fx.Graph], findings: Findings) -> None:
        self.findings = findings
        self.by_leaf: dict[Term, list[fx.Node]] = {}
        self.held: dict[fx.Node, set[Term]] = {}
        for graph in graphs:
            for node in graph.nodes:
                dims = findings.dims.get(node)
                if dims is None:
                    continue
                own = {leaf for term in flat_terms(dims) for leaf in leaves(term)}
                for reduction in findings.reductions.get(node, ()):
                    own |= set(leaves(reduction.term))
                self.held[node] = own
                for leaf in own:
                    if leaf.pinned is None:
                        self.by_leaf.setdefault(leaf, []).append(node)

    def noticed(self, leaf: Term, zero_names: Collection[str]) -> list[tuple[fx.Node, str]]:
        """Return the operators whose result would change if zero channels were removed, and why.

        ``zero_names`` are the parameters that are zero for the channels in question.
        """
        zero: dict[fx.Node, bool] = {}
        found: list[tuple[fx.Node, str]] = []
        for node in self.by_leaf.get(leaf, ()):
            if node.op == "get_attr":
                zero[node] = str(node.target) in zero_names
                continue
            found += [
                (node, reduction.reason or "values meet over it")
                for reduction in self.findings.reductions.get(node, ())
                if leaf in set(leaves(reduction.term)) and not self._unnoticed(reduction, zero)
            ]
            zero[node] = self._zero(node, leaf, zero)
        return found

    def _unnoticed(self, reduction: Reduction, zero: Mapping[fx.Node, bool]) -> bool:
        if reduction.kind == "size":
            return False
        known = [zero.get(operand, False) for operand in reduction.operands]
        return any(known) if reduction.kind == "contract" else bool(known) and all(known)

    def _zero(self, node: fx.Node, leaf: Term, zero: Mapping[fx.Node, bool]) -> bool:
        """Whether a channel's slice of what an operator gives is zero."""
        operands = [each for each in node.all_input_nodes if each in self.held]
        kind = zero_of(node, self.findings)
        if kind == "carried":
            return all(zero.get(each, False) for each in operands if leaf in self.held[each])
        if kind == "any":
            return any(zero.get(each, False) for each in operands)
        if kind == "first":
            return bool(operands) and zero.get(operands[0], False)
        if kind == "all":
            return not _has_number(node) and all(zero.get(each, False) for each in operands)
        if kind == "weighted":
            return self._weighted(node, leaf, zero)
        return kind == "always"

    def _weighted(self, node: fx.Node, leaf: Term, zero: Mapping[fx.Node, bool]) -> bool:
        arguments = arguments_of(node)
        several = [each for each in arguments.get("params") or () if isinstance(each, fx.Node)]
        if several:
            return all(zero.get(each, False) for each in several if leaf in self.held[each])
        weight, bias = arguments.get("weight"), arguments.get("bias")
        settled = not isinstance(bias, fx.Node) or zero.get(bias, False)
        if isinstance(weight, fx.Node) and leaf in self.held[weight]:
            return settled and zero.get(weight, False)
        if "batch_norm" in operator_name(node):
            return False
        data = node.all_input_nodes[0]
        return not isinstance(bias, fx.Node) and zero.get(data, False)


def zero_nodes(graph: fx.Graph, findings: Findings, zero_names: Collection[str]) -> set[fx.Node]:
    """Return the operators that give nothing but zeros where the named parameters are zero."""
    zero: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            if str(node.target) in zero_names:
                zero.add(node)
        elif node.op == "call_function" and _is_zero(node, findings, zero):
            zero.add(node)
    return zero


def _is_zero(node: fx.Node, findings: Findings, zero: Collection[fx.Node]) -> bool:
    kind, operands = zero_of(node, findings), node.all_input_nodes
    if kind == "any":
        return any(each in zero for each in operands)
    if kind == "first":
        return bool(operands) and operands[0] in zero
    if kind in ("all", "carried"):
        return bool(operands) and not _has_number(node) and all(each in zero for each in operands)
    if kind != "weighted":
        return kind == "always"
    arguments = arguments_of(node)
    weight, bias = arguments.get("weight"), arguments.get("bias")
    if isinstance(bias, fx.Node) and bias not in zero:
        return False
    scaled = "norm" in operator_name(node)
    return weight in zero or (operands[0] in zero and not scaled)


def _has_number(node: fx.Node) -> bool:
    """Whether a sum has a plain number other than zero among its operands."""
    names = ("self", "other", "min", "max", "value", "end")
    arguments: dict[str, Any] = arguments_of(node)
    given = [arguments.get(name) for name in names]
    return any(isinstance(each, (int, float)) and each != 0 for each in given)
