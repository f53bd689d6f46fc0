"""Defects found in other pruning toolboxes that made masks wrong, one test each.

The numbers are those of the list of defects, here the ones about what is removed and how much;
those about training stand in test_defects_training.py, those of structural pruning (D-23 and on)
nowhere here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import example
from torch import nn
from training import fresh, removed

from secateur import SecateurError, Sparsifier, Technique
from secateur.technique.criteria import CRITERIA


def filters_gone(sparsifier: Sparsifier, name: str) -> int:
    return int((~sparsifier.masks[name].flatten(1).any(1)).sum())


@pytest.mark.parametrize(
    ("filters", "share", "gone"), [(4, 0.5, 2), (8, 0.5, 4), (10, 0.1, 1), (16, 0.5, 8)]
)
def test_d01_counts_are_exact(filters: int, share: float, gone: int) -> None:
    """The k-th lowest score was kept, so that one unit too few went: 10 % of 10 filters was 0."""
    sparsifier = Sparsifier(
        nn.Conv2d(3, filters, 3), "filter | local | magnitude | one_shot", sparsity=share
    )
    assert sparsifier.step(1.0).removed == gone
    assert filters_gone(sparsifier, "weight") == gone


@pytest.mark.parametrize("granularity", ["(o 8)", "(o 8) (i 8)", "o (i 8)"])
@pytest.mark.parametrize("context", ["local", "global"])
def test_d04_blocks_that_do_not_divide_are_fine(granularity: str, context: str) -> None:
    """Rounding to multiples crashed for single weights and for 12 filters in blocks of 8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 3))
    sparsifier = Sparsifier(
        model, f"{granularity} | {context} | magnitude | one_shot", sparsity=0.5,
        include=["0", "2"],
    )  # fmt: skip
    result = sparsifier.step(1.0)
    assert result.removed > 0
    for name in ("0.weight", "2.weight"):
        mask = sparsifier.masks[name]
        for rows in mask.split(8):
            if granularity == "(o 8)":
                assert bool(rows.all()) or not bool(rows.any())
    assert result.achieved["sparsity"] == pytest.approx(0.5, abs=0.4)


def test_d05_a_block_in_one_layer_leaves_the_others_alone() -> None:
    """The rounded threshold of the first layer leaked into the following ones."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3) for _ in range(3)))
    for scale, layer in zip((1.0, 2.0, 1.5), model, strict=True):
        layer.weight.data *= scale
    weights = [layer.weight.detach().clone() for layer in model]
    sparsifier = Sparsifier(
        model, "(o 4) | global | magnitude | one_shot", sparsity=0.5, include=["0", "1", "2"]
    )
    sparsifier.step(1.0)
    scores = torch.cat([w.reshape(4, -1).abs().mean(1) for w in weights])
    lowest = set(scores.argsort()[:6].tolist())
    gone = {
        4 * place + block
        for place in range(3)
        for block in range(4)
        if not bool(sparsifier.masks[f"{place}.weight"][4 * block : 4 * block + 4].any())
    }
    assert gone == lowest


def test_d06_signed_scores_compete_as_they_are() -> None:
    """Scores were shifted by each layer's own minimum: 71 % and 8 % went instead of 80 % and 0."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    model[1].weight.data *= 100
    before = torch.cat([layer.weight.detach().flatten() for layer in model])
    sparsifier = Sparsifier(model, "weight | global | small_final | one_shot", sparsity=0.4)
    result = sparsifier.step(1.0)
    assert result.layers["0.weight"] == 0
    assert result.layers["1.weight"] == pytest.approx(0.8)
    kept = torch.cat([sparsifier.masks[f"{place}.weight"].flatten() for place in range(2)])
    assert set(before.abs().argsort(descending=True)[:320].tolist()) == set(
        torch.nonzero(~kept).flatten().tolist()
    )


def test_d07_random_scores_are_drawn_once() -> None:
    """Threshold and mask saw different random numbers: 1, 0, 7, 0 of 16 filters went at 50 %."""
    for seed in range(5):
        sparsifier = Sparsifier(
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)),
            "filter | global | random | one_shot", sparsity=0.5, include=["1"], seed=seed,
        )  # fmt: skip
        assert sparsifier.step(1.0).removed == 8
    drawn = Sparsifier(nn.Linear(30, 30), "weight | global | random | one_shot", sparsity=0.5)
    assert drawn.step(1.0).removed == 450


