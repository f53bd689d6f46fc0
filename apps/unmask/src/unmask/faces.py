"""Where the faces are: MTCNN as facenet-pytorch brings it, its weights in the wheel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from unmask.errors import UnmaskError

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

IMAGE_SIDE, VIDEO_SIDE = 1280, 960
VIDEO_PART = 0.8
MINIMUM = 40
SCORE = 0.9
INSTALL = "the face detector is missing: pip install --no-deps facenet-pytorch==2.6.0"


@dataclass(frozen=True)
class Face:
    """A face in pixels of the picture: box (x0, y0, x1, y1), score 0..1, five points (x, y).

    The points are the eyes, the nose and the corners of the mouth. A box may reach over the edge.
    """

    box: Box
    score: float
    points: tuple[tuple[float, float], ...] = ()

    @property
    def side(self) -> float:
        """Return the longer side of the box, in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class Detector(Protocol):
    """What finds faces: ``side`` is the longer side at which it looks at a picture."""

    def detect(self, image: Pixels, side: int = IMAGE_SIDE) -> tuple[Face, ...]:
        """Return the faces of an RGB picture (height, width, 3), the largest first."""
        ...


class FaceDetector:
    """MTCNN on the CPU; ``minimum`` is the smallest face, in pixels of the picture it looks at.

    A picture whose longer side is over ``side`` is shrunk to it first, so that the time has a bound
    and the smallest face found grows with the picture.
    """

    def __init__(self, minimum: int = MINIMUM, score: float = SCORE, threads: int = 1) -> None:
        try:
            from facenet_pytorch import MTCNN
        except ImportError:
            raise UnmaskError(INSTALL) from None
        import torch

        self.minimum, self.score, self.threads = minimum, score, threads
        self._network = MTCNN(keep_all=True, min_face_size=minimum, device=torch.device("cpu"))

    def detect(self, image: Pixels, side: int = IMAGE_SIDE) -> tuple[Face, ...]:
        """Return the faces of an RGB picture (height, width, 3), the largest first."""
        height, width = image.shape[:2]
        shrink = min(1.0, side / max(height, width))
        if shrink < 1:
            size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
            image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        if min(image.shape[:2]) < self.minimum:
            return ()
        with _threads(self.threads):
            boxes, scores, points = self._network.detect(image, landmarks=True)
        if boxes is None:
            return ()
        scale = np.array([width / image.shape[1], height / image.shape[0]])
        corners = np.asarray(boxes, float).reshape(-1, 2, 2) * scale
        marks = np.asarray(points, float).reshape(-1, 5, 2) * scale
        faces = [
            Face(_box(corner), float(score), tuple((float(x), float(y)) for x, y in mark))
            for corner, score, mark in zip(corners, np.asarray(scores, float), marks, strict=True)
            if score >= self.score and _plausible(corner, width, height)
        ]
        return tuple(sorted(faces, key=lambda face: (-face.side, face.box)))


def sight(kind: str, longer: int) -> int:
    """Return the longer side at which a picture or video frame is looked at; it bounds the time.

    >>> sight("image", 640), sight("video", 640), sight("image", 4000)
    (640, 512, 1280)
    """
    return min(longer, IMAGE_SIDE) if kind == "image" else min(int(VIDEO_PART * longer), VIDEO_SIDE)


@lru_cache(maxsize=4)
def shared(threads: int = 1) -> FaceDetector:
    """Return the detector with the usual settings, loaded once a process."""
    return FaceDetector(threads=threads)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run torch on ``count`` threads; more than one made MTCNN several times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _box(corner: npt.NDArray[np.float64]) -> Box:
    (x0, y0), (x1, y1) = corner.tolist()
    return x0, y0, x1, y1


def _plausible(corner: npt.NDArray[np.float64], width: int, height: int) -> bool:
    """Tell whether a box has an area and its centre lies in the picture."""
    if not np.isfinite(corner).all() or (corner[1] <= corner[0]).any():
        return False
    x, y = corner.mean(axis=0)
    return bool(0 <= x < width and 0 <= y < height)
