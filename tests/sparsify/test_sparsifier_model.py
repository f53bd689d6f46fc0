"""The Sparsifier beside its model: what masks reach, what they leave alone, what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import example
from torch import Tensor, nn
from training import fresh, shift

from secateur import SecateurError, Sparsifier, Technique
from secateur.structure import find_weights

ONE_SHOT = "weight | global | magnitude | one_shot"


def channels_behind(model: nn.Module, norm: str, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return which channels of a norm's output are zero everywhere [channels]."""
    kept: list[Tensor] = []
    handle = model.get_submodule(norm).register_forward_hook(lambda *_: kept.append(_[2]))
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    return kept[0].transpose(0, 1).flatten(1).abs().amax(1) == 0


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "layer", "norm"),
    [("small_cnn", "0", "1"), ("small_cnn", "3", "4"), ("grouped_cnn", "2", "3"),
     ("grouped_cnn", "5", "6"), ("conv1d_net", "0", "1"), ("conv3d_net", "0", "1"),
     ("transposed_net", "4", "5"), ("preactivation_resnet", "1.conv1", "1.bn2")],
)  # fmt: skip
def test_a_removed_filter_is_zero_behind_its_norm(
    name: str, layer: str, norm: str, training: bool, coupled: bool
) -> None:
    model, inputs = fresh(name), example(name)
    for _ in range(3):
        model(*inputs)  # running statistics away from their first values
    for parameter in model.parameters():
        parameter.data += 0.1
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5,
        example_inputs=inputs if coupled else None,
    )  # fmt: skip
    sparsifier.step(1.0)
    model.train(training)
    weight = next(w for w in find_weights(model).weights if w.module == layer)
    mask = weight.view(sparsifier.masks[f"{layer}.weight"])
    removed = ~mask.flatten(2).any(2).flatten()
    # Of coupled layers half of the weights go, which takes less than half of the filters.
    assert int(removed.sum()) > 0 if coupled else int(removed.sum()) == len(removed) // 2
    assert torch.equal(channels_behind(model, norm, inputs), removed)


