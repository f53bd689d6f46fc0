"""The command line as a person meets it: what it prints, its exit codes, its mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from secateur.technique.catalogue import find_entry

QUICK = ("--epochs", "1", "--limit", "200", "--no-baseline")


def secateur(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "secateur", *arguments],
        capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False,
    )  # fmt: skip


def test_compress_prints_the_table_and_where_the_report_is(tmp_path: Path) -> None:
    done = secateur("compress", *QUICK, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"sparsity\s+.\s+0\.0000\s+.\s+0\.9000", done.stdout)
    report = Path(done.stdout.partition("report: ")[2].strip())
    assert report.read_text().startswith("<!doctype html>")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["command"].startswith("secateur compress --epochs 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("compress", "--sparsity", "90"), "write 0.9"),
        (("compress", "--technique", "fliter | global | magnitude | agp"), "did you mean filter"),
        (("compress", "--technique", "lottery_tickets"), "did you mean lottery_ticket"),
        (("compress", "--data", "imagefolder:nowhere"), "nowhere"),
        (("compress", "--model", "resnet1"), "unknown model 'resnet1'"),
        (("compress", "--include", "no_such_layer"), "matches no prunable layer"),
        (("compress", "--resume"), "no checkpoint"),
        (("compress", "--weights", "weights.pt"), "safetensors"),
        (("compress", "--epochs", "0"), "at least 1"),
        (("list", "criterias"), "did you mean criteria"),
        (("describe", "filter | nowhere | magnitude | agp"), "unknown context"),
        (("inspect", "resnet"), "unknown model"),
        (("study", "nowhere.yaml"), "nowhere.yaml cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = secateur(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_tells_how_to_go_on_and_resume_does(tmp_path: Path) -> None:
    command = [sys.executable, "-c", (
        "import os, signal, secateur.train.watch as w\n"
        "count = iter(range(99))\n"
        "w.Watcher.note = lambda *a: None\n"
        "import secateur.train.loop as loop\n"
        "before = loop.Phase._step\n"
        "def step(self, *a):\n"
        "    if next(count) == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return before(self, *a)\n"
        "loop.Phase._step = step\n"
        "from secateur.cli import main; main()"
    ), "compress", *QUICK, "--out", "run"]  # fmt: skip
    stopped = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped after step 3" in stopped.stderr
    assert "--resume" in stopped.stderr
    resumed = secateur("compress", *QUICK, "--out", "run", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("criteria", "wanda"), ("schedules", "one_cycle"), ("granularities", "shared_kernel"),
     ("contexts", "local(erk)"), ("objectives", "distillation"), ("techniques", "lottery_ticket")],
)  # fmt: skip
def test_list_as_table_and_json(kind: str, name: str) -> None:
    rows = json.loads(secateur("list", kind, "--json").stdout)
    assert name in {row["name"] for row in rows}
    assert name.split("(", maxsplit=1)[0] in secateur("list", kind).stdout


def test_list_without_a_kind_lists_all() -> None:
    everything = json.loads(secateur("list", "--json").stdout)
    assert set(everything) == {
        "granularities", "contexts", "criteria", "schedules", "objectives", "techniques",
    }  # fmt: skip
    techniques = {row["name"]: row for row in everything["techniques"]}
    assert techniques["network_slimming"]["runs"]
    assert not techniques["network_slimming"]["lacks"]
    assert sum(row["runs"] for row in techniques.values()) >= 15


def test_describe_says_what_happens_to_each_layer() -> None:
    done = secateur("describe", "filter | global | magnitude | one_cycle", "--model", "resnet18")
    assert done.returncode == 0, done.stderr
    assert "64 units of 147 weights each" in done.stdout
    said = " ".join(re.sub("[^a-z0-9.,]", " ", done.stdout).split())
    assert "each with its part of bn1, layer1.0.conv1, layer1.0.conv2" in said
    assert "spared" in done.stdout


@pytest.mark.parametrize(("name", "lacks"), [("rigl", False), ("slicegpt", True)])
def test_describe_tells_of_a_record_where_it_is_from(name: str, lacks: bool) -> None:
    done = secateur("describe", name)
    assert done.returncode == 0, done.stderr
    entry = find_entry(name)
    assert entry is not None
    said = " ".join(done.stdout.split())
    assert said.startswith(f"{entry.title}. {entry.citation.authors}") and entry.summary in said
    assert str(entry.technique) in said
    assert ("Cannot run yet: it needs" in said) == lacks


def test_inspect_counts() -> None:
    found = json.loads(secateur("inspect", "resnet18", "--json").stdout)
    assert found["params"] == 11_689_512
    assert found["macs"] == pytest.approx(1.814e9, rel=0.001)
    assert len(found["weights"]) == 21
    assert [row["name"] for row in found["weights"] if row["to_output"]] == ["fc.weight"]


def test_two_processes_share_the_images_and_agree(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
               "--master_port", "29611", "-m", "secateur", "compress", *QUICK,
               "--technique", "filter | global | taylor | linear", "--sparsity", "0.5",
               "--out", "run"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("report: ") == 1
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["history"][-1]["step"] == 2
    assert metrics["achieved"]["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_study_lists_its_cells_without_running_them(tmp_path: Path) -> None:
    label = "a technique whose label is longer than the eighty characters of many a terminal"
    (tmp_path / "mine.yaml").write_text(f"techniques: {{{label}: one_cycle}}\nseeds: [4]\n")
    done = secateur("study", "mine.yaml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.partition("  ")[2] for line in done.stdout.splitlines()] == [
        "dense, cnn on digits, seed 4",
        "random weight, sparsity 0.9, cnn on digits, seed 4",
        f"{label}, sparsity 0.9, cnn on digits, seed 4",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
