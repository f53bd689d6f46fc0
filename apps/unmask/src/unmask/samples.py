"""Samples drawn by code, so that the page and the tests need no photograph.

The faces are drawn, not photographed: an ellipsoid of skin lit from one side, with brows, eyes,
nose, mouth and hair. They are made to be found by the face detector and to show every part of the
product; they say nothing about how well manipulations of real faces are found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from unmask.errors import UnmaskError

SEED = 21
"""Of the samples that are shown: the shipped networks see what was done to them, and no more."""

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

SKINS: tuple[Colour, ...] = ((236, 196, 172), (214, 166, 134), (168, 118, 88), (112, 76, 56))
HAIRS: tuple[Colour, ...] = ((40, 28, 22), (92, 62, 38), (150, 112, 66), (70, 66, 64))
IRISES: tuple[Colour, ...] = ((74, 52, 36), (70, 96, 118), (80, 104, 70))


@dataclass(frozen=True)
class Place:
    """Where a face is drawn: its centre and the half of its height, in pixels."""

    x: float
    y: float
    radius: float


def draw(size: tuple[int, int], places: tuple[Place, ...], seed: int = 0) -> Pixels:
    """Return a picture (height, width, 3) with one drawn face per place, the same for a seed.

    >>> draw((96, 64), (), seed=1).shape
    (64, 96, 3)
    """
    rng = np.random.default_rng(seed)
    image = _background(size, rng)
    for place in places:
        image = _face(image, place, rng)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), np.float32)
    grain = rng.normal(0.0, 2.5, (*pixels.shape[:2], 1)) + rng.normal(0.0, 1.0, pixels.shape)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def blend(image: Pixels, place: Place, seed: int = 0) -> Pixels:
    """Paste a changed copy of a face over itself, as a face swap leaves it.

    The copy is shifted in colour, softened, moved and enlarged a little; a soft mask over the
    inner face blends it in.
    """
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    radius = place.radius
    half = max(1, round(radius / 2))
    copy = Image.fromarray(image)
    copy = copy.resize((max(1, width // 3), max(1, height // 3)), Image.Resampling.BILINEAR)
    copy = copy.resize((width, height), Image.Resampling.BILINEAR)
    grow = 1.05
    move_x, move_y = (float(v) * radius for v in rng.uniform(-0.04, 0.04, 2))
    source = copy.transform(
        (width, height), Image.Transform.AFFINE,
        (1 / grow, 0, place.x - (place.x + move_x) / grow, 0, 1 / grow,
         place.y - (place.y + move_y) / grow),
        Image.Resampling.BICUBIC,
    )  # fmt: skip
    shift = rng.choice([-1.0, 1.0]) * rng.uniform(8.0, 16.0) + rng.uniform(-7.0, 7.0, 3)
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).ellipse(
        (place.x - 0.56 * radius, place.y - 0.5 * radius,
         place.x + 0.56 * radius, place.y + 0.78 * radius), fill=255,
    )  # fmt: skip
    mask = mask.filter(ImageFilter.GaussianBlur(max(1.0, half / 12)))
    share = np.asarray(mask, np.float32)[..., None] / 255
    changed = np.asarray(source, np.float32) + shift.astype(np.float32)
    mixed: Pixels = np.clip(share * changed + (1 - share) * image, 0, 255).astype(np.uint8)
    return mixed


def clip(
    path: Path,
    frames: Iterator[Pixels],
    rate: int = 24,
    *,
    crf: int = 20,
    codec: str = "libx264",
) -> None:
    """Write frames of one size as a video, on one thread so that it is the same every time."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(
            codec, rate=rate, options={"crf": str(crf), "threads": "1"}
        )
        stream.pix_fmt = "yuv420p"
        for index, pixels in enumerate(frames):
            if not index:
                stream.height, stream.width = pixels.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def stroll(seconds: float = 3.0, rate: int = 24, seed: int = 0) -> Iterator[Pixels]:
    """Yield frames of 640 x 360: the camera moves over one face, which is changed in the middle.

    The middle third of the time shows the blended face, the rest the plain one.
    """
    place = Place(400, 230, 105)
    plain = draw((800, 460), (place,), seed)
    changed = blend(plain, place, seed)
    count = round(seconds * rate)
    for index in range(count):
        phase = 2 * math.pi * index / count
        left, top = 80 + 60 * math.sin(phase), 50 + 25 * math.cos(phase)
        source = changed if count / 3 <= index < 2 * count / 3 else plain
        window = (left, top, left + 640, top + 360)
        picture = Image.fromarray(source)
        yield np.asarray(picture.resize((640, 360), Image.Resampling.BICUBIC, box=window))


