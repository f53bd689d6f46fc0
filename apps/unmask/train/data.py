"""The face data: its index, its landmarks, and the box that the face detector would give."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from unmask.crops import Pixels, resample, square

Points = npt.NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"
CONTEXT = 0.2  # margin of a cached window: room for the widest margin and for jitter
WINDOW = 192

TEXTS = ("path", "source", "kind", "split", "group", "gender", "race", "age", "generator")

# Centre and size of a box of facenet-pytorch's MTCNN, as shares of the mesh box: see `prepare`.
BOX_MAP = {"dx": -0.0168, "dy": -0.0658, "width": 0.999, "height": 1.1453}


@dataclass(frozen=True)
class Face:
    """A picture of one face: its row in index.csv, its landmarks and its box, both in pixels."""

    path: str
    source: str
    kind: str
    split: str
    group: str
    gender: str
    race: str
    age: str
    generator: str
    points: Points
    box: tuple[float, float, float, float]

    @property
    def generated(self) -> bool:
        """Whether the whole face is generated."""
        return self.kind == "generated"


def detector_box(
    mesh: npt.NDArray[np.int16], rule: dict[str, float] | None = None
) -> tuple[float, float, float, float]:
    """The box that MTCNN gives, on average, for a face with this box of mesh points."""
    rule = rule or BOX_MAP
    x0, y0, x1, y1 = (float(value) for value in mesh)
    width, height = x1 - x0, y1 - y0
    x, y = (x0 + x1) / 2 + rule["dx"] * width, (y0 + y1) / 2 + rule["dy"] * height
    half_w, half_h = rule["width"] * width / 2, rule["height"] * height / 2
    return x - half_w, y - half_h, x + half_w, y + half_h


def read_index(data: Path, split: str | None = None) -> list[Face]:
    """All faces of a split (``train`` or ``val``; all if None), in the order of index.csv."""
    folder = data / "faces"
    marks = np.load(folder / "landmarks.npz", allow_pickle=False)
    faces = []
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        for row, path, points, box in zip(
            csv.DictReader(file), marks["path"], marks["points"], marks["box"], strict=True
        ):
            if row["path"] != path:
                raise ValueError(f"landmarks.npz has {path} where index.csv has {row['path']}")
            if split in (None, row["split"]):
                names = TEXTS
                texts = {name: row[name] for name in names}
                faces.append(Face(**texts, points=points.astype(np.float32), box=detector_box(box)))
    return faces


def read_image(path: Path) -> Pixels:
    """A picture as uint8 H x W x 3, RGB."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"cannot read {path}")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def window(image: Pixels, face: Face, size: int = WINDOW) -> tuple[Pixels, Points]:
    """The surroundings of a face at ``size`` x ``size``, and its points therein."""
    left, top, side = square(face.box, CONTEXT)
    x0, y0 = int(np.floor(left)), int(np.floor(top))
    x1, y1 = int(np.ceil(left + side)), int(np.ceil(top + side))
    height, width = image.shape[:2]
    part = image[max(y0, 0) : y1, max(x0, 0) : x1]
    pad = ((max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0)), (0, 0))
    part = np.pad(part, pad, mode="edge")
    area = (left - x0, top - y0, left - x0 + side, top - y0 + side)
    return resample(part, area, size), points_in_window(face, size)


def points_in_window(face: Face, size: int = WINDOW) -> Points:
    """The face's landmarks in the pixels of its window."""
    left, top, side = square(face.box, CONTEXT)
    offset = np.array([left, top], np.float32)
    return np.asarray((face.points - offset) * np.float32(size / side), np.float32)


def box_in_window(face: Face, size: int = WINDOW) -> tuple[float, float, float, float]:
    """The face's box in the pixels of its window."""
    left, top, side = square(face.box, CONTEXT)
    scale = size / side
    x0, y0, x1, y1 = face.box
    return (x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale


@dataclass(frozen=True)
class Cache:
    """Windows of the training faces, decoded once: a private folder that is deleted after use."""

    windows: npt.NDArray[np.uint8]
    points: Points
    boxes: Points
    generated: npt.NDArray[np.bool_]

    @classmethod
    def open(cls, folder: Path) -> Cache:
        """Open what ``python -m train.prepare`` wrote; the windows stay on disk."""
        if not (folder / "done.json").exists():
            raise ValueError(f"{folder} holds no cache; run python -m train.prepare --cache FOLDER")
        count = int(json.loads((folder / "done.json").read_text())["count"])
        shape = (count, WINDOW, WINDOW, 3)
        windows = np.memmap(folder / "windows.u8", np.uint8, "r", shape=shape)
        rest = np.load(folder / "rest.npz", allow_pickle=False)
        return cls(windows, rest["points"], rest["boxes"], rest["generated"])
