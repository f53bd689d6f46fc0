from __future__ import annotations

import json
import sys
from pathlib import Path

import networks
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.errors import SecateurError
from secateur.train.data import collate, load_data
from secateur.train.models import build_model, load_weights


def _refused(spec: str, **options: object) -> str:
    arguments = {"num_classes": 10, "channels": 3, **options}
    with pytest.raises(SecateurError) as caught:
        build_model(spec, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("side", [8, 9, 28, 224])
@pytest.mark.parametrize("channels", [1, 3])
def test_cnn_takes_any_size(side: int, channels: int) -> None:
    model = build_model("cnn", num_classes=7, channels=channels).model.eval()
    assert model(torch.zeros(2, channels, side, side)).shape == (2, 7)
    assert 50_000 < sum(one.numel() for one in model.parameters()) < 100_000


def test_cnn_learns_the_digits() -> None:
    torch.manual_seed(0)
    data = load_data("digits")
    model = build_model("cnn", num_classes=10, channels=1).model
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    epochs, batch = 6, 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=epochs * (len(data.train) // batch)
    )
    for epoch in range(epochs):
        data.train.set_epoch(epoch)
        for rows in torch.randperm(len(data.train)).split(batch)[: len(data.train) // batch]:
            images, labels = collate(data.train.__getitems__(rows.tolist()))
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimiser.step()
            schedule.step()
    images, labels = data.valid.__getitems__(range(len(data.valid)))
    assert float((model.eval()(images).argmax(1) == labels).float().mean()) >= 0.97


@pytest.mark.parametrize("spec", ["cnn", "resnet18", "googlenet", "timm:resnet10t"])
def test_build_builds_the_same_architecture_again(spec: str) -> None:
    built = build_model(spec, num_classes=4, channels=3)
    again = build_model(**json.loads(json.dumps(built.build)))
    assert _shapes(again.model) == _shapes(built.model)
    assert (again.spec, again.channels) == (spec, 3)
    images = torch.zeros(2, 3, 96, 96)
    assert built.model.train()(images).shape == (2, 4)  # googlenet must not return a tuple


def test_grey_images_of_torchvision_models_are_repeated() -> None:
    built = build_model("resnet18", num_classes=10, channels=1)
    data = load_data("digits").with_channels(built.channels)
    assert built.notes == ("resnet18 takes 3 channels, so grey images are repeated",)
    assert built.model.eval()(data.valid.__getitems__([0])[0]).shape == (1, 10)
    assert "takes images with 3 channels, not 4" in _refused("resnet18", channels=4)


def test_timm_takes_any_number_of_channels() -> None:
    built = build_model("timm:resnet10t", num_classes=5, channels=1)
    assert built.channels == 1
    assert built.model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


def test_pretrained_weights_are_taken_as_far_as_they_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = pytest.importorskip("torchvision.models")
    # torch.hub finds the weights in its folder of downloads, so nothing is fetched.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = models.get_model_weights("squeezenet1_1").DEFAULT.url
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    donor = models.get_model("squeezenet1_1", weights=None)
    torch.save(donor.state_dict(), folder / url.rpartition("/")[2])

    whole = build_model("squeezenet1_1", num_classes=1000, channels=3, pretrained=True)
    assert whole.notes == ()
    assert all(map(torch.equal, whole.model.state_dict().values(), donor.state_dict().values()))

    built = build_model("squeezenet1_1", num_classes=10, channels=3, pretrained=True)
    left = "classifier.1.weight, classifier.1.bias"
    assert built.notes == (f"not taken from the pretrained weights: {left}",)
    own = built.model.state_dict()
    for name, tensor in donor.state_dict().items():
        assert torch.equal(own[name], tensor) != name.startswith("classifier")


def _module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text("from torch import nn\n" + text)
    monkeypatch.chdir(folder)


def test_function_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def make(num_classes, *, width=4): return nn.Linear(width, num_classes)"
    _module(tmp_path, "made_here", text, monkeypatch)
    before = list(sys.path)
    built = build_model("made_here:make", num_classes=6, channels=1)
    assert sys.path == before
    assert built.model.out_features == 6
    assert built.notes == ("make takes no argument channels",)
    assert built.build == {"spec": "made_here:make", "num_classes": 6, "channels": 1}
    assert "takes no argument pretrained" in _refused("made_here:make", pretrained=True)


def test_function_that_takes_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def make(**given):\n    m = nn.Identity(); m.given = given; return m"
    _module(tmp_path, "takes_all", text, monkeypatch)
    model = build_model("takes_all:make", num_classes=6, channels=1, pretrained=True).model
    assert model.given == {"num_classes": 6, "channels": 1, "pretrained": True}
    model = build_model("takes_all:make", num_classes=6, channels=1).model
    assert model.given == {"num_classes": 6, "channels": 1}


def test_functions_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def make(): raise ValueError('odd\\nlines')\ndef number(): return 3\n"
    _module(tmp_path, "failing", text, monkeypatch)
    assert "failed (ValueError: odd)" in _refused("failing:make")
    assert "returned a int" in _refused("failing:number")
    assert "did you mean number" in _refused("failing:numbre")
    assert "importing no_such.module failed" in _refused("no_such.module:make")
    (tmp_path / "typo.py").write_text("def (")
    assert "importing typo failed (SyntaxError" in _refused("typo:make")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet81", "unknown model 'resnet81': did you mean resnet18"),
        ("CNN", "unknown model 'CNN'"),
        ("", "unknown model ''"),
        ("my model", "unknown model 'my model': accepted are cnn, a torchvision"),
        ("timm:resnet10tt", "did you mean timm:resnet10t"),
        ("timm:hf-hub:someone/model", "unknown model 'timm:hf-hub:someone/model'"),
        ("fasterrcnn_resnet50_fpn", "unknown model 'fasterrcnn_resnet50_fpn'"),
    ],
)
def test_unknown_models(spec: str, message: str) -> None:
    assert message in _refused(spec)


