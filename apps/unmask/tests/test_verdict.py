from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.quality import BLURRED, TOO_SMALL
from unmask.verdict import CLEAR, SIGNS, UNDECIDED, Band, Person, Sighting, conclude, judge, pool

BANDS = {"swap": Band(0.4, 0.7), "generated": Band(0.3, 0.8)}
probability = st.floats(0, 1)


def sight(
    swap: float,
    generated: float = 0.0,
    reason: str | None = None,
    frame: int = 0,
    side: float = 100,
) -> Sighting:
    return Sighting(frame, frame / 4, (0, 0, side, side), swap, generated, reason)


def person(*swaps: float, sampled: int = 1, reason: str | None = None, side: float = 100) -> Person:
    sightings = [sight(s, frame=i, reason=reason, side=side) for i, s in enumerate(swaps)]
    return judge(1, sightings, BANDS, sampled)


@given(st.lists(probability, min_size=1, max_size=64))
def test_pooling_stays_between_the_mean_and_the_highest(scores: list[float]) -> None:
    assert min(scores) - 1e-9 <= pool(scores) <= max(scores) + 1e-9
    if len(scores) <= 3:
        assert pool(scores) == pytest.approx(sum(scores) / len(scores))


@given(st.lists(probability, min_size=1, max_size=40), st.integers(0, 39))
def test_pooling_never_falls_where_a_score_rises(scores: list[float], at: int) -> None:
    at %= len(scores)
    raised = [*scores[:at], 1.0, *scores[at + 1 :]]
    assert pool(raised) >= pool(scores) - 1e-9


def test_a_changed_second_counts_and_a_wild_frame_does_not() -> None:
    assert pool([0.05] * 10 + [0.95] * 11 + [0.05] * 11) == pytest.approx(0.95)
    assert pool([0.05] * 15 + [0.95] * 4 + [0.05] * 13) == pytest.approx(0.95)
    assert pool([0.05] * 15 + [1.0] + [0.05] * 16) < 0.4


def test_there_is_nothing_to_pool() -> None:
    with pytest.raises(ValueError, match="no scores"):
        pool([])


@given(probability, probability)
def test_one_picture_follows_its_thresholds(swap: float, generated: float) -> None:
    found = judge(1, [sight(swap, generated)], BANDS)
    if swap >= 0.7 or generated >= 0.8:
        assert found.verdict == SIGNS
    elif swap >= 0.4 or generated >= 0.3:
        assert found.verdict == UNDECIDED
    else:
        assert found.verdict == CLEAR
    assert found.score == max(swap, generated)
    assert bool(found.reasons) == (found.verdict != CLEAR)


@pytest.mark.parametrize(("score", "word"), [(0.4, UNDECIDED), (0.7, SIGNS), (0.39999, CLEAR)])
def test_a_threshold_belongs_to_what_is_above_it(score: float, word: str) -> None:
    assert person(score).verdict == word


def test_faces_that_cannot_be_judged_have_no_score() -> None:
    found = person(0.99, 0.99, reason=BLURRED, sampled=2)
    assert (found.verdict, found.score, found.swap) == (UNDECIDED, None, None)
    assert found.reasons == (BLURRED,)
    assert not found.in_band


def test_the_commonest_weakness_is_the_reason() -> None:
    sightings = [sight(0.1, reason=r) for r in (BLURRED, TOO_SMALL, TOO_SMALL)]
    assert judge(1, sightings, BANDS, 3).reasons == (TOO_SMALL,)


def test_unusable_sightings_do_not_count() -> None:
    sightings = [sight(0.99, reason=BLURRED, frame=0), *(sight(0.1, frame=i) for i in (1, 2, 3))]
    found = judge(1, sightings, BANDS, 4)
    assert (found.verdict, found.score) == (CLEAR, pytest.approx(0.1))
    assert found.clearest.frame == 1


def test_a_face_seen_once_in_a_long_clip_decides_nothing() -> None:
    assert person(0.99, sampled=32).verdict == UNDECIDED
    assert person(0.99, sampled=1).verdict == SIGNS


def test_nothing_is_said_to_be_clear_on_a_few_good_sightings() -> None:
    sightings = [sight(0.1, frame=i, reason=None if i < 2 else BLURRED) for i in range(12)]
    assert judge(1, sightings, BANDS, 32).verdict == UNDECIDED
    raised = [sight(0.9, frame=i, reason=None if i < 2 else BLURRED) for i in range(12)]
    assert judge(1, raised, BANDS, 32).verdict == SIGNS


def test_no_face_is_undecided() -> None:
    assert conclude([]) == (UNDECIDED, ("no face was found",))


def test_one_person_with_signs_decides() -> None:
    verdict, reasons = conclude([person(0.1), person(0.9), person(0.5)])
    assert verdict == SIGNS
    assert len(reasons) == 1


def test_a_score_in_the_grey_band_leaves_the_file_open() -> None:
    assert conclude([person(0.1), person(0.5, side=20)])[0] == UNDECIDED


@pytest.mark.parametrize(("side", "word"), [(30, CLEAR), (60, UNDECIDED)])
def test_a_face_that_cannot_be_judged_matters_by_its_size(side: float, word: str) -> None:
    weak = person(0.1, reason=TOO_SMALL, side=side)
    verdict, reasons = conclude([person(0.1, side=100), weak])
    assert verdict == word
    assert reasons


def test_reasons_name_the_person_where_there_are_several() -> None:
    alone = conclude([person(0.9)])[1]
    among = conclude([person(0.9), person(0.1)])[1]
    assert not alone[0].startswith("person")
    assert among[0].startswith("person 1: ")


@pytest.mark.parametrize(("side", "word"), [(40, CLEAR), (60, UNDECIDED)])
def test_faces_left_out_of_a_crowd_matter_by_their_size(side: float, word: str) -> None:
    verdict, reasons = conclude([person(0.1, side=100)], skipped=side)
    assert verdict == word
    assert bool(reasons) == (word == UNDECIDED)


def test_a_reason_that_many_share_is_said_once() -> None:
    crowd = [replace(person(0.1, reason=TOO_SMALL), id=number) for number in range(1, 25)]
    assert conclude(crowd)[1] == (f"persons 1, 2, 3, 4 and 20 more: {TOO_SMALL}",)
    assert conclude(crowd[:3])[1] == (f"persons 1, 2 and 3: {TOO_SMALL}",)
    mixed = [*crowd[:2], replace(person(0.1, reason=BLURRED), id=3)]
    assert conclude(mixed)[1] == (f"persons 1 and 2: {TOO_SMALL}", f"person 3: {BLURRED}")


@given(st.lists(st.tuples(probability, st.booleans()), min_size=1, max_size=5))
def test_a_verdict_is_one_of_three_and_never_authentic(rows: list[tuple[float, bool]]) -> None:
    people = [person(score, reason=BLURRED if weak else None) for score, weak in rows]
    verdict, reasons = conclude(people)
    assert verdict in {SIGNS, CLEAR, UNDECIDED}
    words = " ".join([verdict, *reasons, *(r for p in people for r in p.reasons)])
    assert "authentic" not in words
    if verdict == CLEAR:
        assert all(p.verdict != SIGNS for p in people)
