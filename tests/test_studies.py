"""The studies of benchmarks/ can be read, and their cells are what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.study import Study

FILES = sorted((Path(__file__).parents[1] / "benchmarks" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_studies_can_be_read(file, tmp_path, monkeypatch):
    weights = tmp_path / "runs/data/weights/resnet20_cifar10.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"stands for them")
    monkeypatch.chdir(tmp_path)
    study = Study.read(file)
    assert len(study.seeds) >= 3
    assert len(study.budgets) >= 4
    assert {cell.role for cell in study.cells} == {"dense", "random", "technique"}


def test_there_are_studies():
    assert {file.stem for file in FILES} >= {"schedule", "criteria", "context"}
