"""Saving and loading: in a fresh process, bit for bit, without pickle, and nothing that a file says
is taken on trust."""

from __future__ import annotations

import copy
import json
import os
import pickletools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import NETWORKS, example
from safetensors.torch import load_file, save_file
from testers import choose_axes
from torch import Tensor, nn

from secateur import SecateurError, load, save, shrink
from secateur.structure import reload
from secateur.structure.reload import DESCRIPTION, WEIGHTS

TESTS = Path(__file__).parents[1]


def shrunk(name: str, seed: int = 1, times: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(seed)
    model, inputs = NETWORKS[name]().eval(), example(name)
    for place in range(times):
        shrink(model, choose_axes(model, inputs, seed + place, share=0.3).masks(model), inputs)
    return model, inputs


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved perceptron of which three hidden units are gone."""
    torch.manual_seed(0)
    model, stays = layers(), torch.arange(8) < 5
    masks = {"0.weight": stays[:, None].expand(8, 6), "0.bias": stays}
    shrink(model, masks, torch.zeros(2, 6))
    return save(model, tmp_path / "saved")


def rewrite(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change what the description says."""
    file = folder / DESCRIPTION
    said = json.loads(file.read_text())
    file.write_text(json.dumps(change(said) or said))


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models hold the same tensors, bit by bit, and the same numbers in attributes."""
    tensors = [dict(m.named_parameters()) | dict(m.named_buffers()) for m in (one, other)]
    numbers = [
        {(path, name): value for path, module in m.named_modules()
         for name, value in vars(module).items() if isinstance(value, (int, tuple))}
        for m in (one, other)
    ]  # fmt: skip
    return (
        tensors[0].keys() == tensors[1].keys()
        and all(torch.equal(each, tensors[1][name]) for name, each in tensors[0].items())
        and numbers[0] == numbers[1]
    )


class TestEveryToyNetwork:
    @pytest.mark.parametrize("times", [1, 2])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_comes_back_bit_for_bit(self, name: str, times: int, tmp_path: Path) -> None:
        model, inputs = shrunk(name, times=times)
        assert save(model, tmp_path) == tmp_path
        again = load(tmp_path, NETWORKS[name]).eval()
        assert same(model, again)
        assert torch.equal(model(*inputs), again(*inputs))

    @pytest.mark.parametrize("name", ["small_cnn", "transformer", "grouped_cnn"])
    def test_goes_on(self, name: str, tmp_path: Path) -> None:
        """What was loaded is trained, shrunk again, saved again."""
        model, inputs = shrunk(name)
        again = load(save(model, tmp_path / "one"), NETWORKS[name])
        optimizer = torch.optim.Adam(again.parameters())
        again.train()(*inputs).square().mean().backward()
        optimizer.step()
        again.eval()
        chosen = choose_axes(again, inputs, seed=7, share=0.3)
        result = shrink(again, chosen.masks(again), inputs, optimizer)
        assert result.after.params < result.before.params
        third = load(save(again, tmp_path / "two"), NETWORKS[name]).eval()
        assert same(again, third)
        assert torch.equal(again(*inputs), third(*inputs))

    def test_in_a_fresh_process(self, tmp_path: Path) -> None:
        wanted = {}
        for name in ("small_cnn", "transformer", "conv1d_net"):
            model, inputs = shrunk(name)
            save(model, tmp_path / name)
            wanted[name] = model(*inputs)
        script = """
            import sys, torch
            from networks import NETWORKS, example
            from secateur import load

            torch.serialization.load = torch.load = None  # nothing may be unpickled
            for name in sys.argv[2:]:
                model = load(f"{sys.argv[1]}/{name}", NETWORKS[name]).eval()
                print(model(*example(name)).detach().flatten().view(torch.int32).tolist())
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), *wanted],
            capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )  # fmt: skip
        found = [json.loads(line) for line in done.stdout.splitlines()]
        bits = [each.detach().flatten().view(torch.int32).tolist() for each in wanted.values()]
        assert found == bits


