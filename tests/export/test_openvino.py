"""OpenVINO files: near what ONNX Runtime says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training import fresh

from secateur import SecateurError
from secateur.export import to_onnx, to_openvino


def test_openvino_says_what_the_onnx_file_says(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    images = torch.randn(4, 1, 8, 8)
    model = fresh().eval()
    path = to_onnx(model, images, tmp_path / "a.onnx").path
    result = to_openvino(path, tmp_path / "a.xml", [images, images[:1]])
    assert result.relative < 1e-3
    assert result.bytes == sum((tmp_path / f"a.{end}").stat().st_size for end in ("xml", "bin"))
    compiled = openvino.Core().compile_model(str(result.path), "CPU")
    found = torch.from_numpy(next(iter(compiled([images.numpy()]).values())).copy())
    torch.testing.assert_close(found, model(images).detach(), rtol=1e-2, atol=1e-2)
    for batches, name, message in (([], "b.xml", "no batch"), ([images], "b.bin", "end in .xml")):
        with pytest.raises(SecateurError, match=message):
            to_openvino(path, tmp_path / name, batches)


def test_the_extra_is_named_where_openvino_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(SecateurError, match=r"secateur\[openvino\]"):
        to_openvino(tmp_path / "a.onnx", tmp_path / "a.xml", [torch.zeros(1)])
