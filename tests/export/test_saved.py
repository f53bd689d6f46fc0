"""Exporting a folder: what lies there as ONNX and int8, with what the folder does not say given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secateur import SecateurError, load, save
from secateur.export import export_saved
from secateur.train import Settings, compress
from secateur.train.data import load_data
from secateur.train.models import build_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("saved") / "run"
    technique = "filter | local | magnitude | one_cycle"
    return out, compress(Settings(technique=technique, macs=0.5, epochs=3, baseline=False), out)


def test_a_compressed_network_becomes_int8(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, metrics = run
    found = export_saved(folder, tmp_path / "a.onnx", int8=True, data="digits")
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.int8.onnx"}
    assert json.loads(json.dumps(found)) == found
    # The same validation images in another runtime.
    assert found["accuracy"]["onnx"] == pytest.approx(metrics["after"]["accuracy"], abs=0.003)
    assert found["accuracy"]["int8"] > found["accuracy"]["onnx"] - 0.03
    assert found["int8"]["bytes_after"] < 0.45 * found["int8"]["bytes_before"]
    assert found["images"] == {"calibration": 256, "checked": 359}
    images, _ = load_data("digits").valid.__getitems__(list(range(20)))
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    with torch.no_grad():
        expected = load(folder).eval()(images)
    (scores,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-4)


def test_what_the_folder_does_not_say_is_given(tmp_path: Path) -> None:
    model = build_model("cnn", num_classes=4, channels=1).model
    save(model, tmp_path / "saved")
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    given = {"model": "cnn", "channels": 1, "classes": 4}
    for name in ("saved", "weights.safetensors"):
        with pytest.raises(SecateurError, match="pass --size"):
            export_saved(tmp_path / name, tmp_path / "a.onnx", **given)
        with pytest.raises(SecateurError, match=r"build|--model"):
            export_saved(tmp_path / name, tmp_path / "a.onnx", size=8)
        with pytest.raises(SecateurError, match="--classes"):
            export_saved(tmp_path / name, tmp_path / "a.onnx", model="cnn", size=8)
        assert not (tmp_path / "a.onnx").exists()
    files = [
        export_saved(tmp_path / name, tmp_path / f"{name}.onnx", size=8, **given)["onnx"]["path"]
        for name in ("saved", "weights.safetensors")
    ]
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    found = [onnxruntime.InferenceSession(file).run(None, {"images": images})[0] for file in files]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], model.eval()(torch.from_numpy(images)).detach(), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": True}, "pass --data"),
        ({"data": "digits"}, "--data is for --int8"),
        ({"exclude": ["x"]}, "--exclude is for --int8"),
        ({"int8": True, "data": "digit"}, "did you mean digits"),
        ({"size": 0}, "pass --size"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SecateurError, match=message) as error:
        export_saved(run[0], tmp_path / "a.onnx", **options)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="holds no saved model"):
        export_saved(tmp_path, tmp_path / "a.onnx")
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(SecateurError, match="--resume"):
        export_saved(tmp_path, tmp_path / "a.onnx")
    with pytest.raises(SecateurError, match="--model"):
        export_saved(tmp_path / "no.safetensors", tmp_path / "a.onnx")


def test_the_command_prints_what_was_written(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "secateur", "export", str(run[0]), "--onnx", "a.onnx",
               "--int8", "--data", "digits", "--exclude", "classifier*"]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "written: a.onnx\nwritten: a.int8.onnx" in done.stdout
    assert "classifier" in done.stdout
    wrong = subprocess.run(
        [*command[:5], "--onnx", "a.txt"], capture_output=True, text=True, cwd=tmp_path,
        timeout=300, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: 'a.txt' should end in .onnx"
