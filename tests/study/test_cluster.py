"""The same study file on a Ray cluster of this machine: the same results, deaths told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from secateur import SecateurError
from secateur.study import OnRay, Study, StudyWatcher, run_study
from secateur.study.cluster import RemoteWorker

pytest.importorskip("ray", reason="Ray is not installed: pip install 'secateur[ray]'")

GRID = """
techniques: {gradual: weight | local | magnitude | agp}
budgets: {sparsity: [0.5, 0.9]}
seeds: 1
data: {few: {data: digits, limit: 64}}
training: {epochs: 1}
"""
SAME = ("cell", "accuracy", "loss", "params", "macs", "data_digest")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of two nodes with a CPU each, both on this machine."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    started = Cluster(initialize_head=True, connect=False, head_node_args=node)
    started.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield started.address
    started.shutdown()


def told(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in SAME}


def test_a_cluster_gives_what_processes_give(cluster: str, tmp_path: Path) -> None:
    study = Study.parse(GRID)
    near = run_study(study, tmp_path / "near")
    far = run_study(study, tmp_path / "far", jobs=2, backend=OnRay(cluster))
    assert far.failures == ()
    assert list(map(told, far.records)) == list(map(told, near.records))
    assert far.page.is_file()

    # Nothing is left to do, so that no cluster is asked for.
    again = run_study(study, tmp_path / "far", backend=OnRay("nowhere:1"))
    assert again.records == far.records


MORTAL = """
import os
from torch import nn

def build(num_classes, channels):
    if os.path.exists("fatal") and os.getpid() != int(open("fatal").read()):
        os.kill(os.getpid(), 9)
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, num_classes))
"""


def test_a_worker_that_dies_is_told_and_the_next_study_goes_on(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("mortal.py").write_text(MORTAL)
    Path("fatal").write_text(str(os.getpid()))
    study = Study.parse(GRID + 'models: {mortal: "mortal:build"}\n')
    seen: list[str] = []

    class Watcher(StudyWatcher):
        def failed(self, cell: Any, reason: str, left_seconds: float) -> None:
            seen.append(reason)

    first = run_study(study, "out", backend=OnRay(cluster), watcher=Watcher())
    assert len(first.failures) == len(study.cells)
    assert {reason.split(" (")[0] for reason in seen} == {"the worker died"}
    Path("fatal").unlink()
    assert run_study(study, "out", backend=OnRay(cluster)).failures == ()


def test_no_cluster_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"no Ray cluster answers at 'ray://nowhere:1'"):
        run_study(Study.parse(GRID), tmp_path, backend=OnRay("ray://nowhere:1"))
    with pytest.raises(SecateurError, match="is empty"):
        OnRay("")


def test_a_machine_without_the_folder_or_with_other_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = Study.parse(GRID).cells[0].to_dict()
    missing = RemoteWorker(str(tmp_path / "nowhere"), "x", None).carry_out(cell)
    assert "nowhere cannot be entered" in missing["reason"]
    other = RemoteWorker(str(tmp_path), "0123456789abcdef", None).carry_out(cell)
    assert "other code" in other["reason"]
