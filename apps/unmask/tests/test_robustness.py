"""The damages: of the same size, growing with their level, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from unmask import robustness


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    y, x = np.mgrid[0:90, 0:121]
    waves = 128 + 60 * np.sin(x / 3) * np.cos(y / 5)
    return np.stack([waves, waves[::-1], waves * 0 + 100], 2).astype(np.uint8)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_the_grid_starts_with_no_damage(image: np.ndarray) -> None:
    grid = robustness.grid()
    assert next(iter(grid)) == "none"
    assert np.array_equal(grid["none"](image), image)
    assert {name.split()[0] for name in grid} == {"none", "jpeg", "resize", "blur", "noise", "h264"}


@pytest.mark.parametrize("name", [name for name in robustness.grid() if name != "none"])
def test_a_damage_keeps_the_size_and_repeats(name: str, image: np.ndarray) -> None:
    damage = robustness.grid()[name]
    once, again = damage(image), damage(image)
    assert once.shape == image.shape
    assert once.dtype == np.uint8
    assert np.array_equal(once, again)
    assert 0 < distance(once, image) < 60


@pytest.mark.parametrize("kind", ["jpeg", "resize", "blur", "noise", "h264"])
def test_levels_are_listed_from_weak_to_strong(kind: str, image: np.ndarray) -> None:
    grid = robustness.grid()
    far = [distance(grid[name](image), image) for name in grid if name.startswith(kind)]
    assert far == sorted(far)
    assert far[-1] > far[0]
