"""Traces: which tensors share an axis, what can be removed of it, and why the rest cannot."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, example
from structure.random_networks import build, inputs_of, plan_of
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from secateur import SecateurError, Trace, trace

HERE = Path(__file__).name

STEM = "stem.0:0"
"""The channels that a block reads, in a network of one block."""

WIRING: list[tuple[str, dict[str, Any], list[str]]] = [
    ("plain", {}, [f"{STEM} 0:1", "0:0 head:1"]),
    ("plain", {"kernel": 1, "bias": False, "norm": "none"}, [f"{STEM} 0:1", "0:0 head:1"]),
    ("residual", {}, [f"{STEM} conv1:1 conv2:0 head:1", "conv1:0 conv2:1"]),
    ("residual", {"order": "pre"}, [f"{STEM} conv1:1 conv2:0 head:1", "conv1:0 conv2:1"]),
    ("residual", {"out": 12}, [
        f"{STEM} conv1:1 shortcut:1", "conv1:0 conv2:1", "conv2:0 shortcut:0 head:1",
    ]),
    ("separable", {}, [f"{STEM} 0:0 3:1", "3:0 head:1"]),
    ("separable", {"multiplier": 2}, [f"{STEM} 0:0 3:1", "0:0 3:1", "3:0 head:1"]),
    ("inverted", {}, [
        f"{STEM} expand.0:1 project.0:0 head:1",
        "expand.0:0 depthwise.0:0 reduce:1 restore:0 project.0:1",
        "reduce:0 restore:1",
    ]),
    ("grouped", {}, [f"{STEM} 0:0 head:1", f"{STEM} 0:1", "0:0 head:1"]),
    ("dense", {}, [
        f"{STEM} convs.0:1 convs.1:1 head:1", "convs.0:0 convs.1:1 head:1", "convs.1:0 head:1",
    ]),
    ("join and split", {}, [
        f"{STEM} one:1 two:1", "one:0 left:1", "two:0 right:1", "left:0 head:1", "right:0 head:1",
    ]),
    ("join and split", {"cut": "elsewhere", "first": 6, "second": 4}, [
        f"{STEM} one:1 two:1", "one:0 left:1", "two:0 right:1", "left:0 head:1", "right:0 head:1",
    ]),
    ("join in space", {}, [f"{STEM} one:1 two:1", "one:0 two:0 mix:1", "mix:0 head:1"]),
    ("shuffle", {}, [
        f"{STEM} branch.3:0 head:1", f"{STEM} branch.0.0:1", "branch.0.0:0 branch.1:0 branch.3:1",
    ]),
    ("pixels", {}, [f"{STEM} before:1", "before:0 after:1", "after:0 head:1"]),
    ("pixels", {"made": "by hand"}, [f"{STEM} before:1", "before:0 after:1", "after:0 head:1"]),
    ("gated", {}, [f"{STEM} gate:1 value:1", "gate:0 value:0 head:1"]),
    ("gated", {"made": "glu"}, [f"{STEM} both:1", "both:0 head:1"]),
    ("gated", {"made": "chunk"}, [f"{STEM} both:1", "both:0 head:1"]),
    ("gated", {"made": "slices"}, [f"{STEM} both:1", "both:0 head:1"]),
    ("branches", {}, [
        f"{STEM} short.0:1 long.0.0:1", "short.0:0 long.1.0:0 head:1", "long.0.0:0 long.1.0:1",
    ]),
    ("bridge", {}, [
        f"{STEM} down.0:1 last.0:1", "down.0:0 middle.0:1", "middle.0:0 up:0", "up:1 last.0:1",
        "last.0:0 head:1",
    ]),
    ("bridge", {"ends": "add"}, [
        f"{STEM} down.0:1 up:1 last.0:1", "down.0:0 middle.0:1", "middle.0:0 up:0",
        "last.0:0 head:1",
    ]),
    ("transposed", {}, [f"{STEM} up:0", "up:1 head:1"]),
    ("transposed", {"groups": 2}, [f"{STEM} up:0 head:1", f"{STEM} up:0", "up:1 head:1"]),
    ("single channel", {}, [f"{STEM} one.0:1 gate:1", "back:0 head:1"]),
    ("modern", {}, ["up:0 down:1"]),
    ("shared", {}, [f"{STEM} before.0:1", "before.0:0 one:0 one:1 after.0:1", "after.0:0 head:1"]),
    ("shared", {"how": "weight"}, [
        f"{STEM} before.0:1", "before.0:0 one:0 one:1 after.0:1", "after.0:0 head:1",
    ]),
    ("loose", {"how": "both"}, [
        f"{STEM} before:1", "before:0 scale:0 shift:1 after.0:1", "after.0:0 head:1",
    ]),
    ("own weight", {}, [f"{STEM} .weight:1", ".weight:0 head:1"]),
    ("own weight", {"how": "sum of two"}, [
        f"{STEM} .weight:1 .extra:1", ".weight:0 .extra:0 head:1",
    ]),
    ("own weight", {"how": "standardized"}, [".weight:0 head:1"]),
    ("through vector", {}, [
        f"{STEM} narrow:1", "narrow:0 one:1", "one:0 two:1", "two:0 head:1",
    ]),
    ("folded", {}, [f"{STEM} before.0:1", "before.0:0", "before.0:0 head:1"]),
    ("folded", {"how": "mean"}, [f"{STEM} before.0:1", "before.0:0 head:1"]),
    ("partial", {}, [
        f"{STEM} mix:1 down:0 head:1", f"{STEM} up.0:1 down:0 head:1", "mix:0 up.0:1",
        "up.0:0 down:1",
    ]),
    ("other rank", {"rank": 3}, [f"{STEM} mix:1", "mix:0 head:1"]),
    ("channel attention", {}, [f"{STEM} before.0:1"]),
    ("spatial attention", {}, [f"{STEM} before.0:1", "after.0:0 head:1"]),
    ("squashed", {}, [f"{STEM} before.0:1", "after:0 head:1"]),
    ("perceptron", {}, ["stem:0 up:1 down:0 head:1", "up:0 down:1"]),
    ("perceptron", {"gate": "swiglu"}, [
        "stem:0 up:1 gate:1 down:0 head:1", "up:0 gate:0 down:1",
    ]),
    ("perceptron", {"gate": "fused"}, ["stem:0 up:1 down:0 head:1", "up:0 down:1"]),
    ("perceptron", {"norm": "layer"}, ["up:0 down:1"]),
    ("perceptron", {"norm": "rms"}, ["up:0 down:1"]),
    ("attention", {"made": "separate", "norm": "layer"}, ["query:0 key:0 value:0 join:1"]),
    ("attention", {"made": "grouped query", "norm": "layer"}, [
        "query:0 key:0 value:0 join:1", "query:0 join:1",
    ]),
    ("attention", {"norm": "layer"}, ["qkv:0 join:1"]),
    ("windowed attention", {}, [".table:1 qkv:0 join:1", "qkv:0 join:1"]),
    ("class token", {}, ["stem:0 .token:2 .table:2 head:1"]),
    ("recurrent", {}, [
        "stem:0 .layer.weight_ih_l0:1 .head:0 head:1",
        ".layer.weight_ih_l0:0 .layer.weight_hh_l0:0 .layer.weight_hh_l0:1 .head:1",
    ]),
    ("recurrent", {"project": 3}, [
        "stem:0 .layer.weight_ih_l0:1 .head:0 head:1",
        ".layer.weight_ih_l0:0 .layer.weight_hh_l0:0 .layer.weight_hr_l0:1",
        ".layer.weight_hh_l0:1 .layer.weight_hr_l0:0 .head:1",
    ]),
    ("mixer", {}, ["tokens.0:0 tokens.2:1", "width.1:0 width.3:1"]),
    ("einsum", {}, [
        "stem:0 .enter:0 .leave:2 head:1", ".enter:1 .bias:0 .leave:0", ".enter:2 .bias:1 .leave:1",
    ]),
    ("latents", {}, [
        "stem:0 key:1 value:1 back:0 head:1", ".queries:1 key:0", "value:0 back:1",
    ]),
    ("convolved tokens", {}, [
        "stem:0 enter:1 leave:0 head:1", "enter:0 depthwise:0 leave:1",
    ]),
    ("merge", {}, ["stem:0 before:1", "narrow:0 head:1"]),
    ("experts", {}, ["stem:0 .up:1 .down:2 gate:1 head:1", ".up:2 .down:1"]),
    ("shared perceptron", {}, [
        "stem:0 up:1 down:0 head:1", "up:0 middle:0 middle:1 down:1",
    ]),
    ("shared perceptron", {"how": "tied"}, ["stem:0 up:1 head:1", "up:0"]),
]  # fmt: skip
"""What is removable exactly in a network of one block: the weights that share each axis.

