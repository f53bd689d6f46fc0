"""The fixed validation crops: every real face, its self-blended twin, and generated faces.

The blend is made in the pixels of the stored picture and the crop is the one of inference, so what
is measured here is what a user's picture goes through after the face is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train.blend import self_blend
from train.data import CONTEXT, Face, Points, read_image, read_index
from unmask.crops import SIZE, Pixels, crop, square

Crops = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Validation:
    """Crops (uint8 N x S x S x 3): ``fake[i]`` is the twin of ``real[i]``, a blend by ``ratio``.

    ``plain`` are the same faces untouched: in half of the pairs ``real`` has other colours.
    """

    faces: list[Face]
    plain: Crops
    real: Crops
    fake: Crops
    ratios: npt.NDArray[np.float64]
    generated_faces: list[Face]
    generated: Crops


def surroundings(image: Pixels, face: Face) -> tuple[Pixels, Points, tuple[float, ...]]:
    """The face and its context at native scale, with landmarks and box in its pixels."""
    left, top, side = square(face.box, CONTEXT)
    x0, y0, size = int(np.floor(left)), int(np.floor(top)), int(np.ceil(side)) + 1
    height, width = image.shape[:2]
    rows = np.clip(np.arange(y0, y0 + size), 0, height - 1)
    columns = np.clip(np.arange(x0, x0 + size), 0, width - 1)
    part = np.ascontiguousarray(image[rows][:, columns])
    box = (face.box[0] - x0, face.box[1] - y0, face.box[2] - x0, face.box[3] - y0)
    return part, face.points - np.array([x0, y0], np.float32), box


def build(
    data: Path, split: str = "val", limit: int | None = None, seed: int = 0, size: int = SIZE
) -> Validation:
    """The crops of a split; ``limit`` takes that many real faces, drawn at random."""
    faces = read_index(data, split)
    real_faces = [face for face in faces if not face.generated]
    generated_faces = [face for face in faces if face.generated]
    if limit is not None and limit < len(real_faces):
        chosen = np.random.default_rng(seed).permutation(len(real_faces))[:limit]
        real_faces = [real_faces[index] for index in sorted(chosen)]
    plain, real, fake, ratios = [], [], [], []
    for number, face in enumerate(real_faces):
        image, points, box = surroundings(read_image(data / "faces" / face.path), face)
        pair = self_blend(image, points, np.random.default_rng((seed, number)))
        plain.append(crop(image, box, size=size))
        real.append(crop(pair.real, box, size=size))
        fake.append(crop(pair.fake, box, size=size))
        ratios.append(pair.ratio)
    generated = [
        crop(read_image(data / "faces" / face.path), face.box, size=size)
        for face in generated_faces
    ]
    return Validation(
        real_faces, np.stack(plain), np.stack(real), np.stack(fake), np.array(ratios),
        generated_faces, np.stack(generated),
    )  # fmt: skip


PARTS = ("plain", "real", "fake", "ratios", "generated")


def kept(data: Path, folder: Path) -> Validation:
    """The crops of the whole validation split, kept in a private ``folder`` once made."""
    files = {name: folder / f"val_{name}.npy" for name in PARTS}
    if not all(file.exists() for file in files.values()):
        made = build(data)
        for name, file in files.items():
            np.save(file, getattr(made, name))
    faces = read_index(data, "val")
    arrays = {name: np.load(file, allow_pickle=False) for name, file in files.items()}
    return Validation(
        faces=[face for face in faces if not face.generated],
        generated_faces=[face for face in faces if face.generated],
        **arrays,
    )
