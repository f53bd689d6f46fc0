"""Engines that stand in for the analysis in tests: quick, and badly behaved on demand."""

from __future__ import annotations

import hashlib
import io
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unmask.errors import Cancelled, MediaError
from unmask.web.engine import Cancel, Inspector, Outcome, Progress


def make() -> Inspector:
    """Return an inspector that obeys words hidden in the file."""
    return inspect


def broken() -> Inspector:
    """Fail as a damaged installation does."""
    raise RuntimeError("no weights")


def drawn() -> Inspector:
    """Return the whole pipeline with a stand-in for the network."""
    from unmask import faces
    from unmask import inspect as look

    faces.shared(1)

    def inspector(path: Path, model: str, progress: Progress, cancel: Cancel) -> Outcome:
        found = look(path, Scorer(model), progress=progress, cancel=cancel)
        return Outcome(found.to_dict(), dict(found.pictures))

    return inspector


class Scorer:
    """Finds a face the more suspicious the darker it is, and looks at its edges."""

    def __init__(self, name: str) -> None:
        self.info = SimpleNamespace(name=name, version="test", thresholds=THRESHOLDS)

    def scores(self, crops: NDArray[np.uint8]) -> SimpleNamespace:
        grey = crops.astype(np.float32).mean(axis=3) / 255
        dark = 1 / (1 + np.exp(20 * (grey.mean(axis=(1, 2)) - 0.5)))
        rows, columns = np.gradient(grey[:, ::4, ::4], axis=(1, 2))
        edges = np.clip(4 * np.hypot(rows, columns), 0, 1)
        return SimpleNamespace(swap=dark, generated=0 * dark + 0.1, boundary=edges)


def inspect(path: Path, model: str, progress: Progress, cancel: Cancel) -> Outcome:
    data = path.read_bytes()
    if b"!corrupt" in data:
        raise MediaError("corrupt", "The picture is damaged.")
    if b"!hang" in data:
        time.sleep(3600)
    if b"!crash" in data:
        os.kill(os.getpid(), 11)
    if b"!abort" in data:
        os.abort()
    if b"!memory" in data:
        hoard = [bytearray(64 * 2**20) for _ in range(1000)]
        raise AssertionError(len(hoard))
    if b"!bug" in data:
        raise ZeroDivisionError(str(path))
    video = data[4:8] == b"ftyp"
    frames = 32 if video else 1
    slow = 0.2 if b"!slow" in data else 0.01
    for done in range(frames):
        if cancel():
            raise Cancelled
        time.sleep(slow)
        progress(done + 1, frames)
    if b"!noface" in data:
        return Outcome(faceless(report(data, model, video, frames)), pictures(frames))
    return Outcome(report(data, model, video, frames), pictures(frames))


def faceless(found: dict[str, object]) -> dict[str, object]:
    reasons = ["no face was found"]
    return {**found, "verdict": "cannot say", "reasons": reasons, "persons": []}


def report(data: bytes, model: str, video: bool, frames: int) -> dict[str, object]:
    rows = [row(index, frames) for index in range(frames) if not video or index % 8 < 6]
    other = [row(index, frames, 60, 0.1) for index in range(frames // 2, frames)] if video else []
    persons = [
        {
            "id": 1, "verdict": "signs of manipulation", "score": 0.91, "swap": 0.91,
            "generated": 0.07, "reasons": ["the blend score is over the threshold"], "frames": rows,
        }
    ]  # fmt: skip
    if other:
        persons.append(
            {
                "id": 2, "verdict": "no sign found", "score": 0.1, "swap": 0.1,
                "generated": 0.04, "reasons": [], "frames": other,
            }
        )  # fmt: skip
    return {
        "file": {
            "name": "x", "sha256": hashlib.sha256(data).hexdigest(),
            "kind": "video" if video else "image", "width": 640, "height": 480,
            "seconds": 4.0 if video else None,
        },
        "model": {"name": model, "version": "test", "thresholds": THRESHOLDS},
        "verdict": "signs of manipulation",
        "reasons": ["person 1 shows signs of a blended face"],
        "persons": persons,
        "frames": [
            {"time": time, "faces": sum(row["time"] == time for row in rows + other)}
            for time in (4 * index / frames for index in range(frames))
        ],
        "seconds": {"decode": 0.01, "detect": 0.04, "classify": 0.02, "total": 0.07},
        "limits": {"frames": 32, "seconds": 60},
    }  # fmt: skip


THRESHOLDS = {"swap": {"low": 0.4, "high": 0.7}, "generated": {"low": 0.3, "high": 0.8}}


def row(index: int, frames: int, shift: float = 0, score: float = 0.9) -> dict[str, object]:
    return {
        "time": 4 * index / frames, "box": [180 + shift, 100, 380 + shift, 340], "swap": score,
        "generated": 0.07, "score": score, "usable": index % 5 != 4,
        "reason": "blurred" if index % 5 == 4 else None,
    }  # fmt: skip


def pictures(frames: int) -> dict[str, bytes]:
    made = {}
    for index in range(frames):
        buffer = io.BytesIO()
        Image.new("RGB", (160, 120), (40 + 5 * index, 90, 140)).save(buffer, "JPEG")
        made[f"frame-{index}"] = buffer.getvalue()
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((128, 128)).save(buffer, "PNG")
    made["map-1"] = buffer.getvalue()
    return made
