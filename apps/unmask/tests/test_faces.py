from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import PAIR, PLACE

from unmask import UnmaskError
from unmask.faces import FaceDetector, shared, sight
from unmask.media import Pixels
from unmask.samples import Place, draw


@pytest.fixture(scope="module")
def portrait() -> Pixels:
    return draw((640, 480), (PLACE,), seed=3)


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_face_is_found_where_it_is(seed: int) -> None:
    (face,) = shared().detect(draw((640, 480), (PLACE,), seed))
    x0, y0, x1, y1 = face.box
    assert (x0 + x1) / 2 == pytest.approx(PLACE.x, abs=30)
    assert (y0 + y1) / 2 == pytest.approx(PLACE.y, abs=50)
    assert face.score >= 0.9
    assert len(face.points) == 5
    (left, right, nose, *mouth) = face.points
    assert left[0] < nose[0] < right[0]
    assert max(left[1], right[1]) < nose[1] < min(point[1] for point in mouth)


def test_the_largest_face_comes_first() -> None:
    found = shared().detect(draw((640, 480), PAIR, seed=5))
    assert len(found) == 2
    assert found[0].side >= found[1].side


def test_a_wall_has_no_face() -> None:
    assert shared().detect(draw((640, 480), (), seed=5)) == ()


def test_a_large_picture_is_looked_at_smaller_and_answered_in_its_own_pixels(
    portrait: Pixels,
) -> None:
    large = np.repeat(np.repeat(portrait, 4, axis=0), 4, axis=1)
    (face,) = shared().detect(portrait, 640)
    (same,) = shared().detect(large, 640)
    assert np.array(same.box) / 4 == pytest.approx(np.array(face.box), abs=8)
    assert np.array(same.points) / 4 == pytest.approx(np.array(face.points), abs=8)


def test_the_same_picture_gives_the_same_faces(portrait: Pixels) -> None:
    assert shared().detect(portrait) == shared().detect(portrait.copy())


def test_the_number_of_threads_is_left_as_it_was(portrait: Pixels) -> None:
    before = torch.get_num_threads()
    FaceDetector(threads=before + 1).detect(portrait)
    assert torch.get_num_threads() == before


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from(["noise", "flat", "blocks", "part"]),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_no_picture_makes_the_detector_fail(height: int, width: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    elif kind == "flat":
        image = np.full((height, width, 3), rng.integers(256), np.uint8)
    elif kind == "blocks":
        image = np.kron(
            rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1))
        ).astype(np.uint8)
    else:
        y, x = rng.integers(0, 200), rng.integers(0, 300)
        image = draw((640, 480), (Place(320, 220, 130),), 3)[y : y + height, x : x + width]
    for face in shared().detect(image):
        x0, y0, x1, y1 = face.box
        assert x0 < x1
        assert y0 < y1
        assert 0 <= (x0 + x1) / 2 < image.shape[1]
        assert 0 <= (y0 + y1) / 2 < image.shape[0]


def test_a_missing_detector_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(UnmaskError, match="pip install --no-deps facenet-pytorch"):
        FaceDetector()


@given(st.integers(1, 20000))
def test_what_is_looked_at_is_never_larger_than_the_picture(longer: int) -> None:
    assert sight("image", longer) <= longer
    assert sight("video", longer) <= longer
