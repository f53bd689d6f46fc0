"""Carrying cells out in processes of this machine, each of which may die without harm."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.study.cells import Cell
from secateur.study.store import RUNS, told

_LONGEST_TAIL = 4000


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its record, or the reason why there is none.

    ``disk`` says that the disk was the reason, so that the next cells would fare no better.
    """

    cell: Cell
    record: dict[str, Any] | None = None
    reason: str = ""
    disk: bool = False


def run_processes(
    cells: Sequence[Cell], folder: Path, jobs: int, lock: int, keep: bool
) -> Iterator[Outcome]:
    """Carry the cells out with ``jobs`` workers at a time, giving outcomes as they come.

    Leaving early ends the workers at once; their checkpoints stay.
    """
    todo: queue.SimpleQueue[Cell | None] = queue.SimpleQueue()
    for cell in (*cells, *[None] * jobs):
        todo.put(cell)
    done: queue.SimpleQueue[Outcome | BaseException | None] = queue.SimpleQueue()
    workers = [_Worker(folder, number, jobs, lock, keep) for number in range(jobs)]
    threads = [
        threading.Thread(target=_serve, args=(worker, todo, done), daemon=True)
        for worker in workers
    ]
    try:
        for thread in threads:
            thread.start()
        working = jobs
        while working:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                working -= 1
            else:
                yield outcome
    finally:
        for worker in workers:
            worker.stop()


def _serve(
    worker: _Worker,
    todo: queue.SimpleQueue[Cell | None],
    done: queue.SimpleQueue[Outcome | BaseException | None],
) -> None:
    try:
        while (cell := todo.get()) is not None and not worker.stopped:
            done.put(worker.carry_out(cell))
        done.put(None)
    except BaseException as error:  # raised again where the outcomes are waited for
        done.put(error)


class _Worker:
    """One place for a process, which is started when needed and started again after a death."""

    def __init__(self, folder: Path, number: int, jobs: int, lock: int, keep: bool) -> None:
        self.folder, self.lock, self.keep = folder, lock, keep
        self.log = folder / f"worker-{number}.log"
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.process: subprocess.Popen[str] | None = None
        self.stopped = False
        self.guard = threading.Lock()

    def carry_out(self, cell: Cell) -> Outcome:
        """Send a cell and wait for the answer; no answer means that the process died."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(cell.to_dict()) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line.endswith("\n"):
            return Outcome(cell, reason=self._death(process))
        return Outcome(cell, **json.loads(line))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        with self.guard:
            self.stopped = True
            if self.process is not None:
                self.process.kill()
                self.process.wait()

    def _running(self) -> subprocess.Popen[str]:
        with self.guard:
            if self.process is not None and self.process.poll() is None:
                return self.process
            environment = dict(os.environ)
            environment.setdefault("OMP_NUM_THREADS", str(self.threads))
            command = ["-m", "secateur.study.worker", str(self.folder / RUNS), str(int(self.keep))]
            with told(self.folder), self.log.open("w", encoding="utf-8") as log:
                self.process = subprocess.Popen(
                    [sys.executable, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    text=True,
                    encoding="utf-8",
                    # Ctrl-C is for the study, which then ends its workers.
                    start_new_session=True,
                    # A worker holds the lock too: none may write once another study has begun.
                    pass_fds=(self.lock,),
                )
            if self.stopped:
                self.process.kill()
            return self.process

    def _death(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                how += ", as the system does when memory runs out"
        last = self._last_line()
        return f"the worker died ({how})" + (f"; its last words: {last}" if last else "")

    def _last_line(self) -> str:
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text[-_LONGEST_TAIL:].splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""
