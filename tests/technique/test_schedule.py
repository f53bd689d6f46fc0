"""The schedule axis: curves against published numbers, placement, mask dynamics, text."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import dynamics, mutations, schedules

from secateur import MaskDynamics, Schedule, SecateurError, schedule
from secateur.technique.schedule import CURVES

TIMES = [place / 10 for place in range(11)]
# Thesis, A.4, alpha = 14, and the curve of Zhu and Gupta.
PUBLISHED = {
    "one_cycle(beta=5)": [.007, .027, .100, .310, .646, .881, .968, .992, .998, 1.0, 1],
    "one_cycle": [.002, .010, .039, .142, .401, .731, .917, .978, .995, .999, 1],
    "agp": [0, .271, .488, .657, .784, .875, .936, .973, .992, .999, 1],
}  # fmt: skip


@pytest.mark.parametrize("text", PUBLISHED)
def test_published_tables(text: str) -> None:
    placed = Schedule.parse(text)
    for time, value in zip(TIMES, PUBLISHED[text], strict=True):
        # The table is rounded to three digits; s(0) = 0.00247 is printed as .002 and .25 %.
        assert placed.at(time) == pytest.approx(value, abs=6e-4)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("one_shot", {0: 1, 0.5: 1, 1: 1}),
        ("constant", {0: 1, 1: 1}),
        ("linear", {0: 0, 0.3: 0.3, 1: 1}),
        ("lin", {0.3: 0.3}),
        ("cosine", {0: 0, 0.25: (1 - math.sqrt(0.5)) / 2, 0.5: 0.5, 1: 1}),
        ("exponential", {0: 0, 0.5: (math.exp(2.5) - 1) / (math.exp(5) - 1), 1: 1}),
        ("iterative", {0: 0, 0.1: 1 / 3, 1 / 3: 1 / 3, 0.34: 2 / 3, 2 / 3: 2 / 3, 0.9: 1, 1: 1}),
        ("iterative(n=5)", {0.2: 0.2, 0.21: 0.4, 1: 1}),
        ("dsd", {0: 0, 0.25: 0.5, 0.5: 1, 0.75: 0.5, 1: 0}),
        ("one_cycle(exact=true)", {0: 0, 1: 1}),
        ("piecewise([[0.2, 0], [0.4, 1], [1, 0.5]])",
         {0: 0, 0.2: 0, 0.3: 0.5, 0.4: 1, 0.7: 0.75, 1: 0.5}),
        ("agp(start=0.2)", {0: 0, 0.19: 0, 0.2: 0, 0.6: 0.875, 1: 1}),
        ("agp(start=0.2, end=0.6)", {0.4: 0.875, 0.6: 1, 0.8: 1}),
        ("one_shot(start=0.5)", {0.49: 0, 0.5: 1, 1: 1}),
        ("one_shot(start=0.5, end=0.5)", {0.49: 0, 0.5: 1, 1: 1}),
        ("linear(initial=0.5)", {0: 0.5, 0.5: 0.75, 1: 1}),
        ("linear(initial=0.5, start=0.5)", {0.1: 0.5, 0.75: 0.75}),
        ("dsd(initial=0.2)", {0.5: 1, 1: 0.2}),
    ],
)  # fmt: skip
def test_values(text: str, values: dict[float, float]) -> None:
    for progress, value in values.items():
        assert Schedule.parse(text).at(progress) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("beta", [5, 6])
def test_the_exact_one_cycle_is_the_rescaled_logistic(beta: float) -> None:
    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    placed = Schedule.parse(f"one_cycle(beta={beta}, exact=true)")
    for time in TIMES:
        expected = (sigma(14 * time - beta) - sigma(-beta)) / (sigma(14 - beta) - sigma(-beta))
        assert placed.at(time) == pytest.approx(expected, abs=1e-12)
    assert placed.at(0.0) == 0 and placed.at(1.0) == 1


@settings(deadline=None)
@given(schedules(), st.floats(0, 1))
def test_shares_stay_in_bounds_and_the_end_is_exact(placed: Schedule, progress: float) -> None:
    assert 0 <= placed.at(progress) <= 1
    assert 0 <= placed.time(progress) <= 1
    assert placed.at(1.0) == placed.at(placed.end)
    if placed.curve not in ("dsd", "piecewise"):
        assert placed.at(1.0) == 1.0


@settings(deadline=None)
@given(schedules().filter(lambda s: s.curve not in ("dsd", "piecewise", "alternating")))
def test_rising_curves_never_fall(placed: Schedule) -> None:
    values = [placed.at(time / 50) for time in range(51)]
    assert all(later >= before - 1e-12 for before, later in itertools.pairwise(values))


@settings(deadline=None)
@given(schedules())
def test_text_reads_back(placed: Schedule) -> None:
    again = Schedule.parse(str(placed))
    assert again == placed
    assert hash(again) == hash(placed)
    assert str(again) == str(placed)
    assert len(placed.words().splitlines()) == 1


@pytest.mark.parametrize("name", [record.name for record in CURVES])
def test_every_curve_has_a_sentence_and_a_plain_text(name: str) -> None:
    assert CURVES.get(name).summary
    assert str(Schedule.parse(name)) == name


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("lin", "linear"),
        ("one_cycle(14, 5)", "one_cycle(beta=5)"),
        ("one_cycle(beta=6)", "one_cycle"),
        ("agp(end=1, start=0)", "agp"),
        ("agp(every=100, start=0.2)", "agp(start=0.2, every=100)"),
        ("constant(mask=regrown)", "constant(mask=regrown(by=gradient, share=0.3))"),
        ("constant(mask=regrown(random, 0.5, constant))",
         "constant(mask=regrown(by=random, share=0.5, decay=constant))"),
        ("agp(mask=permanent)", "agp"),
        ("agp(every=none)", "agp"),
    ],
)  # fmt: skip
def test_canonical_texts(text: str, canonical: str) -> None:
    assert str(Schedule.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("agpp", "did you mean agp"),
        ("3", "expected a name"),
        ("agp(stat=0.2)", "did you mean start"),
        ("agp(0.2)", "takes 0 values"),
        ("agp(start=20)", "write 0.2"),
        ("agp(start=0.8, end=0.2)", "not before end"),
        ("agp(start=0.5, end=0.5)", "not before end"),
        ("agp(every=0)", "count >= 1"),
        ("agp(every=0.5)", "count >= 1"),
        ("agp(epochs=x)", "count >= 1"),
        ("agp(every=1, epochs=1)", "not both"),
        ("iterative(n=0)", "cannot be computed"),
        ("iterative(n=x)", "cannot be computed"),
        ("exponential(rate=0)", "cannot be computed"),
        ("exponential(rate=1e6)", "cannot be computed"),
        ("piecewise([])", "cannot be computed"),
        ("agp(mask=sometimes)", "permanent, regrown, reselected"),
        ("agp(mask=3)", "expected a name"),
        ("agp(mask=regrown(by=luck))", "gradient, magnitude, momentum, random"),
        ("agp(mask=regrown(share=30))", "write 0.3"),
        ("agp(mask=regrown(count=3))", "by, decay, share"),
        ("agp(mask=permanent(share=0.3))", "exclude each other"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Schedule.parse(text)
    assert accepted in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["agp(mask=regrown(by=3))", "agp(mask=regrown(by=none))", "agp(mask=regrown(decay=[1]))",
     "agp(every=" + "9" * 5000 + ")", "one_cycle(alpha=1e999)"],
)  # fmt: skip
def test_odd_values_are_refused_alike(text: str) -> None:
    with pytest.raises(SecateurError):
        Schedule.parse(text)


@pytest.mark.parametrize(
    "text",
    ["agp(mask=permanent(5))", "agp(mask=regrown(gradient, 0.3, cosine, 9))",
     "one_cycle(14, alpha=13)", "agp(mask=regrown(random, by=gradient))", "agp(every=true)"],
)  # fmt: skip
def test_nothing_written_is_dropped(text: str) -> None:
    with pytest.raises(SecateurError):
        Schedule.parse(text)


@pytest.mark.parametrize(
    "text", ["iterative(n=2.5)", "piecewise([[0, 0], [1, 2]])", "piecewise([[0.5, 0], [0.2, 1]])"]
)
def test_curves_that_leave_the_unit_interval_are_refused_when_written(text: str) -> None:
    with pytest.raises(SecateurError):
        Schedule.parse(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20) | mutations(schedules().map(str)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        placed = Schedule.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Schedule.parse(str(placed)) == placed


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan"), 50])
def test_progress_is_a_share(progress: float) -> None:
    with pytest.raises(SecateurError, match="progress"):
        Schedule.parse("agp").at(progress)


def test_a_function_of_your_own() -> None:
    placed = Schedule.of(lambda t: t**2, start=0.5)
    assert placed.at(0.75) == 0.25
    assert placed.at(0.2) == 0
    with pytest.raises(SecateurError, match=r"not in \[0, 1\]"):
        Schedule.of(lambda t: 2 * t).at(1.0)
    with pytest.raises(SecateurError):
        Schedule.parse(str(placed))


def test_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CURVES, "_records", dict(CURVES._records))
    monkeypatch.setattr(CURVES, "_names", dict(CURVES._names))

    @schedule("squared", summary="t^p", aliases=("sq",))
    def squared(t: float, p: float = 2.0) -> float:
        return float(t**p)

    assert Schedule.parse("sq(3)").at(0.5) == 0.125
    assert str(Schedule.parse("sq(3)")) == "squared(p=3)"
    with pytest.raises(SecateurError, match="exists already"):
        schedule("squared", summary="")(squared)
    with pytest.raises(SecateurError, match="taken by Schedule"):
        schedule("bad", summary="")(lambda t, start=0.0: t)
    with pytest.raises(SecateurError, match="plain word"):
        schedule("two words", summary="")(squared)


@settings(deadline=None)
@given(dynamics(), st.floats(0, 1))
def test_mask_dynamics(mask: MaskDynamics, time: float) -> None:
    assert MaskDynamics.from_value(str(mask)) == mask
    assert MaskDynamics.from_value(mask) is mask
    expected = mask.share * (1 + math.cos(math.pi * time)) / 2  # RigL's cosine
    assert mask.share_at(time) == pytest.approx(
        mask.share if mask.decay == "constant" else expected
    )


@pytest.mark.parametrize("kind", ["permanent", "reselected"])
@pytest.mark.parametrize("own", ["by=random", "share=0.2", "by=momentum, decay=constant"])
def test_regrowth_under_another_mask_is_refused(kind: str, own: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Schedule.parse(f"constant(mask={kind}({own}))")
    assert f"mask={kind}({own})" in str(caught.value)
    assert f"write mask=regrown({own}) or mask={kind}" in str(caught.value)
    with pytest.raises(SecateurError, match=f"mask={kind} regrows nothing, and by=random"):
        MaskDynamics(kind, by="random")