@pytest.mark.parametrize("inputs", [None, example("dense_block_net")])
def test_d08_a_norm_behind_a_concatenation_is_found(inputs: Any) -> None:
    """The next registered module was taken for the filter's norm: DenseNet crashed."""
    model = fresh("dense_block_net")
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, example_inputs=inputs
    )
    sparsifier.step(1.0)
    kept = [sparsifier.masks[f"{n}.weight"].flatten(1).any(1) for n in
            ("0", "1.convs.0", "1.convs.1", "1.convs.2")]  # fmt: skip
    assert torch.equal(sparsifier.masks["2.bias"], torch.cat(kept))


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(8, affine=False), nn.GroupNorm(2, 8, affine=False),
     nn.BatchNorm2d(8, affine=False, track_running_stats=False),
     nn.LayerNorm(6, elementwise_affine=False), nn.InstanceNorm2d(8)],
)  # fmt: skip
def test_d09_norms_without_parameters_do_no_harm(norm: nn.Module) -> None:
    """A norm without scale and shift was a crash."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 2, 1))
    for inputs in (None, torch.randn(2, 3, 8, 8)):
        sparsifier = Sparsifier(
            model, "filter | local | magnitude | one_shot", sparsity=0.5, example_inputs=inputs
        )
        sparsifier.step(1.0)
        assert filters_gone(sparsifier, "0.weight") == 4
        assert set(sparsifier.masks) - {"3.weight"} == {"0.weight", "0.bias"}
        if inputs is not None:
            kept = sparsifier.masks["0.weight"].flatten(1).any(1)
            assert torch.equal(sparsifier.masks["3.weight"].flatten(1).any(0), kept)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_d12_a_budget_is_met_in_its_own_currency(share: float) -> None:
    """Budgets counted units, so that 90 % of the filters were 99.1 % of the parameters."""
    model = fresh("resnet_cifar")
    total = sum(p.numel() for p in model.parameters())
    sparsifier = Sparsifier(
        model, "filter | global | magnitude | one_shot", params=share
    )  # fmt: skip
    result = sparsifier.step(1.0)
    gone = removed(sparsifier)
    assert 1 - gone / total == pytest.approx(share, abs=0.003)
    assert result.achieved["params"] == pytest.approx(1 - gone / total)
    technique = "filter | global | magnitude | one_shot"
    unreachable = Sparsifier(model, technique, params=0.0).step(1.0)
    assert unreachable.shortfall > 0
    assert unreachable.reason
    with pytest.raises(SecateurError, match="would empty a layer"):
        Sparsifier(model, technique, params=0.0, example_inputs=example("resnet_cifar"))


@pytest.mark.parametrize(
    ("layer", "granularity", "units"),
    [
        (nn.Conv1d(4, 6, 5), "filter", 6), (nn.Conv1d(4, 6, 5), "kernel", 24),
        (nn.Conv1d(4, 6, 5), "layer", 1), (nn.Conv1d(4, 6, 5), "row", 24),
        (nn.Conv1d(4, 6, 5), "column", 120), (nn.Conv1d(4, 6, 5), "shared_kernel", 4),
        (nn.Conv3d(4, 6, 3), "filter", 6), (nn.Conv3d(4, 6, 3), "kernel", 24),
        (nn.Conv3d(4, 6, 3), "layer", 1), (nn.Conv3d(4, 6, 3), "weight", 648),
        (nn.MultiheadAttention(8, 2), "filter", 32), (nn.Linear(4, 6), "kernel", 24),
        (nn.Embedding(7, 3), "shared_kernel", 7), (nn.Embedding(7, 3), "filter", 3),
    ],
)  # fmt: skip
def test_d14_units_are_right_in_every_layer(layer: nn.Module, granularity: str, units: int) -> None:
    """Conv1d used Linear's table, so that a row left K units; Conv3d and attention had none."""
    sparsifier = Sparsifier(layer, f"{granularity} | local | magnitude | one_shot", sparsity=0.0)
    assert sum(each.units for each in sparsifier.report().layers) == units


def test_d14_a_stored_transposition_does_not_swap_outputs_and_inputs() -> None:
    """Hugging Face's Conv1D stores [inputs, outputs]; rows and columns were swapped."""
    layer = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)
    sparsifier = Sparsifier(layer, "filter | local | magnitude | one_shot", sparsity=0.5)
    assert sparsifier.step(1.0).removed == 3
    assert torch.equal(sparsifier.masks["weight"].any(0), sparsifier.masks["weight"].all(0))
    assert int((layer(torch.randn(5, 4)) == 0).all(0).sum()) == 3


@pytest.mark.parametrize("name", ["mlp", "transformer", "embedding_net", "conv1d_net"])
def test_d15_every_kind_of_layer_is_pruned_without_asking(name: str) -> None:
    """By default only Conv2d was pruned: other networks stayed dense without a word."""
    model = fresh(name)
    sparsifier = Sparsifier(model, "weight | global | magnitude | one_shot", sparsity=0.9)
    sparsifier.step(1.0)
    weights = [p for p in model.parameters() if p.dim() > 1]
    zeros = sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("layer", [nn.Linear(16, 8), nn.Conv2d(16, 8, 3), nn.Conv1d(16, 8, 3)])
