"""Self-blended images: a face swap imitated with one picture, so that only the blend differs.

Written from the description in Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended
Images" (CVPR 2022), section 3; the boundary map is that of Li et al., "Face X-ray" (CVPR 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from train.data import WINDOW, Points
from unmask.crops import MARGIN, SIZE, Pixels, resample

Floats = npt.NDArray[np.float32]
Generator = np.random.Generator

BROWS, OVAL = slice(17, 27), slice(68, 104)
RATIOS = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Pair:
    """A real picture and its self-blended twin (uint8 H x W x 3) with the masks of the blend."""

    real: Pixels
    fake: Pixels
    mask: Floats
    """Share of the source in the fake, 0..1."""
    boundary: Floats
    """4 m (1 - m) of the mask m before it is made fainter: 1 along the seam."""
    inside: Floats
    """The mask before it is made fainter, 0..1."""
    ratio: float


def hull_mask(points: Points, shape: tuple[int, int], random: Generator) -> Floats:
    """The hull of the landmarks (104 x 2), shifted and bent at random, as 0 or 1."""
    chosen = points if random.random() < 0.5 else points[:68]  # half without the forehead
    if random.random() < 0.25:  # only the inner face: brows, eyes, nose, mouth
        chosen = points[17:68]
    unit = float(np.ptp(points[OVAL, 1]))
    hull: Floats = np.asarray(cv2.convexHull(chosen.astype(np.float32))[:, 0], np.float32)
    hull = hull + np.float32(0.012 * unit) * random.standard_normal(hull.shape, np.float32)
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(hull * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return bend(np.asarray(mask / 255, np.float32), random, unit)


def bend(mask: Floats, random: Generator, unit: float) -> Floats:
    """An elastic distortion: smooth random shifts of up to about 4 % of ``unit`` pixels."""
    height, width = mask.shape
    cells = int(random.integers(4, 9))
    coarse = random.normal(0, 0.02 * unit, (2, cells, cells)).astype(np.float32)
    dx, dy = (cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC) for part in coarse)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.asarray(cv2.remap(mask, x + dx, y + dy, cv2.INTER_LINEAR), np.float32)


def soften(mask: Floats, random: Generator) -> Floats:
    """Blur, keep what is still at the maximum, blur again, normalise to 0..1."""
    scale = mask.shape[0] / WINDOW
    first, second = (odd(scale * random.uniform(3, 17)) for _ in range(2))
    soft = cv2.GaussianBlur(mask, (first, first), 0)
    soft = (soft >= soft.max() - 1e-3).astype(np.float32)
    soft = cv2.GaussianBlur(soft, (second, second), 0)
    top = float(soft.max())
    return np.asarray(soft / top if top > 0 else soft, np.float32)


def odd(value: float) -> int:
    """The odd whole number next to ``value``, at least 1."""
    return max(int(value) // 2 * 2 + 1, 1)


def shift_statistics(image: Pixels, random: Generator) -> Pixels:
    """Another colour and another sharpness: what differs between two pictures of faces."""
    out = image.astype(np.int16) + random.integers(-20, 21, 3, dtype=np.int16)
    out8 = np.clip(out, 0, 255).astype(np.uint8)
    if random.random() < 0.5:
        hsv = cv2.cvtColor(out8, cv2.COLOR_RGB2HSV).astype(np.float32)
        hue, saturation, value = random.uniform(-0.3, 0.3, 3)
        hsv[..., 0] = (hsv[..., 0] + hue * 30) % 180
        hsv[..., 1] = np.clip(hsv[..., 1] * (1 + saturation), 0, 255)
        hsv[..., 2] = np.clip(hsv[..., 2] * (1 + value), 0, 255)
        out8 = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    if random.random() < 0.5:
        contrast, bright = 1 + random.uniform(-0.1, 0.1), random.uniform(-25, 25)
        out8 = cv2.convertScaleAbs(out8, alpha=contrast, beta=0)
        out8 = np.clip(out8.astype(np.int16) + int(bright), 0, 255).astype(np.uint8)
    return np.asarray(change_detail(out8, random), np.uint8)


def change_detail(image: Pixels, random: Generator) -> Pixels:
    """Shrunk by 2 or 4 and enlarged again, or sharpened."""
    height, width = image.shape[:2]
    if random.random() < 0.5:
        factor = 2 if random.random() < 0.5 else 4
        small = cv2.resize(
            image, (max(width // factor, 1), max(height // factor, 1)), None, 0, 0, cv2.INTER_AREA
        )
        how = cv2.INTER_LINEAR if random.random() < 0.5 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(small, (width, height), None, 0, 0, how), np.uint8)
    blurred = cv2.GaussianBlur(image, (0, 0), 1.5 * height / WINDOW)
    amount = random.uniform(0.3, 1.0)
    return np.asarray(cv2.addWeighted(image, 1 + amount, blurred, -amount, 0), np.uint8)


def self_blend(image: Pixels, points: Points, random: Generator) -> Pair:
    """A pair made of one picture of a face (uint8 H x W x 3) and its landmarks (104 x 2).

    ``fake = m * source + (1 - m) * target``; the target is the real picture of the pair. Where the
    mask is zero the two are the same, bit for bit.
    """
    height, width = image.shape[:2]
    source, target = image, image
    if random.random() < 0.5:
        source = shift_statistics(image, random)
    else:
        target = shift_statistics(image, random)
    mask = hull_mask(points, (height, width), random)
    scale = random.uniform(0.95, 1 / 0.95)
    unit = float(np.ptp(points[OVAL, 1]))
    shift = (random.uniform(-0.03, 0.03) * unit, random.uniform(-0.015, 0.015) * unit)
    centre = points[:68].mean(axis=0)
    turn = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), 0, scale)
    turn[:, 2] += np.array(shift)
    mask = np.asarray(cv2.warpAffine(mask, turn, (width, height)), np.float32)
    source = np.asarray(
        cv2.warpAffine(source, turn, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8
    )
    full = soften(mask, random)
    ratio = float(random.choice(RATIOS))
    part = (full * np.float32(ratio))[..., None]
    mixed = part * source + (1 - part) * target
    fake = np.where(part > 0, np.rint(mixed), target).astype(np.uint8)
    return Pair(target, fake, part[..., 0], 4 * full * (1 - full), full, ratio)


@dataclass(frozen=True)
class Shared:
    """One draw of the changes that both of a pair go through."""

    area: tuple[float, float, float, float]
    """The square of the window that becomes the crop: x0, y0, x1, y1."""
    flip: bool
    colour: tuple[float, float, float]
    """Contrast, brightness, saturation."""
    rescale: int | None
    quality: int | None
    blur: float | None
    noise: float | None
    seed: int


def draw_shared(box: npt.NDArray[np.float32], random: Generator, hard: float = 1.0) -> Shared:
    """Draw margin, jitter, flip, colour, resampling, compression, blur and noise.

    ``hard`` scales the shares of pictures that are degraded.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    longer = max(x1 - x0, y1 - y0) * random.uniform(0.94, 1.06)
    side = longer * (1 + 2 * random.uniform(0.0, 0.11))
    x = (x0 + x1) / 2 + random.uniform(-0.05, 0.05) * longer
    y = (y0 + y1) / 2 + random.uniform(-0.05, 0.05) * longer
    left = min(max(x - side / 2, 0.0), max(WINDOW - side, 0.0))
    top = min(max(y - side / 2, 0.0), max(WINDOW - side, 0.0))
    side = min(side, float(WINDOW))

    def maybe(share: float, low: float, high: float) -> float | None:
        draw, value = random.random(), random.uniform(low, high)
        return value if draw < share * hard else None

    size, quality = maybe(0.3, 72, 176), maybe(0.5, 40, 100)
    return Shared(
        area=(left, top, left + side, top + side),
        flip=bool(random.random() < 0.5),
        colour=(random.uniform(0.85, 1.15), random.uniform(-20, 20), random.uniform(0.7, 1.3)),
        rescale=None if size is None else int(size),
        quality=None if quality is None else int(quality),
        blur=maybe(0.1, 0.4, 1.2),
        noise=maybe(0.1, 1.0, 6.0),
        seed=int(random.integers(2**31)),
    )


