"""The objective axis as text and value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mutations, objectives

from secateur import Objective, SecateurError


@settings(deadline=None)
@given(objectives())
def test_text_reads_back(objective: Objective) -> None:
    again = Objective.parse(str(objective))
    assert again == objective
    assert hash(again) == hash(objective)
    assert str(again) == str(objective)
    assert len(objective.words().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("none", "none"),
        ("group_lasso(0.001)", "group_lasso(weight=0.001)"),
        ("group_lasso(weight=1, schedule=constant)", "group_lasso"),
        ('growing_l2(schedule="lin(start=0.2)")', "growing_l2(schedule=linear(start=0.2))"),
    ],
)
def test_canonical_texts(text: str, canonical: str) -> None:
    assert str(Objective.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("group_laso", "did you mean group_lasso"),
        ("group_lasso(weigth=1)", "did you mean weight"),
        ("group_lasso(weight=much)", "not a number"),
        ("group_lasso(weight=true)", "not a number"),
        ("group_lasso(schedule=agpp)", "did you mean agp"),
        ("3", "expected a name"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Objective.parse(text)
    assert accepted in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["group_lasso(schedule=3)", "group_lasso(schedule=none)", "group_lasso(schedule=[1])",
     "group_lasso(weight=1e999)", "group_lasso(weight=none)"],
)  # fmt: skip
def test_odd_values_are_refused_alike(text: str) -> None:
    with pytest.raises(SecateurError):
        Objective.parse(text)


@pytest.mark.parametrize("text", ["group_lasso(1, 2)", "group_lasso(1, weight=2)"])
def test_nothing_written_is_dropped(text: str) -> None:
    with pytest.raises(SecateurError):
        Objective.parse(text)


@settings(deadline=None)
@given(st.text(max_size=20) | mutations(objectives().map(str)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        objective = Objective.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Objective.parse(str(objective)) == objective