Biases and norms follow their layers and are left out. A leading dot keeps a parameter's own name.
"""


def written(name: str) -> str:
    """The short name of a weight: its layer's."""
    name = name.replace("head.layer.weight", "HEAD").replace("blocks.0.", ".")
    if name == ".head.weight":
        return name.removesuffix(".weight")
    name = name.replace("HEAD", "head")
    return name if name in OWN or "weight_" in name else name.removesuffix(".weight").lstrip(".")


OWN = {".weight", ".extra", ".token", ".table", ".enter", ".bias", ".leave", ".queries", ".up",
       ".down"}  # fmt: skip


def wiring(structure: Trace, model: nn.Module) -> list[frozenset[str]]:
    parameters = dict(model.named_parameters())
    found = []
    for axis in structure.removable:
        if axis.inexact is None:
            weights = [(name, dim) for name, dim in axis.carriers
                       if name in parameters and parameters[name].dim() > 1]  # fmt: skip
            found.append(frozenset(f"{written(name)}:{dim}" for name, dim in weights))
    return found


@pytest.mark.parametrize(("name", "options", "axes"), WIRING,
                         ids=[f"{name} {options or ''}" for name, options, _ in WIRING])  # fmt: skip  # noqa: E501
def test_what_shares_an_axis(name: str, options: dict[str, Any], axes: list[str]) -> None:
    plan = plan_of(name, **options)
    model = build(plan)
    structure = trace(model, inputs_of(plan))
    wanted = [frozenset(each.split()) for each in axes]
    found = Counter(wiring(structure, model))
    assert not Counter(wanted) - found
    if "attention" not in name:  # its heads may lose width too, where its code is replaced
        assert not found - Counter(wanted)
    assert not structure.unknown


