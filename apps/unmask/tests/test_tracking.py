from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.faces import Box, Face
from unmask.tracking import FAR, PATIENCE, overlap, track

coordinate = st.floats(0, 1000, allow_nan=False)
side = st.floats(20, 300)


def face(x: float, y: float, size: float) -> Face:
    return Face((x - size / 2, y - size / 2, x + size / 2, y + size / 2), 0.99)


faces = st.builds(face, coordinate, coordinate, side)
clips = st.lists(st.lists(faces, max_size=4), max_size=12)


def timed(frames: list[list[Face]], step: float = 0.3) -> list[tuple[float, list[Face]]]:
    return [(step * index, found) for index, found in enumerate(frames)]


@given(clips)
def test_every_face_is_in_one_row_and_a_row_has_one_face_of_a_frame(
    frames: list[list[Face]],
) -> None:
    rows = track(timed(frames))
    placed = sorted((seen.frame, seen.face.box) for row in rows for seen in row)
    assert placed == sorted((i, one.box) for i, found in enumerate(frames) for one in found)
    for row in rows:
        assert row
        assert all(one.frame < other.frame for one, other in pairwise(row))


@given(clips)
def test_what_a_row_joins_is_close_in_time_and_of_a_similar_size(frames: list[list[Face]]) -> None:
    for row in track(timed(frames, step=2.0)):
        for one, other in pairwise(row):
            assert other.time - one.time <= PATIENCE
            assert 0.5 <= other.face.side / one.face.side <= 2


@given(
    st.integers(1, 4), st.integers(2, 20), st.floats(0.02, 2.0), st.floats(-0.3, 0.3),
    st.floats(-0.3, 0.3), st.randoms(use_true_random=False), st.data(),
)  # fmt: skip
def test_people_who_keep_their_distance_get_one_row_each(
    people: int, count: int, step: float, vx: float, vy: float, random: object, data: st.DataObject
) -> None:
    """Three sizes apart, moving together, in any order in the list, each now and then unseen."""
    size = 80.0
    present = data.draw(
        st.lists(st.lists(st.booleans(), min_size=people, max_size=people), min_size=count,
                 max_size=count)
    )  # fmt: skip
    frames = []
    for index in range(count):
        x, y = (size * v * min(step, 0.5) * index for v in (vx, vy))
        here = [
            (who, face(3 * size * who + x, y, size))
            for who in range(people)
            if present[index][who] or index in {0, count - 1} or index % 2 == 0
        ]
        random.shuffle(here)  # type: ignore[attr-defined]
        frames.append(here)
    rows = track((step * i, [found for _, found in here]) for i, here in enumerate(frames))
    who_is = {(i, found.box): who for i, here in enumerate(frames) for who, found in here}
    names = [{who_is[seen.frame, seen.face.box] for seen in row} for row in rows]
    if 2 * step <= PATIENCE:
        assert sorted(len(name) for name in names) == [1] * people


def test_a_person_who_is_not_seen_for_a_while_keeps_the_row() -> None:
    frames = [[face(100, 100, 60)], [], [], [face(120, 105, 60)]]
    assert [len(row) for row in track(timed(frames, step=1.0))] == [2]


def test_a_row_ends_after_a_long_absence() -> None:
    frames = [[face(100, 100, 60)], [face(100, 100, 60)]]
    assert len(track(timed(frames, step=PATIENCE + 0.1))) == 2


def test_a_jump_of_several_sizes_is_another_person() -> None:
    frames = [[face(100, 100, 60)], [face(100 + 60 * (FAR + 0.2), 100, 60)]]
    assert len(track(timed(frames, step=4.0))) == 2


def test_a_much_larger_face_in_the_same_place_is_another_person() -> None:
    assert len(track(timed([[face(100, 100, 60)], [face(100, 100, 130)]]))) == 2


def test_motion_is_followed_where_boxes_do_not_overlap() -> None:
    """Two people pass each other: place alone would swap them, motion does not."""
    size, step = 60.0, 0.4
    left = [face(100 + 40 * i, 100, size) for i in range(8)]
    right = [face(380 - 40 * i, 112, size) for i in range(8)]
    frames = [[one, other] for one, other in zip(left, right, strict=True)]
    rows = track(timed(frames, step))
    assert [[seen.face for seen in row] for row in rows] == [left, right]


def test_an_order_of_faces_does_not_matter() -> None:
    one = [face(100, 100, 60), face(300, 100, 60)]
    rows = track(timed([one, one[::-1], one]))
    assert [{seen.face for seen in row} for row in rows] == [{one[0]}, {one[1]}]


@given(faces, faces)
def test_overlap_is_symmetric_and_a_share(one: Face, other: Face) -> None:
    share = overlap(one.box, other.box)
    assert 0 <= share <= 1 + 1e-9
    assert math.isclose(share, overlap(other.box, one.box))
    assert math.isclose(overlap(one.box, one.box), 1)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (5, 5, 5, 9)])
def test_a_box_without_area_overlaps_nothing(box: Box) -> None:
    assert overlap(box, box) == 0
