"""How long unmask takes on one thread: a 640 px photo with one face, and ten seconds of 360p video.

From the file to the verdict, networks loaded before. The face is drawn; 32 frames of the video are
looked at. Beside the wall clock stands the processor's time, which other programs disturb less, and
the share of decoding, face detection and classification.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from PIL import Image
from rich.console import Console
from rich.table import Table
from unmask import inspect, models, samples

STEPS = ("decode", "detect", "classify")
GOALS = {"photo": 0.120, "clip": 5.0}


def media(folder: Path) -> dict[str, Path]:
    """Draw a 640 x 480 JPEG with one face, and a clip of 640 x 360 and ten seconds."""
    photo, clip = folder / "photo.jpg", folder / "clip.mp4"
    drawn = samples.draw((640, 480), (samples.Place(320, 220, 130),), seed=3)
    Image.fromarray(drawn).save(photo, quality=90)
    samples.clip(clip, samples.stroll(seconds=10.0, seed=3))
    return {"photo": photo, "clip": clip}


def measure(path: Path, model: str, rounds: int) -> list[dict[str, float]]:
    """Inspect a file again and again; the first time does not count."""
    runs = []
    for _ in range(rounds + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        report = inspect(path, model)
        run = {step: report.seconds[step] for step in STEPS}
        run["wall"] = time.perf_counter() - wall
        run["cpu"] = time.process_time() - cpu
        if not report.persons:
            raise SystemExit(f"no face was found in {path.name}")
        runs.append(run)
    return runs[1:]


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return quartiles of the seconds, and the share of every step in their sum."""
    total = sum(run["wall"] for run in runs)
    shares = {step: sum(run[step] for run in runs) / total for step in STEPS}
    shares["rest"] = 1 - sum(shares.values())
    low, middle, high = statistics.quantiles([run["wall"] for run in runs], n=4)
    cpu = statistics.median(run["cpu"] for run in runs)
    return {"p25": low, "p50": middle, "p75": high, "cpu_p50": cpu, "shares": shares}


def main() -> None:
    """Measure every network that ships, print and write."""
    options = common.arguments(__doc__ or "")
    rounds = {"photo": max(options.rounds, 2), "clip": max(options.rounds // 5, 2)}
    table = Table(
        "", "network", "p50 ms", "quartiles", "CPU ms", "goal", "shares",
        caption=f"shares of {', '.join(STEPS)} and the rest",
    )  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, path in media(Path(folder)).items():
            for info in models.available():
                row = summary(measure(path, info.name, rounds[kind]))
                rows.append({"media": kind, "model": info.name, "goal": GOALS[kind], **row})
                table.add_row(
                    kind, info.name, f"{1000 * row['p50']:.0f}",
                    f"{1000 * row['p25']:.0f} to {1000 * row['p75']:.0f}",
                    f"{1000 * row['cpu_p50']:.0f}", f"{1000 * GOALS[kind]:.0f}",
                    "/".join(f"{100 * share:.0f}" for share in row["shares"].values()) + " %",
                )  # fmt: skip
    Console().print(table)
    common.write(options.json, {"title": "unmask, one thread", "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
