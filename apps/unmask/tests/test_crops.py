"""The crop rule: where the square lies, and what its pixels are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.crops import crop, square


@given(
    st.integers(-20, 60), st.integers(-20, 60), st.integers(5, 60), st.integers(5, 60),
    st.floats(0, 0.5),
)  # fmt: skip
def test_the_square_is_centred_and_holds_the_box(
    x: int, y: int, width: int, height: int, margin: float
) -> None:
    left, top, side = square((x, y, x + width, y + height), margin)
    assert side == pytest.approx(max(width, height) * (1 + 2 * margin))
    assert left + side / 2 == pytest.approx(x + width / 2)
    assert top + side / 2 == pytest.approx(y + height / 2)


def test_a_crop_at_scale_one_copies_the_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 220, 3), np.uint8)
    found = crop(image, (20, 30, 148, 158), margin=0.0, size=128)
    assert np.array_equal(found, image[30:158, 20:148])


def test_what_lies_outside_repeats_the_edge() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = crop(image, (-32, 0, 32, 64), margin=0.0, size=64)
    assert np.array_equal(found[:, 32:], image[:, :32])
    assert (found[:, :32] == image[:, :1]).all()


def test_shrinking_averages_instead_of_picking() -> None:
    grid = np.indices((256, 256)).sum(0) % 2 * 255
    image = np.repeat(grid[..., None], 3, 2).astype(np.uint8)
    found = crop(image, (0, 0, 256, 256), margin=0.0, size=64)
    assert np.abs(found[4:-4, 4:-4].astype(int) - 127).max() <= 2


@given(st.integers(0, 255), st.integers(30, 120), st.integers(2, 64))
def test_a_flat_picture_stays_flat(grey: int, place: int, size: int) -> None:
    image = np.full((90, 130, 3), grey, np.uint8)
    assert (crop(image, (place - 25, 20, place + 5, 50), size=size) == grey).all()


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (0, 0, float("nan"), 4), (200, 0, 220, 9)])
def test_boxes_without_an_area_in_the_picture_are_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="box"):
        crop(np.zeros((50, 50, 3), np.uint8), box, margin=0.0)


def test_only_colour_pictures_of_bytes() -> None:
    with pytest.raises(ValueError, match="uint8"):
        crop(np.zeros((50, 50), np.uint8), (0, 0, 9, 9))
