"""The objective axis as text and value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mutations, objectives

from secateur import Objective, Schedule, SecateurError
from secateur.technique.objective import OBJECTIVES


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
        ("growing_l2(0.5, schedule=linear)", "growing_l2(weight=0.5)"),
        ("growing_l2(schedule=constant)", "growing_l2(schedule=constant)"),
        ("group_lasso(sized=true)", "group_lasso(sized=true)"),
        ("distillation(temperature=4.0, dim=1, answers=softmax)", "distillation"),
        (
            'distillation(answers="sigmoid", temperature=2.0)',
            "distillation(temperature=2, answers=sigmoid)",
        ),
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
        ("l1_scale(sized=true)", "no 'sized'"),
        ("group_lasso(sized=3)", "neither true nor false"),
        ("distillation(temperture=2)", "did you mean temperature"),
        ("distillation(temperature=0)", "not above 0"),
        ("distillation(temperature=hot)", "not above 0"),
        ("distillation(answers=softmx)", "did you mean softmax"),
        ("distillation(answers=3)", "expected a word"),
        ("distillation(dim=1.5)", "not a whole number"),
        ("distillation(answers=values, temperature=2)", "no meaning for answers=values"),
        ("distillation(answers=sigmoid, dim=-1)", "no meaning for answers=sigmoid"),
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
@given(objectives(), st.floats(0, 1))
def test_the_weight_follows_its_schedule(objective: Objective, progress: float) -> None:
    placed = Schedule.parse(objective.schedule)
    assert objective.at(progress) == objective.weight * placed.at(progress)


def test_only_the_growing_term_grows_unasked() -> None:
    for name in OBJECTIVES:
        values = [Objective(name, 2.0).at(progress) for progress in (0.0, 0.5, 1.0)]
        assert values == ([0.0, 1.0, 2.0] if name == "growing_l2" else [2.0, 2.0, 2.0])


@settings(deadline=None)
@given(st.text(max_size=20) | mutations(objectives().map(str)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        objective = Objective.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Objective.parse(str(objective)) == objective
