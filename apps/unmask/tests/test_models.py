"""The shipped networks: listed rightly, repeatable, and alike in PyTorch, ONNX and int8."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unmask import models
from unmask.crops import SIZE
from unmask.errors import UnmaskError

TRAIN = Path(__file__).resolve().parents[1]
NAMES = ("dense", "pruned", "int8")


def faces(count: int = 24) -> np.ndarray:
    """Smooth coloured blobs with a little grain: a fixed input, drawn by arithmetic."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    found = []
    for _ in range(count):
        cx, cy, width, *colour = random.uniform(0.3, 0.7, 6)
        blob = np.exp(-((x - cx) ** 2 + ((y - cy) / 1.3) ** 2) / (0.1 * width))
        image = blob[..., None] * np.array(colour) * 300 + 40 * np.sin(9 * x + 5 * cy)[..., None]
        image = image + random.normal(0, 4, image.shape) + 40
        found.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(found)


def test_onnx_runtime_does_not_report_home(tmp_path: Path) -> None:
    silencing = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS"}
    kept = {key: value for key, value in os.environ.items() if key not in silencing}
    folders = dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME"), str(tmp_path))
    code = "from unmask import models; models.load(); import os; os._exit(0)"
    subprocess.run([sys.executable, "-c", code], env={**kept, **folders}, check=True, timeout=120)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == []  # its client would write who this is and when it began


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_probabilities_and_repeat(name: str) -> None:
    model, crops = models.load(name), faces()
    once, again = model.scores(crops), model.scores(crops)
    assert once.swap.shape == once.generated.shape == (24,)
    assert once.boundary.shape == (24, SIZE // 4, SIZE // 4)
    for part in ("swap", "generated", "boundary"):
        values = getattr(once, part)
        assert np.array_equal(values, getattr(again, part))
        assert values.min() >= 0
        assert values.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_face_scores_the_same_alone_and_among_others(name: str) -> None:
    model, crops = models.load(name), faces()
    together = model.scores(crops).swap
    alone = np.concatenate([model.scores(crop[None]).swap for crop in crops])
    assert np.abs(together - alone).max() < 1e-3


def test_no_face_gives_no_answer() -> None:
    scores = models.load("int8").scores(np.zeros((0, SIZE, SIZE, 3), np.uint8))
    assert scores.swap.shape == (0,)
    assert scores.boundary.shape == (0, SIZE // 4, SIZE // 4)


def test_int8_stays_near_the_network_that_it_was_made_from() -> None:
    crops = faces()
    whole, small = models.load("pruned").logits(crops), models.load("int8").logits(crops)
    spread = whole[0].std() + 1.0
    assert np.abs(whole[0] - small[0]).mean() < 0.25 * spread
    gap = models.sigmoid(whole[1]) - models.sigmoid(small[1])
    assert np.abs(gap).mean() < 0.05


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_onnx_answers_as_pytorch_does(name: str) -> None:
    torch = pytest.importorskip("torch")
    secateur = pytest.importorskip("secateur")
    sys.path.insert(0, str(TRAIN))
    try:
        from train.network import Detector
    finally:
        sys.path.remove(str(TRAIN))
    folder = models.weights_folder() / name
    how = json.loads((folder / "network.json").read_text("utf-8"))
    build = Detector(how["widths"], how["blocks"])
    network = secateur.load(folder, lambda: build).eval()
    crops = faces(8)
    inputs = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits, maps = network(inputs.contiguous())
    found = models.load(name).logits(crops)
    assert np.abs(found[0] - logits.numpy()).max() < 1e-3 * (1 + np.abs(found[0]).max())
    assert np.abs(found[1] - maps[:, 0].numpy()).max() < 1e-3 * (1 + np.abs(found[1]).max())


def test_the_list_says_what_the_files_are() -> None:
    infos = {info.name: info for info in models.available()}
    assert tuple(infos) == NAMES
    assert models.default_name() in infos
    for info in infos.values():
        assert info.path.stat().st_size == info.bytes
        assert info.ms > 0
    assert infos["pruned"].macs <= 0.25 * infos["dense"].macs
    assert infos["int8"].bytes <= 0.15 * infos["dense"].bytes


def test_the_shipped_network_keeps_what_the_dense_one_can() -> None:
    figures = {info.name: info.figures for info in models.available()}
    assert figures["int8"]["swap_auc"][0] >= 0.98 * figures["dense"]["swap_auc"][0]


@pytest.mark.parametrize("crops", [
    np.zeros((1, SIZE, SIZE, 3), np.float32), np.zeros((SIZE, SIZE, 3), np.uint8),
    np.zeros((1, SIZE + 1, SIZE, 3), np.uint8), np.zeros((1, SIZE, SIZE, 4), np.uint8),
])  # fmt: skip
def test_other_inputs_are_refused(crops: np.ndarray) -> None:
    with pytest.raises(UnmaskError, match="crops are uint8"):
        models.load("int8").scores(crops)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnmaskError, match="dense, pruned, int8"):
        models.load("huge")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(models.weights_folder(), tmp_path / "weights")
    return tmp_path / "weights"


def test_a_damaged_file_is_refused(copy: Path) -> None:
    (copy / "int8.onnx").write_bytes((copy / "int8.onnx").read_bytes()[:-7])
    with pytest.raises(UnmaskError, match="bytes, not"):
        models.load("int8", folder=copy)


@pytest.mark.parametrize("file", ["../int8.onnx", "/int8.onnx", "int8.pkl"])
def test_a_list_cannot_name_files_elsewhere(copy: Path, file: str) -> None:
    listed = json.loads((copy / "models.json").read_text("utf-8"))
    listed["models"][0]["file"] = file
    (copy / "models.json").write_text(json.dumps(listed), "utf-8")
    with pytest.raises(UnmaskError, match="no name of an ONNX file"):
        models.available(copy)


def test_a_missing_list_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match="install unmask anew"):
        models.available(tmp_path)
