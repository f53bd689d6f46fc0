"""What a worker process does with a file: the one place where the web meets the analysis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]


@dataclass(frozen=True)
class Outcome:
    """A report as plain JSON values, and its pictures by name: ``frame-0``, ``map-1``."""

    report: dict[str, Any]
    pictures: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Return roughly how many bytes the outcome takes in memory."""
        rows = len(self.report.get("frames", ())) + sum(
            len(person.get("frames", ())) for person in self.report.get("persons", ())
        )
        return sum(map(len, self.pictures.values())) + 1000 * rows + 4000


Inspector = Callable[[Path, str, Progress, Cancel], Outcome]


def make() -> Inspector:
    """Load the face detector and every model that ships; return an inspector over them."""
    from unmask import faces, inspect, models

    faces.shared(1)
    scorers = {info.name: models.load(info.name, threads=1) for info in models.available()}

    def inspector(path: Path, model: str, progress: Progress, cancel: Cancel) -> Outcome:
        report = inspect(path, scorers[model], progress=progress, cancel=cancel)
        return Outcome(report.to_dict(), dict(report.pictures))

    return inspector
