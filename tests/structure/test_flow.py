"""Which norms carry the outputs of a weight, and which weights make the model's outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, example
from torch import Tensor, nn
from training import equal, state_of

from secateur import SecateurError, Sparsifier
from secateur.structure import trace_flow
from secateur.structure.flow import Flow

FILTERS = "filter | local | magnitude | one_shot"


class Wired(nn.Module):
    """Modules that a function of (modules, input) wires together."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any], **modules: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


def carriers(flow: Flow, parameter: str) -> set[tuple[str, int]]:
    assert flow.problem is None, flow.problem
    return {(carrier.parameter, carrier.offset) for carrier in flow.of(parameter).carriers}


def both(norm: str, offset: int = 0) -> set[tuple[str, int]]:
    return {(f"{norm}.weight", offset), (f"{norm}.bias", offset)}


both_ways = pytest.mark.parametrize("exported", [True, False], ids=["export", "symbolic"])


def flow_of(model: nn.Module, inputs: tuple[Tensor, ...], exported: bool) -> Flow:
    return trace_flow(model, inputs if exported else None)


@both_ways
def test_a_norm_behind_a_convolution_carries_its_channels(exported: bool) -> None:
    flow = flow_of(NETWORKS["small_cnn"](), example("small_cnn"), exported)
    assert carriers(flow, "0.weight") == both("1")
    assert carriers(flow, "3.weight") == both("4")
    assert carriers(flow, "8.weight") == set()


@both_ways
def test_a_concatenation_shifts_the_channels(exported: bool) -> None:
    flow = flow_of(NETWORKS["dense_block_net"](), example("dense_block_net"), exported)
    norms = [f"1.norms.{place}" for place in range(3)]
    last = "2"
    assert carriers(flow, "0.weight") == set.union(*(both(n) for n in [*norms, last]))
    assert carriers(flow, "1.convs.0.weight") == both(norms[1], 8) | both(norms[2], 8) | both(
        last, 8
    )
    assert carriers(flow, "1.convs.1.weight") == both(norms[2], 12) | both(last, 12)
    assert carriers(flow, "1.convs.2.weight") == both(last, 16)


@both_ways
def test_a_norm_behind_a_residual_sum_belongs_to_nobody_alone(exported: bool) -> None:
    flow = flow_of(NETWORKS["preactivation_resnet"](), example("preactivation_resnet"), exported)
    assert carriers(flow, "1.conv1.weight") == both("1.bn2")
    for alone in ("1.conv2", "2.conv2", "2.shortcut"):
        assert carriers(flow, f"{alone}.weight") == set()


@both_ways
def test_registration_order_means_nothing(exported: bool) -> None:
    model = Wired(
        lambda m, x: m.head(F.relu(m.second(m.b(F.relu(m.first(m.a(x)))))).mean((2, 3))),
        second=nn.BatchNorm2d(6), head=nn.Linear(6, 2), b=nn.Conv2d(4, 6, 3),
        a=nn.Conv2d(3, 4, 3), first=nn.BatchNorm2d(4),
    )  # fmt: skip
    flow = flow_of(model, (torch.randn(1, 3, 8, 8),), exported)
    assert carriers(flow, "a.weight") == both("first")
    assert carriers(flow, "b.weight") == both("second")
    assert flow.of("head.weight").to_output


def test_a_permutation_moves_the_channels() -> None:
    model = Wired(
        lambda m, x: m.head(F.gelu(m.up(m.norm(m.conv(x).permute(0, 2, 3, 1)))).mean((1, 2))),
        conv=nn.Conv2d(8, 8, 7, padding=3, groups=8), norm=nn.LayerNorm(8), up=nn.Linear(8, 16),
        head=nn.Linear(16, 3),
    )  # fmt: skip
    flow = trace_flow(model, (torch.randn(1, 8, 8, 8),))
    assert carriers(flow, "conv.weight") == both("norm")


@both_ways
def test_a_linear_layers_batch_norm_is_found(exported: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    assert carriers(flow_of(model, (torch.randn(3, 6),), exported), "0.weight") == both("1")


@both_ways
def test_a_norm_over_another_axis_is_left_alone(exported: bool) -> None:
    model = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1), nn.LayerNorm(16), nn.ReLU(), nn.Conv1d(8, 4, 1)
    )
    assert carriers(flow_of(model, (torch.randn(2, 3, 16),), exported), "0.weight") == set()


@both_ways
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_gated_unit_mixes_channels(kind: str, exported: bool) -> None:
    if kind == "linear":
        model = nn.Sequential(
            nn.Linear(6, 16), nn.GLU(), nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        inputs = torch.randn(2, 5, 6)
    else:
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.GLU(1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 3, 1),
        )
        inputs = torch.randn(2, 3, 9, 9)
    assert carriers(flow_of(model, (inputs,), exported), "0.weight") == set()
    sparsifier = Sparsifier(
        model, FILTERS, sparsity=0.5, example_inputs=(inputs,) if exported else None
    )
    # Coupled, a channel of the convolution is two of its filters and what reads them.
    coupled = exported and kind == "convolution"
    unit = (2 * 27 + 8 * 9) / (16 * 27 + 8 * 72) if coupled else 1e-6
    assert sparsifier.step(1.0).achieved["sparsity"] == pytest.approx(0.5, abs=unit / 2)


