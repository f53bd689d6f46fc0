"""Terms: every dimension of every tensor as a variable, a product or a sum of axes.

``view`` and grouped operators make products, ``cat`` and ``split`` make sums. Two dimensions that
must agree are unified, as types are: variables are bound, products are aligned factor by factor,
sums part by part. What cannot agree raises ``ClashError``, and is then pinned by who asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pin:
    """Why an axis cannot be removed: the reason, and the operator and place that gave it.

    ``data`` marks axes that come with the data (a batch, an image's extent), which no weight owns.
    """

    reason: str
    module: str = ""
    place: str = ""
    data: bool = False


class ClashError(Exception):
    """Two terms have no common refinement."""


class Term:
    """A dimension: a leaf (one axis), an ordered product or an ordered sum of terms."""

    __slots__ = ("kind", "parent", "parts", "pinned", "size")

    def __init__(
        self,
        size: int,
        kind: Literal["leaf", "product", "sum"] = "leaf",
        parts: Sequence[Term] = (),
        pinned: Pin | None = None,
    ) -> None:
        self.size = size
        self.kind = kind
        self.parts = list(parts)
        self.pinned = pinned
        self.parent: Term | None = None

    def __repr__(self) -> str:
        term = find(self)
        if term.kind == "leaf":
            return f"{'!' if term.pinned else ''}{term.size}"
        return "(" + (" " if term.kind == "product" else "+").join(map(repr, term.parts)) + ")"


def find(term: Term) -> Term:
    """Return what a term was bound to, with the path to it shortened."""
    root = term
    while root.parent is not None:
        root = root.parent
    while term.parent is not None:
        term.parent, term = root, term.parent
    return root


def product(parts: Iterable[Term]) -> Term:
    """Join terms into an ordered product; factors of one are left out.

    >>> product([Term(2), Term(1), Term(3)])
    (2 3)
    """
    kept = [part for part in parts if part.size != 1]
    if len(kept) == 1:
        return kept[0]
    if not kept:
        return Term(1)
    return Term(math.prod(part.size for part in kept), "product", kept)


def total(parts: Sequence[Term]) -> Term:
    """Join terms into an ordered sum; empty parts are left out.

    >>> total([Term(2), Term(0), Term(3)])
    (2+3)
    """
    kept = [part for part in parts if part.size != 0]
    if len(kept) == 1:
        return kept[0]
    return Term(sum(part.size for part in kept), "sum", kept)


def factors(term: Term) -> list[Term]:
    """Return the factors of a term, nested products opened; a leaf or a sum is its own factor."""
    term = find(term)
    if term.kind == "product":
        return [factor for part in term.parts for factor in factors(part)]
    return [term]


def summands(term: Term) -> list[Term]:
    """Return the parts of a term, nested sums opened; a leaf or a product is its own part."""
    term = find(term)
    if term.kind == "sum":
        return [summand for part in term.parts for summand in summands(part)]
    return [term]


def leaves(term: Term) -> Iterator[Term]:
    """Give the leaves of a term in order, with repetitions."""
    term = find(term)
    if term.kind == "leaf":
        yield term
    else:
        for part in term.parts:
            yield from leaves(part)


def flat_terms(dims: object) -> Iterator[Term]:
    """Give the terms in nested lists of dimensions, in order."""
    if isinstance(dims, Term):
        yield dims
    elif isinstance(dims, (list, tuple)):
        for each in dims:
            yield from flat_terms(each)


def pin(term: Term, why: Pin) -> None:
    """Pin every leaf of a term that is not pinned yet."""
    for leaf in leaves(term):
        if leaf.pinned is None:
            leaf.pinned = why


def is_pinned(term: Term) -> bool:
    """Whether no leaf of a term can be removed."""
    return all(leaf.pinned is not None for leaf in leaves(term))


def unify(one: Term, other: Term) -> None:
    """Make two terms of equal size the same.

    Raises ClashError where they have no common refinement.
    """
    one, other = find(one), find(other)
    if one is other:
        return
    if one.size != other.size:
        raise ClashError(f"{one.size} against {other.size}")
    if one.kind == "leaf" and not _holds(other, one):
        _bind(one, other)
    elif other.kind == "leaf" and not _holds(one, other):
        _bind(other, one)
    elif one.kind == other.kind == "product":
        _align(factors(one), factors(other))
        one.parent = other
    elif one.kind == other.kind == "sum":
        _align_sums(summands(one), summands(other))
        one.parent = other
    elif {one.kind, other.kind} == {"sum", "product"}:
        joined, multiplied = (one, other) if one.kind == "sum" else (other, one)
        _distribute(joined, factors(multiplied))
        joined.parent = multiplied
    else:
        raise ClashError("a term would contain itself")


def split(term: Term, sizes: Sequence[int]) -> list[Term]:
    """Part a term along its length into pieces of these sizes.

    A product is parted along its first factor, where every piece is a multiple of the others.
    Raises ClashError where a cut falls between.
    """
    term = find(term)
    if len(sizes) == 1:
        return [term]
    parts = factors(term)
    if len(parts) > 1:
        inner = math.prod(part.size for part in parts[1:])
        if inner == 0 or any(size % inner for size in sizes):
            sizes_of_parts = " ".join(str(part.size) for part in parts)
            raise ClashError(f"a cut of ({sizes_of_parts}) within a factor")
        outer = split(parts[0], [size // inner for size in sizes])
        return [product([piece, *parts[1:]]) for piece in outer]
    pieces = [Term(size) for size in sizes]
    unify(term, Term(term.size, "sum", pieces))
    return pieces


def _holds(term: Term, leaf: Term) -> bool:
    return any(each is leaf for each in leaves(term))


def _bind(leaf: Term, target: Term) -> None:
    leaf.parent = target
    if leaf.pinned is not None:
        pin(target, leaf.pinned)


def _open(leaf: Term, kind: Literal["product", "sum"], sizes: Sequence[int]) -> list[Term]:
    """Turn a leaf into a product or sum of new leaves, which inherit its pin."""
    parts = [Term(size, pinned=leaf.pinned) for size in sizes]
    leaf.kind, leaf.parts, leaf.pinned = kind, parts, None
    return parts


def _align(left: list[Term], right: list[Term]) -> None:
    """Unify two products factor by factor; the larger factor is split where it divides."""
    left, right = list(left), list(right)
    while left and right:
        one, other = find(left[0]), find(right[0])
        if one.kind == "product":
            left[:1] = factors(one)
            continue
        if other.kind == "product":
            right[:1] = factors(other)
            continue
        if one.size == other.size:
            unify(one, other)
            left.pop(0)
            right.pop(0)
            continue
        big, small, rest, others = (
            (one, other, left, right) if one.size > other.size else (other, one, right, left)
        )
        if big.kind == "sum":
            taken = _prefix(others, big.size)
            if taken is None:
                raise ClashError("a sum meets factors that cut it")
            _distribute(big, others[:taken])
            del others[:taken]
            rest.pop(0)
            continue
        if small.size == 0 or big.size % small.size:
            raise ClashError(f"the factors {big.size} and {small.size} have no common refinement")
        rest[:1] = _open(big, "product", [small.size, big.size // small.size])
    if left or right:
        raise ClashError("factors are left over")


def _prefix(parts: Sequence[Term], size: int) -> int | None:
    """Return how many of the first factors multiply to a size, None where none do."""
    reached = 1
    for place, part in enumerate(parts):
        reached *= part.size
        if reached == size:
            return place + 1
    return None


def _align_sums(left: list[Term], right: list[Term]) -> None:
    """Unify two sums part by part; the larger part is cut where the smaller ends."""
    left, right = list(left), list(right)
    while left and right:
        one, other = find(left[0]), find(right[0])
        if one.kind == "sum":
            left[:1] = summands(one)
            continue
        if other.kind == "sum":
            right[:1] = summands(other)
            continue
        if one.size == other.size:
            unify(one, other)
            left.pop(0)
            right.pop(0)
            continue
        big, small, rest = (one, other, left) if one.size > other.size else (other, one, right)
        rest[:1] = split(big, [small.size, big.size - small.size])
    if left or right:
        raise ClashError("parts are left over")


def _distribute(joined: Term, parts: Sequence[Term]) -> None:
    """Unify a sum with a product: (a + b) against (g c) is a = (g1 c), b = (g2 c), g = g1 + g2."""
    pieces = summands(joined)
    inner = math.prod(part.size for part in parts[1:])
    if inner == 0 or any(piece.size % inner for piece in pieces):
        raise ClashError("the parts of a sum are no multiples of the inner factors")
    outer = split(parts[0], [piece.size // inner for piece in pieces])
    for piece, first in zip(pieces, outer, strict=True):
        unify(piece, product([first, *parts[1:]]))
