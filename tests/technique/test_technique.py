"""A technique as one value: text, YAML, equality, refusals."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mutations, techniques

from secateur import (
    Context,
    Criterion,
    Granularity,
    Objective,
    Schedule,
    SecateurError,
    Technique,
    Update,
)

PLAIN = "filter | global | magnitude | one_cycle"


@settings(deadline=None)
@given(techniques())
def test_text_reads_back(technique: Technique) -> None:
    again = Technique.parse(str(technique))
    assert again == technique
    assert hash(again) == hash(technique)
    assert str(again) == str(technique)


@settings(deadline=None)
@given(techniques())
def test_yaml_reads_back(technique: Technique) -> None:
    again = Technique.from_yaml(technique.to_yaml())
    assert again == technique
    assert hash(again) == hash(technique)


@settings(max_examples=30, deadline=None)
@given(techniques())
def test_words_are_one_line_each(technique: Technique) -> None:
    assert len(technique.words()) == 6
    assert all(len(sentence.splitlines()) == 1 for sentence in technique.words())


def test_parts_may_be_texts_or_values() -> None:
    written = Technique("kernel", "local(erk)", "movement", "agp", "rewind(step=5)", "group_lasso")
    valued = Technique(
        Granularity.parse("kernel"),
        Context("local", "erk"),
        Criterion("movement"),
        Schedule("agp"),
        Update("rewind", 5),
        Objective("group_lasso"),
    )
    assert written == valued
    assert Technique(context={"a": 0.5}) == Technique(context='{"a": 0.5}')


def test_defaults_make_the_four_tuple_complete() -> None:
    assert str(Technique()) == "weight | global | magnitude | one_cycle"
    assert str(Technique.parse(PLAIN)) == PLAIN
    assert Technique.parse(PLAIN + " | keep | none") == Technique.parse(PLAIN)
    assert str(Technique.parse(PLAIN + " | keep | group_lasso")).endswith("| keep | group_lasso")
    assert str(Technique.parse(PLAIN + " | rewind")).endswith("| rewind(step=0)")


def test_a_technique_is_immutable_and_pickles() -> None:
    technique = Technique.parse(PLAIN)
    with pytest.raises(dataclasses.FrozenInstanceError):
        technique.update = Update()  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(technique)) == technique
    assert len({technique, Technique.parse(PLAIN), Technique()}) == 2


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", "four to six parts"),
        ("filter | global | magnitude", "four to six parts"),
        (PLAIN + " | keep | none | more", "four to six parts"),
        ("filter | global | | agp", "four to six parts"),
        ("filtre | global | magnitude | agp", "did you mean filter"),
        ("filter | row | magnitude | agp", "part of one output"),
        ("layer | row | magnitude | agp", "part of one output"),
        ("(o 4) i | row | magnitude | agp", "part of one output"),
        ("filter | global | magnitud | agp", "did you mean magnitude"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Technique.parse(text)
    assert accepted in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("granularity", ["weight", "kernel", "row", "column", "2:4", "o (i 4) h w"])
def test_rows_compete_where_a_unit_is_a_part_of_an_output(granularity: str) -> None:
    assert Technique(granularity, "row").context.pool == "row"


def test_a_part_of_another_kind_is_refused() -> None:
    with pytest.raises(SecateurError, match="context is a int"):
        Technique("weight", 3)  # type: ignore[arg-type]
    with pytest.raises(SecateurError, match="criteria is a Schedule"):
        Technique("weight", "global", Schedule("agp"))  # type: ignore[arg-type]


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=40) | mutations(techniques().map(str)) | mutations(st.just(PLAIN)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        technique = Technique.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Technique.parse(str(technique)) == technique


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=40)
    | mutations(techniques().map(Technique.to_yaml))
    | mutations(st.just(Technique().to_yaml()))
)
def test_nothing_but_secateur_errors_escapes_yaml(text: str) -> None:
    try:
        Technique.from_yaml(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, 'criteria: "\\UFFFFFFFF"', "granularity: 2001-99-99", "!!int x",
     "granularity: !!float x", "", "3",
     "- filter", "? [1]\n: 2", "granulariti: filter", "1: filter", "criteria: [magnitude]",
     "context: 3", "context: {a: [1]}", "!!python/object:os.system x", "a: &a [*a]"],
)  # fmt: skip
def test_wrong_yaml(text: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Technique.from_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_yaml_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 24)]
    with pytest.raises(SecateurError) as caught:
        Technique.from_yaml("\n".join([*lines, "criteria: *a23"]))
    assert len(str(caught.value)) < 10_000
    with pytest.raises(SecateurError) as caught:
        Technique.from_yaml("criteria:\n  - " + "\n  - ".join(["&x0 [lol, lol]"] + [
            f"&x{n} [*x{n - 1}, *x{n - 1}]" for n in range(1, 20)]))  # fmt: skip
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("granularity: filter", "filter | global | magnitude | one_cycle"),
        ("context: {layer1.*: 0.5}", 'weight | {"layer1.*": 0.5} | magnitude | one_cycle'),
        ("granularity: 2:4", "2:4 | global | magnitude | one_cycle"),
        (PLAIN, PLAIN),
        ("update: rewind(step=3)", "weight | global | magnitude | one_cycle | rewind(step=3)"),
    ],
)
def test_yaml_as_people_write_it(text: str, expected: str) -> None:
    assert str(Technique.from_yaml(text)) == expected


def test_yaml_files(tmp_path: Path) -> None:
    file = tmp_path / "technique.yaml"
    file.write_text(Technique.parse(PLAIN).to_yaml(), encoding="utf-8")
    assert Technique.from_yaml(file) == Technique.parse(PLAIN)
    with pytest.raises(SecateurError, match=r"absent\.yaml"):
        Technique.from_yaml(tmp_path / "absent.yaml")
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SecateurError, match=r"technique\.yaml"):
        Technique.from_yaml(file)
