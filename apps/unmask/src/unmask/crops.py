"""The one rule that turns a face box into the square that the networks see."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = 128
MARGIN = 0.05

Pixels = npt.NDArray[np.uint8]


def square(box: Sequence[float], margin: float = MARGIN) -> tuple[float, float, float]:
    """Left, top and side, in pixels, of the square around the centre of ``box`` (x0, y0, x1, y1).

    The side is the longer side of the box, ``margin`` of it added at each end.

    >>> square((10, 20, 50, 100), margin=0.125)
    (-20.0, 10.0, 100.0)
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise ValueError(f"not a box with an area: {tuple(box)}; give x0, y0, x1, y1 in pixels")
    side = max(x1 - x0, y1 - y0) * (1 + 2 * margin)
    return (x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side


def crop(image: Pixels, box: Sequence[float], margin: float = MARGIN, size: int = SIZE) -> Pixels:
    """Cut the square around a face out of ``image`` (uint8 H x W x 3) at ``size`` x ``size``.

    What lies outside of the picture repeats its edge. Each pixel of the result averages the area
    that it stands for (a triangle filter as wide as the scale), so that detail is neither lost nor
    folded. A ``ValueError`` says what is wrong with a box or an image.

    >>> crop(np.full((40, 30, 3), 7, np.uint8), (5, 5, 25, 30)).shape
    (128, 128, 3)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is uint8 H x W x 3, not {image.dtype} {image.shape}")
    left, top, side = square(box, margin)
    x0, y0 = math.floor(left), math.floor(top)
    x1, y1 = math.ceil(left + side), math.ceil(top + side)
    height, width = image.shape[:2]
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ValueError(f"the box {tuple(box)} lies outside of the {width} x {height} image")
    part = image[max(y0, 0) : y1, max(x0, 0) : x1]
    pad = ((max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0)), (0, 0))
    if any(map(sum, pad)):
        part = np.pad(part, pad, mode="edge")
    return resample(part, (left - x0, top - y0, left - x0 + side, top - y0 + side), size)


def resample(image: Pixels, area: tuple[float, float, float, float], size: int) -> Pixels:
    """The square ``area`` (x0, y0, x1, y1, pixels) of ``image`` at ``size`` x ``size``."""
    right, bottom = image.shape[1], image.shape[0]
    inside = (max(area[0], 0.0), max(area[1], 0.0), min(area[2], right), min(area[3], bottom))
    picture = Image.fromarray(np.ascontiguousarray(image))
    shrunk = picture.resize((size, size), Image.Resampling.BILINEAR, box=inside)
    return np.asarray(shrunk, dtype=np.uint8)