class TestWhatIsWritten:
    def test_two_files_without_pickle(self, saved: Path) -> None:
        assert {file.name for file in saved.iterdir()} == {WEIGHTS, DESCRIPTION}
        for file in saved.iterdir():
            with pytest.raises(ValueError, match=r"."):
                list(pickletools.genops(file.read_bytes()))
        said = json.loads((saved / DESCRIPTION).read_text())
        assert said["removals"] == [{"0": [5, 6, 7]}]
        assert said["shapes"]["0.weight"] == [8, 6]
        assert said["versions"]["torch"] == torch.__version__

    def test_a_model_that_was_not_shrunk(self, tmp_path: Path) -> None:
        model = layers()
        again = load(save(model, tmp_path), layers)
        assert same(model, again)
        assert json.loads((tmp_path / DESCRIPTION).read_text())["removals"] == []

    def test_the_build_is_kept(self, tmp_path: Path) -> None:
        save(layers(), tmp_path, build={"spec": "mlp", "num_classes": 3})
        assert reload.describe_saved(tmp_path)["build"] == {"spec": "mlp", "num_classes": 3}

    def test_a_build_that_is_not_plain(self, tmp_path: Path) -> None:
        with pytest.raises(SecateurError, match="JSON"):
            save(layers(), tmp_path / "new", build={"spec": object()})
        assert not (tmp_path / "new").exists()

    def test_what_is_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(SecateurError, match=r"nn\.Module"):
            save({"weights": torch.zeros(2)}, tmp_path)  # type: ignore[arg-type]

    def test_over_an_older_one(self, saved: Path) -> None:
        model = layers()
        save(model, saved)
        assert same(load(saved, layers), model)

    @pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
    def test_the_precision_comes_back(self, kind: torch.dtype, tmp_path: Path) -> None:
        model, inputs = shrunk("small_cnn")
        model.to(kind)
        again = load(save(model, tmp_path), NETWORKS["small_cnn"]).eval()
        assert same(model, again)
        assert torch.equal(model(inputs[0].to(kind)), again(inputs[0].to(kind)))

    def test_tied_weights_stay_tied(self, tmp_path: Path) -> None:
        model = Tied()
        words = torch.randint(20, (2, 5))
        shrink(model, choose_axes(model, words, share=0.5).masks(model), words)
        again = load(save(model, tmp_path), Tied)
        assert again.head.weight is again.table.weight
        assert torch.equal(again(words), model(words))

    def test_plain_tensors_that_were_made_smaller(self, tmp_path: Path) -> None:
        model, x = Plainly(), torch.randn(2, 6)
        shrink(model, choose_axes(model, x, share=0.5).masks(model), x)
        assert model.shift.shape == (4,)
        again = load(save(model, tmp_path), Plainly)
        assert torch.equal(again.shift, model.shift)
        assert torch.equal(again(x), model(x))
        shrink(again, choose_axes(again, x, share=0.5).masks(again), x)
        third = load(save(again, tmp_path), Plainly)
        assert torch.equal(third(x), again(x))

    def test_into_a_model_that_was_built_without_data(self, tmp_path: Path) -> None:
        model, inputs = shrunk("preactivation_resnet")
        save(model, tmp_path)
        with torch.device("meta"):
            empty = NETWORKS["preactivation_resnet"]()
        again = load(tmp_path, empty).eval()
        assert same(model, again)
        assert torch.equal(again(*inputs), model(*inputs))

    def test_a_copy_can_be_saved(self, tmp_path: Path) -> None:
        model, inputs = shrunk("transformer")
        again = load(save(copy.deepcopy(model), tmp_path), NETWORKS["transformer"]).eval()
        assert torch.equal(again(*inputs), model(*inputs))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.mix = nn.Linear(8, 8)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.mix(self.table(words)).relu())