def test_d16_two_of_four_obeys_target_schedule_and_ties(layer: nn.Module) -> None:
    """2:4 crashed on Linear, took 50 % at once whatever was asked, and 0 % where weights tied."""
    layer.weight.data.fill_(1.0)
    sparsifier = Sparsifier(layer, "2:4 | local | magnitude | linear", sparsity=0.5)
    assert sparsifier.step(0.1).achieved["sparsity"] == pytest.approx(0.05, abs=0.01)
    assert sparsifier.step(1.0).achieved["sparsity"] == 0.5
    blocks = sparsifier.masks["weight"].transpose(1, -1).reshape(-1, 4) if layer.weight.dim() > 2 \
        else sparsifier.masks["weight"].reshape(-1, 4)  # fmt: skip
    assert set(blocks.sum(1).tolist()) == {2}


@pytest.mark.parametrize("inputs", [None, torch.randn(2, 1, 8, 8)])
def test_d17_dead_neurons_have_no_bias(inputs: Any) -> None:
    """Pruning a neuron of a linear layer left its bias alive."""
    model = fresh("mlp")
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, example_inputs=inputs
    )
    sparsifier.step(1.0)
    for name in ("1", "3"):
        dead = ~sparsifier.masks[f"{name}.weight"].any(1)
        # Of coupled layers half of the weights go, which takes less than half of the neurons.
        assert int(dead.sum()) == len(dead) // 2 if inputs is None else int(dead.sum()) > 0
        assert torch.equal(model.get_parameter(f"{name}.bias") == 0, dead)


def test_d18_wanda_reads_tokens_and_depthwise_channels() -> None:
    """Wanda kept the wrong axis of (batch, time, channels) and crashed on depthwise layers."""
    layer = nn.Linear(6, 4)
    x = torch.randn(3, 5, 6) * torch.tensor([100.0, 1, 1, 1, 1, 0.01])
    original = layer.weight.detach().clone()
    sparsifier = Sparsifier(layer, "weight | row | wanda | one_shot", sparsity=0.5, data=[(x, 0)])
    sparsifier.step(1.0)
    scores = original.abs() * x.flatten(0, 1).norm(dim=0)
    expected = scores.argsort(1)[:, 3:].sort(1).values
    kept = torch.stack([torch.nonzero(row).flatten() for row in sparsifier.masks["weight"]])
    assert torch.equal(kept, expected)
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    images = torch.randn(2, 4, 8, 8) * torch.tensor([100.0, 1, 1, 0.01]).view(4, 1, 1)
    technique = "weight | global | wanda | one_shot"
    sparsifier = Sparsifier(depthwise, technique, sparsity=0.25, data=[(images, 0)])
    sparsifier.step(1.0)
    assert not bool(sparsifier.masks["weight"][3].any())


def test_d18_wanda_compares_within_an_output_row_and_remembers_no_model() -> None:
    """Wanda compared over the layer; its one shared object let a second model overwrite a first."""
    technique = Technique.parse("weight | row | wanda | one_shot")
    first, second = nn.Linear(8, 6), nn.Linear(8, 6)
    second.load_state_dict(first.state_dict())
    data = [[(torch.randn(5, 8) * torch.linspace(a, b, 8), 0)] for a, b in ((1, 9), (9, 1))]
    together = [
        Sparsifier(model, technique, sparsity=0.5, data=batches)
        for model, batches in zip((first, second), data, strict=True)
    ]
    alone = nn.Linear(8, 6)
    alone.load_state_dict(first.state_dict())
    for sparsifier in together:
        sparsifier.step(1.0)
        assert set(sparsifier.masks["weight"].sum(1).tolist()) == {4}
    reference = Sparsifier(alone, technique, sparsity=0.5, data=data[0])
    reference.step(1.0)
    assert torch.equal(together[0].masks["weight"], reference.masks["weight"])
    assert not torch.equal(together[0].masks["weight"], together[1].masks["weight"])


@pytest.mark.parametrize(
    "name", [word for record in CRITERIA for word in (record.name, *record.aliases)]
)
def test_d19_every_criterion_that_is_listed_runs(name: str) -> None:
    """A criterion was announced that did not exist."""
    model = fresh("small_cnn")
    inputs = example("small_cnn")
    sparsifier = Sparsifier(
        model, f"filter | local | {name} | one_shot", sparsity=0.5, include=["0", "3"],
        data=[(inputs[0], torch.tensor([0, 1]))],
    )  # fmt: skip
    assert sparsifier.step(1.0).removed == 12


@pytest.mark.parametrize("inputs", [None, torch.randn(1, 3, 8, 8)])
def test_outputs_are_never_pruned_unless_asked(inputs: Any) -> None:
    """A head behind anything but a bare last layer lost classes."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.LogSoftmax(1),
    )  # fmt: skip
    sparsifier = Sparsifier(
        model, "filter | global | magnitude | one_shot", sparsity=0.5, example_inputs=inputs
    )
    sparsifier.step(1.0)
    assert ("2.weight" in sparsifier.masks) == (inputs is not None)
    if inputs is not None:  # it reads channels that go, and still makes every class
        assert bool(sparsifier.masks["2.weight"].flatten(1).any(1).all())
        assert "2.bias" not in sparsifier.masks
    with pytest.raises(SecateurError):
        Sparsifier(model, "filter | global | magnitude | one_shot", sparsity=0.5, include="9")
