"""The measures against scikit-learn, definitions, and cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.linear_model import LogisticRegression

from unmask import metrics

SCORES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=60).filter(
    lambda rows: len({label for label, _ in rows}) == 2
)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([y for y, _ in rows]), np.array([s / 20 for _, s in rows])


@given(SCORES)
def test_auc_and_average_precision_are_those_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    y, s = arrays(rows)
    assert metrics.auc(y, s) == pytest.approx(oracle.roc_auc_score(y, s))
    expected = oracle.average_precision_score(y, s)
    assert metrics.average_precision(y, s) == pytest.approx(expected)


@given(SCORES)
def test_brier_is_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    y, s = arrays(rows)
    assert metrics.brier(y, s) == pytest.approx(oracle.brier_score_loss(y, s))


@given(SCORES, st.sampled_from([0.0, 0.01, 0.05, 0.3, 1.0]))
def test_recall_is_the_best_of_all_thresholds(rows: list[tuple[int, int]], alarms: float) -> None:
    y, s = arrays(rows)
    best = max(
        float((s[y == 1] >= t).mean())
        for t in (*np.unique(s), 2.0)
        if (s[y == 0] >= t).mean() <= alarms
    )
    assert metrics.recall_at(y, s, alarms) == pytest.approx(best)


@given(SCORES)
def test_the_equal_error_rate_lies_on_the_curve(rows: list[tuple[int, int]]) -> None:
    y, s = arrays(rows)
    alarms, recall, _ = oracle.roc_curve(y, s, drop_intermediate=False)
    at = metrics.eer(y, s)
    assert np.interp(at, *_lowest(alarms, recall)) <= 1 - at + 1e-9
    assert np.interp(at, *_highest(alarms, recall)) >= 1 - at - 1e-9


def _lowest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(x), np.array([y[x == v].min() for v in np.unique(x)])


def _highest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(x), np.array([y[x == v].max() for v in np.unique(x)])


def test_the_equal_error_rate_by_hand() -> None:
    assert metrics.eer([0, 0, 0, 0, 1, 1, 1, 1], [1, 2, 3, 6, 4, 5, 7, 8]) == pytest.approx(0.25)
    assert metrics.eer([0, 1], [0.0, 1.0]) == 0
    assert metrics.eer([0, 1], [1.0, 0.0]) == 1


def test_calibration_error_by_hand() -> None:
    # Two bins are filled: 0.1 with no fake, 0.9 with a half of fakes.
    value = metrics.ece([0, 0, 0, 1], [0.1, 0.1, 0.9, 0.9], bins=10)
    assert value == pytest.approx(0.5 * 0.1 + 0.5 * 0.4)


def test_an_even_mixture_weighs_both_classes_alike() -> None:
    y, p = [0] * 90 + [1] * 10, [0.2] * 90 + [0.6] * 10
    again = [0] * 90 + [1] * 90, [0.2] * 90 + [0.6] * 90
    assert metrics.brier(y, p, even=True) == pytest.approx(metrics.brier(*again))
    assert metrics.ece(y, p, even=True) == pytest.approx(metrics.ece(*again))
    assert metrics.ece(y, p) != pytest.approx(metrics.ece(*again))


def test_platt_finds_what_made_the_labels() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 40000)
    y = (random.random(40000) < 1 / (1 + np.exp(-(1.7 * logits)))).astype(int)
    scale, shift = metrics.platt(y, logits)
    assert scale == pytest.approx(1.7, rel=0.05)
    assert shift == pytest.approx(0, abs=0.1)


def test_platt_is_a_balanced_logistic_regression() -> None:
    random = np.random.default_rng(1)
    y = (random.random(3000) < 0.1).astype(int)
    logits = random.normal(y * 2.0, 1.0)
    model = LogisticRegression(C=1e9, class_weight="balanced").fit(logits[:, None], y)
    scale, shift = metrics.platt(y, logits)
    assert scale == pytest.approx(model.coef_[0, 0], rel=0.02)  # Platt's targets shrink a little
    assert shift == pytest.approx(model.intercept_[0], rel=0.02)


def test_platt_stays_finite_where_all_is_told_apart() -> None:
    scale, shift = metrics.platt([0] * 50 + [1] * 50, [-3.0] * 50 + [3.0] * 50)
    assert 0 < scale < 10
    assert abs(shift) < 1e-6


def test_the_interval_resamples_whole_persons() -> None:
    random = np.random.default_rng(2)
    persons = np.repeat(np.arange(40), 25)
    y = np.repeat(np.arange(40) % 2, 25)
    s = y + np.repeat(random.normal(0, 1.0, 40), 25)  # all pictures of a person score the same
    together = metrics.interval(metrics.auc, y, s, persons)
    apart = metrics.interval(metrics.auc, y, s, np.arange(1000))
    assert together[0] == apart[0] == metrics.auc(y, s)
    assert together[2] - together[1] > 3 * (apart[2] - apart[1])
    assert together[1] < together[0] < together[2]


def test_one_class_has_no_curve() -> None:
    for measure in (metrics.auc, metrics.eer, metrics.average_precision):
        assert np.isnan(measure([0, 0], [0.1, 0.2]))
    assert np.isnan(metrics.interval(metrics.auc, [1, 1], [0.1, 0.2], ["a", "b"])).all()


@pytest.mark.parametrize(("labels", "scores"), [([0, 2], [0.1, 0.2]), ([0], [0.1, 0.2]), ([0, 1], [0.1, float("nan")])])  # fmt: skip  # noqa: E501
def test_what_cannot_be_measured_is_refused(labels: list[int], scores: list[float]) -> None:
    with pytest.raises(ValueError, match="labels are 0 or 1"):
        metrics.auc(labels, scores)