REASONS: list[tuple[str, dict[str, Any], str, int, str]] = [
    ("channel attention", {}, "blocks.0.before.0.weight", 0, "extent"),
    ("plain", {}, "stem.0.weight", 1, "the model's input"),
    ("plain", {}, "head.layer.weight", 0, "the model's output"),
    ("plain", {}, "stem.0.weight", 2, "a kernel's extent"),
    ("plain", {"norm": "group one"}, "blocks.0.0.weight", 0, "a norm averages over it"),
    ("plain", {"norm": "layer"}, "blocks.0.0.weight", 0, "a norm averages over it"),
    ("modern", {}, "stem.0.weight", 0, "a norm averages over it"),
    ("spatial attention", {}, "blocks.0.before.0.weight", 0, "over it"),
    ("squashed", {}, "blocks.0.before.0.weight", 0, "softmax over it"),
    ("folded", {"how": "mean"}, "blocks.0.before.0.weight", 0, "mean over it"),
    ("folded", {"how": "amax"}, "blocks.0.before.0.weight", 0, "amax over it"),
    ("gated", {}, "blocks.0.both.weight", 0, "the forward pass does not use it"),
    ("windowed attention", {}, "blocks.0.table", 0, "looked up by index"),
    ("recurrent", {}, "blocks.0.layer.weight_ih_l0", 0, "the gates of a recurrent layer"),
    ("attention", {"fused": True}, "blocks.0.qkv.weight", 0, "default scale"),
    ("attention", {}, "blocks.0.qkv.weight", 0, "parted one by one"),
    ("pixels", {}, "blocks.0.before.weight", 0, "pixel shuffle"),
    ("mixer", {}, "blocks.0.tokens.0.weight", 1, "the model's input"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "weight", "dim", "reason"), REASONS)
