"""The command line: parses, calls the library, and shows what comes back."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from secateur.errors import SecateurError
from secateur.terminal import (
    axes_table,
    console,
    errors,
    is_main,
    progress_bar,
    reasons,
    short_count,
    show_metrics,
    show_table,
    study_progress_bar,
    study_watcher,
    watcher,
    weights_table,
)

app = typer.Typer(
    name="secateur",
    help="Makes neural networks lighter and faster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
    epochs: Annotated[
        int, typer.Option(help="Epochs of training; 0 only prunes trained weights")
    ] = 10,
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
    round_to: Annotated[
        int, typer.Option(help="Keep widths at multiples of this (8 or 16 for ONNX Runtime)")
    ] = 1,
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
        tuple(exclude or ()), round_to,
    )  # fmt: skip
    command = shlex.join(["secateur", *sys.argv[1:]])
    try:
        with progress_bar() as progress:
            metrics = run(
                settings,
                out,
                resume=resume,
                overwrite=overwrite,
                watcher=watcher(progress) if is_main() else None,
                command=command,
            )
    except Interrupted as stop:
        errors.print(f"{stop}; go on with: {command} --resume", markup=False)
        raise typer.Exit(130) from stop
    if is_main():
        show_metrics(metrics)
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
        show_table(each, listing(each))


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
    if entry is not None:
        console.print(f"{entry.title}. {entry.citation}.", markup=False, highlight=False)
        console.print(entry.summary, markup=False, highlight=False)
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
    title = f"{model}: {found.params:,} parameters, {short_count(found.macs)} MACs for one image"
    console.print(weights_table(found, title) if weights else axes_table(structure, title))
    reach = structure.reach
    console.print(
        f"{len(structure.removable)} removable axes reach {reach['params']:.1%} of the parameters "
        f"and {reach['macs']:.1%} of the MACs",
        highlight=False,
    )
    for reason, names in reasons(structure).items():
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
    show_table(
        "largest difference from PyTorch (onnx) and from the ONNX file (int8)", summary(found)
    )
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
    ray: Annotated[
        str | None,
        typer.Option(help="Run on a Ray cluster: HOST:PORT, auto, or local to start one here"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells, and run none")
    ] = False,
) -> None:
    """Compare techniques over budgets, seeds, data and models; the same command goes on."""
    from secateur.study import OnRay, Study, findings, run_processes, run_study, summarise

    found = Study.read(file)
    if dry_run:
        for cell in found.cells:
            line = f"{cell.name}  {cell.words()}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    out = out or Path("runs") / file.stem
    try:
        with study_progress_bar() as progress:
            result = run_study(
                found, out, jobs=jobs, mix=mix, keep=keep, watcher=study_watcher(progress),
                backend=run_processes if ray is None else OnRay(ray),
            )  # fmt: skip
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


if __name__ == "__main__":
    main()
