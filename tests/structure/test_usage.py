"""Multiply-accumulates and inputs, as they are observed in a forward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, example
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from secateur.structure import find_weights, observe


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_agree_with_torchs_own_counter(name: str) -> None:
    model, inputs = NETWORKS[name]().eval(), example(name)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # The counter of older versions passes over the fused attention kernels.
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    usage = observe(model, lambda: model(*inputs))
    assert usage.macs == counter.get_total_flops() // 2
    assert 0 < sum(usage.by_parameter.values()) <= usage.macs


LAYERS = {
    "linear": (nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
    "linear_tokens": (nn.Linear(5, 7), (3, 4, 5), 3 * 4 * 5 * 7),
    "linear_no_bias": (nn.Linear(5, 7, bias=False), (3, 4, 5), 3 * 4 * 5 * 7),
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 10), 2 * 8 * 6 * 4 * 3),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 2 * 16 * 6 * 4 * 9),
    "conv3d": (nn.Conv3d(2, 3, 3), (2, 2, 5, 5, 5), 2 * 27 * 3 * 2 * 27),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8), 2 * 36 * 6 * 2 * 9),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8), 2 * 36 * 4 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 8, 8), 2 * 64 * 6 * 4 * 4),
    "embedding": (nn.Embedding(9, 3), None, 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_macs_of_a_layer_by_hand(name: str) -> None:
    module, shape, macs = LAYERS[name]
    data = torch.zeros(2, 3, dtype=torch.long) if shape is None else torch.randn(shape)
    usage = observe(module, lambda: module(data))
    assert usage.macs == macs
    assert usage.by_parameter.get("weight", 0) == macs


def test_macs_of_an_lstm_by_hand() -> None:
    module = nn.LSTM(5, 6, batch_first=True)
    usage = observe(module, lambda: module(torch.randn(2, 7, 5)))
    assert usage.by_parameter == {
        "weight_ih_l0": 2 * 7 * 4 * 6 * 5, "weight_hh_l0": 2 * 7 * 4 * 6 * 6
    }  # fmt: skip


def test_macs_of_an_attention_belong_to_its_projections() -> None:
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.randn(2, 5, 8)
    usage = observe(module, lambda: module(tokens, tokens, tokens, need_weights=False))
    assert usage.by_parameter == {
        "in_proj_weight": 2 * 5 * 24 * 8, "out_proj.weight": 2 * 5 * 8 * 8
    }  # fmt: skip
    assert usage.macs > sum(usage.by_parameter.values())


def test_a_weight_that_is_used_twice_counts_twice() -> None:
    layer = nn.Linear(6, 6)
    usage = observe(layer, lambda: layer(layer(torch.randn(3, 6))))
    assert usage.by_parameter == {"weight": 2 * 3 * 36}


def test_parameters_in_one_buffer_keep_their_own_counts() -> None:
    """Recurrent layers on a GPU and flattening wrappers let parameters share one storage."""
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False))
    buffer = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    model[0].weight.data = buffer[:24].view(6, 4)
    model[1].weight.data = buffer[24:].view(3, 6)
    x = torch.randn(2, 4)
    usage = observe(model, lambda: model(x), inputs=True)
    assert usage.by_parameter == {"0.weight": 2 * 24, "1.weight": 2 * 18}
    first, second = find_weights(model).weights
    torch.testing.assert_close(usage.input_squares(first, 6), x.double().square().sum(0))
    hidden = model[0](x).detach().double()
    torch.testing.assert_close(usage.input_squares(second, 3), hidden.square().sum(0))


class _Tied(nn.Module):
    """An embedding whose table is also the weight of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embedding(words))


def test_a_tied_table_can_be_observed() -> None:
    model = _Tied()
    words = torch.randint(10, (3, 5))
    usage = observe(model, lambda: model(words), inputs=True)
    (weight,) = find_weights(model).weights
    squares = usage.input_squares(weight, 10)
    assert squares is not None
    assert squares.tolist() == torch.bincount(words.flatten(), minlength=10).tolist()


def test_a_functional_use_is_seen() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight[:2])

    model, x = Functional(), torch.randn(5, 4)
    usage = observe(model, lambda: model(x), inputs=True)
    assert usage.by_parameter == {"layer.weight": 5 * 4 * 2}
    (weight,) = find_weights(model).weights
    torch.testing.assert_close(usage.input_squares(weight, 3), x.double().square().sum(0))


def test_observing_leaves_modes_gradients_and_switches_alone() -> None:
    model = NETWORKS["transformer"]()
    model.train()
    model.norm1.eval()
    before = [module.training for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    observe(model, lambda: model(*example("transformer")), inputs=True)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_modes_come_back_after_an_error() -> None:
    model = NETWORKS["small_cnn"]().train()
    with pytest.raises(RuntimeError):
        observe(model, lambda: model(torch.randn(2, 5, 8, 8)))
    assert all(module.training for module in model.modules())
