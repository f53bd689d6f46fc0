"""Intervals, paired tests and Holm's correction, against scipy and by their definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from secateur.errors import SecateurError
from secateur.study import holm, interval, paired

accuracies = st.floats(0, 1).map(lambda x: round(x, 4))
p_values = st.lists(st.floats(0, 1), max_size=8)


@given(st.lists(accuracies, min_size=2, max_size=12))
def test_an_interval_is_that_of_scipy(values):
    found = interval(values)
    spread = float(np.std(values, ddof=1))
    assert found.mean == pytest.approx(np.mean(values))
    if spread > 1e-9:
        low, high = stats.t.interval(
            0.95, len(values) - 1, np.mean(values), spread / math.sqrt(len(values))
        )
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.low <= found.mean <= found.high


def test_one_value_has_no_interval():
    found = interval([0.5])
    assert (found.mean, found.low, found.high, found.half, found.n) == (0.5, None, None, None, 1)


@pytest.mark.parametrize("call", [lambda: interval([]), lambda: interval([1.0, 2.0], level=95)])
def test_what_cannot_be_averaged_is_refused(call):
    with pytest.raises(SecateurError):
        call()


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=10))
def test_a_paired_test_is_that_of_scipy(pairs):
    a, b = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    found = paired(a, b)
    differences = [x - y for x, y in pairs]
    if np.std(differences) < 1e-9:
        same = max(map(abs, differences)) < 1e-12
        assert found.p == (1.0 if same else None)
        return
    expected = stats.ttest_rel(list(a.values()), list(b.values()))
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    bounds = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx(bounds, abs=1e-9)
    # An interval excludes zero exactly where the test that belongs to it rejects.
    if abs(found.p - 0.05) > 1e-6:
        excludes = found.difference.low > 0 or found.difference.high < 0
        assert (found.p < 0.05) == excludes


@given(
    st.dictionaries(st.integers(0, 6), accuracies), st.dictionaries(st.integers(0, 6), accuracies)
)
def test_only_common_seeds_are_paired(a, b):
    common = set(a) & set(b)
    found = paired(a, b)
    if not common:
        assert found is None
        return
    assert found.difference.n == len(common)
    assert found.difference.mean == pytest.approx(np.mean([a[s] - b[s] for s in common]), abs=1e-12)
    swapped = paired(b, a)
    assert swapped.difference.mean == pytest.approx(-found.difference.mean)
    assert swapped.p == (None if found.p is None else pytest.approx(found.p))


def stepwise(values: list[float]) -> set[int]:
    """Holm's procedure as published, at the level 0.05: reject until the first that holds."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    rejected: set[int] = set()
    for rank, place in enumerate(order):
        if values[place] >= 0.05 / (len(values) - rank):
            break
        rejected.add(place)
    return rejected


@given(p_values)
def test_holm_rejects_what_the_step_down_procedure_rejects(values):
    adjusted = holm(values)
    # Where a comparison is decided by the last bit of a float, both are right.
    steps = itertools.product(values, range(1, len(values) + 1))
    if all(abs(p * k - 0.05) > 1e-12 for p, k in steps):
        assert {i for i, p in enumerate(adjusted) if p < 0.05} == stepwise(values)


@given(p_values)
def test_holm_stays_between_none_and_bonferroni_and_keeps_the_order(values):
    adjusted = holm(values)
    for p, found in zip(values, adjusted, strict=True):
        assert p <= found <= min(1.0, len(values) * p) + 1e-15
    for (p, x), (q, y) in itertools.combinations(zip(values, adjusted, strict=True), 2):
        assert (p <= q or x >= y) and (p >= q or x <= y)


@given(p_values, st.integers(0, 8))
def test_what_was_not_tested_does_not_count(values, place):
    with_gap = [*values[:place], None, *values[place:]]
    found = holm(with_gap)
    assert found.pop(min(place, len(values))) is None
    assert found == holm(values)


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_what_is_no_p_value_is_refused(p):
    with pytest.raises(SecateurError, match="is not a p value"):
        holm([0.5, p])
