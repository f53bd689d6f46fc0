"""One cell: carried out by the training job, gone on with where it was killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from secateur.study import Cell, worker
from secateur.study.cells import carry_out
from secateur.study.worker import Images, answer_to
from secateur.train import Interrupted, Settings, Watcher, compress
from secateur.train.job import load_settings_data

SETTINGS = Settings(
    technique="weight | local | magnitude | agp", sparsity=0.8, epochs=2, limit=100, baseline=False
)
CELL = Cell("gradual", "cnn", "digits", "technique", SETTINGS)
SAME = ("accuracy", "loss", "params", "params_left", "macs_left", "sparsity", "data_digest")


class Stop(Watcher):
    """Presses Ctrl-C during the second step."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, phase: str, loss: float, achieved: float | None) -> None:
        self.steps += 1
        if self.steps == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Any]:
    return carry_out(CELL, tmp_path_factory.mktemp("whole") / "run")


def test_a_record_says_what_was_measured(whole):
    assert (whole["cell"], whole["technique"], whole["seed"]) == (CELL.name, "gradual", 0)
    assert whole["achieved"]["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert whole["params_left"] == pytest.approx(whole["params"] / whole["params_dense"])
    assert 0 < whole["macs_left"] < 1
    assert whole["achieved"]["latency"] == whole["latency_left"] > 0
    assert whole["wall_seconds"] > 0
    assert {"secateur", "torch", "code"} <= set(whole["versions"])
    assert json.loads(json.dumps(whole)) == whole


def test_the_dense_cell_is_the_job_s_own_dense_network(tmp_path):
    dense = Settings(
        technique="weight | global | magnitude | one_shot", sparsity=0.0, epochs=2, limit=100,
        baseline=False,
    )  # fmt: skip
    record = carry_out(Cell("dense", "cnn", "digits", "dense", dense), tmp_path / "run")
    metrics = compress(
        Settings(technique=SETTINGS.technique, sparsity=0.8, epochs=2, limit=100), tmp_path / "job"
    )
    for key in ("accuracy", "loss", "params", "macs"):
        assert record[key] == metrics["before"][key]
    assert record["params_left"] == record["macs_left"] == 1.0


@pytest.mark.parametrize("damaged", [False, True])
def test_a_killed_cell_comes_out_the_same(whole, tmp_path, damaged):
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        compress(SETTINGS, folder, watcher=Stop())
    checkpoint = folder / "checkpoint.pt"
    if damaged:
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    record = carry_out(CELL, folder, keep=True)
    assert record["resumed"] is not damaged
    assert {key: record[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert (folder / "report.html").is_file()


def test_a_worker_tells_why_a_cell_has_no_result(tmp_path):
    def answer(**changes: Any) -> dict[str, Any]:
        cell = Cell("x", "m", "d", "technique", Settings(**{"epochs": 1, "limit": 50, **changes}))
        return answer_to(json.dumps(cell.to_dict()), tmp_path, keep=False, images=Images())

    impossible = answer(technique="head | local | magnitude | agp", sparsity=0.5)
    assert impossible["reason"]
    assert impossible["disk"] is False
    assert "record" not in impossible
    missing = answer(data="cifar10:nowhere")
    assert "nowhere" in missing["reason"]


def test_a_worker_tells_a_full_disk(tmp_path):
    full = tmp_path / "runs"
    full.write_text("a file where the folder should be")
    cell = json.dumps(CELL.to_dict())
    found = answer_to(cell, Path(full), keep=False, images=Images())
    assert "cannot be written" in found["reason"]


def test_images_are_loaded_once_for_all_cells_of_a_seed(monkeypatch):
    loaded = []
    monkeypatch.setattr(worker, "load_settings_data", loaded.append)
    images = Images()
    for seed, sparsity in ((0, 0.5), (0, 0.9), (1, 0.5), (1, 0.9), (0, 0.5)):
        images.of(Settings(sparsity=sparsity, seed=seed, limit=64))
    assert [settings.seed for settings in loaded] == [0, 1, 0]


def test_a_cell_with_images_given_comes_out_the_same_and_leaves_no_file(whole, tmp_path):
    given = carry_out(CELL, tmp_path / "run", data=load_settings_data(SETTINGS))
    assert {key: given[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert not (tmp_path / "run").exists()