def write(folder: Path, seed: int = SEED) -> list[Path]:
    """Write all samples into a folder and return their paths; no existing file is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(320, 220, 130)
    pair = (Place(200, 230, 105), Place(450, 235, 105))
    plain = draw((640, 480), (place,), seed)
    pictures = {
        "portrait.png": plain,
        "blended.png": blend(plain, place, seed),
        "two-people.png": draw((640, 480), pair, seed + 2),
        "nobody.png": draw((640, 480), (), seed),
    }
    paths = [folder / name for name in (*pictures, "middle-second.mp4")]
    for path in paths:
        if path.exists():
            raise UnmaskError(f"{str(path)!r} exists; choose another folder")
    for path, pixels in zip(paths, pictures.values(), strict=False):
        Image.fromarray(pixels).save(path)
    clip(paths[-1], stroll(seed=seed))
    return paths


def _background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a wall with a soft gradient and a few out-of-focus shapes."""
    width, height = size
    ends = rng.integers(90, 200, (2, 3))
    slope = np.linspace(0, 1, max(height, 1), dtype=np.float32)[:, None, None]
    wall = np.broadcast_to(ends[0] * (1 - slope) + ends[1] * slope, (height, width, 3))
    image = Image.fromarray(wall.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        w, h = rng.uniform(0.05, 0.3) * width, rng.uniform(0.05, 0.3) * height
        shade = tuple(int(v) for v in rng.integers(60, 220, 3))
        pen.rectangle((x, y, x + w, y + h), fill=shade)
    return image.filter(ImageFilter.GaussianBlur(max(width, height) / 40))


def _face(image: Image.Image, place: Place, rng: np.random.Generator) -> Image.Image:
    """Draw one head at twice the size and return the picture with it."""
    skin = SKINS[int(rng.integers(len(SKINS)))]
    hair = HAIRS[int(rng.integers(len(HAIRS)))]
    iris = IRISES[int(rng.integers(len(IRISES)))]
    unit = 200.0  # the head is drawn with this radius and then scaled to its place
    canvas = Image.new("RGBA", (800, 1000), (0, 0, 0, 0))
    head = _Head(canvas, 400.0, 460.0, unit, skin, hair, iris)
    red, green, blue = (int(v) for v in rng.integers(40, 180, 3))
    head.shoulders((red, green, blue))
    head.hair_behind()
    head.skin_ball()
    head.features(float(rng.uniform(0.9, 1.1)))
    head.hair_front()
    scale = place.radius / unit
    small = head.canvas.resize(
        (max(1, round(800 * scale)), max(1, round(1000 * scale))), Image.Resampling.LANCZOS
    )
    corner = (round(place.x - 400 * scale), round(place.y - 460 * scale))
    picture = image.convert("RGBA")
    layer = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    layer.paste(small, corner)
    return Image.alpha_composite(picture, layer).convert("RGB")


def _tone(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(c * factor))) for c in colour)
    return red, green, blue


