"""The command line: ``unmask FILE ...`` and a few commands; parses, calls, and shows."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text

from unmask.errors import UnmaskError, one_line
from unmask.report import Report
from unmask.verdict import CLEAR, SIGNS, UNDECIDED

if TYPE_CHECKING:
    from unmask.models import Model

COLOURS = {SIGNS: "bold red", CLEAR: "green", UNDECIDED: "yellow"}
FAILED, FOUND, OPEN, STOPPED = 2, 1, 3, 130
EXITS = (
    "Exit codes: 0 no sign found in any file, 1 signs of manipulation in one at least, 2 wrong "
    "usage or a file that cannot be analysed, 3 no signs but one file at least is undecided."
)
HINT = "A verdict is a hint and no proof; no sign found does not mean authentic."

app = typer.Typer(
    name="unmask",
    help="Looks for signs of manipulation in the faces of pictures and videos.\n\n"
    "unmask FILE ... is short for unmask inspect FILE ...",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[
    str | None, typer.Option(help="The network; see unmask models [default: the one that ships]")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Found = Report | UnmaskError


def _version(asked: bool) -> None:
    if asked:
        _say(f"unmask {metadata.version('unmask')}")
        raise typer.Exit


@app.callback()
def start(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Do what the command says."""


@app.command(name="inspect", epilog=EXITS)
def inspect_files(
    files: Annotated[list[str], typer.Argument(help="Pictures and videos", metavar="FILE ...")],
    model: ModelOption = None,
    frames: Annotated[int, typer.Option(help="Frames of a video to look at")] = 32,
    as_json: JsonFlag = False,
) -> None:
    """Look for signs of manipulation in pictures and videos."""
    from unmask import models

    network = models.load(model)
    with _progress() as begin:
        found = [_inspect(file, network, frames, begin(file)) for file in files]
    if as_json:
        _print_json([_plain(file, one) for file, one in zip(files, found, strict=True)])
    else:
        _show(files, found)
    for file, one in zip(files, found, strict=True):
        if isinstance(one, UnmaskError):
            _complain(str(one) if file in str(one) else f"{file}: {one}")
    raise typer.Exit(_exit_code(found))


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder of pictures and videos")],
    labels: Annotated[
        Path, typer.Option(help="CSV: path, label (real or fake), optional group and person")
    ],
    model: ModelOption = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write all figures here")] = None,
) -> None:
    """Measure a network on a labelled folder."""
    from unmask import evaluate as evaluation

    if out is not None:
        _may_write(out)  # nobody wants to learn it after an hour
    with _progress() as begin:
        figures = evaluation.evaluate(folder, labels, model, progress=begin(str(folder)))
    if out is not None:
        _write(out, json.dumps(figures, indent=2) + "\n")
    Console().print(_figures(figures))
    for one in figures["failed"]:
        _complain(f"{one['path']}: {one['why']}")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any", min=0, max=65535)] = 8000,
) -> None:
    """Start the web page and the API."""
    try:
        from unmask.web.server import serve as run
    except ModuleNotFoundError as error:
        raise UnmaskError(f"the web page needs {error.name}: pip install 'unmask[web]'") from error
    run(host, port, tell=lambda address: _say(f"unmask is at {address}"))


@app.command(name="models")
def list_models(as_json: JsonFlag = False) -> None:
    """List the networks to choose from, with size and measured time."""
    from unmask import models

    known = models.available()
    if as_json:
        names = ("name", "title", "version", "params", "macs", "bytes", "ms", "default", "figures")
        _print_json([{name: getattr(info, name) for name in names} for info in known])
        return
    table = Table("model", "", *_right("params", "MACs", "bytes", "ms a face"))
    for info in known:
        table.add_row(
            info.name + (" (default)" if info.default else ""), info.title,
            f"{info.params:,}", f"{info.macs:,}", f"{info.bytes:,}", f"{info.ms:.1f}",
        )  # fmt: skip
    Console().print(table)