class Plainly(nn.Module):
    """Holds a tensor along its channels that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)
        self.shift = torch.linspace(-1, 1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu() * self.shift)


class TestTheWrongArchitecture:
    @pytest.mark.parametrize(("build", "said"), [
        (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), "build the same"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), "build the same"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU()), "has no parameter '2.weight'"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Linear(3, 3)),
         "'3.weight' that the saved model lacks"),
        (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)), "0.bias"),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)),
         "differ in '1.num_batches_tracked'"),
        (lambda: nn.Conv2d(6, 8, 1), "has no parameter '0.weight'"),
    ])  # fmt: skip
    def test_is_refused_and_left_alone(self, saved: Path, build: Any, said: str) -> None:
        model = build()
        before = copy.deepcopy(model)
        with pytest.raises(SecateurError, match=said) as caught:
            load(saved, model)
        assert "\n" not in str(caught.value)
        assert same(model, before)
        with pytest.raises(SecateurError, match=said):
            load(saved, build)

    @pytest.mark.parametrize("build", [lambda: None, lambda: "model", lambda: {}])
    def test_a_build_that_returns_no_model(self, saved: Path, build: Any) -> None:
        with pytest.raises(SecateurError, match=r"build returned a .*nn\.Module"):
            load(saved, build)

    def test_no_build_and_the_file_does_not_say(self, saved: Path) -> None:
        with pytest.raises(SecateurError, match="pass build="):
            load(saved)

    @pytest.mark.parametrize("spec", [
        "os:system", "evil.py:make", "builtins:eval", "timm:../../etc/passwd", "../../x", "", 3,
        None,
    ])  # fmt: skip
    def test_code_that_a_file_names_is_never_run(self, saved: Path, spec: Any) -> None:
        build = {"spec": spec, "num_classes": 3, "channels": 1}
        rewrite(saved, lambda said: said.update(build=build))
        with pytest.raises(SecateurError):
            load(saved)

    def test_a_module_that_was_shrunk_already(self, saved: Path) -> None:
        model = load(saved, layers)
        with pytest.raises(SecateurError, match="build the same"):
            load(saved, model)


class TestDamagedFiles:
    def refused(self, folder: Path, match: str = ".") -> None:
        model = layers()
        before = copy.deepcopy(model)
        with pytest.raises(SecateurError, match=match) as caught:
            load(folder, model)
        assert "\n" not in str(caught.value)
        assert same(model, before), "a model that cannot be loaded is left as it was"
        assert not hasattr(model, "_secateur_history")

    def test_no_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nothing", "holds no saved model")

    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
    def test_a_file_is_missing(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        self.refused(saved)

    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
    def test_a_folder_instead(self, saved: Path, name: str) -> None:
        (saved / name).unlink()
        (saved / name).mkdir()
        self.refused(saved)

    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
    def test_cut_short(self, saved: Path, name: str, share: float) -> None:
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: int(share * len(whole))])
        self.refused(saved, "cannot be read")

    @pytest.mark.parametrize("text", [
        b"\xff\xfe\x00", b"[" * 200_000, b"null", b"[]", b"3", b'"text"', b"{}",
        b'{"format": 2}', b'{"format": "1"}', b'{"format": 1}', b"1" * 5000,
    ])  # fmt: skip
    def test_no_description(self, saved: Path, text: bytes) -> None:
        (saved / DESCRIPTION).write_bytes(text)
        self.refused(saved, DESCRIPTION)

    def test_a_pickle_in_its_place(self, saved: Path) -> None:
        torch.save(layers(), saved / WEIGHTS)
        self.refused(saved, "cannot be read")

    def test_larger_than_allowed(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reload, "_LARGEST_DESCRIPTION", 100)
        self.refused(saved, "larger than")

    @pytest.mark.parametrize(("key", "value"), [
        ("shapes", None), ("shapes", []), ("shapes", {"0.weight": "8x6"}),
        ("shapes", {"0.weight": [8.0, 6]}), ("shapes", {"0.weight": [-8, 6]}), ("shapes", {}),
        ("attributes", None), ("attributes", {"0": 3}), ("attributes", {"0": None}),
        ("attributes", {"0": {"out_features": "5"}}), ("attributes", {"0": {"out_features": 5.5}}),
        ("attributes", {"0": {"out_features": True}}), ("attributes", {"0": {"out_features": []}}),
        ("attributes", {"0": {"out_features": {"tuple": "5"}}}),
        ("attributes", {"0": {"training": 1}}), ("attributes", {"0": {"forward": 1}}),
        ("attributes", {"0": {"__class__": 1}}), ("attributes", {"0": {"_parameters": 1}}),
        ("attributes", {"9": {"out_features": 5}}), ("attributes", {"..": {"out_features": 5}}),
        ("attributes", {"0": {"nothing": 5}}),
        ("removals", None), ("removals", {}), ("removals", [3]), ("removals", [{"0": "567"}]),
        ("removals", [{"0": [-1]}]), ("removals", [{"0": [True]}]),
        ("grafts", None), ("grafts", []), ("grafts", {"0": None}), ("grafts", {"0": {}}),
        ("grafts", {"": {"inputs": 1, "steps": [], "result": {"value": "input 0"}}}),
        ("grafts", {"9": {"inputs": 1, "steps": [], "result": {"value": "input 0"}}}),
        ("grafts", {"../..": {"inputs": 1, "steps": [], "result": {"value": "input 0"}}}),
        ("plain", None), ("plain", "0.weight"), ("plain", [3]), ("plain", ["0.nothing"]),
        ("plain", ["9.weight"]), ("plain", ["0.out_features"]), ("plain", ["0.forward"]),
        ("plain", ["__class__"]),
    ])  # fmt: skip
    def test_parts_of_the_wrong_kind(self, saved: Path, key: str, value: Any) -> None:
        rewrite(saved, lambda said: said.update({key: value}))
        self.refused(saved)

    @pytest.mark.parametrize("step", [
        {"name": "step 1", "operator": "os.system.default", "args": ["ls"], "kwargs": {}},
        {"name": "step 1", "operator": "aten.from_file.default", "args": ["/etc/passwd"],
         "kwargs": {}},
        {"name": "step 1", "operator": "aten.save.default", "args": [], "kwargs": {}},
        {"name": "step 1", "operator": "__import__.os.system", "args": [], "kwargs": {}},
        {"name": "step 1", "operator": "aten.relu.default", "args": [{"held": "../secret"}],
         "kwargs": {}},
        {"name": "step 1", "operator": "aten.relu.default", "args": [{"held": "__class__"}],
         "kwargs": {}},
        {"name": "step 1", "operator": "aten.relu.default", "args": [{"value": "input 7"}],
         "kwargs": {}},
        {"name": "step 1", "module": "..", "args": [{"value": "input 0"}], "kwargs": {}},
        {"name": "step 1", "module": "", "args": [{"value": "input 0"}], "kwargs": {}},
        {"name": "step 1", "module": "forward", "args": [{"value": "input 0"}], "kwargs": {}},
        {"name": ["step 1"], "operator": "aten.relu.default", "args": [], "kwargs": {}},
        {"name": "step 1", "item": "0", "args": [{"value": "input 0"}], "kwargs": {}},
    ])  # fmt: skip
    def test_grafts_that_mean_harm(self, saved: Path, step: Any) -> None:
        code = {"inputs": 1, "steps": [step], "result": {"value": "input 0"}}
        rewrite(saved, lambda said: said["grafts"].update({"0": code}))
        self.refused(saved, "graft")

    @pytest.mark.parametrize(("name", "tensor"), [
        ("0.weight", torch.zeros(5)), ("0.weight", torch.zeros(9, 6)),
        ("0.weight", torch.zeros(5, 7)),
        ("0.weight", torch.zeros(0, 6)), ("0.weight", torch.zeros(5, 6, 1)),
        ("0.weight", torch.zeros(5, 6, dtype=torch.int64)), ("0.weight", None),
        ("stranger", torch.zeros(3)),
    ])  # fmt: skip
    def test_tensors_that_do_not_fit(self, saved: Path, name: str, tensor: Any) -> None:
        tensors = load_file(saved / WEIGHTS)
        tensors[name] = tensor
        save_file({key: each for key, each in tensors.items() if each is not None}, saved / WEIGHTS)
        self.refused(saved, name)

    def test_other_shapes_where_nothing_was_removed(self, tmp_path: Path) -> None:
        save(layers(), tmp_path)
        tensors = load_file(tmp_path / WEIGHTS)
        tensors["0.weight"] = tensors["0.weight"][:5].clone()
        save_file(tensors, tmp_path / WEIGHTS)
        self.refused(tmp_path, "0.weight")

    def test_a_link_is_not_written_through(self, tmp_path: Path) -> None:
        """What stands in the way of a new file is replaced, not followed."""
        outside = tmp_path / "outside"
        outside.write_text("precious")
        folder = tmp_path / "folder"
        folder.mkdir()
        for name in (WEIGHTS, DESCRIPTION):
            (folder / name).symlink_to(outside)
        save(layers(), folder)
        assert outside.read_text() == "precious"
        assert not (folder / WEIGHTS).is_symlink()
