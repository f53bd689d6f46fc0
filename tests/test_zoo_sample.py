"""A sample of the zoo, chosen for operator variety, has to pass all points of its mark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ZOO = Path(__file__).parents[1] / "benchmarks" / "zoo.py"
NAMES = (
    "resnet18", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet",
    "regnet_x_400mf", "swin_t", "lraspp_mobilenet_v3_large", "ssdlite320_mobilenet_v3_large",
    "timm:deit_tiny_patch16_224", "timm:nf_regnet_b0", "transformers:gpt2",
    "transformers:t5", "transformers:whisper",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_passes(name: str, tmp_path: Path) -> None:
    source = name.partition(":")[0] if ":" in name else "torchvision"
    pytest.importorskip(source)
    path = tmp_path / "row.json"
    command = [sys.executable, str(ZOO), "--quick", "--only", name, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(path.read_text())
    assert row["name"] == name
    assert row["reason"] is None
    assert False not in row["points"]
    assert row["points"][1:4] == [True, True, True]
