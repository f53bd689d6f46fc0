"""Step 1: fit the detector's box to the mesh box, and cache the windows of the training faces."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from train import say
from train.data import DATA, WINDOW, box_in_window, points_in_window, read_image, read_index, window


def fit_boxes(data: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Medians over ``count`` training faces of where MTCNN's box lies in the mesh box."""
    import torch
    from facenet_pytorch import MTCNN  # type: ignore[import-untyped,unused-ignore]

    torch.set_num_threads(1)
    detector = MTCNN(min_face_size=40, select_largest=True, post_process=False)
    faces = read_index(data, "train")
    marks = np.load(data / "faces" / "landmarks.npz", allow_pickle=False)
    mesh = dict(zip(marks["path"], marks["box"].astype(float), strict=True))
    chosen = np.random.default_rng(seed).choice(len(faces), count, replace=False)
    rows = []
    for index in track(chosen, "fitting the box"):
        image = np.pad(
            read_image(data / "faces" / faces[index].path), ((40, 40), (40, 40), (0, 0)), "edge"
        )
        found, _ = detector.detect(image)
        if found is None:
            continue
        a0, b0, a1, b1 = found[0] - 40
        x0, y0, x1, y1 = mesh[faces[index].path]
        w, h = x1 - x0, y1 - y0
        centre = (((a0 + a1) - (x0 + x1)) / 2 / w, ((b0 + b1) - (y0 + y1)) / 2 / h)
        rows.append((*centre, (a1 - a0) / w, (b1 - b0) / h))
    table = np.array(rows)
    middle = np.median(table, axis=0)
    near = table[np.all(np.abs(table - middle) < 0.35, axis=1)]  # the same face, not another one
    names = ("dx", "dy", "width", "height")
    fit = dict(zip(names, np.median(near, axis=0).round(4).tolist(), strict=True))
    spread = dict(zip(names, near.std(axis=0).round(4).tolist(), strict=True))
    say(json.dumps({"fit": fit, "spread": spread, "faces": len(near), "of": count}))
    return fit


def write_cache(data: Path, folder: Path) -> None:
    """Write the windows; an interrupted run goes on where it stopped."""
    cv2.setNumThreads(0)
    faces = read_index(data, "train")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    shape = (len(faces), WINDOW, WINDOW, 3)
    target = folder / "windows.u8"
    mode = "r+" if target.exists() and target.stat().st_size == np.prod(shape) else "w+"
    windows: np.memmap[Any, Any] = np.memmap(
        target, np.uint8, "r+" if mode == "r+" else "w+", shape=shape
    )
    state = folder / "state.json"
    first = json.loads(state.read_text())["done"] if mode == "r+" and state.exists() else 0
    for number in track(range(first, len(faces)), "windows"):
        image = read_image(data / "faces" / faces[number].path)
        windows[number] = window(image, faces[number])[0]
        if number % 500 == 0:
            state.write_text(json.dumps({"done": number}))
    windows.flush()
    points = np.stack([points_in_window(face) for face in faces])
    boxes = np.array([box_in_window(face) for face in faces], np.float32)
    generated = np.array([face.generated for face in faces])
    np.savez(folder / "rest.npz", points=points, boxes=boxes, generated=generated)
    (folder / "done.json").write_text(json.dumps({"count": len(faces)}))


def main() -> None:
    """Run the step as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, required=True, help="a private folder to write to")
    parser.add_argument("--fit", type=int, metavar="N", help="only fit the box map, on N faces")
    arguments = parser.parse_args()
    if arguments.fit:
        fit_boxes(arguments.data, arguments.fit)
    else:
        write_cache(arguments.data, arguments.cache)


if __name__ == "__main__":
    main()