def test_why_not(name: str, options: dict[str, Any], weight: str, dim: int, reason: str) -> None:
    """What cannot be removed, or not exactly, says so in words."""
    plan = plan_of(name, **options)
    structure = trace(build(plan), inputs_of(plan))
    said = [axis.pinned or axis.inexact or "" for axis in structure.axes
            if (weight, dim) in axis.carriers]  # fmt: skip
    assert any(reason in each for each in said), said


class TestNumbers:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_parameters_and_products(self, name: str) -> None:
        """Products are those that torch itself counts, two operations each."""
        model, inputs = NETWORKS[name]().eval(), example(name)
        structure = trace(model, inputs)
        assert structure.params == sum(each.numel() for each in model.parameters())
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # torch does not count in there
        try:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(*inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        assert 2 * structure.macs == pytest.approx(counter.get_total_flops(), rel=1e-6)

    @pytest.mark.parametrize("batch", [1, 2, 5])
    def test_the_batch_that_was_given_counts(self, batch: int) -> None:
        model = NETWORKS["small_cnn"]()
        one = trace(model, example("small_cnn", batch=1)).macs
        assert trace(model, example("small_cnn", batch=batch)).macs == batch * one

    def test_reach(self) -> None:
        model = nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 3)
        )
        structure = trace(model, torch.zeros(1, 6))
        assert structure.reach == {"params": pytest.approx(1 - 3 / 95), "macs": 1.0}
        assert trace(nn.Linear(6, 3), torch.zeros(1, 6)).reach == {"params": 0.0, "macs": 0.0}

    def test_in_plain_values(self) -> None:
        structure = trace(NETWORKS["transformer"](), example("transformer"))
        said = json.loads(json.dumps(structure.to_dict()))
        assert said["params"] == structure.params
        assert [each["name"] for each in said["axes"]] == [axis.name for axis in structure.axes]


class TestNames:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_they_differ_and_come_from_layers(self, name: str) -> None:
        model = NETWORKS[name]()
        structure = trace(model, example(name))
        names = [axis.name for axis in structure.axes]
        assert len(set(names)) == len(names)
        modules = dict(model.named_modules())
        for axis in structure.axes:
            assert axis.name.partition(" ")[0].partition("[")[0] in modules
            assert axis.size > 1 and axis.carriers

    @pytest.mark.parametrize("name", NETWORKS)
    def test_the_same_twice(self, name: str) -> None:
        one, two = (trace(NETWORKS[name](), example(name, seed=seed)).axes for seed in (0, 1))
        assert one == two

    def test_an_axis_cannot_be_changed(self) -> None:
        axis = trace(NETWORKS["mlp"](), example("mlp")).axes[0]
        with pytest.raises(dataclasses.FrozenInstanceError):
            axis.name = "other"  # type: ignore[misc]


