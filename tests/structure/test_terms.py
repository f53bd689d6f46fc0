"""Terms: what unification keeps, whatever terms meet."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.structure.terms import (
    ClashError,
    Pin,
    Term,
    factors,
    find,
    flat_terms,
    is_pinned,
    leaves,
    pin,
    product,
    split,
    summands,
    total,
    unify,
)

WHY = Pin("a reason", "a module", "a place")


@st.composite
def terms(draw: st.DrawFn, size: int | None = None, deep: int = 3, shared: bool = True) -> Term:
    """A term of a size: a leaf, a product or a sum of smaller ones; leaves may be shared."""
    size = draw(st.sampled_from([4, 6, 8, 12, 24])) if size is None else size
    return _grown(draw, size, deep, [] if shared else None)


def _grown(draw: st.DrawFn, size: int, deep: int, pool: list[Term] | None) -> Term:
    known = [leaf for leaf in pool or () if leaf.size == size]
    kinds = ["leaf", "pinned"]
    divisors = [each for each in range(2, size) if size % each == 0]
    if deep and divisors:
        kinds.append("product")
    if deep and size > 1:
        kinds.append("sum")
    if known:
        kinds.append("known")
    kind = draw(st.sampled_from(kinds))
    if kind == "known":
        return draw(st.sampled_from(known))
    if kind == "product":
        outer = draw(st.sampled_from(divisors))
        return product([_grown(draw, each, deep - 1, pool) for each in (outer, size // outer)])
    if kind == "sum":
        first = draw(st.integers(1, size - 1))
        return total([_grown(draw, each, deep - 1, pool) for each in (first, size - first)])
    leaf = Term(size, pinned=WHY if kind == "pinned" else None)
    if pool is not None:
        pool.append(leaf)
    return leaf


@st.composite
def several(draw: st.DrawFn, count: int) -> list[Term]:
    """Terms of one size which may share leaves."""
    size = draw(st.sampled_from([4, 6, 8, 12, 24]))
    pool: list[Term] = []
    return [_grown(draw, size, 3, pool) for _ in range(count)]


def sound(term: Term, depth: int = 0) -> bool:
    """Whether sizes fit all the way down, and nothing contains itself."""
    term = find(term)
    assert depth < 60
    sizes = [find(part).size for part in term.parts]
    whole = {"leaf": term.size, "product": math.prod(sizes), "sum": sum(sizes)}[term.kind]
    return whole == term.size and all(sound(part, depth + 1) for part in term.parts)


def meaning(term: Term) -> list[tuple[object, ...]]:
    """What every position along a term stands for: a leaf and its index, or several.

    Leaves of one entry are left out of products, and nothing can be removed of them.
    """
    term = find(term)
    if term.kind == "leaf" and term.size == 1:
        return [()]
    if term.kind == "leaf":
        return [((id(term), place),) for place in range(term.size)]
    parts = [meaning(part) for part in term.parts]
    if term.kind == "sum":
        return [each for part in parts for each in part]
    whole: list[tuple[object, ...]] = [()]
    for part in parts:
        whole = [(*one, *other) for one in whole for other in part]
    return whole


def attempt(one: Term, other: Term) -> bool:
    try:
        unify(one, other)
    except ClashError:
        return False
    return True


@given(several(3))
def test_sizes_are_kept_whatever_meets(given_terms: list[Term]) -> None:
    sizes = [term.size for term in given_terms]
    attempt(given_terms[0], given_terms[1])
    attempt(given_terms[1], given_terms[2])
    assert [find(term).size for term in given_terms] == sizes
    assert all(sound(term) for term in given_terms)


@given(several(2))
def test_what_is_unified_means_the_same_at_every_position(pair: list[Term]) -> None:
    one, other = pair
    if attempt(one, other):
        assert meaning(one) == meaning(other)


@given(several(3))
def test_what_was_unified_stays_so(given_terms: list[Term]) -> None:
    one, two, three = given_terms
    if attempt(one, two):
        attempt(two, three)
        assert meaning(one) == meaning(two)


@given(st.data(), st.sampled_from([4, 6, 8, 12, 24]))
def test_unification_is_symmetric(data: st.DataObject, size: int) -> None:
    """The same terms, made twice, meet in either order."""
    seeds = data.draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=2))
    pairs = [[_seeded(size, seed) for seed in seeds] for _ in range(2)]
    there = attempt(pairs[0][0], pairs[0][1])
    back = attempt(pairs[1][1], pairs[1][0])
    assert there == back
    if there:
        shapes = [_pattern(meaning(pair[0])) for pair in pairs]
        assert shapes[0] == shapes[1]


def _seeded(size: int, seed: int, deep: int = 3) -> Term:
    """A term that a seed decides, with leaves of its own."""
    if deep == 0 or size == 1 or seed % 4 == 0:
        return Term(size)
    divisors = [each for each in range(2, size) if size % each == 0]
    if seed % 4 == 1 and divisors:
        outer = divisors[seed // 4 % len(divisors)]
        return product([_seeded(each, seed // 16, deep - 1) for each in (outer, size // outer)])
    first = 1 + seed // 4 % (size - 1)
    return total([_seeded(each, seed // 16, deep - 1) for each in (first, size - first)])


def _pattern(values: list[tuple[object, ...]]) -> list[tuple[int, ...]]:
    """Positions by what they share, whatever the leaves are called."""
    names: dict[object, int] = {}
    return [tuple(names.setdefault(each, len(names)) for each in value) for value in values]


@given(terms())
def test_a_term_meets_itself_and_a_fresh_one(term: Term) -> None:
    before = meaning(term)
    unify(term, term)
    fresh = Term(term.size)
    unify(fresh, term)
    assert meaning(fresh) == meaning(term) == before


@given(st.lists(st.integers(2, 4), min_size=2, max_size=4))
def test_flattening_and_splitting_again_gives_the_same_leaves(sizes: list[int]) -> None:
    own = [Term(size) for size in sizes]
    fresh = [Term(size) for size in sizes]
    unify(product(own), product(fresh))
    assert [find(each) for each in fresh] == [find(each) for each in own]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_joining_and_parting_again_gives_the_same_leaves(sizes: list[int]) -> None:
    own = [Term(size) for size in sizes]
    pieces = split(total(own), sizes)
    assert [find(each) for each in pieces] == [find(each) for each in own]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(2, 4))
def test_a_sum_is_distributed_over_a_product(one: int, two: int, inner: int) -> None:
    """(a + b) against (g c): the parts are groups of c, and the groups are parted as they are."""
    parts = [Term(one * inner), Term(two * inner)]
    group, channel = Term(one + two), Term(inner)
    unify(total(parts), product([group, channel]))
    assert meaning(total(parts)) == meaning(product([group, channel]))
    assert [summand.size for summand in summands(group)] == [one, two]
    for part in parts:
        assert factors(part)[-1] is find(channel)


def test_the_larger_factor_is_split_where_it_divides() -> None:
    twelve, three, four = Term(12), Term(3), Term(4)
    unify(product([twelve, Term(2)]), product([three, four, Term(2)]))
    assert factors(twelve) == [find(three), find(four)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: product([Term(3), Term(4)]), lambda: product([Term(2), Term(6)])),
        (lambda: total([Term(5), Term(7)]), lambda: product([Term(3), Term(4)])),
        (lambda: Term(3), lambda: Term(4)),
    ],
)
def test_no_common_refinement(one: Callable[[], Term], other: Callable[[], Term]) -> None:
    with pytest.raises(ClashError):
        unify(one(), other())


def test_a_term_does_not_contain_itself() -> None:
    """A leaf cannot be twice itself, or itself and something else."""
    leaf = Term(4)
    around = Term(4, "sum", [leaf, Term(0)])
    with pytest.raises(ClashError, match="contain itself"):
        unify(leaf, around)


@given(several(2))
def test_pins_are_inherited(pair: list[Term]) -> None:
    """Where a pinned position meets a free one, both are pinned."""
    one, other = pair
    marked = [any(leaf.pinned for leaf in leaves(term)) for term in pair]
    if attempt(one, other) and any(marked):
        assert any(leaf.pinned for leaf in leaves(one))
    pin(one, WHY)
    if find(one) is find(other):
        assert is_pinned(other)


@given(st.integers(2, 4), st.integers(2, 4))
def test_the_parts_of_a_pinned_leaf_are_pinned(one: int, two: int) -> None:
    for make in (product, total):
        parts = [Term(one), Term(two)]
        whole = make(parts)
        leaf = Term(whole.size, pinned=WHY)
        unify(leaf, whole)
        assert is_pinned(whole)
        assert {part.pinned for part in leaves(whole)} == {WHY}


def test_the_first_reason_stays() -> None:
    leaf, other = Term(4, pinned=WHY), Pin("another")
    pin(leaf, other)
    unify(leaf, Term(4, pinned=other))
    assert {each.pinned.reason for each in leaves(leaf) if each.pinned} <= {"a reason", "another"}
    free = Term(4)
    pin(free, WHY)
    pin(free, other)
    assert free.pinned is WHY


@given(several(2))
def test_a_clash_leaves_sizes_and_meanings_whole(pair: list[Term]) -> None:
    one, other = pair
    if not attempt(one, other):
        assert sound(one)
        assert sound(other)
        assert len(meaning(one)) == one.size


@given(terms(), st.data())
def test_pieces_lie_one_after_the_other(term: Term, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, term.size))
    sizes = [first, term.size - first]
    try:
        pieces = split(term, sizes)
    except ClashError:
        assert sound(term)
        return
    assert [find(piece).size for piece in pieces] == sizes
    assert [each for piece in pieces for each in meaning(piece)] == meaning(term)


def test_a_cut_within_a_group_clashes() -> None:
    with pytest.raises(ClashError, match="a cut of"):
        split(product([Term(4), Term(3)]), [5, 7])


def test_empty_sizes_are_no_accident() -> None:
    """A dimension without entries has no factors to divide by."""
    with pytest.raises(ClashError):
        split(product([Term(0), Term(0)]), [0, 0, 1])
    pieces = split(Term(3), [0, 3])
    assert [piece.size for piece in pieces] == [0, 3]


def test_ones_and_nothings_are_left_out() -> None:
    leaf = Term(3)
    assert product([Term(1), leaf]) is leaf
    assert product([]).size == 1
    assert total([leaf, Term(0)]) is leaf
    assert [each.size for each in flat_terms([[leaf], (Term(2), [Term(1)]), None])] == [3, 2, 1]
