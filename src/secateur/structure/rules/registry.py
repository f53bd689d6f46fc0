"""The registry of operator rules, and what a rule sees of one call."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from torch import fx

from secateur.errors import SecateurError
from secateur.structure.terms import ClashError, Pin, Term, leaves, pin, split, unify

Dims = list[Term]
Result = Any
"""What a rule returns: the dimensions of the output tensor, or a list of them for several."""

Zero = Literal["all", "any", "first", "carried", "weighted", "always", "none"]
"""What makes a slice of the output zero, where a channel's slices of the operands are zero.

``all``: every operand's slice, and every number's (sums). ``any``: one of them (products).
``first``: the first operand's. ``carried``: those of the operands that have the channel at all
(views, concatenations). ``weighted``: the weight's and bias' where these carry the channel, the
data's without bias otherwise. ``always``: nothing but zeros is ever made. ``none``: nothing does.
"""

Infer = TypeVar("Infer", bound="Callable[[Call], Result]")

ReductionKind = Literal["contract", "sum", "size"]


@dataclass(frozen=True)
class Rule:
    """How axes go through an operator, and what becomes of a channel that is zero."""

    infer: Callable[[Call], Result]
    zero: Zero | Callable[[Call], Zero]
    """A function where the arguments of a call decide; it may look at the inferred dimensions."""


@dataclass(frozen=True)
class Reduction:
    """An operator that takes an axis together.

    ``contract``: products over the axis are added, so that one operand's zero is enough. ``sum``:
    zeros add nothing. ``size``: the result depends on how many there are, with the reason.
    """

    term: Term
    kind: ReductionKind
    operands: tuple[fx.Node, ...]
    reason: str = ""


@dataclass
class Findings:
    """What inference has found: dimensions by node, reductions by node, costs in products.

    A cost is a list of terms whose sizes multiply to multiply-accumulates.
    """

    dims: dict[fx.Node, Any] = field(default_factory=dict)
    reductions: dict[fx.Node, list[Reduction]] = field(default_factory=dict)
    costs: dict[fx.Node, list[list[Term]]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass
class Call:
    """One call of an operator: its arguments by name, and the dimensions of its operands.

    ``read`` is false where nothing depends on the values of its result: it then pins nothing.
    """

    node: fx.Node
    arguments: dict[str, Any]
    findings: Findings
    module: str = ""
    place: str = ""
    read: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output tensor."""
        return tuple(self.node.meta["val"].shape)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the output tensors, where there are several."""
        return [tuple(each.shape) for each in self.node.meta["val"]]

    @property
    def name(self) -> str:
        """The operator's name, without overload and trailing underscore."""
        return operator_name(self.node)

    @property
    def several(self) -> bool:
        """Whether the operator gives several tensors."""
        return isinstance(self.node.meta["val"], (list, tuple))

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument as it was given."""
        value = self.arguments.get(name)
        return default if value is None else value

    def dims(self, name: str) -> Dims | None:
        """Return the dimensions of a tensor argument, None where it is absent."""
        value = self.arguments.get(name)
        return self.findings.dims.get(value) if isinstance(value, fx.Node) else None

    def need(self, name: str) -> Dims:
        """Return the dimensions of a tensor argument that must be there."""
        found = self.dims(name)
        if found is None:
            raise ClashError(f"{name} is not a tensor")
        return found

    def list_of(self, name: str) -> list[Dims]:
        """Return the dimensions of the tensors in a list argument."""
        return [self.findings.dims[each] for each in self.get(name, ())
                if isinstance(each, fx.Node)]  # fmt: skip

    @property
    def operands(self) -> list[Dims]:
        """The dimensions of all tensor operands."""
        return [self.findings.dims[each] for each in self.node.all_input_nodes
                if isinstance(self.findings.dims.get(each), list)]  # fmt: skip

    def why(self, reason: str, data: bool = False) -> Pin:
        """Return a pin with this call's module and place."""
        return Pin(reason, self.module, self.place, data)

    def unify(self, one: Term, other: Term) -> None:
        """Make two terms the same; where they cannot be, both are pinned with the reason."""
        try:
            unify(one, other)
        except ClashError as clash:
            reason = f"{self.name}: {clash}"
            pin(one, self.why(reason))
            pin(other, self.why(reason))

    def pin(self, term: Term, reason: str) -> None:
        """Pin a term, unless the values of the result are not read."""
        if self.read:
            pin(term, self.why(reason))

    def data(self, size: int, reason: str = "the data's own extent") -> Term:
        """Return a new dimension that belongs to the data."""
        return Term(size, pinned=self.why(reason, data=True))

    def fixed(self, size: int, reason: str) -> Term:
        """Return a new dimension that cannot change."""
        return Term(size, pinned=self.why(reason))

    def split(self, term: Term, sizes: Sequence[int]) -> list[Term]:
        """Part a term; where that is impossible it is pinned, and so are the pieces."""
        try:
            return split(term, sizes)
        except ClashError as clash:
            reason = f"{self.name}: {clash}"
            self.pin(term, reason)
            return [self.fixed(size, reason) for size in sizes]

    def reduce(
        self, term: Term, kind: ReductionKind, names: Iterable[str] = (), reason: str = ""
    ) -> None:
        """Note that a term is taken together; ``names`` are the operands that carry it."""
        given = (self.arguments.get(name) for name in names)
        operands = [each for each in given if isinstance(each, fx.Node)]
        self.reduce_nodes(term, kind, operands, reason)

    def reduce_nodes(
        self, term: Term, kind: ReductionKind, operands: Iterable[fx.Node], reason: str = ""
    ) -> None:
        """Note that a term is taken together; ``operands`` are the nodes that carry it."""
        if self.read:
            noted = self.findings.reductions.setdefault(self.node, [])
            noted.append(Reduction(term, kind, tuple(operands), reason))

    def cost(self, *terms: Term) -> None:
        """Note multiply-accumulates: the product of the sizes of terms."""
        self.findings.costs.setdefault(self.node, []).append(list(terms))

    def window(self, terms: Sequence[Term], sizes: Sequence[int], kept: bool = False) -> Dims:
        """Return the dimensions that windows sliding along some dimensions give.

        ``kept`` says that a window is a single entry, so that every entry stays what it is.
        """
        made: Dims = []
        for term, size in zip(terms, sizes, strict=True):
            if kept and term.size == size and not is_data(term):
                made.append(term)
                continue
            self.pin(term, "windows slide along it")
            made.append(self.data(size, "an image's extent"))
        return made

    def broadcast(self, operands: Sequence[Dims], shape: Sequence[int]) -> Dims:
        """Unify the dimensions of operands under broadcasting; return those of the output."""
        out: Dims = []
        for place in range(1, len(shape) + 1):
            current: Term | None = None
            for dims in operands:
                if len(dims) < place or dims[-place].size == 1 != shape[-place]:
                    continue
                if current is None:
                    current = dims[-place]
                elif current.size != 1:
                    self.unify(current, dims[-place])
            out.append(Term(shape[-place]) if current is None else current)
        return out[::-1]