def test_impossible_requests() -> None:
    assert "no pretrained weights" in _refused("cnn", pretrained=True)
    assert "1 classes" in _refused("cnn", num_classes=1)
    assert "0 channels" in _refused("cnn", channels=0)


@pytest.mark.parametrize(("module", "spec"), [("torchvision", "resnet18"), ("timm", "timm:x")])
def test_missing_library_names_the_extra(
    module: str, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    assert "pip install 'secateur[vision]'" in _refused(spec)


def _saved(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Save the weights of an MLP, some replaced or (None) left out; dots are written as __."""
    torch.manual_seed(5)
    tensors: dict[str, torch.Tensor | None] = dict(networks.mlp().state_dict())
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}
    path = folder / "weights.safetensors"
    save_file({name: one for name, one in tensors.items() if one is not None}, path)
    return path


def test_weights_are_loaded(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    model = networks.mlp()
    load_weights(model, str(path))
    for name, tensor in load_file(path).items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_counters_may_be_missing_and_half_precision_converts(tmp_path: Path) -> None:
    model, other = networks.small_cnn(), networks.small_cnn()
    tensors = {
        name: tensor.half()
        for name, tensor in other.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    save_file(tensors, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    for name, tensor in tensors.items():
        assert torch.equal(model.state_dict()[name], tensor.float())


def test_tensors_with_two_names_are_needed_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    save_file({"0.weight": torch.ones(5, 3)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model[1].weight.eq(1).all()


def test_tensors_without_storage_are_not_taken_for_one(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = networks.mlp()
    with pytest.raises(SecateurError, match=r"1 missing \(1\.bias\)"):
        load_weights(model, _saved(tmp_path, **{"1__bias": None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"1__bias": None}, "1 missing (1.bias)"),
        ({"9__bias": torch.ones(2)}, "1 unexpected (9.bias)"),
        ({"1__bias": torch.ones(33)}, "1 of another shape or kind (1.bias [33] instead of [32])"),
        ({"1__bias": torch.ones(32, dtype=torch.int64)}, "1.bias [32] torch.int64 instead of"),
        (
            {f"{layer}__{name}": None for layer in (1, 3, 5) for name in ("weight", "bias")},
            "6 missing (1.weight, 1.bias, 3.weight, 3.bias and 2 more)",
        ),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    path = _saved(tmp_path, **changes)
    model = networks.mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SecateurError) as caught:
        load_weights(model, path)
    assert message in str(caught.value)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


@pytest.mark.parametrize("kept", [0, 4, 200, -5])
def test_weights_cut_short(tmp_path: Path, kept: int) -> None:
    path = _saved(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SecateurError, match="are damaged or cut short"):
        load_weights(networks.mlp(), path)


def test_weights_in_other_formats_or_nowhere(tmp_path: Path) -> None:
    torch.save(networks.mlp().state_dict(), tmp_path / "w.pt")
    with pytest.raises(SecateurError, match=r"w\.pt' should be a \.safetensors .* pickles"):
        load_weights(networks.mlp(), tmp_path / "w.pt")
    with pytest.raises(SecateurError, match="do not exist"):
        load_weights(networks.mlp(), tmp_path / "w.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(SecateurError, match="do not exist"):
        load_weights(networks.mlp(), tmp_path / "d.safetensors")
