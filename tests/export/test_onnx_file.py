"""ONNX files: they say what PyTorch says, for any batch, and nothing about this machine."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import example
from torch import Tensor, nn
from training import fresh, state_of

from secateur import SecateurError, Sparsifier, shrink
from secateur.export import to_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def run(path: Path, **inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def trained(seed: int = 0) -> nn.Module:
    """Return a network whose norms have seen something."""
    model = fresh(seed=seed)
    for _ in range(5):
        model(torch.randn(16, 1, 8, 8) + 0.5)
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Any]:
    model = trained()
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return model, to_onnx(model, torch.randn(1, 1, 8, 8), path, input_names=["images"])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_file_says_what_the_model_says(written: tuple[nn.Module, Any], size: int) -> None:
    model, result = written
    images = torch.randn(size, 1, 8, 8)
    with torch.no_grad():
        expected = model.eval()(images)
    (found,) = run(result.path, images=images)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_the_result_is_what_lies_there(written: tuple[nn.Module, Any]) -> None:
    _, result = written
    assert result.bytes == result.path.stat().st_size
    assert (result.inputs, result.outputs) == (("images",), ("output",))
    assert result.batches == (1, 3)
    assert 0 <= result.difference < 1e-4
    assert result.to_dict()["path"] == str(result.path)
    proto = onnx.load(str(result.path))
    onnx.checker.check_model(proto, full_check=True)
    assert {each.version for each in proto.opset_import if each.domain == ""} == {18}
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_file_tells_nothing_of_where_it_was_made(written: tuple[nn.Module, Any]) -> None:
    content = written[1].path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = trained().train()
    model[1].eval()
    before = state_of(model)
    to_onnx(model, torch.randn(2, 1, 8, 8), tmp_path / "a.onnx")
    assert [each.training for each in model] == [index != 1 for index in range(len(model))]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx"}


def test_a_batch_of_one_size_only(tmp_path: Path) -> None:
    result = to_onnx(trained(), torch.randn(1, 1, 8, 8), tmp_path / "a.onnx", dynamic_batch=False)
    assert result.batches == (1,)
    shape = onnx.load(str(result.path)).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 1, 8, 8]


class TwoHeads(nn.Module):
    """Two inputs, and several outputs in one of the kinds that models return."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.kind = kind

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        y = self.layer(x)
        if self.kind == "mapping":
            return OrderedDict(score=y * scale, map={"inner": y.relu()})
        if self.kind == "named":
            return namedtuple("Answer", ["score", "other"])(y * scale, y.relu())
        return (y * scale, [y.relu()])


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("mapping", ("score", "map.inner")),
        ("named", ("score", "other")),
        ("tuple", ("output_0", "output_1.output_0")),
    ],
)
def test_several_inputs_and_outputs_keep_their_names(
    tmp_path: Path, kind: str, names: tuple[str, ...]
) -> None:
    model = TwoHeads(kind)
    result = to_onnx(model, (torch.randn(2, 4), torch.randn(2, 1)), tmp_path / "a.onnx")
    assert result.inputs == ("x", "scale")
    assert result.outputs == names
    x, scale = torch.randn(5, 4), torch.randn(5, 1)
    found = run(result.path, x=x, scale=scale)
    y = model.layer(x).detach()
    np.testing.assert_allclose(found[0], (y * scale).numpy(), atol=1e-5)
    np.testing.assert_allclose(found[1], y.relu().numpy(), atol=1e-5)


def test_names_of_ones_own(tmp_path: Path) -> None:
    model, inputs = nn.Linear(4, 2), torch.randn(2, 4)
    result = to_onnx(model, inputs, tmp_path / "a.onnx", input_names=["a"], output_names=["b"])
    assert (result.inputs, result.outputs) == (("a",), ("b",))
    for wrong in ({"input_names": ["a", "b"]}, {"output_names": ["input"]}):
        with pytest.raises(SecateurError, match="names"):
            to_onnx(model, inputs, tmp_path / "b.onnx", **wrong)


def test_a_shrunk_network_is_smaller_as_a_file(tmp_path: Path) -> None:
    model = trained()
    inputs = example("small_cnn")
    dense = to_onnx(model, inputs, tmp_path / "dense.onnx")
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", params=0.4, example_inputs=inputs
    )
    sparsifier.step(1.0)
    shrink(model, sparsifier, inputs)
    small = to_onnx(model, inputs, tmp_path / "small.onnx")
    assert small.bytes < 0.7 * dense.bytes
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(
            run(small.path, **{small.inputs[0]: images})[0], model.eval()(images), atol=1e-5
        )


class FixedBatch(nn.Module):
    """Knows how many examples it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Other(nn.Module):
    """Draws lots, so that no file can say the same."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Fails(nn.Module):
    """Always fails."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("first\nsecond")


@pytest.mark.parametrize(
    ("model", "inputs", "name", "message"),
    [
        (nn.Identity(), torch.randn(2, 3), "a.pt", "end in .onnx"),
        (nn.Identity(), torch.randn(2, 3), "no/a.onnx", "does not exist"),
        (nn.Identity(), "text", "a.onnx", "expected a tensor"),
        (nn.Identity(), (), "a.onnx", "expected a tensor"),
        (nn.Identity(), torch.zeros(0, 3), "a.onnx", "expected a tensor"),
        (TwoHeads("tuple"), (torch.randn(2, 4), torch.randn(3, 1)), "a.onnx", "must be equal"),
        (FixedBatch(), torch.randn(2, 3), "a.onnx", "dynamic_batch=False"),
        (Other(), torch.randn(2, 3), "a.onnx", "nothing was written"),
        (Fails(), torch.randn(2, 3), "a.onnx", "first"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_left(
    tmp_path: Path, model: nn.Module, inputs: Any, name: str, message: str
) -> None:
    with pytest.raises(SecateurError, match=message) as error:
        to_onnx(model, inputs, tmp_path / name)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_the_extra_is_named_where_the_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(SecateurError, match=r"secateur\[export\]"):
        to_onnx(nn.Identity(), torch.randn(2, 3), tmp_path / "a.onnx")