@dataclass
class _Head:
    """A head on its canvas; lengths are in units of the face's half height."""

    canvas: Image.Image
    x: float
    y: float
    unit: float
    skin: Colour
    hair: Colour
    iris: Colour

    def shoulders(self, cloth: Colour) -> None:
        """Draw the neck and the shoulders."""
        self._oval(0.0, 1.95, 1.5, 0.75, cloth, 3)
        self._oval(0.0, 1.1, 0.38, 0.5, _tone(self.skin, 0.72), 4)

    def hair_behind(self) -> None:
        """Draw the hair that the face covers."""
        self._oval(0.0, -0.28, 0.88, 0.92, self.hair, 2)

    def skin_ball(self) -> None:
        """Draw the face as a lit ellipsoid, broader above than at the chin, and the ears."""
        for side in (-1, 1):
            self._oval(side * 0.74, 0.05, 0.1, 0.2, _tone(self.skin, 0.82), 2)
        height, width = self.canvas.height, self.canvas.width
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        v = (rows - self.y) / self.unit
        u = (columns - self.x) / self.unit / (0.76 - 0.1 * np.clip(v, -0.2, 1.0))
        inside = u**2 + v**2
        depth = np.sqrt(np.clip(1 - inside, 0, 1))
        light = 0.62 + 0.34 * depth - 0.12 * u - 0.06 * v
        cheeks = sum(
            np.exp(-(((u - side * 0.52) ** 2 + (v - 0.3) ** 2) / 0.05)) for side in (-1, 1)
        )
        sockets = sum(
            np.exp(-((u - side * 0.42) ** 2 / 0.05 + (v + 0.12) ** 2 / 0.02)) for side in (-1, 1)
        )
        light = light - 0.13 * sockets
        colour = np.array(self.skin, np.float32) * light[..., None]
        colour[..., 0] += 14 * cheeks
        alpha = np.clip((1 - inside) * 40, 0, 1) * 255
        layer = np.dstack([np.clip(colour, 0, 255), alpha]).astype(np.uint8)
        self.canvas.alpha_composite(Image.fromarray(layer, "RGBA"))

    def features(self, width: float) -> None:
        """Draw brows, eyes, nose and mouth."""
        lip = (_tone(self.skin, 0.8)[0], *_tone(self.skin, 0.55)[1:])
        for side in (-1, 1):
            eye = side * 0.3 * width
            self._arc(eye, -0.32, 0.2, 0.1, (195, 345), _tone(self.hair, 0.9), 0.055)
            self._oval(eye, -0.12, 0.145, 0.075, (240, 236, 230), 1)
            self._oval(eye, -0.12, 0.066, 0.07, self.iris, 1)
            self._oval(eye, -0.12, 0.032, 0.034, (12, 10, 10), 0.5)
            self._oval(eye + 0.025, -0.145, 0.014, 0.014, (255, 255, 255), 0.5)
            self._arc(eye, -0.1, 0.155, 0.1, (192, 348), (40, 26, 22), 0.028)
            self._arc(eye, -0.15, 0.14, 0.085, (25, 155), _tone(self.skin, 0.6), 0.014)
            self._oval(side * 0.075, 0.275, 0.036, 0.02, _tone(self.skin, 0.34), 2)
            self._oval(side * 0.13, 0.24, 0.05, 0.06, _tone(self.skin, 0.78), 6)
        self._oval(0.05, 0.06, 0.03, 0.26, _tone(self.skin, 0.8), 9)
        self._oval(-0.02, 0.05, 0.03, 0.24, _tone(self.skin, 1.12), 8)
        self._oval(0.0, 0.2, 0.07, 0.06, _tone(self.skin, 1.1), 8)
        self._oval(0.0, 0.335, 0.12, 0.025, _tone(self.skin, 0.7), 5)
        self._oval(0.0, 0.5, 0.25 * width, 0.05, lip, 2)
        self._oval(0.0, 0.555, 0.19 * width, 0.06, _tone(lip, 1.1), 3)
        self._arc(0.0, 0.47, 0.25 * width, 0.06, (20, 160), (70, 30, 30), 0.018)
        self._oval(0.0, 0.67, 0.16, 0.03, _tone(self.skin, 0.74), 7)

    def hair_front(self) -> None:
        """Draw the fringe over the forehead."""
        self._arc(0.0, 0.24, 0.86, 1.36, (203, 337), self.hair, 0.44)

    def _oval(self, x: float, y: float, rx: float, ry: float, colour: Colour, soft: float) -> None:
        box = (
            self.x + (x - rx) * self.unit, self.y + (y - ry) * self.unit,
            self.x + (x + rx) * self.unit, self.y + (y + ry) * self.unit,
        )  # fmt: skip
        mask = Image.new("L", self.canvas.size, 0)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        self._lay(mask, colour, soft)

    def _arc(
        self, x: float, y: float, rx: float, ry: float, angles: tuple[int, int],
        colour: Colour, width: float,
    ) -> None:  # fmt: skip
        box = (
            self.x + (x - rx) * self.unit, self.y + (y - ry) * self.unit,
            self.x + (x + rx) * self.unit, self.y + (y + ry) * self.unit,
        )  # fmt: skip
        mask = Image.new("L", self.canvas.size, 0)
        ImageDraw.Draw(mask).arc(box, *angles, fill=255, width=max(1, round(width * self.unit)))
        self._lay(mask, colour, 1.5)

    def _lay(self, mask: Image.Image, colour: Colour, soft: float) -> None:
        layer = Image.new("RGBA", self.canvas.size, (*colour, 0))
        layer.putalpha(mask.filter(ImageFilter.GaussianBlur(soft)))
        self.canvas.alpha_composite(layer)
