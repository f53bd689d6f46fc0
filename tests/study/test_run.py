"""Running a study: finished cells are kept and never repeated, whatever happens between."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from studies import GRID, Backend, record

from secateur.errors import SecateurError
from secateur.study import Study, StudyWatcher, run_study, store
from secateur.study.cells import carry_out
from secateur.study.processes import Outcome

SMALL = """
techniques: {filters: filter | local | magnitude | one_shot(start=0.5)}
budgets: {macs: [0.5]}
seeds: [7]
models: {tiny: "tiny_net:build"}
data: {few: {data: digits, limit: 100}}
training: {epochs: 2}
"""
TINY = """
import os, signal, sys, torch
from torch import nn

def build(num_classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def deadly(num_classes, channels):
    if torch.initial_seed() == 4321:
        print("going down", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return build(num_classes, channels)
"""


class Watcher(StudyWatcher):
    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.left: list[float] = []
        self.failures: list[str] = []
        self.notes: list[str] = []

    def begin(self, total: int, done: int) -> None:
        self.begun.append((total, done))

    def finished(self, cell: Any, record: dict[str, Any], left_seconds: float) -> None:
        self.left.append(left_seconds)

    def failed(self, cell: Any, reason: str, left_seconds: float) -> None:
        self.left.append(left_seconds)
        self.failures.append(reason)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def grid() -> Study:
    return Study.parse(GRID)


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "cells").glob("*.json")}


def test_results_lie_beside_the_page(grid, tmp_path):
    gpu = {"cpu": "c", "gpu": "g"}
    late = Backend(at_5=lambda cell: Outcome(cell, record(cell, hardware=gpu, loss=None)))
    result = run_study(grid, tmp_path / "out", backend=late)
    lines = (result.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["cell"] for line in lines] == [cell.name for cell in grid.cells]
    table = pq.read_table(result.folder / "results.parquet").to_pydict()
    assert table["cell"] == [cell.name for cell in grid.cells]
    assert table["accuracy"] == [row["accuracy"] for row in result.records]
    assert table["versions.torch"][0] == "2.6.0"
    assert table["hardware.gpu"][4:7] == [None, "g", None]
    assert table["loss"][4:7] == [0.1, None, 0.1]
    assert table["achieved.sparsity"][0] == 0.0
    assert result.page.read_text().startswith("<!doctype html>")
    assert result.tables.read_text().startswith("# Schedules")


@pytest.mark.parametrize("place", [0, 1, 30])
def test_a_stop_at_any_cell_is_gone_on_from(grid, tmp_path, place):
    first, second, third = Backend(**{f"at_{place}": KeyboardInterrupt()}), Backend(), Backend()
    with pytest.raises(KeyboardInterrupt):
        run_study(grid, tmp_path, backend=first)
    assert len(files(tmp_path)) == place
    watcher = Watcher()
    result = run_study(grid, tmp_path, backend=second, watcher=watcher)
    assert watcher.begun == [(len(grid.cells), place)]
    assert [*first.ran, *second.ran] == [cell.name for cell in grid.cells]
    assert run_study(grid, tmp_path, backend=third).records == result.records
    assert third.ran == []


def test_a_grid_may_grow_and_keeps_what_it_has(grid, tmp_path):
    run_study(grid, tmp_path, backend=Backend())
    larger = Study.parse(GRID.replace("seeds: 4", "seeds: 5").replace("  cycle:", "  renamed:"))
    backend = Backend()
    result = run_study(larger, tmp_path, backend=backend)
    assert set(backend.ran) == {cell.name for cell in larger.cells if cell.settings.seed == 4}
    assert {row["technique"] for row in result.records if row["role"] == "technique"} == {
        "renamed", "gradual", "filters",
    }  # fmt: skip


def test_half_written_and_damaged_results_do_not_count(grid, tmp_path):
    run_study(grid, tmp_path, backend=Backend())
    cells = sorted((tmp_path / "cells").glob("*.json"))
    cells[0].write_text(cells[0].read_text()[:100])
    cells[1].write_text("[]")
    cells[2].rename(cells[2].with_name("0" * 16 + ".json"))
    (tmp_path / "cells" / ".x.json.partial").write_text("{")
    watcher, backend = Watcher(), Backend()
    result = run_study(grid, tmp_path, backend=backend, watcher=watcher)
    assert set(backend.ran) == {path.stem for path in cells[:3]}
    assert len(watcher.notes) == 3
    assert all("damaged" in note for note in watcher.notes)
    assert len(result.records) == len(grid.cells)
    assert not list((tmp_path / "cells").glob(".*"))


def test_a_failed_cell_does_not_stop_the_others(grid, tmp_path):
    watcher = Watcher()
    backend = Backend(at_3=lambda cell: Outcome(cell, reason="no head in <cnn>"))
    result = run_study(grid, tmp_path, backend=backend, watcher=watcher)
    assert len(result.records) == len(grid.cells) - 1
    assert [(cell.name, reason) for cell, reason in result.failures] == [
        (grid.cells[3].name, "no head in <cnn>")
    ]
    assert watcher.failures == ["no head in <cnn>"]
    assert watcher.left == sorted(watcher.left, reverse=True) and watcher.left[-1] == 0
    assert "no head in &lt;cnn&gt;" in result.page.read_text()
    again = Backend()
    assert run_study(grid, tmp_path, backend=again).failures == ()
    assert again.ran == [grid.cells[3].name]


def test_a_full_disk_of_a_worker_stops_the_study(grid, tmp_path):
    backend = Backend(at_2=lambda cell: Outcome(cell, reason="out/x: No space left", disk=True))
    with pytest.raises(SecateurError, match=r"No space left; finished cells are kept"):
        run_study(grid, tmp_path, backend=backend)
    assert len(files(tmp_path)) == 2


def test_a_full_disk_is_told_and_leaves_nothing_half_written(grid, tmp_path, monkeypatch):
    sync, count = os.fsync, 0

    def fail(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 4:  # the header and three cells
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(store.os, "fsync", fail)
    with pytest.raises(SecateurError, match="No space left on device; what is finished is kept"):
        run_study(grid, tmp_path, backend=Backend())
    before = files(tmp_path)
    assert len(before) == 3
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    backend = Backend()
    run_study(grid, tmp_path, backend=backend)
    assert len(backend.ran) == len(grid.cells) - 3
    assert before.items() <= files(tmp_path).items()


def test_two_studies_on_one_folder_are_refused(grid, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PATIENCE_SECONDS", 0.1)

    def second(cell):
        with pytest.raises(SecateurError, match="another study is running on"):
            run_study(grid, tmp_path, backend=Backend())
        return Outcome(cell, record(cell))

    result = run_study(grid, tmp_path, backend=Backend(at_1=second))
    assert len(result.records) == len(grid.cells)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"format": 99}, "format 99, this version reads 1"),
        ({"format": 1, "versions": {"secateur": "0.0.1"}}, "results of secateur 0.0.1"),
        ({"versions": {}}, "damaged"),
        (["x"], "damaged"),
    ],
)
def test_results_of_another_version_are_refused_and_kept(grid, tmp_path, header, said):
    run_study(grid, tmp_path, backend=Backend())
    before = files(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps(header))
    backend = Backend()
    with pytest.raises(SecateurError, match=said):
        run_study(grid, tmp_path, backend=backend)
    assert (backend.ran, files(tmp_path)) == ([], before)


def test_a_mix_of_versions_has_to_be_asked_for(grid, tmp_path):
    run_study(grid, tmp_path, backend=Backend(at_5=lambda cell: Outcome(cell, reason="later")))
    header = tmp_path / "study.json"
    found = json.loads(header.read_text())
    found["versions"]["torch"] = "1.0"
    header.write_text(json.dumps(found))
    with pytest.raises(SecateurError, match=r"results of torch 1\.0, this is .*--mix"):
        run_study(grid, tmp_path, backend=Backend())
    assert len(run_study(grid, tmp_path, mix=True, backend=Backend()).failures) == 0


def test_changed_code_is_remarked(grid, tmp_path):
    run_study(grid, tmp_path, backend=Backend())
    header = tmp_path / "study.json"
    found = json.loads(header.read_text())
    found["versions"]["code"] = "other"
    header.write_text(json.dumps(found))
    result = run_study(grid, tmp_path, backend=Backend())
    assert result.remarks == (
        "the code of secateur has changed since the first cells of this folder were run",
    )
    assert result.remarks[0] in result.page.read_text()


def test_folders_that_are_none_of_a_study_are_left_alone(grid, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SecateurError, match=r"holds something else \(thesis.tex\)"):
        run_study(grid, tmp_path, backend=Backend())
    with pytest.raises(SecateurError, match="is a file"):
        run_study(grid, tmp_path / "thesis.tex", backend=Backend())
    with pytest.raises(SecateurError, match="jobs is 0"):
        run_study(grid, tmp_path / "new", jobs=0, backend=Backend())


def test_a_typo_in_model_or_data_costs_no_training(tmp_path):
    for line, said in (("models: [cnnn]", "cnnn"), ("data: [digit]", "digit")):
        study = Study.parse(f"techniques: [one_cycle]\n{line}")
        backend = Backend()
        with pytest.raises(SecateurError, match=f"unknown .*'{said}'"):
            run_study(study, tmp_path / said, backend=backend)
        assert backend.ran == []


def test_the_estimate_is_the_time_of_cells_alike(grid, tmp_path):
    watcher = Watcher()
    run_study(grid, tmp_path, backend=Backend(), watcher=watcher, jobs=2)
    count = len(grid.cells)
    assert watcher.left == pytest.approx([(count - done) * 2.0 / 2 for done in range(1, count + 1)])
    assert not any(math.isnan(left) for left in watcher.left)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_net", raising=False)
    Path("tiny_net.py").write_text(TINY)
    Path("small.yaml").write_text(SMALL)
    return tmp_path


def test_a_killed_study_goes_on(here):
    out = Path("out")
    command = [sys.executable, "-m", "secateur", "study", "small.yaml", "--out", "out"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not files(out):
            assert running.poll() is None, "the study ended before it could be killed"
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        running.kill()
        running.wait()
    before = {path: path.stat() for path in (out / "cells").glob("*.json")}
    assert 1 <= len(before) < 3
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"{len(before)} of 3 cells were finished before" in ended.stderr
    assert "left" in ended.stderr
    assert "page: " in ended.stdout
    for path, stat in before.items():
        assert (path.stat().st_mtime_ns, path.stat().st_ino) == (stat.st_mtime_ns, stat.st_ino)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    study = Study.read("small.yaml")
    assert [row["cell"] for row in lines] == [cell.name for cell in study.cells]
    assert {path.name for path in out.iterdir()} == {
        ".lock", "cells", "results.jsonl", "results.parquet", "study.html", "study.json",
        "study.md", "worker-0.log",
    }  # fmt: skip
    # A cell comes out the same wherever it runs.
    again = carry_out(study.cells[-1], here / "again")
    for key in ("accuracy", "loss", "params", "macs", "sparsity", "data_digest"):
        assert again[key] == lines[-1][key]
    assert again["shrunk"]
    assert again["macs_left"] == pytest.approx(0.5, abs=0.1)
    assert not (here / "again").exists()


def test_ctrl_c_tells_how_to_go_on(here):
    # So long that it cannot end before the signal comes.
    Path("small.yaml").write_text(SMALL.replace("epochs: 2", "epochs: 500"))
    running = subprocess.Popen(
        [sys.executable, "-m", "secateur", "study", "small.yaml", "--out", "out"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell lets its background jobs ignore Ctrl-C, and these tests may be part of one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while not Path("out/worker-0.log").exists():
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "stopped; finished cells are kept, and the same command goes on" in said
    assert "Traceback" not in said
    # No worker outlives its study, so that the lock is free.
    with store.locked(Path("out")):
        pass


def test_a_worker_that_dies_is_told_and_replaced(here):
    text = SMALL.replace("tiny_net:build", "tiny_net:deadly").replace("[7]", "[4321, 9]")
    text = text.replace("epochs: 2", "epochs: 1")
    watcher = Watcher()
    study = Study.parse(text)
    result = run_study(study, "out", jobs=2, watcher=watcher)
    assert {row["seed"] for row in result.records} == {9}
    assert len(result.records) == 3
    assert len(watcher.failures) == 3
    for reason in watcher.failures:
        assert "the worker died (signal SIGKILL" in reason
        assert "going down" in reason
    assert signal.SIGKILL.name in result.page.read_text()
