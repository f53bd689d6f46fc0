"""The bench of the zoo: its names, its inputs, its marks, and how it runs and goes on.

What it judges is not run here; every mark is shown something that must fail it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import zoo  # noqa: E402
import zoo_checks  # noqa: E402
import zoo_inputs  # noqa: E402
import zoo_marks  # noqa: E402
import zoo_models  # noqa: E402
import zoo_peer  # noqa: E402
import zoo_table  # noqa: E402


class TestNames:
    def test_as_many_as_promised(self):
        names = zoo_models.all_names()
        assert len(zoo_models.torchvision_names()) == 109
        assert len(zoo_models.timm_names()) == 98
        assert len(zoo_models.transformers_names()) == 7
        assert len(set(names)) == len(names) == 214

    def test_one_of_every_timm_module(self):
        import timm

        choice = json.loads(zoo_models.CHOICE.read_text(encoding="utf-8"))
        if timm.__version__ != choice["timm"]:
            pytest.skip("the choice was made for another version of timm")
        assert sorted(choice["modules"]) == sorted(timm.list_modules())
        for module, name in choice["modules"].items():
            assert name in timm.list_models(module=module)

    def test_the_choice_is_the_smallest(self):
        import timm

        chosen = json.loads(zoo_models.CHOICE.read_text(encoding="utf-8"))["modules"]
        for module in ("hgnet", "lcnetv2", "twins"):
            with torch.device("meta"):
                sizes = {
                    name: zoo_marks.count_params(timm.create_model(name))
                    for name in timm.list_models(module=module)
                }
            assert sizes[chosen[module]] == min(sizes.values())

    def test_the_sample(self):
        assert len(zoo_models.SAMPLE) <= 20
        assert set(zoo_models.SAMPLE) <= set(zoo_models.all_names())

    @pytest.mark.parametrize(
        "name", ["resnet19", "timm:resnet19", "transformers:brt", "x:resnet18"]
    )
    def test_an_unknown_name(self, name):
        with pytest.raises(ValueError, match=name):
            zoo_models.module_of(name)

    def test_built_twice_is_the_same_and_no_longer_special_after_perturbing(self):
        one, two = zoo_models.build("resnet18"), zoo_models.build("resnet18")
        for model in (one, two):
            zoo_models.perturb(model)
        for (name, left), right in zip(
            one.state_dict().items(), two.state_dict().values(), strict=True
        ):
            assert torch.equal(left, right)
            if not name.endswith("num_batches_tracked"):
                assert left.unique().numel() > 1, name
        assert all(
            part.running_var.min() > 0 for part in one.modules() if hasattr(part, "momentum")
        )


class Picky(nn.Module):
    """Runs on images from a size on, and trains from a larger one on."""

    def __init__(self, runs: int, trains: int):
        super().__init__()
        self.runs, self.trains = runs, trains
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image):
        if image.shape[-1] < (self.trains if self.training else self.runs):
            raise RuntimeError("too small")
        return self.norm(image)


class TestInputs:
    def shapes(self, name: str) -> list[tuple[int, ...] | None]:
        model = zoo_models.build(name)
        recipe = zoo_inputs.find_recipe(name, model)
        inputs = recipe.inputs()
        with torch.no_grad():
            model(*inputs)
            model.train()(*recipe.batch())
        return [None if each is None else tuple(each.shape) for each in inputs]

    def test_images(self):
        assert self.shapes("resnet18") == [(1, 3, 64, 64)]

    def test_a_fixed_size(self):
        assert self.shapes("timm:deit_tiny_patch16_224") == [(1, 3, 224, 224)]

    def test_pairs(self):
        assert self.shapes("raft_small") == [(1, 3, 128, 128)] * 2

    def test_clips(self):
        assert self.shapes("r3d_18") == [(1, 3, 8, 64, 64)]

    def test_tokens(self):
        assert self.shapes("transformers:llama") == [(1, 16)]
        assert self.shapes("transformers:t5") == [(1, 16), None, (1, 16)]

    def test_lists_with_targets(self):
        name = "ssdlite320_mobilenet_v3_large"
        recipe = zoo_inputs.find_recipe(name, zoo_models.build(name))
        (images,) = recipe.inputs()
        assert [image.shape for image in images] == [(3, 64, 64)]
        images, targets = recipe.batch()
        assert len(images) == len(targets) == 2
        left, top, right, bottom = targets[0]["boxes"][0]
        assert 0 < left < right < 64
        assert 0 < top < bottom < 64

    def test_the_smallest_that_trains(self):
        model = Picky(runs=96, trains=150)
        recipe = zoo_inputs.find_recipe("resnet18", model)
        assert recipe.fields[0].shape == (3, 160, 160)
        assert recipe.trains
        assert model.norm.running_mean.eq(0).all()
        assert not model.training

    def test_the_smallest_that_runs_where_none_trains(self):
        recipe = zoo_inputs.find_recipe("resnet18", Picky(runs=96, trains=9999))
        assert recipe.fields[0].shape == (3, 96, 96)
        assert not recipe.trains

    def test_none_runs(self):
        with pytest.raises(RuntimeError, match="too small"):
            zoo_inputs.find_recipe("resnet18", Picky(runs=9999, trains=9999))


class TestRow:
    def test_keys_and_points(self):
        row = zoo_marks.Row("a", "secateur").to_dict()
        assert list(row) == [
            "name", "library", "points", "reason", "params", "macs", "seconds", "detail",
        ]  # fmt: skip
        assert len(row["points"]) == len(zoo_marks.POINTS) == 9

    def test_a_failure_stays_and_a_pass_outlives_a_null(self):
        row = zoo_marks.Row("a", "secateur")
        row.judge(4, None, "not here")
        row.judge(4, True)
        row.judge(5, True)
        row.judge(5, False, "broken")
        row.judge(5, True)
        row.judge(6, None, "missing")
        row.judge(7, False)
        assert row.points[3:7] == [True, False, None, False]
        assert row.reason == "5: broken"
        assert row.detail["null"] == {"4": "not here", "6": "missing"}

    def test_a_stage_is_saved_as_it_begins(self, tmp_path):
        row = zoo_marks.Row("a", "secateur", path=tmp_path / "row.json")
        with row.stage("export"):
            assert json.loads(row.path.read_text())["detail"]["stage"] == "export"
        assert "export" in row.detail["stages"]

    def test_reasons_fit_on_a_line(self):
        assert zoo_marks.short(ValueError("\x1b[1ma\n  b")) == "ValueError: a b"
        assert len(zoo_marks.short("x" * 1000)) == 300
        assert zoo_marks.short(f"at {torch.__file__}") == "at torch/__init__.py"


class TestMarks:
    def test_relative_error(self):
        one = [torch.tensor([1.0, 4.0]), torch.tensor([1, 2])]
        assert zoo_marks.relative_error(one, one) == 0
        assert zoo_marks.relative_error(one, [torch.tensor([1.0, 3.0]), one[1]]) == 0.25
        wrong = [
            [torch.tensor([1.0, float("nan")]), one[1]],
            [torch.tensor([[1.0, 4.0]]), one[1]],
            [one[0], torch.tensor([1, 3])],
            one[:1],
        ]
        assert all(zoo_marks.relative_error(one, each) == float("inf") for each in wrong)
        masked = [torch.tensor([float("-inf"), 2.0])]
        assert zoo_marks.relative_error(masked, masked) == 0

    def test_misshapen(self):
        one = [torch.zeros(2, 4)]
        assert zoo_marks.misshapen(one, [torch.ones(2, 4)]) is None
        assert "(3, 4)" in zoo_marks.misshapen(one, [torch.ones(3, 4)])
        assert zoo_marks.misshapen(one, [torch.ones(3, 4)], ragged=True) is None
        assert zoo_marks.misshapen(one, [torch.ones(3, 5)], ragged=True) is not None
        assert "finite" in zoo_marks.misshapen(one, [torch.full((2, 4), float("nan"))])
        assert zoo_marks.misshapen(one, []) is not None

    def test_counts(self):
        model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 10))
        inputs = (torch.zeros(1, 3, 4, 4),)
        assert zoo_marks.count_params(model) == 8 * 27 + 8 + 1280 + 10
        assert zoo_marks.count_macs(model, inputs) == 8 * 27 * 16 + 1280

    def test_attention_is_counted(self):
        model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        macs = 5 * 16 * (4 * 16 + 2 * 32) + 2 * 5 * 5 * 16
        assert zoo_marks.count_macs(model, (torch.zeros(1, 5, 16),)) == macs

    def test_double_precision_reaches_hard_coded_casts(self):
        class Cast(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.float() + x.to(torch.float32) + torch.ones(3, dtype=torch.float32)

        value = torch.full((3,), 1.0, dtype=torch.float64) / 3
        with zoo_marks.double_precision():
            assert Cast()(value).dtype is torch.float64
        assert Cast()(value).dtype is torch.float32
        assert torch.get_default_dtype() is torch.float32

    def test_what_happens_inside_is_seen(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        inputs = (torch.ones(1, 4),)
        before = zoo_marks.sampled_by_module(model, inputs)
        assert zoo_marks.inner_error(before, zoo_marks.sampled_by_module(model, inputs)) == 0
        with torch.no_grad():
            model[0].bias.add_(1.0)
        assert zoo_marks.inner_error(before, zoo_marks.sampled_by_module(model, inputs)) > 0.01


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


class TestStep:
    recipe = zoo_inputs.Recipe((zoo_inputs.Field((4,)),))

    def fault(self, spoil=lambda model: None) -> str | None:
        model = small()
        optimizer, no = zoo_checks.warmed_optimizer(model, self.recipe)
        assert no is None
        spoil(model)
        return zoo_checks.unchanged_by_step(model, optimizer, self.recipe.batch())

    def test_passes(self):
        assert self.fault() is None

    def test_warming_moves_nothing(self):
        model, other = small(), small()
        zoo_checks.warmed_optimizer(model, self.recipe)
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)

    def test_a_parameter_the_optimiser_does_not_hold(self):
        def spoil(model):
            model[0].weight = nn.Parameter(model[0].weight.detach().clone())

        assert "0.weight" in self.fault(spoil)

    def test_a_moment_of_another_shape(self):
        def spoil(model):
            # The same objects with fewer entries, as a removal leaves them without their moments.
            model[0].weight.data = model[0].weight.data[:5]
            model[0].bias.data = model[0].bias.data[:5]
            model[1] = nn.Identity()
            model[3].weight.data = model[3].weight.data[:, :5]

        model = small()
        optimizer, _ = zoo_checks.warmed_optimizer(model, self.recipe)
        spoil(model)
        row = zoo_marks.Row("a", "b")
        zoo_checks.check_step(row, model, optimizer, self.recipe, None)
        assert row.points[4] is False

    def test_a_step_that_does_nothing(self):
        model = small()
        optimizer, _ = zoo_checks.warmed_optimizer(model, self.recipe)
        optimizer.step = lambda: None
        fault = zoo_checks.unchanged_by_step(model, optimizer, self.recipe.batch())
        assert "as it was" in fault

    def test_a_dense_model_that_cannot_learn(self):
        class Frozen(nn.Linear):
            def forward(self, x):
                return super().forward(x).detach()

        _, no = zoo_checks.warmed_optimizer(Frozen(4, 2), self.recipe)
        assert "no output has a gradient" in no


class TestModes:
    recipe = zoo_inputs.Recipe((zoo_inputs.Field((4,)),))

    def judged(self, model: nn.Module, expected: int = 3) -> zoo_marks.Row:
        row = zoo_marks.Row("a", "b")
        zoo_checks.check_modes(row, model, self.recipe, [torch.zeros(1, expected)])
        return row

    def test_passes_and_leaves_statistics(self):
        model = small()
        row = self.judged(model)
        assert row.points[2] is row.points[7] is True
        assert model[1].running_mean.eq(0).all()
        assert not model.training

    def test_another_shape(self):
        assert self.judged(small(), expected=5).points[2] is False

    def test_fails_in_train_mode_alone(self):
        class Fails(nn.Linear):
            def forward(self, x):
                if self.training:
                    raise RuntimeError("no")
                return super().forward(x)

        row = self.judged(Fails(4, 3))
        assert row.points[2] is True
        assert row.points[7] is False
        assert "in train mode" in row.reason


class TestReload:
    def case(self, folder: Path) -> nn.Module:
        model = small().eval()
        inputs = (torch.ones(1, 4),)
        expected = zoo_marks.outputs(model, inputs)
        torch.save({"inputs": inputs, "expected": expected}, folder / "case.pt")
        return model

    def test_same_bits(self, tmp_path):
        model = self.case(tmp_path)
        assert zoo_checks.reload(tmp_path, lambda path: model) is None

    def test_one_bit_off(self, tmp_path):
        model = self.case(tmp_path)
        with torch.no_grad():
            model[3].bias.mul_(1 + 1e-6)
        assert "differs" in zoo_checks.reload(tmp_path, lambda path: model)

    def test_a_pickled_model_is_not_loaded(self, tmp_path):
        model = self.case(tmp_path)
        zoo_peer.save(model, tmp_path / "model")
        assert "Weights only" in zoo_checks.reload(tmp_path, zoo_peer.load)
        assert zoo_checks.reload(tmp_path, zoo_peer.load_pickle) is None


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(each) is None for each in zoo_checks.EXPORTERS),
    reason="onnx, onnxscript and onnxruntime are not installed",
)


class TestExport:
    recipe = zoo_inputs.Recipe((zoo_inputs.Field((4,)),))

    @needs_onnx
    def test_agrees(self):
        model = small().eval()
        expected = zoo_marks.outputs(model, self.recipe.inputs())
        assert zoo_checks.export_fault(model, self.recipe, expected) == (4, None)

    @needs_onnx
    def test_null_where_the_dense_model_fails_alike(self):
        class Dependent(nn.Linear):
            def forward(self, x):
                return super().forward(x)[: int(x.sum().abs()) + 1]

        row = zoo_marks.Row("a", "b")
        expected = [torch.zeros(1, 3)]
        zoo_checks.check_export(
            row, Dependent(4, 3), self.recipe, expected, lambda: Dependent(4, 3)
        )
        assert row.points[6] is None
        assert "torch.export" in row.detail["null"]["7"]
        zoo_checks.check_export(row, Dependent(4, 3), self.recipe, expected, small)
        assert row.points[6] is False


class TestPeer:
    def last(self, model: nn.Module, *shape: int) -> list[nn.Module]:
        return zoo_peer.last_layers(model, (torch.zeros(shape),))

    def test_a_classifier(self):
        model = zoo_models.build("resnet18")
        assert self.last(model, 1, 3, 64, 64) == [model.fc]

    def test_behind_what_has_no_weights(self):
        convolution = nn.Conv2d(3, 5, 1)
        model = nn.Sequential(nn.Conv2d(3, 3, 3), convolution, nn.Upsample(scale_factor=2))
        assert self.last(model, 1, 3, 8, 8) == [convolution]

    def test_without_a_bias_and_behind_a_norm(self):
        linear = nn.Linear(6, 3, bias=False)
        model = nn.Sequential(nn.Linear(4, 6), linear, nn.LayerNorm(3), nn.Softmax(-1))
        assert self.last(model, 2, 4) == [linear]


def row(name: str, library: str = "secateur", **changes: object) -> dict[str, object]:
    made = zoo_marks.Row(name, library, [True] * 9, None, [10, 5], [2000, 1000], 1.0)
    made.detail["budgets"] = {f"{kind} {gone}": {} for kind, gone in zoo_marks.BUDGETS}
    return made.to_dict() | changes


class TestTable:
    def test_passing(self):
        assert zoo_table.passes(row("a", points=[True] * 8 + [True]))
        assert zoo_table.passes(row("a", points=[None, True, True, None, *[True] * 5]))
        assert not zoo_table.passes(row("a", points=[True] * 8 + [False]))
        assert not zoo_table.passes(row("a", points=[None] * 8 + [True]))

    def test_running(self):
        assert zoo_table.runs(row("a"))
        assert not zoo_table.runs(row("a", params=[10, 10]))
        assert not zoo_table.runs(row("a", params=[10, None]))

    def test_the_page(self):
        failed = row("timm:b", points=[True] * 8 + [False], reason="9: a | b")
        slow = row("a", "torch-pruning", seconds=7.0)
        text = zoo_table.page([row("a"), failed, slow], "python zoo.py", {"torch": "2"})
        assert "| secateur | torchvision | 1 | 1 | 1 | 1/1 |" in text
        assert "| secateur | timm | 1 | 0 | 1 | 1/1 |" in text
        assert "takes 7.0 times as long" in text
        assert "9: a &#124; b" in text
        assert "2 k → 1 k" in text
        assert "all four budgets" not in text

    def test_the_page_says_where_budgets_are_missing(self):
        quick = row("b", detail={"budgets": {"params 0.5": {}}})
        text = zoo_table.page([row("a"), quick], "python zoo.py", {"torch": "2"})
        assert "1 of the 2 rows of secateur are judged at all four budgets" in text


# A stand-in for zoo_judge.py that does as the model's name says.
FAKE = """
import json, os, subprocess, sys, time
library, name, path = sys.argv[1:4]
row = {"name": name, "library": library, "points": [True] * 8 + [None], "reason": None,
       "params": [4, 2], "macs": [4, 2], "seconds": 0.1, "detail": {"stage": "export"}}