def apply_shared(image: Pixels, shared: Shared, size: int = SIZE) -> Pixels:
    """The crop of a window after the changes of ``shared``: the same for the real and the fake."""
    x0, y0, x1, y1 = shared.area
    left, top, right, bottom = int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1))
    out = image[top:bottom, left:right]
    area = (x0 - left, y0 - top, x1 - left, y1 - top)
    if shared.rescale:
        out = resample(out, area, shared.rescale)
        area = (0.0, 0.0, float(shared.rescale), float(shared.rescale))
    contrast, bright, saturation = shared.colour
    mix = np.full((3, 3), (1 - saturation) / 3) + np.eye(3) * saturation
    matrix = np.concatenate([mix * contrast, np.full((3, 1), bright + 128 * (1 - contrast))], 1)
    out = np.asarray(cv2.transform(np.ascontiguousarray(out), matrix), np.uint8)
    if shared.blur:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), shared.blur), np.uint8)
    if shared.noise:
        noise = np.random.default_rng(shared.seed).standard_normal(out.shape, np.float32)
        out = np.clip(out + shared.noise * noise, 0, 255).astype(np.uint8)
    if shared.quality:
        out = jpeg(np.asarray(out, np.uint8), shared.quality)
    out = resample(np.asarray(out, np.uint8), area, size)
    return np.ascontiguousarray(out[:, ::-1]) if shared.flip else out


def apply_geometry(mask: Floats, shared: Shared, size: int) -> Floats:
    """A mask through the crop and the flip of ``shared``, averaged down to ``size`` x ``size``."""
    x0, y0, x1, _ = shared.area
    scale = size / (x1 - x0)
    matrix = np.array([[scale, 0, -x0 * scale], [0, scale, -y0 * scale]])
    smooth = cv2.blur(mask, (odd(1 / scale), odd(1 / scale)))
    out = cv2.warpAffine(smooth, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE)
    out = out[:, ::-1] if shared.flip else out
    return np.ascontiguousarray(out, dtype=np.float32)


def jpeg(image: Pixels, quality: int) -> Pixels:
    """A picture after JPEG compression and decompression."""
    good, data = cv2.imencode(
        ".jpg", image[..., ::-1], [int(cv2.IMWRITE_JPEG_QUALITY), int(quality)]
    )
    if not good:
        raise ValueError("the picture could not be compressed as JPEG")
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(np.asarray(decoded, np.uint8)[..., ::-1])


def margin_area(
    box: npt.NDArray[np.float32], margin: float = MARGIN
) -> tuple[float, float, float, float]:
    """The square of a window that the fixed margin of inference takes."""
    x0, y0, x1, y1 = (float(value) for value in box)
    side = max(x1 - x0, y1 - y0) * (1 + 2 * margin)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2
