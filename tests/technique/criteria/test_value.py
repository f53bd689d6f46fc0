"""The criteria axis as text and value, and its registry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import criteria, mutations

from secateur import Criterion, Evidence, SecateurError, criterion
from secateur.technique.criteria import CRITERIA, MODIFIERS, NORMALIZERS, REDUCERS
from secateur.technique.registry import Registry


@settings(deadline=None)
@given(criteria())
def test_text_reads_back(value: Criterion) -> None:
    again = Criterion.parse(str(value))
    assert again == value
    assert hash(again) == hash(value)
    assert str(again) == str(value)
    assert len(value.words().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("large_final", "magnitude"),
        ("l1", "magnitude"),
        ("movmag", "mov_large_final"),
        ("fpgm(normalize=l2)", "geometric_median(normalize=l2)"),
        ("variety(large_final, gamma=1, variant=pairwise)", "variety(magnitude)"),
        ("variety(magnitude(reduce=l2), variant=reweighted, gamma=2)",
         "variety(magnitude(reduce=l2), variant=reweighted, gamma=2)"),
        ("negate(negate(l1))", "negate(negate(magnitude))"),
        ('magnitude(reduce="l2")', "magnitude(reduce=l2)"),
    ],
)  # fmt: skip
def test_canonical_texts(text: str, canonical: str) -> None:
    assert str(Criterion.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("magnitud", "did you mean magnitude"),
        ("3", "expected a name"),
        ("magnitude(reduce=l3)", "l2"),
        ("magnitude(normalize=l3)", "l2"),
        ("magnitude(reducer=l2)", "did you mean reduce"),
        ("magnitude(l2)", "key=value only"),
        ("lamp(reduce=mean)", "nothing to reduce"),
        ("variety(magnitude, reduce=mean)", "nothing to reduce"),
        ("variety", "write variety(magnitude)"),
        ("variety(3)", "write variety(magnitude)"),
        ("variety(magnitude, movement)", "write variety(magnitude)"),
        ("variety(magnitud)", "did you mean magnitude"),
        ("variety(magnitude, gama=2)", "did you mean gamma"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Criterion.parse(text)
    assert accepted in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["magnitude(reduce=3)", "magnitude(reduce=[1])", "magnitude(normalize=3)",
     "magnitude(normalize=l2(3))", "magnitude(reduce=l2(3))"],
)  # fmt: skip
def test_odd_values_are_refused_alike(text: str) -> None:
    with pytest.raises(SecateurError):
        Criterion.parse(text)


@pytest.mark.parametrize("text", ["magnitude(reduce=l2(p=3))", "magnitude(normalize=l2(p=3))"])
def test_nothing_written_is_dropped(text: str) -> None:
    with pytest.raises(SecateurError):
        Criterion.parse(text)


@pytest.mark.parametrize(
    "text",
    ["variety(magnitude, gamma=much)", "variety(magnitude, gamma=none)",
     "variety(magnitude, ratio=[1])", "variety(magnitude, variant=pairwis)",
     "variety(magnitude, similarity=3)", "variety(magnitude, gamma=1e999)"],
)  # fmt: skip
def test_parameters_are_checked_when_written(text: str) -> None:
    """Not hours later, at the first mask update."""
    with pytest.raises(SecateurError):
        Criterion.parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20) | mutations(criteria().map(str)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        value = Criterion.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Criterion.parse(str(value)) == value


def test_needs_are_those_of_the_wrapped_criterion() -> None:
    assert Criterion.parse("variety(negate(movement))").needs == ("saved",)
    assert Criterion.parse("magnitude").needs == ()
    assert Criterion.parse("negate(movement)").moves and not Criterion.parse("large_init").moves


def test_all_records_are_documented() -> None:
    for registry in (CRITERIA, MODIFIERS, REDUCERS, NORMALIZERS):
        for record in registry:
            assert record.summary and record.function.__doc__


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_records", dict(CRITERIA._records))
    monkeypatch.setattr(CRITERIA, "_names", dict(CRITERIA._names))


@pytest.mark.usefixtures("scratch")
def test_registration() -> None:
    @criterion("power", summary="|w|^p", aliases=("pow",))
    def power(evidence: Evidence, p: float = 2.0) -> torch.Tensor:
        return evidence.weight.abs() ** p

    assert str(Criterion.parse("pow(p=3)")) == "power(p=3)"
    for name, wrong in (("power", "exists already"), ("variety", "modifier"),
                        ("two words", "plain word")):  # fmt: skip
        with pytest.raises(SecateurError, match=wrong):
            criterion(name, summary="")(power)
    with pytest.raises(SecateurError, match="did you mean gradient"):
        criterion("other", summary="", needs=("gradients",))
    with pytest.raises(SecateurError, match="level"):
        criterion("other", summary="", level="filter")
    with pytest.raises(SecateurError, match="needs a default"):
        criterion("other", summary="")(lambda evidence, p: evidence.weight)
    with pytest.raises(SecateurError, match="taken"):
        criterion("other", summary="")(lambda evidence, reduce="mean": evidence.weight)
    with pytest.raises(SecateurError, match="exists already"):
        criterion("other", summary="", aliases=("magnitude",))(power)
    assert "other" not in CRITERIA, "a refused record leaves nothing behind"


def test_registry() -> None:
    assert "magnitude" in CRITERIA and "large_final" in CRITERIA and "x" not in CRITERIA
    names = [record.name for record in CRITERIA]
    assert names == sorted(set(names))
    assert {record.name for record in CRITERIA.match("*_init")} == {"large_init", "small_init"}
    assert [record.name for record in CRITERIA.match("fpgm")] == ["geometric_median"]
    with pytest.raises(SecateurError, match="unknown criterion 'mag'"):
        CRITERIA.get("mag")
    assert list(Registry("thing")) == []
