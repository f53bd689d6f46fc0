"""Lazy scores against exact fractions; bit for bit whichever way they are computed."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.technique.criteria.tails import Grid, Tails

sizes_of_layers = st.lists(
    st.floats(0, width=32, allow_infinity=False) | st.sampled_from([0.0, 1.0, 2.0, 1e-20]),
    min_size=1,
    max_size=30,
).map(lambda sizes: torch.tensor(sizes, dtype=torch.float32))


def tails(sizes: Tensor) -> Tails:
    made = Tails.of(sizes)
    assert made is not None
    return made


def by_fractions(sizes: Tensor) -> list[float]:
    """Divide by the sum of what comes no sooner, without rounding."""
    squares = [Fraction(size) ** 2 for size in sizes.tolist()]
    order = sorted(range(len(squares)), key=squares.__getitem__)
    found = [0.0] * len(squares)
    total = Fraction(0)
    for place in reversed(order):
        total += squares[place]
        found[place] = float(squares[place] / total) if total else 0.0
    return found


@settings(max_examples=300, deadline=None)
@given(sizes_of_layers)
def test_scores_are_as_exact_as_doubles(sizes: Tensor) -> None:
    found = tails(sizes).complete().tolist()
    assert found == pytest.approx(by_fractions(sizes), rel=1e-14, abs=0)


@settings(max_examples=300, deadline=None)
@given(sizes_of_layers, st.data())
def test_scores_of_neighbours_are_those_of_all_bit_for_bit(
    sizes: Tensor, data: st.DataObject
) -> None:
    whole = tails(sizes)
    ordered = sizes.sort(stable=True)
    high = data.draw(st.sampled_from([*sizes.tolist(), -1.0, math.inf]))
    near = ordered.values[ordered.values <= high]
    expected = whole.complete()[ordered.indices][: len(near)]
    assert torch.equal(whole.of_sorted(near, whole.above(high)), expected)


def test_scores_do_not_depend_on_the_order_of_a_long_sum() -> None:
    sizes = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).abs() ** 3
    whole = tails(sizes)
    assert whole.above(0.5) == tails(sizes.sort().values).above(0.5)
    assert whole.above(0.5) == tails(sizes.flip(0)).above(0.5)
    ordered = sizes.sort(stable=True)
    for cut in (1, 70_000, 99_999):
        near = ordered.values[:cut]
        scores = whole.of_sorted(near, whole.above(float(near[-1])))
        assert torch.equal(scores, whole.complete()[ordered.indices][:cut])


@given(sizes_of_layers)
def test_scores_rise_in_the_order_of_sizes_and_places(sizes: Tensor) -> None:
    order = sizes.sort(stable=True).indices
    assert bool((tails(sizes).complete()[order].diff() >= 0).all())


@given(st.just(0.0) | st.floats(1e-90, 1e77), st.integers(1, 1 << 30))
def test_nothing_is_rounded_where_squares_add_up(largest: float, count: int) -> None:
    """The sums of multiples stay where all multiples are doubles: up to 2^53 of them."""
    grid = Grid.of(largest, count)
    assert Fraction(largest) * count + Fraction(grid.coarse) * count / 2 <= (
        2**53 * Fraction(grid.coarse)
    )
    assert Fraction(grid.coarse) * count <= 2**53 * Fraction(grid.fine)
    lost = Fraction(grid.fine) / 2 * count
    assert lost <= Fraction(largest) * count**3 / 2**103 or largest == 0


@pytest.mark.parametrize(
    "sizes",
    [torch.tensor([1.0, math.inf]), torch.tensor([math.nan, 1.0]), torch.ones(2).double(),
     torch.ones(0)],
)  # fmt: skip
def test_what_is_not_lazy(sizes: Tensor) -> None:
    assert Tails.of(sizes) is None
