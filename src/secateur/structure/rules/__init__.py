"""One small rule per operator: how axes go through it, and what becomes of a zero channel."""

from secateur.structure.rules import (
    elementwise,
    indexing,
    products,
    recurrent,
    reductions,
    shapes,
    windows,
)
from secateur.structure.rules.registry import (
    Call,
    Dims,
    Findings,
    Reduction,
    Rule,
    arguments_of,
    find_rule,
    has_rule,
    is_in_place,
    operator_name,
    rule,
    zero_of,
)

__all__ = [
    "Call",
    "Dims",
    "Findings",
    "Reduction",
    "Rule",
    "arguments_of",
    "elementwise",
    "find_rule",
    "has_rule",
    "indexing",
    "is_in_place",
    "operator_name",
    "products",
    "recurrent",
    "reductions",
    "rule",
    "shapes",
    "windows",
    "zero_of",
]
