"""The command line: parses, calls the library, and shows what comes back."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from secateur.errors import SecateurError

app = typer.Typer(
    name="secateur",
    help="Makes neural networks lighter and faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

ModelOption = Annotated[
    str, typer.Option(help="cnn, a torchvision model, timm:NAME or package.module:function")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def compress(
    model: ModelOption = "cnn",
    data: Annotated[
        str,
        typer.Option(help="digits, fashion-mnist:DIR, cifar10:DIR, imagefolder:DIR or hf:NAME"),
    ] = "digits",
    technique: Annotated[
        str,
        typer.Option(help="'granularity | context | criteria | schedule', or a catalogue name"),
    ] = "weight | global | magnitude | one_cycle",
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the weights that goes, 0 to 1 [default: 0.9]")
    ] = None,
    params: Annotated[
        float | None, typer.Option(help="Share of the parameters that stays, 0 to 1")
    ] = None,
    macs: Annotated[
        float | None, typer.Option(help="Share of the multiply-accumulates that stays, 0 to 1")
    ] = None,
    bytes_: Annotated[
        float | None,
        typer.Option("--bytes", help="Share of the (packed) bytes that stays, 0 to 1"),
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Share of the measured time that stays (whole channels)")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Epochs of training")] = 10,
    batch_size: Annotated[int, typer.Option(help="Images per step")] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest rate [default: 0.002, fine-tuning 0.0005]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random")] = 0,
    size: Annotated[int | None, typer.Option(help="Scale images to SIZE x SIZE")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images per split")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Start from these weights (a safetensors file)")
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Start from the published weights (downloads)")
    ] = False,
    baseline: Annotated[
        bool, typer.Option(help="Train the same network dense, to compare with")
    ] = True,
    include: Annotated[
        list[str] | None, typer.Option(help="Prune only layers that match (repeatable)")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Do not prune layers that match (repeatable)")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results")] = Path("runs/compress"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run in --out")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what --out holds")
    ] = False,
) -> None:
    """Train or fine-tune a network under a pruning technique, and report what became of it."""
    from secateur.train import Interrupted, Settings
    from secateur.train import compress as run

    settings = Settings(
        model, data, technique, sparsity, params, macs, bytes_, latency, epochs, batch_size,
        learning_rate, seed, size, limit, weights, pretrained, baseline, tuple(include or ()),
        tuple(exclude or ()),
    )  # fmt: skip
    command = shlex.join(["secateur", *sys.argv[1:]])
    try:
        with _progress() as progress:
            metrics = run(
                settings,
                out,
                resume=resume,
                overwrite=overwrite,
                watcher=_watcher(progress) if _is_main() else None,
                command=command,
            )
    except Interrupted as stop:
        errors.print(f"{stop}; go on with: {command} --resume", markup=False)
        raise typer.Exit(130) from stop
    if _is_main():
        _show(metrics)
        console.print(f"report: {(out / 'report.html').resolve()}", markup=False, soft_wrap=True)


@app.command("list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="granularities, contexts, criteria, schedules, objectives or techniques"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what a technique can be made of, and the published techniques."""
    from secateur.sparsify import KINDS, listing

    kinds = [kind] if kind else list(KINDS)
    if as_json:
        rows: Any = {each: listing(each) for each in kinds}
        typer.echo(json.dumps(rows[kind] if kind else rows, indent=2, ensure_ascii=False))
        return
    for each in kinds:
        _table(each, listing(each))


