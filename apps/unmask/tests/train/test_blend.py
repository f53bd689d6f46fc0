"""Self-blended pairs: what the two of a pair share, and where they differ."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cv2")

from train import blend
from train.data import WINDOW

SEEDS = range(12)


def face() -> tuple[np.ndarray, np.ndarray]:
    """A coloured texture, and landmarks laid out like those of a face."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:WINDOW, 0:WINDOW]
    base = 120 + 50 * np.sin(x / 9) * np.cos(y / 13)
    image = np.stack([base, base[::-1], base.T], 2) + random.normal(0, 6, (WINDOW, WINDOW, 3))
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    oval = np.stack([96 + 45 * np.cos(angle), 96 + 58 * np.sin(angle)], 1)
    jaw = np.linspace(0, np.pi, 17)
    outer = np.stack([96 - 45 * np.cos(jaw), 96 + 58 * np.sin(jaw)], 1)
    inner = np.stack([96 + random.uniform(-28, 28, 51), 90 + random.uniform(-25, 30, 51)], 1)
    points = np.concatenate([outer, inner, oval]).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), points


@pytest.mark.parametrize("seed", SEEDS)
def test_outside_of_the_mask_the_twins_are_the_same(seed: int) -> None:
    image, points = face()
    pair = blend.self_blend(image, points, np.random.default_rng(seed))
    assert np.array_equal(pair.real[pair.mask == 0], pair.fake[pair.mask == 0])
    assert not np.array_equal(pair.real, pair.fake)
    assert (pair.mask == 0).mean() > 0.3


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_is_as_strong_as_its_ratio_and_the_seam_lies_on_its_rim(seed: int) -> None:
    image, points = face()
    pair = blend.self_blend(image, points, np.random.default_rng(seed))
    assert pair.ratio in blend.RATIOS
    assert pair.mask.max() == pytest.approx(pair.ratio, abs=1e-5)
    full = pair.mask / pair.ratio
    assert np.allclose(pair.boundary, 4 * full * (1 - full), atol=1e-4)


def test_the_same_seed_makes_the_same_pair_and_another_one_another() -> None:
    image, points = face()
    first, again, other = (
        blend.self_blend(image, points, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first.fake, again.fake)
    assert not np.array_equal(first.fake, other.fake)


def test_in_half_of_the_pairs_the_real_one_is_untouched() -> None:
    image, points = face()
    same = [
        np.array_equal(blend.self_blend(image, points, np.random.default_rng(seed)).real, image)
        for seed in range(60)
    ]
    assert 15 < sum(same) < 45


@pytest.mark.parametrize("seed", SEEDS)
def test_shared_changes_treat_equal_pictures_equally(seed: int) -> None:
    image, _ = face()
    shared = blend.draw_shared(np.float32([50, 40, 140, 150]), np.random.default_rng(seed))
    first, second = blend.apply_shared(image, shared), blend.apply_shared(image.copy(), shared)
    assert first.shape == (128, 128, 3)
    assert np.array_equal(first, second)
    mask = blend.apply_geometry(np.ones((WINDOW, WINDOW), np.float32), shared, 32)
    assert np.allclose(mask, 1)


def test_maps_follow_the_picture_through_crop_and_flip() -> None:
    mask = np.zeros((WINDOW, WINDOW), np.float32)
    mask[60:100, 50:90] = 1
    image = np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2)
    for seed in range(8):
        random = np.random.default_rng(seed)
        shared = blend.draw_shared(np.float32([50, 40, 140, 150]), random, hard=0.0)
        shared = type(shared)(**{**vars(shared), "colour": (1.0, 0.0, 1.0)})
        picture = blend.apply_shared(image, shared)[..., 0] / 255
        small = picture.reshape(32, 4, 32, 4).mean((1, 3))
        assert np.abs(small - blend.apply_geometry(mask, shared, 32)).mean() < 0.03


def test_without_degradation_nothing_is_degraded() -> None:
    for seed in range(20):
        shared = blend.draw_shared(np.float32([50, 40, 140, 150]), np.random.default_rng(seed), 0.0)
        assert shared.rescale is shared.quality is shared.blur is shared.noise is None