def test_a_norm_without_scale_is_told_of() -> None:
    """In training the removed channel is zero; in evaluation it is minus mean over deviation."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    x = torch.randn(4, 3, 8, 8)
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, include="0"
    )
    sparsifier.step(1.0)
    removed = ~sparsifier.masks["0.weight"].flatten(1).any(1)
    assert torch.equal(channels_behind(model.train(), "1", (x,)), removed)
    assert any("0.weight" in note and "constant" in note for note in sparsifier.report().notes)


def test_a_concatenation_masks_the_right_places_of_every_norm() -> None:
    model, inputs = fresh("dense_block_net"), example("dense_block_net")
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, example_inputs=inputs
    )
    sparsifier.step(1.0)
    convs = ["0", "1.convs.0", "1.convs.1", "1.convs.2"]
    kept = torch.cat([sparsifier.masks[f"{c}.weight"].flatten(1).any(1) for c in convs])
    for norm, width in (("1.norms.0", 8), ("1.norms.1", 12), ("1.norms.2", 16), ("2", 20)):
        for vector in ("weight", "bias"):
            assert torch.equal(sparsifier.masks[f"{norm}.{vector}"], kept[:width])


@pytest.mark.parametrize("inputs", [None, example("small_cnn")])
def test_a_layer_that_is_spared_keeps_its_norm(inputs: Any) -> None:
    sparsifier = Sparsifier(
        fresh("small_cnn"), "filter | local | magnitude | one_shot", sparsity=0.5, include="3",
        example_inputs=inputs,
    )  # fmt: skip
    sparsifier.step(1.0)
    reader = set() if inputs is None else {"8.weight"}
    assert set(sparsifier.masks) == {"3.weight", "4.weight", "4.bias"} | reader


def test_a_concatenated_partner_that_is_spared_keeps_its_places() -> None:
    model = fresh("dense_block_net")
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, include="1.convs.1",
        example_inputs=example("dense_block_net"),
    )  # fmt: skip
    sparsifier.step(1.0)
    kept = sparsifier.masks["1.convs.1.weight"].flatten(1).any(1)
    assert sparsifier.masks["2.weight"].tolist() == [True] * 12 + kept.tolist() + [True] * 4


@pytest.mark.parametrize("granularity", ["filter", "(o 2)", "layer"])
def test_outputs_are_spared_unless_they_are_named(granularity: str) -> None:
    technique = f"{granularity} | local | magnitude | one_shot"
    spared = Sparsifier(fresh("mlp"), technique, sparsity=0.5)
    assert "5.weight" not in spared.masks
    assert any(name == "5.weight" for name, _ in spared.report().passed_over)
    named = Sparsifier(fresh("mlp"), technique, sparsity=0.5, include=["3", "5"])
    assert set(named.masks) == {"3.weight", "3.bias", "5.weight", "5.bias"}


def test_single_weights_of_the_output_layer_are_pruned_like_others() -> None:
    assert "5.weight" in Sparsifier(fresh("mlp"), ONE_SHOT, sparsity=0.5).masks


def pruned(name: str = "small_cnn") -> tuple[nn.Module, Sparsifier]:
    model = fresh(name)
    sparsifier = Sparsifier(
        model, "filter | global | magnitude | one_shot", sparsity=0.5, example_inputs=example(name)
    )
    sparsifier.step(1.0)
    return model, sparsifier


def test_the_model_is_not_touched_beyond_its_values() -> None:
    plain, (model, sparsifier) = fresh("small_cnn"), pruned()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer, 5)
    assert type(model) is type(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    for own, theirs in zip(model.modules(), plain.modules(), strict=True):
        assert type(own) is type(theirs)
        assert set(vars(own)) == set(vars(theirs))
        for hooks in (name for name in vars(own) if name.endswith(("_hooks", "_pre_hooks"))):
            assert not getattr(own, hooks)
    assert all(parameter._backward_hooks is None for parameter in model.parameters())


def test_a_pruned_model_can_be_copied_pickled_and_saved() -> None:
    model, sparsifier = pruned()
    inputs = example("small_cnn")
    model.eval()
    expected = model(*inputs)
    copied = copy.deepcopy(model)
    assert torch.equal(copied(*inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(*inputs), expected)
    with io.BytesIO() as file:
        torch.save(model.state_dict(), file)
        file.seek(0)
        other = fresh("small_cnn", seed=5)
        other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(*inputs), expected)
    copied[0].weight.data.fill_(1.0)
    sparsifier.apply()
    assert bool((copied[0].weight == 1).all())


def test_apply_zeroes_what_was_revived() -> None:
    model, sparsifier = pruned()
    shift(model)
    sparsifier.apply()
    for name, mask in sparsifier.masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)


def test_masks_are_boolean_and_take_one_byte_per_weight() -> None:
    model = fresh("resnet_cifar")
    sparsifier = Sparsifier(model, ONE_SHOT, sparsity=0.5)
    for name, mask in sparsifier.masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == model.get_parameter(name).shape
        assert not mask.requires_grad


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_layouts_and_dtypes(dtype: torch.dtype, layout: torch.memory_format) -> None:
    model = fresh("small_cnn").to(dtype=dtype, memory_format=layout)
    sparsifier = Sparsifier(model, "kernel | local | magnitude | one_shot", sparsity=0.5)
    result = sparsifier.step(1.0)
    assert result.achieved["sparsity"] == pytest.approx(0.5)
    assert model[3].weight.dtype == dtype
    assert model[3].weight.is_contiguous(memory_format=layout)
    flat = sparsifier.masks["3.weight"].flatten(2)
    assert torch.equal(flat.any(2), flat.all(2))


def test_the_order_of_the_memory_does_not_matter() -> None:
    plain, turned = fresh("small_cnn"), fresh("small_cnn").to(memory_format=torch.channels_last)
    masks = []
    for model in (plain, turned):
        model[3].weight.data.round_(decimals=1)
        sparsifier = Sparsifier(model, ONE_SHOT, sparsity=0.5)
        sparsifier.step(1.0)
        masks.append(sparsifier.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


def test_the_wrapped_model_is_found() -> None:
    model = fresh("mlp")
    compiled = torch.compile(model, backend="eager")
    assert Sparsifier(compiled, ONE_SHOT, sparsity=0.5).model is model
    assert Sparsifier(nn.DataParallel(model), ONE_SHOT, sparsity=0.5).model is model


def test_the_report_counts_what_the_masks_say() -> None:
    model, sparsifier = pruned("grouped_cnn")
    report = sparsifier.report()
    for layer in report.layers:
        assert layer.kept == int(sparsifier.masks[layer.name].sum())
        assert layer.weights == model.get_parameter(layer.name).numel()
    assert report.achieved["sparsity"] == pytest.approx(0.5, abs=0.05)
    text = str(report)
    assert all(layer.name in text for layer in report.layers)
    assert "passed over: 12: the model's output" in text
    assert report.to_dict()["layers"][0]["name"] == report.layers[0].name


def test_the_history_follows_the_updates() -> None:
    sparsifier = Sparsifier(fresh("mlp"), "weight | global | magnitude | linear", sparsity=0.8)
    for step in range(5):
        sparsifier.step(step / 4)
    assert [row["progress"] for row in sparsifier.history] == [0, 0.25, 0.5, 0.75, 1.0]
    assert [row["target"] for row in sparsifier.history] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    for row in sparsifier.history:
        assert row["achieved"] == pytest.approx(row["target"], abs=1e-3)


def fails(**changes: Any) -> Callable[[], Sparsifier]:
    def build() -> Sparsifier:
        asked: dict[str, Any] = {
            "model": fresh("mlp"), "technique": ONE_SHOT, "sparsity": 0.5, **changes
        }  # fmt: skip
        model, technique = asked.pop("model"), asked.pop("technique")
        return Sparsifier(model, technique, **asked)

    return build


class _NoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


MISTAKES = {
    "granularity": (fails(technique="filtre | global | magnitude | agp"), "filtre"),
    "context": (fails(technique="filter | globl | magnitude | agp"), "globl"),
    "criterion": (fails(technique="filter | global | magnitud | agp"), "did you mean magnitude"),
    "schedule": (fails(technique="filter | global | magnitude | apg"), "apg"),
    "update": (fails(technique=f"{ONE_SHOT} | rewnd"), "rewnd"),
    "percent": (fails(sparsity=90), "write 0.9"),
    "negative": (fails(sparsity=-0.1), "fraction"),
    "not_a_number": (fails(sparsity=float("nan")), "fraction"),
    "text": (fails(sparsity="0.5"), "fraction"),
    "include": (fails(include="conv*"), "conv"),
    "exclude": (fails(exclude=["9"]), "9"),
    "all_excluded": (fails(exclude="*"), "no layer"),
    "no_layer": (fails(model=_NoLayers()), "no prunable layer"),
    "data": (fails(technique="weight | row | wanda | one_shot"), "data="),
    "fisher": (fails(technique="weight | global | fisher | one_shot"), "data="),
    "sensitivity": (fails(technique="weight | local(sensitivity) | magnitude | agp"), "data="),
    "norm": (fails(technique="filter | global | bn_scale | agp"), "norm"),
    "n_m": (fails(technique="3:7 | local | magnitude | one_shot"), "does not divide"),
    "two_budgets": (fails(macs=0.5), "one budget"),
    "no_budget": (fails(sparsity=None), "no budget"),
    "macs": (fails(sparsity=None, macs=0.5), "example_inputs"),
    "given": (fails(technique='weight | {"conv": 0.5} | magnitude | agp'), "conv"),
    "groups": (
        fails(technique='weight | groups({"a": ["conv*"]}) | magnitude | agp'), "'a'",
    ),
    "head": (fails(technique="head | global | magnitude | agp"), "head"),
    "objective": (
        fails(technique=f"{ONE_SHOT} | keep | group_lasso(schedule=agp(every=3))"), "every step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(mistake: str) -> None:
    build, words = MISTAKES[mistake]
    with pytest.raises(SecateurError) as error:
        build().step(1.0)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan")])
@pytest.mark.parametrize("kind", ["weight | global", "filter | local", "2:4 | local",
                                  "weight | row", "(o 4) (i 4) | global"])  # fmt: skip
def test_a_weight_that_is_not_a_number_is_refused(kind: str, value: float) -> None:
    model = fresh("mlp")
    model[3].weight.data[3, 4] = value
    sparsifier = Sparsifier(model, f"{kind} | magnitude | one_shot", sparsity=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(SecateurError, match=r"3\.weight holds NaN") as error:
        sparsifier.step(1.0)
    assert "\n" not in str(error.value)
    assert all(bool(mask.all()) for mask in sparsifier.masks.values())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())


def test_an_infinite_weight_that_is_removed_is_zero() -> None:
    model = fresh("mlp")
    model[3].weight.data[3, 4] = float("inf")
    sparsifier = Sparsifier(model, "weight | global | small_final | one_shot", sparsity=0.5)
    sparsifier.step(1.0)
    assert not bool(sparsifier.masks["3.weight"][3, 4])
    assert float(model[3].weight[3, 4]) == 0


def test_example_inputs_may_be_a_list() -> None:
    sparsifier = Sparsifier(
        fresh("small_cnn"), "filter | local | magnitude | one_shot", sparsity=0.5,
        example_inputs=list(example("small_cnn")),
    )  # fmt: skip
    assert sparsifier.report().notes == ()


@pytest.mark.parametrize("layer", [nn.LazyLinear(4), nn.Linear(4, 4, device="meta")])
def test_weights_without_values_are_refused(layer: nn.Module) -> None:
    with pytest.raises(SecateurError):
        Sparsifier(layer, ONE_SHOT, sparsity=0.5).step(1.0)


def test_parameters_that_are_replaced_are_still_masked() -> None:
    model = fresh("mlp")
    sparsifier = Sparsifier(model, ONE_SHOT, sparsity=0.5)
    sparsifier.step(1.0)
    ones = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    model.load_state_dict(ones, assign=True)
    sparsifier.apply()
    assert torch.equal(model[1].weight != 0, sparsifier.masks["1.weight"])


def test_one_technique_serves_many_models() -> None:
    technique = Technique.parse("weight | local | movement | agp")
    first, second = fresh("mlp"), fresh("small_cnn")
    one = Sparsifier(first, technique, sparsity=0.5)
    two = Sparsifier(second, technique, sparsity=0.8)
    for model in (first, second):
        for parameter in model.parameters():
            parameter.data += torch.rand_like(parameter)
    assert one.step(1.0).achieved["sparsity"] == pytest.approx(0.5)
    assert two.step(1.0).achieved["sparsity"] == pytest.approx(0.8, abs=0.01)
    moved = (first[1].weight - fresh("mlp")[1].weight).abs()
    assert float(moved.detach()[one.masks["1.weight"]].min()) > 0


def test_a_functional_head_needs_no_module() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.layer(x)), self.last.weight)

    sparsifier = Sparsifier(
        Functional(), "filter | local | magnitude | one_shot", sparsity=0.5,
        example_inputs=torch.randn(2, 4),
    )  # fmt: skip
    sparsifier.step(1.0)
    assert set(sparsifier.masks) == {"layer.weight", "layer.bias", "last.weight"}
    kept = sparsifier.masks["layer.bias"]
    assert int(kept.sum()) == 3
    assert torch.equal(sparsifier.masks["last.weight"], kept.expand(2, 6))
