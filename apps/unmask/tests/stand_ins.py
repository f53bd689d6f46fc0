"""What stands in for a network and for the face finder, and pictures of drawn people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.faces import Box, Face
from unmask.media import Pixels
from unmask.samples import Place, draw

THRESHOLDS = {"swap": {"low": 0.4, "high": 0.7}, "generated": {"low": 0.3, "high": 0.8}}
PLACE = Place(320, 220, 130)
PAIR = (Place(180, 230, 95), Place(460, 240, 100))


@dataclass
class Network:
    """Scores every crop by a function of it; the seams that it sees are in the left half."""

    swap: Callable[[Pixels], float] = lambda crop: 0.1
    generated: Callable[[Pixels], float] = lambda crop: 0.1
    info: Any = field(
        default_factory=lambda: SimpleNamespace(name="fake", version="0", thresholds=THRESHOLDS)
    )
    sizes: list[tuple[int, ...]] = field(default_factory=list)

    def scores(self, crops: Pixels) -> Any:
        self.sizes.append(crops.shape)
        seam = np.zeros((len(crops), 32, 32), np.float32)
        seam[:, :, :16] = 1
        return SimpleNamespace(
            swap=self._each(self.swap, crops), generated=self._each(self.generated, crops),
            boundary=seam,
        )  # fmt: skip

    @staticmethod
    def _each(score: Callable[[Pixels], float], crops: Pixels) -> npt.NDArray[np.float32]:
        return np.array([score(crop) for crop in crops], np.float32)


@dataclass
class Boxes:
    """A face finder that finds these boxes, frame after frame."""

    frames: Sequence[Sequence[Box]]
    seen: int = 0

    def detect(self, image: Pixels, side: int = 0) -> tuple[Face, ...]:
        found = self.frames[min(self.seen, len(self.frames) - 1)]
        self.seen += 1
        return tuple(Face(box, 0.99) for box in found)


def redness(crop: Pixels) -> float:
    """Return 1 for a crop that is redder than skin, 0 for another."""
    red, green, blue = crop.reshape(-1, 3).mean(axis=0)
    return float(red - (green + blue) / 2 > 90)


def reddened(image: Pixels) -> Pixels:
    """Return a picture with more red and less of the rest."""
    shift = np.array([60, -45, -45])
    return np.clip(image.astype(int) + shift, 0, 255).astype(np.uint8)


def walk(count: int, changed: range = range(0), away: range = range(0)) -> Iterator[Pixels]:
    """Yield frames of one drawn person who moves slowly; some are reddened, some without them."""
    wide = draw((700, 400), (Place(350, 190, 90),), seed=4)
    empty = draw((640, 360), (), seed=4)
    for index in range(count):
        left = round(60 * index / max(count - 1, 1))
        frame = np.ascontiguousarray(wide[20:380, left : left + 640])
        if index in away:
            frame = empty
        yield reddened(frame) if index in changed else frame
