"""Running a study: what is left to do, the workers, the results, the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.study import store
from secateur.study.cells import Cell, code_digest
from secateur.study.grid import Study
from secateur.study.page import render_markdown, render_page
from secateur.study.processes import Outcome, run_processes
from secateur.train.data import load_data
from secateur.train.job import versions
from secateur.train.models import build_model

PAGE, TABLES = "study.html", "study.md"
Backend = Callable[[Sequence[Cell], Path, int, int, bool], Iterator[Outcome]]


class StudyWatcher:
    """Is told how a study gets on; this one keeps quiet, subclasses show what they like."""

    def begin(self, total: int, done: int) -> None:
        """Begin a study of so many cells, of which some were finished before."""

    def finished(self, cell: Cell, record: dict[str, Any], left_seconds: float) -> None:
        """Note a finished cell, and an estimate of the seconds that are left."""

    def failed(self, cell: Cell, reason: str, left_seconds: float) -> None:
        """Note a cell without a result, and an estimate of the seconds that are left."""

    def note(self, text: str) -> None:
        """Say something that the user should know."""


@dataclass(frozen=True)
class StudyResult:
    """What a study came to: the records of its finished cells, and the others with reasons."""

    study: Study
    folder: Path
    records: tuple[dict[str, Any], ...]
    failures: tuple[tuple[Cell, str], ...]
    remarks: tuple[str, ...] = ()

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / PAGE

    @property
    def tables(self) -> Path:
        """The Markdown tables."""
        return self.folder / TABLES


def run_study(
    study: Study,
    out: str | Path,
    *,
    jobs: int = 1,
    mix: bool = False,
    keep: bool = False,
    watcher: StudyWatcher | None = None,
    backend: Backend = run_processes,
) -> StudyResult:
    """Run the cells that have no result yet, and write results and page into ``out``.

    May be killed at any moment: the next call goes on, repeats no finished cell and counts no half
    a one. ``keep`` keeps the networks. A cell that fails does not stop the others. Raises
    SecateurError where the folder is in use, full, of another version, or not a study's.
    """
    if jobs < 1:
        raise SecateurError(f"jobs is {jobs}: expected at least 1")
    watcher, folder = watcher or StudyWatcher(), Path(out)
    if folder.exists() and not folder.is_dir():
        raise SecateurError(f"--out {folder} is a file: name a folder")
    with store.locked(folder) as lock:
        now = {**versions(), "code": code_digest()}
        remarks = store.open_folder(folder, study.title, now, mix)
        for path in store.partials(folder):
            path.unlink(missing_ok=True)
        records, damaged = store.read_cells(folder)
        remarks += damaged
        for remark in remarks:
            watcher.note(remark)
        progress = _Progress(study, folder, records, jobs, watcher)
        todo = [cell for cell in study.cells if cell.name not in records]
        if todo:
            _check(todo)
            jobs = min(jobs, len(todo))
            progress.follow(backend(todo, folder, jobs, lock, keep))
        return _written(progress.result(tuple(remarks)), watcher)


def _check(cells: Sequence[Cell]) -> None:
    """Load every data set and build every model once, so that a typo costs no training."""
    seen = set()
    for cell in cells:
        settings = cell.settings
        if (cell.model, cell.data) in seen:
            continue
        seen.add((cell.model, cell.data))
        data = load_data(settings.data, size=settings.size, limit=settings.limit)
        # What is published may have to be downloaded, which is left to the run.
        build_model(settings.model, num_classes=len(data.classes), channels=data.channels)


class _Progress:
    """The records so far, and how long the rest will take."""

    def __init__(
        self,
        study: Study,
        folder: Path,
        records: dict[str, dict[str, Any]],
        jobs: int,
        watcher: StudyWatcher,
    ) -> None:
        self.study, self.folder, self.records = study, folder, records
        self.jobs, self.watcher = jobs, watcher
        self.failures: dict[str, tuple[Cell, str]] = {}

    def follow(self, outcomes: Iterator[Outcome]) -> None:
        """Keep what is finished, note what failed, and stop where the disk is full."""
        mine = {cell.name for cell in self.study.cells}
        self.watcher.begin(len(mine), len(mine & set(self.records)))
        for outcome in outcomes:
            cell = outcome.cell
            if outcome.record is None:
                self.failures[cell.name] = cell, outcome.reason
                self.watcher.failed(cell, outcome.reason, self.left())
                if outcome.disk:
                    raise store.DiskError(
                        f"stopped at the cell {cell.words()}: {outcome.reason}; finished cells are "
                        "kept, and the same command goes on"
                    )
                continue
            store.write_cell(self.folder, outcome.record)
            self.records[cell.name] = outcome.record
            self.watcher.finished(cell, outcome.record, self.left())

    def left(self) -> float:
        """Estimate the seconds that are left from cells of the same model and data."""
        seconds: dict[tuple[str, str], list[float]] = {}
        for record in self.records.values():
            if not record["resumed"]:
                place = record["model"], record["data"]
                seconds.setdefault(place, []).append(record["wall_seconds"])
        every = [each for times in seconds.values() for each in times]
        if not every:
            return float("nan")
        total = 0.0
        for cell in self.study.cells:
            if cell.name not in self.records and cell.name not in self.failures:
                times = seconds.get((cell.model, cell.data), every)
                total += sum(times) / len(times)
        return total / self.jobs

    def result(self, remarks: tuple[str, ...]) -> StudyResult:
        """Return what there is, in the order of the study and under its labels."""
        records = tuple(
            {
                **self.records[cell.name],
                "technique": cell.technique,
                "role": cell.role,
                "model": cell.model,
                "data": cell.data,
            }
            for cell in self.study.cells
            if cell.name in self.records
        )
        return StudyResult(self.study, self.folder, records, tuple(self.failures.values()), remarks)


def _written(result: StudyResult, watcher: StudyWatcher) -> StudyResult:
    """Write the gathered results and the page; runs of finished cells are swept away."""
    folder = result.folder
    for remark in store.write_results(folder, result.records):
        watcher.note(remark)
    store.write(folder / PAGE, render_page(result).encode())
    store.write(folder / TABLES, render_markdown(result).encode())
    runs = folder / store.RUNS
    if runs.is_dir() and not any(runs.iterdir()):
        shutil.rmtree(runs, ignore_errors=True)
    return result