with open(path, "w") as file:
    json.dump(row, file)
if name == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    with open(os.environ["CHILDREN"], "w") as file:
        file.write(str(child.pid))
    time.sleep(300)
if name == "dies":
    os.remove(path)
    sys.exit("a last word")
"""


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    given = zoo.parse(["--json", str(tmp_path / "rows.json"), "--timeout", "20"])
    given.judge = [sys.executable, str(fake)]
    return given


def judged(options: argparse.Namespace, *names: str) -> list[dict]:
    keys = [("secateur", name) for name in names]
    zoo.judge_all(keys, zoo.read(options.json), options)
    return json.loads(options.json.read_text())


def ended(pid: int) -> bool:
    """Tell whether a process is gone, or dead and waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class TestRunning:
    def test_rows_and_page(self, options, capsys):
        (one, two) = judged(options, "b", "a")
        assert (one["name"], two["name"]) == ("b", "a")
        assert one["points"] == [True] * 9
        assert one["reason"] is None
        assert "| b |" in options.markdown.read_text()
        progress = capsys.readouterr().err.splitlines()
        assert progress[-1].startswith("[2/2] a (secateur)")
        assert "0 min left" in progress[-1]

    def test_goes_on_where_it_was(self, options):
        options.json.write_text(json.dumps([row("a", seconds=99.0), row("old")]))
        rows = judged(options, "a", "b")
        assert [each["name"] for each in rows] == ["a", "b", "old"]
        assert rows[0]["seconds"] == 99.0

    def test_quick_rows_get_the_budgets_that_they_lack(self, options):
        quick = row("a", seconds=99.0, detail={"budgets": {"params 0.5": {}}})
        for asked, seconds in ((True, 99.0), (False, 0.1)):
            options.json.write_text(json.dumps([quick]))
            options.quick = asked
            assert [each["seconds"] for each in judged(options, "a")] == [seconds]

    def test_retry_judges_only_what_failed(self, options):
        failed = row("a", points=[False] * 9, seconds=99.0)
        options.json.write_text(json.dumps([failed, row("b", seconds=99.0)]))
        options.retry = True
        assert [each["seconds"] for each in judged(options, "a", "b")] == [0.1, 99.0]

    def test_a_time_limit_ends_the_children_too(self, options, tmp_path, monkeypatch):
        monkeypatch.setenv("CHILDREN", str(tmp_path / "pid"))
        options.timeout = 3.0
        (found,) = judged(options, "hangs")
        assert found["points"] == [True] * 8 + [False]
        assert found["reason"] == "9: over the time limit of 3 s while at: export"
        pid = int((tmp_path / "pid").read_text())
        until = time.monotonic() + 10
        while not ended(pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert ended(pid)

    def test_a_process_that_dies(self, options):
        (found,) = judged(options, "dies")
        assert not zoo_table.passes(found)
        assert "ended with 1: a last word" in found["reason"]

    def test_two_at_a_time(self, options):
        options.jobs = 2
        assert len(judged(options, "a", "b", "c")) == 3

    def test_a_file_of_something_else(self, options):
        options.json.write_text("{}x")
        with pytest.raises(SystemExit, match="--fresh"):
            zoo.read(options.json)

    def test_an_interrupt_keeps_what_is_done(self, tmp_path, options):
        script = (
            f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
            "import zoo\n"
            "options = zoo.parse(['--json', sys.argv[1]])\n"
            "options.judge = [sys.executable, sys.argv[2]]\n"
            "zoo.parse = lambda arguments: options\n"
            "options.names = ['a', 'hangs', 'b']\n"
            "zoo.main([])\n"
        )
        pid = tmp_path / "pid"
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(options.json), options.judge[1]],
            env=os.environ | {"CHILDREN": str(pid)}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until = time.monotonic() + 60
        while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 1
        assert "goes on from here" in said
        assert [each["name"] for each in json.loads(options.json.read_text())] == ["a"]
        assert ended(int(pid.read_text()))

    @pytest.mark.parametrize(
        "arguments",
        [[], ["--only", "resnet19", "--json", "x"], ["--jobs", "0", "--json", "x"]],
    )
    def test_wrong_arguments(self, arguments, capsys):
        with pytest.raises(SystemExit):
            zoo.parse(arguments)
        assert "error:" in capsys.readouterr().err