@app.command(name="samples")
def write_samples(
    folder: Annotated[Path, typer.Argument(help="A folder; nothing in it is replaced")],
) -> None:
    """Draw the sample pictures and the sample video into a folder."""
    from unmask import samples

    for path in samples.write(folder):
        _say(str(path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; whatever goes wrong is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {command.name or command.callback.__name__ for command in app.registered_commands
                if command.callback}  # fmt: skip
    if words and words[0] not in {*commands, "--help", "-h", "--version"}:
        words.insert(0, "inspect")
    try:
        app(words, prog_name="unmask")
    except UnmaskError as error:
        _complain(str(error))
        sys.exit(FAILED)
    except KeyboardInterrupt:
        _complain("stopped")
        sys.exit(STOPPED)
    except OSError as error:
        _complain(str(error))
        sys.exit(FAILED)
    except Exception:  # a mistake of ours; left alone, it would exit like a file with signs
        traceback.print_exc()
        sys.exit(FAILED)


def _may_write(path: Path) -> None:
    folder = path.parent
    if path.is_dir() or not folder.is_dir():
        raise UnmaskError(f"{str(path)!r} cannot be written: give a file in a folder that is there")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UnmaskError(f"{str(path)!r} cannot be written: permission denied")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UnmaskError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _inspect(file: str, network: Model, frames: int, progress: Callable[[int, int], None]) -> Found:
    from unmask import inspect

    try:
        return inspect(file, network, frames, progress)
    except UnmaskError as error:
        return error


def _exit_code(found: Sequence[Found]) -> int:
    verdicts = {one.verdict for one in found if isinstance(one, Report)}
    if any(isinstance(one, UnmaskError) for one in found):
        return FAILED
    return FOUND if SIGNS in verdicts else OPEN if UNDECIDED in verdicts else 0


def _show(files: Sequence[str], found: Sequence[Found]) -> None:
    table = Table("file", "verdict", *_right("persons", "score"), "reasons", *_right("seconds"))
    for file, one in zip(files, found, strict=True):
        name = Text(one_line(Path(file).name))
        if isinstance(one, UnmaskError):
            table.add_row(name, Text("not analysed", "dim"), "", "", Text(str(one)), "")
            continue
        scores = [person.score for person in one.persons if person.score is not None]
        table.add_row(
            name, Text(one.verdict, COLOURS[one.verdict]), str(len(one.persons)),
            f"{max(scores):.2f}" if scores else "", Text("; ".join(one.reasons)),
            f"{one.seconds['total']:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(HINT, style="dim")


def _plain(file: str, one: Found) -> dict[str, Any]:
    if isinstance(one, Report):
        return one.to_dict()
    code = getattr(one, "code", "invalid")
    return {"file": {"name": Path(file).name}, "error": {"code": code, "message": str(one)}}


def _figures(figures: dict[str, Any]) -> Table:
    """Return the figures of an evaluation: a row per metric, a column per group."""
    groups = {"overall": figures["overall"], **figures.get("groups", {})}
    table = Table("", *_right(*groups))
    for metric in figures["overall"]:
        table.add_row(metric, *(_interval(group.get(metric)) for group in groups.values()))
    return table


def _interval(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 3 and None not in value:
        return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"
    return "" if value is None else str(value)


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _say(line: str) -> None:
    sys.stdout.write(one_line(line) + "\n")
    sys.stdout.flush()


def _complain(message: str) -> None:
    sys.stderr.write(f"unmask: {one_line(message)}\n")


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yield what begins a bar for a file and returns the function that moves it on."""
    console = Console(stderr=True)
    shown = console.is_terminal
    columns = (TextColumn("{task.description}", markup=False), BarColumn(),
               TextColumn("{task.completed:.0f} of {task.total}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:

        def begin(file: str) -> Callable[[int, int], None]:
            for task in bar.task_ids:
                bar.remove_task(task)
            return partial(move, bar.add_task(one_line(Path(file).name), total=None))

        def move(task: Any, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield begin
