"""Heads: the axes that attention goes through side by side."""

from __future__ import annotations

from torch import fx

from secateur.structure.rules import arguments_of, operator_name
from secateur.structure.terms import Term, leaves
from secateur.structure.trace import Trace

_PAIRS = {
    "scaled_dot_product_attention": ("query", "value"),
    "matmul": ("self", "other"),
    "bmm": ("self", "mat2"),
    "baddbmm": ("batch1", "batch2"),
}


def head_axes(structure: Trace) -> set[Term]:
    """Return the leaves over which activations are multiplied side by side: attention's heads."""
    found: set[Term] = set()
    for run in structure.runs:
        for node in run.recording.steps:
            name = operator_name(node)
            if name in _PAIRS:
                arguments = arguments_of(node)
                one, other = (_batch(arguments[each], structure) for each in _PAIRS[name])
                found |= one & other
            elif name == "einsum":
                found |= _of_einsum(node, structure)
    carried = {structure.leaves[axis.name] for axis in structure.axes}
    return {leaf for leaf in found if leaf in carried and leaf.pinned is None}


def _batch(operand: fx.Node, structure: Trace) -> set[Term]:
    dims = structure.findings.dims[operand]
    return {leaf for term in dims[:-2] for leaf in leaves(term)}


def _of_einsum(node: fx.Node, structure: Trace) -> set[Term]:
    operands = list(node.all_input_nodes)
    if len(operands) != 2:
        return set()
    made, one, other = (
        {leaf for term in structure.findings.dims[each] for leaf in leaves(term)}
        for each in (node, *operands)
    )
    return made & one & other
