from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from stand_ins import PLACE

from unmask.crops import crop
from unmask.media import Pixels
from unmask.quality import (
    BLURRED,
    COMPRESSED,
    GRID,
    QUANTISER,
    SHARPNESS,
    SMALLEST,
    TOO_SMALL,
    Quality,
    grid,
    sharpness,
)
from unmask.samples import draw

BOX = (230, 100, 410, 350)


@pytest.fixture(scope="module")
def portrait() -> Pixels:
    return draw((640, 480), (PLACE,), seed=3)


def blurred(image: Pixels, sigma: float) -> Pixels:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def compressed(image: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_sharpness_falls_with_blur(portrait: Pixels) -> None:
    found = [sharpness(crop(blurred(portrait, s), BOX)) for s in (0, 1.5, 3, 6, 12)]
    assert found == sorted(found, reverse=True)
    assert found[0] > SHARPNESS > found[-1]


def test_sharpness_does_not_follow_contrast(portrait: Pixels) -> None:
    cut = crop(portrait, BOX)
    dim = (cut // 2 + 20).astype(np.uint8)
    assert sharpness(dim) == pytest.approx(sharpness(cut), rel=0.2)


@pytest.mark.parametrize("shape", [(128, 128, 3), (1, 1, 3), (2, 9, 3)])
def test_a_flat_crop_is_not_sharp(shape: tuple[int, ...]) -> None:
    assert sharpness(np.full(shape, 90, np.uint8)) == 0


def test_the_grid_of_heavy_compression_shows_wherever_it_begins(portrait: Pixels) -> None:
    plain, heavy = portrait[100:350, 230:410], compressed(portrait, 5)
    assert grid(plain) < 1.3
    for shift in (0, 3, 5):
        assert grid(heavy[100 + shift : 350, 230 + shift : 410]) > GRID


@pytest.mark.parametrize("shape", [(0, 0, 3), (1, 1, 3), (8, 200, 3), (16, 17, 3)])
def test_small_pictures_have_no_grid(shape: tuple[int, ...]) -> None:
    assert grid(np.full(shape, 90, np.uint8)) == pytest.approx(1)


@given(st.floats(0, 500), st.floats(0, 100), st.floats(1, 9), st.floats(0, 100), st.floats(0, 51))
def test_a_face_is_judged_where_nothing_speaks_against_it(
    side: float, sharp: float, blocks: float, jpeg: float, quantiser: float
) -> None:
    weakness = Quality(side, sharp, blocks, jpeg, quantiser).weakness
    fine = side >= SMALLEST and sharp >= SHARPNESS
    fine = fine and blocks <= GRID and jpeg >= 20 and quantiser <= QUANTISER
    assert (weakness is None) == fine


def test_the_reasons_are_told_apart() -> None:
    assert Quality(40, 50).weakness == TOO_SMALL
    assert Quality(100, 1).weakness == BLURRED
    assert Quality(100, 50, grid=3).weakness == COMPRESSED
    assert Quality(100, 50, jpeg=10).weakness == COMPRESSED
    assert Quality(100, 50, quantiser=48).weakness == COMPRESSED