@both_ways
def test_a_channel_shuffle_is_followed_or_left_alone(exported: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    x = torch.randn(2, 3, 8, 8)
    sparsifier = Sparsifier(
        model, FILTERS, sparsity=0.25, include="0", example_inputs=(x,) if exported else None
    )
    sparsifier.step(1.0)
    removed = ~sparsifier.masks["0.weight"].flatten(1).any(1)
    moved = removed.view(2, 4).T.flatten()
    norm = sparsifier.masks.get("2.weight", torch.ones(8, dtype=torch.bool))
    assert torch.equal(~norm, moved) or bool(norm.all())


@both_ways
def test_a_gate_does_not_own_the_channels_that_it_scales(exported: bool) -> None:
    """A removed gate channel is sigmoid(0) = 1/2, not 0: the norm behind it stays alive."""
    model = Wired(
        lambda m, x: m.head(m.norm((m.a(x) + m.b(x)) * torch.sigmoid(m.gate(x))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(3, 8, 3), gate=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8), head=nn.Linear(8, 3),
    )  # fmt: skip
    flow = flow_of(model, (torch.randn(2, 3, 8, 8),), exported)
    assert carriers(flow, "gate.weight") == set()


@both_ways
def test_norms_without_parameters_carry_nothing_but_do_not_stop_the_walk(exported: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.BatchNorm2d(8),
        nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    flow = flow_of(model, (torch.randn(2, 3, 8, 8),), exported)
    assert carriers(flow, "0.weight") == both("3")


@both_ways
@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)])
def test_other_norms_are_found_too(norm: nn.Module, exported: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 3, 1))
    flow = flow_of(model, (torch.randn(2, 3, 8, 8),), exported)
    assert carriers(flow, "0.weight") == both("1")


@both_ways
@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_alone_makes_the_outputs(name: str, exported: bool) -> None:
    model = NETWORKS[name]()
    flow = flow_of(model, example(name), exported)
    assert flow.problem is None, flow.problem
    makers = [n for n, p in model.named_parameters() if p.dim() > 1 and flow.of(n).to_output]
    last = [n for n, p in model.named_parameters() if p.dim() > 1][-1]
    assert makers == [last]


OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda y: y,
    "log_softmax": lambda y: y.log_softmax(-1),
    "mean_over_tokens": lambda y: y.mean(1),
    "first_token": lambda y: y[:, 0],
    "flat_tokens": lambda y: y.flatten(0, 1),
    "view": lambda y: y.view(-1, 4),
    "split": lambda y: y.split(2, -1),
    "transposed": lambda y: y.transpose(1, 2),
    "dictionary": lambda y: {"logits": y},
    "squeezed_score": lambda y: y.max(-1).values,
}


@both_ways
@pytest.mark.parametrize("ending", OUTPUTS)
def test_layers_that_make_the_outputs_are_spared(ending: str, exported: bool) -> None:
    model = Wired(
        lambda m, x: OUTPUTS[ending](m.head(F.relu(m.hidden(x)))),
        hidden=nn.Linear(6, 8), head=nn.Linear(8, 4),
    )  # fmt: skip
    sparsifier = Sparsifier(
        model, FILTERS, sparsity=0.5, example_inputs=torch.randn(2, 5, 6) if exported else None
    )
    sparsifier.step(1.0)
    kept = sparsifier.masks["hidden.weight"].any(1)
    assert int(kept.sum()) == 4
    # With example inputs the head no longer reads what is gone, and makes all outputs as before.
    assert ("head.weight" in sparsifier.masks) == exported
    if exported:
        assert torch.equal(sparsifier.masks["head.weight"], kept.expand(4, 8))
    assert "head.bias" not in sparsifier.masks


@both_ways
def test_a_convolution_that_makes_the_outputs_is_spared(exported: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    x = torch.randn(2, 3, 8, 8)
    sparsifier = Sparsifier(model, FILTERS, sparsity=0.5, example_inputs=(x,) if exported else None)
    sparsifier.step(1.0)
    assert ("2.weight" in sparsifier.masks) == exported
    assert bool(sparsifier.masks.get("2.weight", torch.ones(10, 1)).flatten(1).any(1).all())
    assert bool((model(x) != 0).any(0).all())


def test_where_the_flow_is_unknown_the_outputs_are_not_pruned_silently() -> None:
    """Control flow that depends on data cannot be traced; a note alone would not save the head."""

    def branch(m: Any, x: Tensor) -> Tensor:
        hidden = m.hidden(x)
        return m.head(F.relu(hidden) if hidden.sum() > 0 else hidden)

    model = Wired(branch, hidden=nn.Linear(6, 8), head=nn.Linear(8, 4))
    try:
        sparsifier = Sparsifier(model, FILTERS, sparsity=0.5, example_inputs=torch.randn(2, 6))
    except SecateurError as error:
        assert "include" in str(error)
        return
    sparsifier.step(1.0)
    made = sparsifier.masks.get("head.weight", torch.ones(4, 8)).any(1)
    assert bool(made.all()) and "head.bias" not in sparsifier.masks


def test_a_trace_leaves_the_model_alone() -> None:
    model = NETWORKS["small_cnn"]().train()
    before = state_of(model)
    state = torch.random.get_rng_state()
    trace_flow(model, example("small_cnn"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert equal(state_of(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failed_trace_says_why_in_one_line() -> None:
    model = Wired(lambda m, x: m.layer(x) if x.sum() > 0 else x, layer=nn.Linear(4, 4))
    problem = trace_flow(model, None).problem
    assert problem is not None
    assert "example_inputs" in problem
    assert "\n" not in problem
