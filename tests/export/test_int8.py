"""Int8 files: near the original, smaller, integers where they say so."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur import SecateurError
from secateur.compress import quantize_weight
from secateur.export import quantize_onnx, to_onnx
from secateur.train.data import load_data

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Digits(nn.Module):
    """A small network with a shortcut, batch norms and a softmax inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.third = nn.Conv2d(16, 64, 3, padding=1, stride=2)
        self.gate = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = functional.relu(self.third(functional.relu(self.second(x)) + x)).mean((2, 3))
        return self.head(x * self.gate(x).softmax(1) * 10)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    data = load_data("digits")
    rows = list(range(len(data.train)))
    images, labels = data.train.__getitems__(rows)
    model = Digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(400):
        picked = torch.arange(64) + 64 * step
        loss = functional.cross_entropy(model(images[picked % 1400]), labels[picked % 1400])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    valid = data.valid.__getitems__(list(range(len(data.valid))))
    return model.eval(), *valid


@pytest.fixture(scope="module")
def files(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Any]:
    model, images, labels = trained
    folder = tmp_path_factory.mktemp("int8")
    dense = to_onnx(model, images[:2], folder / "dense.onnx").path
    batches = [(images[i : i + 32], labels[i : i + 32]) for i in range(0, 128, 32)]
    return dense, quantize_onnx(dense, batches, folder / "int8.onnx", check=[images])


def scores(path: Path, images: torch.Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


def test_it_still_knows_the_digits(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any]
) -> None:
    model, images, labels = trained
    with torch.no_grad():
        dense = model(images)
    int8 = torch.from_numpy(scores(files[1].path, images))
    accuracy = {name: float((found.argmax(1) == labels).float().mean())
                for name, found in (("dense", dense), ("int8", int8))}  # fmt: skip
    assert accuracy["dense"] > 0.85
    assert accuracy["int8"] > accuracy["dense"] - 0.02
    assert float((int8 - dense).abs().max()) < 0.15 * float(dense.abs().max())


def test_the_result_says_what_changed(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any]
) -> None:
    dense, result = files
    images = trained[1]
    before, after = scores(dense, images), scores(result.path, images)
    assert result.difference == pytest.approx(np.abs(after - before).max(), rel=1e-4)
    assert result.relative == pytest.approx(result.difference / np.abs(before).max(), rel=1e-4)
    assert result.mean_difference == pytest.approx(np.abs(after - before).mean(), rel=1e-4)
    assert result.agreement == pytest.approx((before.argmax(1) == after.argmax(1)).mean())
    assert result.difference > 0
    assert (result.bytes_before, result.bytes_after) == (
        dense.stat().st_size, result.path.stat().st_size,
    )  # fmt: skip
    assert result.bytes_after < 0.55 * result.bytes_before
    assert result.to_dict()["path"] == str(result.path)


def test_the_layers_are_named_and_hold_integers(files: tuple[Path, Any]) -> None:
    _, result = files
    assert len(result.quantized) == 5
    assert result.kept == ()
    assert {"first.weight", "third.weight", "head.weight"} <= set(result.quantized)
    model = onnx.load(str(result.path))
    onnx.checker.check_model(model)
    kinds = {each.name: each.data_type for each in model.graph.initializer}
    assert kinds["x_zero_point"] == onnx.TensorProto.UINT8
    for name in ("second.weight", "third.weight"):
        assert kinds[f"{name}_quantized"] == onnx.TensorProto.INT8
        assert name not in kinds


def test_weights_are_rounded_per_channel_as_the_toolbox_says(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any]
) -> None:
    model = onnx.load(str(files[1].path))
    held = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    weight = trained[0].third.weight.detach()
    expected = quantize_weight(weight)
    scales = held["third.weight_scale"]
    np.testing.assert_allclose(scales, expected.scales.flatten().numpy(), rtol=1e-5)
    off = held["third.weight_quantized"].astype(int) - expected.values.numpy().astype(int)
    assert np.abs(off).max() <= 1
    assert (off == 0).mean() > 0.99


def test_the_outputs_are_not_rounded(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any]
) -> None:
    graph = onnx.load(str(files[1].path)).graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    assert made[graph.output[0].name] == "Gemm"
    found = scores(files[1].path, trained[1])
    # 256 steps would be all there are.
    assert len(np.unique(found)) > 1000


def test_a_layer_may_be_left_out(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any], tmp_path: Path
) -> None:
    batches = [trained[1][:32]]
    result = quantize_onnx(files[0], batches, tmp_path / "a.onnx", exclude=["head*", "second*"])
    assert set(result.kept) == {"head.weight", "second.weight"}
    assert len(result.quantized) == 3
    assert result.kept and not files[1].others
    with pytest.raises(SecateurError, match=r"matches no layer: did you mean head\.weight"):
        quantize_onnx(files[0], batches, tmp_path / "b.onnx", exclude=["haed.weight"])
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx"}


@pytest.mark.parametrize("options", [{"method": "percentile"}, {"reduce_range": True},
                                     {"activations": "int8"}])  # fmt: skip
def test_other_ways_to_find_ranges(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any], tmp_path: Path,
    options: dict[str, Any],
) -> None:  # fmt: skip
    result = quantize_onnx(files[0], [trained[1][:64]], tmp_path / "a.onnx", **options)
    assert result.agreement is not None
    assert result.agreement > 0.9
    assert result.difference != files[1].difference


def test_batches_come_by_name_too(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any], tmp_path: Path
) -> None:
    images = trained[1][:32]
    by_name = quantize_onnx(files[0], [{"x": images.numpy()}], tmp_path / "a.onnx")
    plain = quantize_onnx(files[0], [images], tmp_path / "b.onnx")
    assert by_name.path.read_bytes() == plain.path.read_bytes()


def test_mistakes_are_told_and_nothing_is_left(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any], tmp_path: Path
) -> None:
    images = trained[1][:8]
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(files[0].read_bytes()[:500])
    out = tmp_path / "out.onnx"
    for arguments, options, message in (
        ((files[0], [], out), {}, "no batch"),
        ((files[0], [images], tmp_path / "out.txt"), {}, "end in .onnx"),
        ((files[0], [images], out), {"method": "minmx"}, "did you mean minmax"),
        ((files[0], [images], out), {"activations": "int9"}, "did you mean int8"),
        ((files[0], [images], out), {"check": []}, "no batch"),
        ((files[0], [{"y": images}], out), {}, "lacks the input 'x'"),
        ((files[0], [()], out), {}, "holds 0 tensors"),
        ((files[0], [images[:, :, :4]], out), {}, "cannot be quantized|cannot run"),
        ((damaged, [images], out), {}, "cannot open"),
        ((tmp_path / "missing.onnx", [images], out), {}, "does not exist"),
    ):
        with pytest.raises(SecateurError, match=message) as error:
            quantize_onnx(*arguments, **options)
        assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {"damaged.onnx"}


def test_the_root_logger_is_left_as_it_was(
    trained: tuple[nn.Module, torch.Tensor, torch.Tensor], files: tuple[Path, Any], tmp_path: Path
) -> None:
    before = logging.getLogger().level
    quantize_onnx(files[0], [trained[1][:8]], tmp_path / "a.onnx")
    assert logging.getLogger().level == before
