"""A labelled folder of whole files out of the validation split, for ``unmask evaluate``.

python -m train.folder --out PRIVATE_FOLDER
unmask evaluate PRIVATE_FOLDER --labels PRIVATE_FOLDER/labels.csv --json FILE

The pictures are JPEG, the clips H.264: a slow zoom into one picture; in fakes every frame is
self-blended with the same mask and mismatch. The folder holds photographs: delete it after use.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from train import say
from train.blend import self_blend
from train.data import DATA, Face, read_image, read_index
from unmask.crops import Pixels, resample

SIDE, FRAMES, RATE, QUALITY = 360, 24, 8, 92


def whole(image: Pixels, face: Face, seed: int | None) -> Pixels:
    """The picture with its face self-blended, untouched where ``seed`` is None."""
    if seed is None:
        return image
    return self_blend(image, face.points, np.random.default_rng(seed)).fake


def clip(image: Pixels, face: Face, seed: int | None) -> list[Pixels]:
    """Frames (360 x 360) of a slow zoom of 8 % into a picture."""
    height, width = image.shape[:2]
    side = min(height, width)
    found = []
    for number in range(FRAMES):
        part = side * (1 - 0.08 * number / FRAMES)
        left, top = (width - part) / 2, (height - part) / 2
        scale = SIDE / part
        frame = resample(image, (left, top, left + part, top + part), SIDE)
        points = (face.points - np.array([left, top], np.float32)) * np.float32(scale)
        found.append(whole(frame, replace(face, points=points), seed))
    return found


def write_clip(frames: list[Pixels], path: Path, crf: int = 23) -> None:
    """Encode frames as H.264 in MP4."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE), options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        stream.thread_count = 1
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_picture(image: Pixels, path: Path) -> None:
    """Encode a picture as JPEG."""
    data = np.ascontiguousarray(image[..., ::-1])
    cv2.imwrite(str(path), data, [int(cv2.IMWRITE_JPEG_QUALITY), QUALITY])


def padded(image: Pixels, face: Face, share: float = 0.25) -> tuple[Pixels, Face]:
    """The picture with its edge repeated, so that a tight crop leaves room to find the face."""
    rim = int(share * max(image.shape[:2]))
    wide = np.pad(image, ((rim, rim), (rim, rim), (0, 0)), mode="edge")
    return wide, replace(face, points=face.points + np.float32(rim))


def write(data: Path, out: Path, pictures: int, clips: int, seed: int = 0) -> None:
    """Write ``pictures`` swaps, as many real ones, half as many generated ones, and the clips."""
    random = np.random.default_rng(seed)
    faces = read_index(data, "val")
    real = [face for face in faces if not face.generated]
    real = [real[index] for index in random.permutation(len(real))]
    made = [face for face in faces if face.generated]
    made = [made[index] for index in random.permutation(len(made))][: pictures // 2]
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    rows = []

    def add(number: int, face: Face, label: str, group: str, suffix: str) -> Path:
        name = f"{group}_{label}_{number}{suffix}"
        person = f"{face.split}-{face.group}"
        rows.append({"path": name, "label": label, "group": group, "person": person})
        return out / name

    taken = iter(real)
    for label, count, group in (
        ("real", pictures, "swapped"),
        ("fake", pictures, "swapped"),
        ("real", len(made), "generated"),
    ):
        for number in range(count):
            face = next(taken)
            image, at = padded(read_image(data / "faces" / face.path), face)
            made_up = whole(image, at, number if label == "fake" else None)
            write_picture(made_up, add(number, face, label, group, ".jpg"))
    for number, face in enumerate(made):
        image, _ = padded(read_image(data / "faces" / face.path), face)
        write_picture(image, add(number, face, "fake", "generated", ".jpg"))
    for label in ("real", "fake"):
        for number in range(clips):
            face = next(taken)
            image, at = padded(read_image(data / "faces" / face.path), face)
            frames = clip(image, at, number if label == "fake" else None)
            write_clip(frames, add(number, face, label, "clips", ".mp4"))
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("path", "label", "group", "person"))
        writer.writeheader()
        writer.writerows(rows)
    say(f"{len(rows)} files")


def main() -> None:
    """Run the step as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--clips", type=int, default=25)
    given = parser.parse_args()
    cv2.setNumThreads(0)
    write(given.data, given.out, given.pictures, given.clips)


if __name__ == "__main__":
    main()
