"""Judges the zoo: torchvision, a model per timm module, and transformers, by nine points each.

    python benchmarks/zoo.py [--only NAME,NAME | --sample] [--peer torch-pruning] --json FILE

A plain name is torchvision's; timm:NAME and transformers:CONFIG name the others. Every model runs
in a process of its own under a time limit and a memory limit. Rows already in the file are kept, so
an interrupted run goes on where it was, and rows of --quick get the budgets that they lack without
it. A Markdown page is written beside the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from zoo_marks import BUDGETS, Row, short, write_atomically
from zoo_models import SAMPLE, all_names, module_of
from zoo_table import page, passes

JUDGE = Path(__file__).with_name("zoo_judge.py")
LIMIT = 600.0
POLL = 0.05
PACKAGES = ("torch", "torchvision", "timm", "transformers", "onnxruntime", "torch-pruning")

Key = tuple[str, str]


@dataclass
class Job:
    """A model being judged: its process leads a group that ends as one."""

    row: Row
    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    start: float

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.start

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(
    library: str, name: str, options: argparse.Namespace, known: Mapping[str, Any] | None = None
) -> Job:
    """Start judging a model in a process group of its own, from a known row on if there is one."""
    folder = tempfile.TemporaryDirectory(prefix="zoo-")
    path = Path(folder.name) / "row.json"
    if known is not None:
        path.write_text(json.dumps(known), encoding="utf-8")
    command = [*options.judge, library, name, str(path), "--memory", str(options.memory)]
    if options.quick:
        command.append("--quick")
    # Threads that wait for each other on busy cores take many times as long.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    with (Path(folder.name) / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "TMPDIR": folder.name},
        )  # fmt: skip
    return Job(Row(name, library, path=path), process, folder, time.monotonic())


def finish(job: Job, limit: float, expired: bool) -> dict[str, Any]:
    """Return the row of a model whose process has ended or is over its time."""
    job.kill()
    path = job.row.path
    assert path is not None
    row = job.row.to_dict()
    if path.exists():
        row = json.loads(path.read_text(encoding="utf-8"))
    row["detail"]["total"] = round(row["detail"].get("total", 0.0) + job.seconds, 2)
    stage = row["detail"].get("stage", "start")
    row["points"][8] = not expired
    fault = None
    if expired:
        fault = f"9: over the time limit of {limit:.0f} s while at: {stage}"
    elif job.process.returncode != 0:
        log = (path.parent / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        last = log[-1] if log else "no message"
        fault = f"{stage}: the process ended with {job.process.returncode}: {short(last)}"
    row["reason"] = "; ".join(filter(None, (row["reason"], fault))) or None
    job.folder.cleanup()
    return row


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Return the rows that a file holds, none where there is no file.

    Raises SystemExit where the file holds something else.
    """
    if not path.exists():
        return {}
    try:
        return {
            (row["library"], row["name"]): row
            for row in json.loads(path.read_text(encoding="utf-8"))
        }
    except (ValueError, TypeError, KeyError):
        raise SystemExit(f"{path} is not a file of this script: name another, or --fresh") from None


def write(rows: Mapping[Key, dict[str, Any]], order: list[Key], options: Any) -> None:
    """Write the rows and the page, in the order of the zoo, what was not asked for last."""
    keys = [key for key in order if key in rows]
    keys += [key for key in rows if key not in order]
    ordered = [rows[key] for key in keys]
    write_atomically(options.json, json.dumps(ordered, indent=1) + "\n")
    write_atomically(options.markdown, page(ordered, command(), versions()))


def command() -> str:
    """Return the command line as it was given."""
    return shlex.join(["python", "benchmarks/zoo.py", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return what the rows depend on."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def tell(done: int, total: int, row: Mapping[str, Any], left: float) -> None:
    """Write a line of progress."""
    verdict = "passes" if passes(row) else short(row["reason"] or "no point failed", 120)
    estimate = f"{left / 3600:.1f} h" if left > 3600 else f"{left / 60:.0f} min"
    took = row["detail"].get("total", 0.0)
    print(
        f"[{done}/{total}] {row['name']} ({row['library']}), {took:.0f} s: {verdict}; "
        f"about {estimate} left",
        file=sys.stderr,
        flush=True,
    )


def wanted(row: Mapping[str, Any] | None, options: argparse.Namespace) -> bool:
    """Return whether a model has no row yet, one to judge again, or one that lacks budgets."""
    if row is None:
        return True
    if not passes(row):
        return bool(options.retry)
    lacks = row["library"] == "secateur" and len(row["detail"].get("budgets", {})) < len(BUDGETS)
    return lacks and not options.quick


def judge_all(
    keys: list[Key], rows: dict[Key, dict[str, Any]], options: argparse.Namespace
) -> None:
    """Judge what is not in the rows yet, some at a time, and write after each."""
    waiting = [key for key in keys if wanted(rows.get(key), options)]
    total, done, began = len(waiting), 0, time.monotonic()
    running: list[Job] = []
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                key = waiting.pop(0)
                known = rows[key] if key in rows and passes(rows[key]) else None
                running.append(start(*key, options, known))
            time.sleep(POLL)
            for job in list(running):
                expired = job.seconds > options.timeout
                if job.process.poll() is None and not expired:
                    continue
                running.remove(job)
                row = finish(job, options.timeout, expired and job.process.poll() is None)
                rows[(row["library"], row["name"])] = row
                write(rows, keys, options)
                done += 1
                each = (time.monotonic() - began) / done
                tell(done, total, row, each * (total - done))
    finally:
        for job in running:
            job.kill()
            job.folder.cleanup()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; raises SystemExit with what is wrong with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,NAME", help="judge these models alone")
    parser.add_argument("--sample", action="store_true", help="judge the sample that tests run")
    parser.add_argument("--quick", action="store_true", help="one budget instead of four")
    parser.add_argument("--peer", choices=["torch-pruning"], help="judge this library too")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time (default 1)")
    parser.add_argument("--timeout", type=float, default=LIMIT, help="seconds per model (600)")
    parser.add_argument("--memory", type=float, default=20.0, help="GB per process (20)")
    parser.add_argument("--json", type=Path, help="the rows; those already there are kept")
    parser.add_argument("--markdown", type=Path, help="the page (default: beside the JSON)")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    parser.add_argument("--retry", action="store_true", help="judge what did not pass again")
    parser.add_argument("--list", action="store_true", help="print the names and do nothing")
    options = parser.parse_args(arguments)
    options.judge = [sys.executable, str(JUDGE)]
    options.names = list(SAMPLE) if options.sample else None
    if options.only is not None:
        options.names = [name for name in options.only.split(",") if name]
    if options.json is None and not options.list:
        parser.error("--json FILE is needed")
    if options.jobs < 1 or options.timeout <= 0 or options.memory <= 0:
        parser.error("--jobs, --timeout and --memory have to be positive")
    if options.peer and not options.list and "torch-pruning" not in versions():
        parser.error("--peer torch-pruning needs: pip install torch-pruning==1.6.1")
    if options.markdown is None and options.json is not None:
        options.markdown = options.json.with_suffix(".md")
    try:
        for name in options.names or []:
            module_of(name)
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> None:
    """Judge, and write rows and page."""
    options = parse(arguments)
    names = options.names or all_names()
    if options.list:
        print("\n".join(names))
        return
    libraries = ["secateur", *([options.peer] if options.peer else [])]
    keys = [(library, name) for name in names for library in libraries]
    rows = {} if options.fresh else read(options.json)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        judge_all(keys, rows, options)
        write(rows, keys, options)
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    main()