def is_data(term: Term) -> bool:
    """Whether a term comes with the data alone."""
    return all(leaf.pinned is not None and leaf.pinned.data for leaf in leaves(term))


def free_leaves(terms: Iterable[Term]) -> set[Term]:
    """Return the leaves of terms that are not pinned."""
    return {leaf for term in terms for leaf in leaves(term) if leaf.pinned is None}


_RULES: dict[str, Rule] = {}


def rule(*names: str, zero: Zero | Callable[[Call], Zero] = "none") -> Callable[[Infer], Infer]:
    """Register a rule for operators, by name (``conv2d``) or qualified name (``mylib::blur``).

    A name may end in an overload (``max.other``), which comes before the plain name. Raises
    SecateurError where a name is taken.

    >>> @rule("mylib::doubled", zero="all")
    ... def _double(call):
    ...     return call.need("x")
    """

    def register(function: Infer) -> Infer:
        for name in names:
            if name in _RULES:
                raise SecateurError(f"the operator '{name}' has a rule already")
            _RULES[name] = Rule(function, zero)
        return function

    return register


def find_rule(node: fx.Node) -> Rule | None:
    """Return the rule of the operator that a node calls, None where there is none."""
    if node.target is operator.getitem:
        return _RULES["getitem"]
    plain = operator_name(node)
    namespace = getattr(node.target, "namespace", "aten")
    overload = getattr(node.target, "_overloadname", "")
    names = (f"{namespace}::{plain}", f"{plain}.{overload}", plain)
    return next((_RULES[name] for name in names if name in _RULES), None)


def has_rule(name: str) -> bool:
    """Whether an operator, written as ``aten.linear.default``, has a rule."""
    namespace, _, rest = name.partition(".")
    plain = rest.partition(".")[0].rstrip("_") if not rest.startswith("_") else rest.split(".")[0]
    return any(each in _RULES for each in (f"{namespace}::{plain}", f"{plain}.{rest}", plain))


def zero_of(node: fx.Node, findings: Findings) -> Zero:
    """Return what makes the output of a call zero.

    ``none`` where no rule says so, and where the output is written to later through another tensor.
    """
    found = find_rule(node)
    if found is None or node.meta.get("written", False):
        return "none"
    if not callable(found.zero):
        return found.zero
    return found.zero(Call(node, arguments_of(node), findings))


def operator_name(node: fx.Node) -> str:
    """Return an operator's name, without namespace, overload and the mark of in-place."""
    if node.target is operator.getitem:
        return "getitem"
    name = str(getattr(node.target, "_opname", getattr(node.target, "__name__", node.target)))
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def is_in_place(node: fx.Node) -> bool:
    """Whether an operator writes into one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by their names in the operator's schema, with defaults."""
    if node.target is operator.getitem:
        return {"input": node.args[0], "index": node.args[1]}
    schema = node.target._schema  # type: ignore[union-attr]
    found: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if place < len(node.args):
            found[argument.name] = node.args[place]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            found[argument.name] = argument.default_value
    return found
