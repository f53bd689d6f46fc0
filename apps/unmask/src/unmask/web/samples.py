"""The built-in samples, drawn when they are first asked for."""

from __future__ import annotations

import asyncio
import io
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from unmask import samples


@dataclass(frozen=True)
class Sample:
    """A picture or a video, and how to make it."""

    name: str
    title: str
    kind: Literal["image", "video"]
    type: str
    make: Callable[[], bytes]


class Samples:
    """All samples; each is made once."""

    def __init__(self) -> None:
        self.all = [
            Sample("portrait.png", "A drawn portrait", "image", "image/png", _portrait),
            Sample("blended.png", "The same, its face blended", "image", "image/png", _blended),
            Sample("nobody.png", "An empty room", "image", "image/png", _nobody),
            Sample("two-people.mp4", "Two drawn people", "video", "video/mp4", _clip),
        ]
        self._made: dict[str, bytes] = {}
        self._lock = asyncio.Lock()

    def get(self, name: str) -> Sample | None:
        """Return the sample of this name, None where there is none."""
        return next((sample for sample in self.all if sample.name == name), None)

    async def data(self, sample: Sample) -> bytes:
        """Return the sample's bytes."""
        async with self._lock:
            if sample.name not in self._made:
                self._made[sample.name] = await asyncio.to_thread(sample.make)
        return self._made[sample.name]


PLACE = samples.Place(320, 220, 130)
WIDE = (samples.Place(300, 170, 85), samples.Place(1180, 175, 90))
RATE, FRAMES = 12, 72


def _portrait() -> bytes:
    return png(samples.draw((640, 480), (PLACE,), seed=samples.SEED))


def _blended() -> bytes:
    return png(
        samples.blend(
            samples.draw((640, 480), (PLACE,), seed=samples.SEED), PLACE, seed=samples.SEED
        )
    )


def _nobody() -> bytes:
    return png(samples.draw((640, 480), (), seed=samples.SEED))


def _clip() -> bytes:
    with tempfile.TemporaryDirectory(prefix="unmask-") as folder:
        path = Path(folder) / "clip.mp4"
        samples.clip(path, _walk(), RATE)
        return path.read_bytes()


def _walk() -> Iterator[samples.Pixels]:
    """Let a window of 640 x 360 pixels wander from one face to another, the second one blended."""
    plain = samples.draw((1480, 360), WIDE, seed=samples.SEED)
    wall = samples.blend(plain, WIDE[1], seed=samples.SEED)
    for index in range(FRAMES):
        way = (1 - math.cos(math.pi * index / (FRAMES - 1))) / 2
        left = round(way * (wall.shape[1] - 640))
        yield np.ascontiguousarray(wall[:, left : left + 640])


def png(pixels: samples.Pixels) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