@app.command()
def describe(
    technique: Annotated[str, typer.Argument(help="A technique's text or its catalogue name")],
    model: ModelOption = "cnn",
    size: Annotated[int, typer.Option(help="Images of SIZE x SIZE pixels")] = 224,
    channels: Annotated[int, typer.Option(help="Image channels")] = 3,
    classes: Annotated[int, typer.Option(help="Number of classes")] = 10,
) -> None:
    """Say in words what a technique does, and what it means for each layer of a model."""
    from secateur.sparsify import describe_layers
    from secateur.technique.catalogue import find_entry, find_technique

    found = find_technique(technique, described=True)
    entry = find_entry(technique)
    network, example = _network(model, size, channels, classes)
    layers = describe_layers(network, found, example)
    console.print(str(found), style="bold", markup=False, highlight=False)
    for sentence in found.words():
        console.print(f"  {sentence}", markup=False, highlight=False)
    for missing in entry.lacks if entry is not None else ():
        console.print(f"  Cannot run yet: it needs {missing}.", markup=False, highlight=False)
    table = Table("layer", "kind", "units", title=f"On {model}", title_justify="left")
    for layer in layers:
        table.add_row(layer.name, layer.kind, layer.words)
    console.print(table)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A model as in compress --model")],
    size: Annotated[int, typer.Option(help="Images of SIZE x SIZE pixels")] = 224,
    channels: Annotated[int, typer.Option(help="Image channels")] = 3,
    classes: Annotated[int, typer.Option(help="Number of classes")] = 1000,
    svg: Annotated[
        Path | None, typer.Option(help="Draw which layers are coupled into this SVG file")
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="List the weights instead of the axes")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a model as pruning sees it: its axes, what couples them, what is pinned and why."""
    from secateur import trace
    from secateur.report.coupling import draw_coupling
    from secateur.structure import inspect_model

    network, example = _network(model, size, channels, classes)
    found = inspect_model(network, example)
    structure = trace(network, example)
    if svg is not None:
        try:
            svg.write_text(draw_coupling(structure), encoding="utf-8")
        except OSError as error:
            raise SecateurError(f"--svg {svg} cannot be written: {error}") from error
    if as_json:
        typer.echo(json.dumps({**found.to_dict(), **structure.to_dict()}, indent=2))
        return
    title = f"{model}: {found.params:,} parameters, {_short(found.macs)} MACs for one image"
    console.print(_weights_table(found, title) if weights else _axes_table(structure, title))
    reach = structure.reach
    console.print(
        f"{len(structure.removable)} removable axes reach {reach['params']:.1%} of the parameters "
        f"and {reach['macs']:.1%} of the MACs",
        highlight=False,
    )
    for reason, names in _reasons(structure).items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        console.print(f"pinned: {shown}: {reason}", markup=False, highlight=False, soft_wrap=True)
    for operator, count in structure.unknown.items():
        console.print(f"no rule for the operator {operator} ({count} times)", markup=False)
    for name, reason in found.skipped:
        console.print(f"not prunable: {name}: {reason}", markup=False)
    if svg is not None:
        console.print(f"drawing: {svg.resolve()}", markup=False, soft_wrap=True)


@app.command()
def export(
    source: Annotated[
        Path, typer.Argument(help="A folder of compress or save, or a safetensors file")
    ],
    onnx: Annotated[Path, typer.Option(help="The ONNX file to write")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Write FILE.int8.onnx too, quantized (needs --data)")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Images to find int8's ranges on, as in compress --data")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model as in compress --model, if the folder names none")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Images of SIZE x SIZE pixels")] = None,
    channels: Annotated[int | None, typer.Option(help="Image channels")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave layers that match in floats (repeatable)")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set")] = 18,
    as_json: JsonOption = False,
) -> None:
    """Write a saved network to an ONNX file, int8 as well if asked, and measure the difference."""
    from secateur.export.saved import export_saved, summary

    found = export_saved(
        source, onnx, int8=int8, data=data, model=model, size=size, channels=channels,
        classes=classes, exclude=tuple(exclude or ()), opset=opset,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _table("largest difference from PyTorch (onnx) and from the ONNX file (int8)", summary(found))
    for each in found.values():
        if "path" in each:
            console.print(f"written: {each['path']}", markup=False, soft_wrap=True)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="The study: techniques, budgets, seeds, in YAML")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results [default: runs/NAME of the file]")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Cells that run at the same time")] = 1,
    mix: Annotated[
        bool, typer.Option("--mix", help="Go on with results of other versions")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep every cell's network and report")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells, and run none")
    ] = False,
) -> None:
    """Compare techniques over budgets, seeds, data and models; the same command goes on."""
    from secateur.study import Study, findings, run_study, summarise

    found = Study.read(file)
    if dry_run:
        for cell in found.cells:
            console.print(f"{cell.name}  {cell.words()}", markup=False, highlight=False)
        return
    out = out or Path("runs") / file.stem
    try:
        with _study_progress() as progress:
            result = run_study(
                found, out, jobs=jobs, mix=mix, keep=keep, watcher=_study_watcher(progress)
            )
    except KeyboardInterrupt as stop:
        errors.print("stopped; finished cells are kept, and the same command goes on")
        raise typer.Exit(130) from stop
    for line in findings(summarise(found, result.records)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"page: {result.page.resolve()}", markup=False, soft_wrap=True)
    if result.failures:
        raise SecateurError(
            f"{len(result.failures)} of {len(found.cells)} cells failed; the others are kept, and "
            "the same command tries these again"
        )


def _weights_table(found: Any, title: str) -> Table:
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
            row.name, row.kind, shape + groups, _short(row.weights), _short(row.macs), behind
        )
    return table


def _axes_table(structure: Any, title: str) -> Table:
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


def _reasons(structure: Any) -> dict[str, list[str]]:
    """Group what is pinned by reason and place; extents of kernels and images go without saying."""
    found: dict[str, list[str]] = {}
    for axis in structure.axes:
        if axis.pinned is not None and "extent" not in axis.pinned:
            reason = f"{axis.pinned} ({axis.place})" if axis.place else axis.pinned
            found.setdefault(reason, []).append(axis.name)
    return found


def main() -> None:
    """Run the command line; a request that cannot be carried out ends with exit code 2."""
    try:
        app()
    except SecateurError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("stopped", markup=False)
        sys.exit(130)


def _network(model: str, size: int, channels: int, classes: int) -> tuple[Any, tuple[Any, ...]]:
    import torch

    from secateur.train.models import build_model, try_forward

    if size < 1:
        raise SecateurError(f"--size {size}: expected at least 1 pixel")
    built = build_model(model, num_classes=classes, channels=channels)
    example = torch.zeros(1, built.channels, size, size)
    try_forward(built, example)
    return built.model.eval(), (example,)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
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


def _short(count: int) -> str:
    """Write a count with three digits and k, M or G."""
    value, unit = float(count), ""
    for larger in ("k", "M", "G", "T"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}{unit}"


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps"),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
        console=errors,
        disable=not _is_main(),
    )


def _watcher(progress: Progress) -> Any:
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


def _study_progress() -> Progress:
    return Progress(
        TextColumn("cells"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[left]}"),
        console=errors,
    )


def _study_watcher(progress: Progress) -> Any:
    from secateur.study import StudyWatcher

    class Shown(StudyWatcher):
        """Shows one bar, and a line per cell."""

        def begin(self, total: int, done: int) -> None:
            self.task = progress.add_task("cells", total=total, completed=done, left="")
            if done:
                self.note(f"{done} of {total} cells were finished before")

        def finished(self, cell: Any, record: dict[str, Any], left_seconds: float) -> None:
            progress.update(self.task, advance=1, left=f"about {_duration(left_seconds)} left")
            self._say(
                f"{cell.words()}: accuracy {record['accuracy']:.4f} "
                f"({_duration(record['wall_seconds'])})"
            )

        def failed(self, cell: Any, reason: str) -> None:
            self._say(f"failed: {cell.words()}: {reason}")

        def note(self, text: str) -> None:
            self._say(f"note: {text}")

        def _say(self, text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    return Shown()


def _duration(seconds: float) -> str:
    """Write seconds as a person would say them."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _is_main() -> bool:
    """Whether this is the first of the processes that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _show(metrics: dict[str, Any]) -> None:
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


if __name__ == "__main__":
    main()
