"""Carrying cells out on a Ray cluster, whose machines all have secateur and the study's folder."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.extras import need
from secateur.study.cells import Cell, code_digest
from secateur.study.processes import Outcome
from secateur.study.store import RUNS
from secateur.study.worker import Answer, Images, answer_to


class OnRay:
    """A backend for ``run_study``: cells are carried out on the Ray cluster at an address.

    ``auto`` is the cluster that this machine belongs to, ``local`` one that is started here and
    ends with the study. Every cell takes one CPU; the records and the page stay here.
    """

    def __init__(self, address: str = "auto") -> None:
        if not address:
            raise SecateurError("the address of the Ray cluster is empty: give HOST:PORT, auto or "
                                "local")  # fmt: skip
        self.address = address

    def __call__(
        self, cells: Sequence[Cell], folder: Path, jobs: int, _lock: int, keep: bool
    ) -> Iterator[Outcome]:
        """Give outcomes as they come; leaving early ends what runs."""
        ray = need("ray", "ray", "a study on a cluster")
        mine = not ray.is_initialized()
        if mine:
            self._connect(ray)
        try:
            yield from _run(ray, cells, folder, jobs, keep)
        finally:
            if mine:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # whatever Ray raises where no cluster answers
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise SecateurError(
                f"no Ray cluster answers at '{self.address}' ({said}): start one with 'ray start "
                "--head', or give --ray local"
            ) from error


def _run(ray: Any, cells: Sequence[Cell], folder: Path, jobs: int, keep: bool) -> Iterator[Outcome]:
    kept = str((folder / RUNS).absolute()) if keep else None
    environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    # A worker that dies is told like any other failure; Ray is not to try again by itself.
    kind = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, runtime_env=environment)(
        RemoteWorker
    )
    todo = list(cells)
    free: list[Any] = []
    running: dict[Any, tuple[Any, Cell]] = {}
    try:
        while todo or running:
            while todo and len(running) < jobs:
                worker = free.pop() if free else kind.remote(str(Path.cwd()), code_digest(), kept)
                cell = todo.pop(0)
                running[worker.carry_out.remote(cell.to_dict())] = (worker, cell)
            done, _ = ray.wait(list(running), num_returns=1)
            worker, cell = running.pop(done[0])
            try:
                answer = ray.get(done[0])
                free.append(worker)
            except Exception as error:  # the worker or its machine died
                answer = {"reason": _death(error)}
            yield Outcome(cell, **answer)
    finally:
        for worker in [*free, *(worker for worker, _ in running.values())]:
            ray.kill(worker)


def _death(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"the worker died ({type(error).__name__}: {(lines or ['no words'])[0][:200]})"


class RemoteWorker:
    """One worker on a machine of the cluster, which carries out cells one after the other."""

    def __init__(self, work: str, code: str, kept: str | None) -> None:
        self.work, self.code, self.kept = work, code, kept
        self.images = Images()

    def carry_out(self, cell: dict[str, Any]) -> Answer:
        """Carry a cell out where the study was started: its record, or why there is none."""
        fault = self._fault()
        if fault:
            return {"reason": f"{fault} on {socket.gethostname()}"}
        with tempfile.TemporaryDirectory(prefix="secateur-") as own:
            runs = Path(self.kept or own)
            return answer_to(json.dumps(cell), runs, self.kept is not None, self.images)

    def _fault(self) -> str:
        """Say what this machine lacks to give the same results as the one that asks."""
        try:
            os.chdir(self.work)
        except OSError as error:
            return f"the study's folder {self.work} cannot be entered ({error.strerror})"
        if self.work not in sys.path:
            sys.path.insert(0, self.work)
        if code_digest() != self.code:
            return "secateur has other code than where the study was started: install the same"
        return ""