class TestWaysToCall:
    """One input or several, in any nesting; one output or several, in any nesting."""

    @staticmethod
    def two_layers() -> tuple[nn.Linear, nn.Linear]:
        return nn.Linear(6, 8), nn.Linear(8, 3)

    def free(self, model: nn.Module, inputs: Any) -> set[int]:
        return {axis.size for axis in trace(model, inputs).removable}

    @pytest.mark.parametrize("how", ["tensor", "tuple", "list", "dict", "two", "nested"])
    def test_inputs(self, how: str) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = TestWaysToCall.two_layers()

            def forward(self, given: Any, other: Any = None) -> Tensor:
                if isinstance(given, dict):
                    given = given["x"]
                while isinstance(given, list):
                    given = given[0]
                return self.two(F.relu(self.one(given if other is None else given + other)))

        x = torch.zeros(2, 6)
        inputs = {"tensor": x, "tuple": (x,), "list": [x], "dict": {"x": x}, "two": (x, x),
                  "nested": ([[x]],)}[how]  # fmt: skip
        assert self.free(Model(), inputs) == {8}

    @pytest.mark.parametrize("how", ["tuple", "list", "dict", "nested", "named"])
    def test_outputs(self, how: str) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = TestWaysToCall.two_layers()
                self.side = nn.Linear(8, 5)

            def forward(self, x: Tensor) -> Any:
                y = F.relu(self.one(x))
                a, b = self.two(y), self.side(y)
                return {
                    "tuple": (a, b), "list": [a, b], "dict": {"a": a, "b": b},
                    "nested": {"a": [a, {"b": (b,)}]}, "named": torch.return_types.max((a, b)),
                }[how]  # fmt: skip

        structure = trace(Model(), torch.zeros(2, 6))
        assert {axis.size for axis in structure.removable} == {8}
        reasons = {axis.size: axis.pinned for axis in structure.axes}
        assert reasons[3] == reasons[5] == "the model's output"

    def test_a_hidden_width_that_is_given_out_is_pinned(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = TestWaysToCall.two_layers()

            def forward(self, x: Tensor) -> Any:
                y = F.relu(self.one(x))
                return self.two(y), y

        assert self.free(Model(), torch.zeros(2, 6)) == set()

    @pytest.mark.parametrize("batch", [1, 2, 3, 8])
    def test_the_batch_may_equal_a_width(self, batch: int) -> None:
        structure = trace(NETWORKS["mlp"](), example("mlp", batch=batch))
        assert [axis.size for axis in structure.removable] == [32, 16]

    def test_a_gradient_context_does_not_matter(self) -> None:
        model, inputs = NETWORKS["small_cnn"](), example("small_cnn")
        found = []
        for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with context():
                found.append(trace(model, inputs).axes)
        assert found[0] == found[1] == found[2]


class TestTheModelIsLeftAsItWas:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_tensors_modes_hooks_and_random_numbers(self, name: str) -> None:
        model, inputs = NETWORKS[name](), example(name)
        next(model.modules()).train()
        calls: list[str] = []
        model.register_forward_hook(lambda *_: calls.append("hook"))
        before = copy.deepcopy(model.state_dict())
        objects = [id(each) for each in (*model.modules(), *model.parameters(), *model.buffers())]
        modes = [module.training for module in model.modules()]
        state = torch.get_rng_state()
        trace(model, inputs)
        assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())
        after = [id(each) for each in (*model.modules(), *model.parameters(), *model.buffers())]
        assert after == objects
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(parameter.is_meta for parameter in model.parameters())

    def test_the_inputs_too(self) -> None:
        class Rude(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.two(self.one(x.mul_(0)).relu_())

        x = torch.ones(2, 6)
        structure = trace(Rude(), x)
        assert [axis.size for axis in structure.removable] == [8]
        assert torch.equal(x, torch.ones(2, 6))


class TestMistakes:
    def test_a_model_that_fails_says_where(self) -> None:
        class Deep(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Sequential(nn.Linear(6, 8), Wrong())

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x)

        line = Wrong.forward.__code__.co_firstlineno + 1
        with pytest.raises(SecateurError, match=rf"cannot run .* in inner\.1 .*{HERE}:{line}"):
            trace(Deep(), torch.zeros(2, 6))

    @pytest.mark.parametrize("inputs", [torch.zeros(2, 7), (), None, "x"])
    def test_inputs_that_do_not_fit(self, inputs: Any) -> None:
        with pytest.raises(SecateurError, match="cannot run on the example inputs") as caught:
            trace(nn.Linear(6, 3), inputs)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("model", [None, "resnet18", nn.Linear, lambda x: x])
    def test_what_is_no_model(self, model: Any) -> None:
        with pytest.raises(SecateurError, match=r"expected an nn\.Module"):
            trace(model, torch.zeros(2, 6))

    def test_an_output_without_tensors(self) -> None:
        class Empty(nn.Linear):
            def forward(self, x: Tensor) -> Any:
                super().forward(x)
                return "nothing"

        structure = trace(Empty(6, 3), torch.zeros(2, 6))
        assert structure.params == 21


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(7, 7)
