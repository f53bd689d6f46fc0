"""Measuring a network on a labelled folder, through the same steps as any user's file."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unmask import metrics
from unmask.errors import UnmaskError
from unmask.report import Report
from unmask.verdict import UNDECIDED

UNKNOWN = 0.5  # the score of a file in which no face was found: neither real nor fake
ROUNDS = 1000
LABELS = {"real": 0, "fake": 1}
METRICS = (
    "frame_auc", "video_auc", "eer", "ap", "recall_at_1", "recall_at_5", "brier", "ece",
    "undecided",
)  # fmt: skip
Inspect = Callable[[Path], Report]


@dataclass(frozen=True)
class Row:
    """A line of the labels: the file, 0 or 1, and who and what it belongs to."""

    path: Path
    label: int
    group: str
    person: str


@dataclass(frozen=True)
class Judged:
    """A file's score, those of its frames, and whether it stayed undecided."""

    row: Row
    score: float
    frames: tuple[float, ...]
    undecided: bool


def read_labels(folder: Path, labels: Path) -> list[Row]:
    """The lines of a CSV with the columns path, label (real or fake), optional group and person.

    Raises UnmaskError for a missing column, another label, a file named twice, and a path that
    leaves the folder.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise UnmaskError(f"{str(folder)!r} is no folder")
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            missing = sorted({"path", "label"} - set(reader.fieldnames))
            if missing:
                found = ", ".join(map(repr, reader.fieldnames)) or "none"
                raise UnmaskError(
                    f"the labels lack the column {', '.join(missing)}; the first line names {found}"
                )
            rows = [_row(root, line, reader.line_num) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnmaskError(f"the labels {str(labels)!r} cannot be read: {error}") from error
    if not rows:
        raise UnmaskError(f"the labels {str(labels)!r} name no file")
    twice = [path for path, count in Counter(row.path for row in rows).items() if count > 1]
    if twice:
        raise UnmaskError(f"the labels name a file twice: {str(twice[0].relative_to(root))!r}")
    return rows


def _row(root: Path, line: dict[str, str | None], number: int) -> Row:
    path, label = (line["path"] or "").strip(), (line["label"] or "").strip().lower()
    if label not in LABELS:
        raise UnmaskError(f"line {number} of the labels: {label!r} is neither real nor fake")
    if "\0" in path:
        raise UnmaskError(f"line {number} of the labels: {path!r} is no path")
    full = (root / path).resolve()
    if not path or not full.is_relative_to(root):
        raise UnmaskError(f"line {number} of the labels: {path!r} does not lie in the folder")
    person = (line.get("person") or "").strip()
    return Row(full, LABELS[label], (line.get("group") or "").strip(), person or path)


def judge(row: Row, report: Report) -> Judged:
    """One file's scores: of a frame the highest of its faces, of the file that of its verdict.

    Faces that are too small or too blurred to be judged still count here, where nothing else is
    there, so that a network cannot gain by staying silent; a file without a face scores 0.5.
    """
    by_frame: dict[int, float] = {}
    for person in report.persons:
        for sighting in person.sightings:
            best = max(by_frame.get(sighting.frame, 0.0), sighting.score)
            by_frame[sighting.frame] = best
    scores = [
        max(person.swap, person.generated)
        for person in report.persons
        if person.swap is not None and person.generated is not None
    ]
    frames = tuple(by_frame.values()) or (UNKNOWN,)
    score = max(scores) if scores else float(np.median(frames))
    return Judged(row, score, frames, report.verdict == UNDECIDED)


def measure(judged: Sequence[Judged], rounds: int = ROUNDS) -> dict[str, Any]:
    """The figures of some files: counts, and each metric as [value, low, high].

    The interval is the bootstrap's over persons (95 %). What cannot be computed is None.
    """
    labels = [one.row.label for one in judged]
    scores = [one.score for one in judged]
    persons = [one.row.person for one in judged]
    frames = [(one.row.label, score, one.row.person) for one in judged for score in one.frames]
    found: dict[str, Any] = {"n_real": labels.count(0), "n_fake": labels.count(1)}

    def add(name: str, measure: metrics.Measure, y: Any = labels, s: Any = scores,
            groups: Any = persons) -> None:  # fmt: skip
        values = metrics.interval(measure, y, s, groups, rounds)
        found[name] = [round(v, 5) if math.isfinite(v) else None for v in values]

    add("frame_auc", metrics.auc, *map(list, zip(*frames, strict=True)))
    add("video_auc", metrics.auc)
    add("eer", metrics.eer)
    add("ap", metrics.average_precision)
    add("recall_at_1", lambda y, s: metrics.recall_at(y, s, 0.01))
    add("recall_at_5", lambda y, s: metrics.recall_at(y, s, 0.05))
    add("brier", metrics.brier)
    add("ece", metrics.ece)
    add("undecided", lambda _, s: float(s.mean()), labels, [float(one.undecided) for one in judged])
    return found


def evaluate(
    folder: Path,
    labels: Path,
    model: str | None = None,
    *,
    inspect: Inspect | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a network on every file that the labels name.

    Returns ``overall`` and ``groups``, each as `measure` gives them, the name of the ``model``, and
    under ``failed`` the files that could not be analysed, with the reason; these are in no figure.
    Raises UnmaskError where the labels are wrong or nothing could be analysed.
    """
    rows = read_labels(folder, labels)
    look = inspect or _inspector(model)
    judged, failed = [], []
    for number, row in enumerate(rows):
        try:
            judged.append(judge(row, look(row.path)))
        except UnmaskError as error:
            failed.append({"path": str(row.path.relative_to(folder.resolve())), "why": str(error)})
        if progress is not None:
            progress(number + 1, len(rows))
    if not judged:
        raise UnmaskError(f"no file of the labels could be analysed: {failed[0]['why']}")
    groups = sorted({one.row.group for one in judged} - {""})
    return {
        "overall": measure(judged, rounds),
        "groups": {
            group: measure([one for one in judged if one.row.group == group], rounds)
            for group in groups
        },
        "model": model or _default(),
        "failed": failed,
    }


def _inspector(model: str | None) -> Inspect:
    from unmask import models
    from unmask.inspection import inspect

    loaded = models.load(model)
    return lambda path: inspect(path, model=loaded)


def _default() -> str:
    from unmask import models

    return models.default_name()
