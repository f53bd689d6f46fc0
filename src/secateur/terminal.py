"""What the command line shows: tables, progress, and the lines of a run."""

from __future__ import annotations

import math
import os
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

console = Console()
errors = Console(stderr=True)


def weights_table(found: Any, title: str) -> Table:
    """Return the weights of a model, a row each."""
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    table.add_column("shape", no_wrap=True)
    for column in ("weights", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("followed by", overflow="fold")
    for row in found.weights:
        shape = "x".join(map(str, (row.outputs, row.inputs // row.groups, *row.kernel)))
        groups = f" g{row.groups}" if row.groups > 1 else ""
        behind = ", ".join(row.norms) or ("the output" if row.to_output else "")
        table.add_row(
            row.name,
            row.kind,
            shape + groups,
            short_count(row.weights),
            short_count(row.macs),
            behind,
        )
    return table


def axes_table(structure: Any, title: str) -> Table:
    """Return the axes of which something can be removed, a row each."""
    table = Table(title=title, title_justify="left")
    table.add_column("axis", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("tensors", justify="right", no_wrap=True)
    table.add_column("shared by", overflow="fold")
    table.add_column("removal", overflow="fold")
    for axis in structure.removable:
        layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name, _ in axis.carriers))
        shared = ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
        removal = f"inexact: {axis.inexact}" if axis.inexact else "exact"
        table.add_row(axis.name, str(axis.size), str(len(axis.carriers)), shared, removal)
    return table


def reasons(structure: Any) -> dict[str, list[str]]:
    """Group what is pinned by reason and place; extents of kernels and images go without saying."""
    found: dict[str, list[str]] = {}
    for axis in structure.axes:
        if axis.pinned is not None and "extent" not in axis.pinned:
            reason = f"{axis.pinned} ({axis.place})" if axis.place else axis.pinned
            found.setdefault(reason, []).append(axis.name)
    return found


def show_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows; columns in which nothing stands are left out."""
    columns = [name for name in rows[0] if any(row[name] not in ("", [], {}) for row in rows)]
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row[name]) for name in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def short_count(count: int) -> str:
    """Write a count with three digits and k, M or G."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}"


def progress_bar() -> Progress:
    """Return the bar of a run, shown by the first process only."""
    return Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
        console=errors,
        disable=not is_main(),
    )


def watcher(progress: Progress) -> Any:
    """Return what shows one bar per phase of a run, and a line per epoch."""
    from secateur.train import Watcher

    class Shown(Watcher):
        """Shows one bar per phase, and a line per epoch."""

        def __init__(self) -> None:
            self.tasks: dict[str, TaskID] = {}

        def begin(self, phase: str, steps: int, done: int = 0) -> None:
            self.tasks[phase] = progress.add_task(phase, total=steps, completed=done, said="")

        def step(self, phase: str, loss: float, achieved: float | None) -> None:
            said = f"loss {loss:.3f}"
            if achieved is not None:
                said += f"  achieved {achieved:.3f}"
            progress.update(self.tasks[phase], advance=1, said=said)

        def epoch(self, phase: str, row: dict[str, float]) -> None:
            progress.console.print(
                f"{phase:8} epoch {row['epoch']:.0f}: train loss {row['train_loss']:.4f}, "
                f"validation loss {row['valid_loss']:.4f}, accuracy {row['valid_accuracy']:.4f}",
                markup=False, highlight=False,
            )  # fmt: skip

        def note(self, text: str) -> None:
            progress.console.print(f"note: {text}", markup=False, highlight=False)

    return Shown()


def study_progress_bar() -> Progress:
    """Return the bar of a study's cells."""
    return Progress(
        TextColumn("cells"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[left]}"),
        console=errors,
    )


def study_watcher(progress: Progress) -> Any:
    """Return what shows one bar for a study, and a line per cell."""
    from secateur.study import StudyWatcher

    class Shown(StudyWatcher):
        """Shows one bar, and a line per cell."""

        def begin(self, total: int, done: int) -> None:
            self.task = progress.add_task("cells", total=total, completed=done, left="")
            if done:
                self.note(f"{done} of {total} cells were finished before")

        def finished(self, cell: Any, record: dict[str, Any], left_seconds: float) -> None:
            progress.update(self.task, advance=1, left=_left(left_seconds))
            self._say(
                f"{cell.words()}: accuracy {record['accuracy']:.4f} "
                f"({_duration(record['wall_seconds'])})"
            )

        def failed(self, cell: Any, reason: str, left_seconds: float) -> None:
            progress.update(self.task, left=_left(left_seconds))
            self._say(f"failed: {cell.words()}: {reason}")

        def note(self, text: str) -> None:
            self._say(f"note: {text}")

        def _say(self, text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    return Shown()


def _left(seconds: float) -> str:
    """Say how long it will take; nothing where no cell is finished that could tell."""
    return "" if math.isnan(seconds) else f"about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    """Write seconds as a person would say them."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def is_main() -> bool:
    """Whether this is the first of the processes that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def show_metrics(metrics: dict[str, Any]) -> None:
    """Print the before/after table."""
    before, after = metrics["before"], metrics["after"]
    table = Table("", "before", "after", title=metrics["technique"], title_justify="left")
    rows = (
        ("accuracy", "accuracy", "{:.4f}"), ("loss", "loss", "{:.4f}"),
        ("sparsity", "sparsity", "{:.4f}"), ("parameters", "params", "{:,}"),
        ("MACs", "macs", "{:,}"), ("bytes, dense file", "bytes_dense", "{:,}"),
        ("bytes, packed", "bytes_packed", "{:,}"),
    )  # fmt: skip
    for label, key, form in rows:
        shown = (form.format(side[key]) if key in side else "-" for side in (before, after))
        table.add_row(label, *shown)
    for label, key in (("latency p50", "p50_ms"), ("latency p95", "p95_ms")):
        cells = []
        for side in (before, after):
            latency = side["latency"]
            spread = f" ({latency['low_ms']:.3f} to {latency['high_ms']:.3f})"
            cells.append(f"{latency[key]:.3f} ms" + (spread if key == "p50_ms" else ""))
        table.add_row(label, *cells)
    console.print(table)
    for note in metrics["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    if not metrics["shrunk"]:
        console.print(
            "Masks leave the tensors at their size: the packed file is smaller, the time is the "
            "same. Whole channels (filter | ...) are removed for good.",
            style="dim",
        )
