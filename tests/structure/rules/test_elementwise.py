"""Operators entry by entry: shapes that broadcast, and what becomes of a channel of zeros."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from structure.axes import check, data, look, weights
from torch import Tensor

Function = Callable[[Tensor], Tensor]

KEEPING: dict[str, Function] = {
    **{name: getattr(torch, name) for name in (
        "relu", "tanh", "neg", "abs", "square", "sin", "tan", "asin", "atan", "sinh", "asinh",
        "atanh", "erf", "erfinv", "expm1", "log1p", "sign", "sgn", "floor", "ceil", "round",
        "trunc", "frac", "clone", "nan_to_num", "deg2rad", "rad2deg", "positive", "absolute",
        "negative", "arcsin", "arctan", "arcsinh", "arctanh", "fix", "detach",
    )},
    **{name: getattr(F, name) for name in (
        "relu6", "gelu", "silu", "hardswish", "leaky_relu", "elu", "celu", "selu", "mish",
        "hardshrink", "softshrink", "hardtanh", "tanhshrink", "rrelu",
    )},
    "sqrt": lambda x: x.square().sqrt(),
    "in place": lambda x: x.relu_().neg_(),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "contiguous": lambda x: x.mT.contiguous().mT,
    "another type": lambda x: x.float().double(),
    "divided": lambda x: x / 3,
    "divided by data": lambda x: x / (1 + x.exp()),
    "floor divided": lambda x: torch.div(x, 0.1, rounding_mode="floor"),
    "truncated": lambda x: torch.div(x, 0.1, rounding_mode="trunc"),
    "remainder": lambda x: x % 0.7,
    "fmod": lambda x: torch.fmod(x, 0.7),
    "power 2": lambda x: x**2,
    "power 0.5": lambda x: x.abs() ** 0.5,
    "float power": lambda x: torch.float_power(x, 3),
    "clamped about zero": lambda x: x.clamp(-0.1, 0.2),
    "clamped from zero": lambda x: x.clamp_min(0),
    "clamped to one": lambda x: x.clamp(max=1),
    "threshold to zero": lambda x: F.threshold(x, 0.3, 0.0),
    "threshold below zero": lambda x: F.threshold(x, -0.3, 5.0),
    "floor divided by name": lambda x: torch.floor_divide(x, 0.1),
    "with a sign": lambda x: torch.copysign(x, x.exp()),
    "twice": lambda x: x + x,
    "between": lambda x: torch.lerp(x, x.neg(), x.abs()),
    "hypotenuse": lambda x: torch.hypot(x, x.neg()),
    "minimum": lambda x: torch.minimum(x, x.neg()),
    "greater but for nan": lambda x: torch.fmax(x, x.neg()),
    "smaller but for nan": lambda x: torch.fmin(x, x.neg()),
    "logical and": lambda x: torch.logical_and(x, x.exp()).double(),
    "multiplied": lambda x: x.multiply(x.exp()).subtract(x).true_divide(2),
    "difference": lambda x: x - x.tanh(),
    "maximum": lambda x: torch.maximum(x, x.neg()),
    "maximum by max": lambda x: torch.max(x, x.neg()),
    "minimum by min": lambda x: torch.min(x, x.neg()),
    "gated": lambda x: x * x.sigmoid(),
    "and": lambda x: (x.bool() & x.exp().bool()).double(),
    "filled with zero": lambda x: x.masked_fill(x > 0.2, 0.0),
    "where both are zero": lambda x: torch.where(torch.ones(1) > 0, x, x.neg()),
    "where a number is zero": lambda x: torch.where(torch.ones(1) > 0, x, 0.0),
    "plus zeros": lambda x: x + torch.zeros_like(x),
    "plus full zeros": lambda x: x + torch.full_like(x, 0),
    "plus new zeros": lambda x: x + x.new_zeros(x.shape) + x.new_full(x.shape, 0),
    "emptied": lambda x: x + x.exp().zero_() + x.exp().fill_(0),
}  # fmt: skip
LOSING: dict[str, Function] = {
    **{name: getattr(torch, name) for name in (
        "sigmoid", "exp", "exp2", "cos", "cosh", "acos", "reciprocal", "rsqrt", "erfc",
        "isfinite", "logical_not", "sinc", "arccos", "i0", "isnan", "isinf", "signbit",
        "lgamma", "logit", "log2", "log10",
    )},
    **{name: getattr(F, name) for name in ("softplus", "hardsigmoid", "logsigmoid")},
    "log": lambda x: x.exp().log(),
    "acosh": lambda x: (x.exp() + 1).acosh(),
    "or": lambda x: torch.logical_or(x, x.exp()) | torch.logical_xor(x, x.exp()),
    "not": lambda x: ~x.bool(),
    "compared to be less": lambda x: (x < 1) & (x <= 1) | (x != 1),
    "alike": lambda x: x.isclose(x.neg()),
    "angle": lambda x: torch.atan2(x.exp(), x).add(x.angle()),
    "log of a sum of exp": lambda x: torch.logaddexp(x, x),
    "plus a ratio": lambda x: torch.addcdiv(x.exp(), x, x.exp()),
    "in polar form": lambda x: torch.polar(x.exp(), x).real,
    "complex": lambda x: torch.complex(x.exp(), x).imag.exp(),
    "filled in place": lambda x: x.exp().fill_(2.0),
    "noise": lambda x: x + torch.rand_like(x) * 0 + 1,
    "plus one": lambda x: x + 1,
    "one minus": lambda x: 1 - x,
    "plus ones": lambda x: x + torch.ones_like(x),
    "power 0": lambda x: x**0,
    "a number's power": lambda x: 2**x,
    "power of data": lambda x: x.abs() ** x.abs(),
    "clamped above zero": lambda x: x.clamp(min=0.5),
    "clamped below zero": lambda x: x.clamp(max=-0.5),
    "hardtanh above zero": lambda x: F.hardtanh(x, 0.1, 1.0),
    "threshold to a number": lambda x: F.threshold(x, 0.3, 5.0),
    "filled with one": lambda x: x.masked_fill(x == 0, 1.0),
    "where a number is not zero": lambda x: torch.where(x > 0, x, 1.0),
    "where a number is taken": lambda x: torch.where(torch.zeros(1) > 0, x, 1.0),
    "where the other is not zero": lambda x: torch.where(x > 0, x, x.exp()),
    "compared": lambda x: (x >= 0).double(),
    "maximum with a number": lambda x: torch.maximum(x, torch.tensor(1.0)),
    "maximum by max with a number": lambda x: torch.max(x, torch.tensor(1.0)),
    "added and multiplied": lambda x: torch.addcmul(x.exp(), x, x),
    "a full tensor": lambda x: x * 0 + torch.full_like(x, 2),
    "remainder of a number": lambda x: torch.remainder(3, x.exp()),
}  # fmt: skip


INFINITE = ("reciprocal", "rsqrt", "lgamma", "logit", "log2", "log10")
"""What makes of zero more than a zero weight can undo."""


def small(x: Tensor) -> Tensor:
    """Keep values where all functions are defined; zero stays zero."""
    return x.tanh() * 0.9


@pytest.mark.parametrize("name", KEEPING)
def test_zero_stays_zero(name: str) -> None:
    function = KEEPING[name]
    check(lambda toy, x: function(small(x @ toy.made)).sum(-1) @ toy.read,
          weights(made=(5, 6), read=(3,)), data(2, 3, 5), free=[6])  # fmt: skip


@pytest.mark.parametrize("name", LOSING)
def test_zero_does_not_stay_zero(name: str) -> None:
    function = LOSING[name]
    check(lambda toy, x: function(small(x @ toy.made).abs()).sum(-1),
          weights(made=(5, 6)), data(2, 3, 5), free=[6], inexact=[6])  # fmt: skip


@pytest.mark.parametrize("name", [name for name in [*KEEPING, *LOSING] if name not in INFINITE])
def test_what_reads_a_channel_with_a_zero_weight_is_enough(name: str) -> None:
    function = {**KEEPING, **LOSING}[name]
    check(lambda toy, x: function(small(x @ toy.made).abs()).double() @ toy.read,
          weights(made=(5, 6), read=(6, 3)), data(2, 4, 5), free=[6])  # fmt: skip


def test_operands_agree_under_broadcasting() -> None:
    check(lambda toy, x: (x @ toy.made + toy.shift) * toy.scale @ toy.read,
          weights(made=(5, 6), shift=(6,), scale=(1, 6), read=(6, 3)),
          data(2, 3, 5), free=[6])  # fmt: skip


def test_a_position_table_lets_a_constant_through() -> None:
    """What is added along another axis does not carry the channel, and is not zero for it."""
    check(lambda toy, x: (x @ toy.made + toy.place[:, None]).sum(-1),
          weights(made=(5, 6), place=(3,)), data(2, 3, 5), free=[6], inexact=[6])  # fmt: skip


def test_the_shorter_operand_has_no_say_in_a_dimension_of_one() -> None:
    seen = look(
        lambda toy, x: x @ toy.made * toy.scale, weights(made=(5, 6), scale=(1,)), data(2, 5)
    )
    assert seen.written("made") == "!5 !6"


@pytest.mark.parametrize("rank", [2, 3])
def test_prelu_has_a_slope_for_every_channel_or_for_all(rank: int) -> None:
    x = data(2, 5) if rank == 2 else data(2, 5, 4)

    def read(toy: object, x: Tensor, slope: Tensor) -> Tensor:
        return F.prelu(torch.einsum("nc...,cd->nd...", x, toy.made), slope).sum(1)  # type: ignore[attr-defined]

    check(lambda toy, x: read(toy, x, toy.slope), weights(made=(5, 6), slope=(6,)), x, free=[6])
    check(lambda toy, x: read(toy, x, toy.slope), weights(made=(5, 6), slope=(1,)), x, free=[6])


def test_a_zero_slope_alone_is_no_zero() -> None:
    seen = look(lambda toy, x: F.prelu(x, toy.slope).sum(1), weights(slope=(6,)), data(2, 6))
    assert seen.sizes == []
    seen = look(lambda toy, x: F.prelu((x @ toy.made).exp(), toy.slope).sum(1),
                weights(made=(5, 6), slope=(6,)), data(2, 5))  # fmt: skip
    assert seen.inexact == [6]


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.arange(6), lambda: torch.linspace(0, 1, 6), lambda: torch.logspace(0, 1, 6),
        lambda: torch.rand(6), lambda: torch.randn(6), lambda: torch.randint(3, (6,)),
        lambda: torch.randperm(6), lambda: torch.eye(6)[2], lambda: torch.hann_window(6),
        lambda: torch.fft.fftfreq(6), lambda: torch.tril_indices(3, 3)[0],
    ],
)  # fmt: skip
def test_values_by_position_pin_what_they_meet(made: Callable[[], Tensor]) -> None:
    seen = look(lambda toy, x: (x @ toy.made * made()) @ toy.read,
                weights(made=(5, 6), read=(6, 3)), data(2, 5))  # fmt: skip
    assert seen.sizes == []
    assert any("makes values by position" in reason for reason in seen.reasons)


def test_a_tensor_of_one_value_fits_whatever_it_meets() -> None:
    check(lambda toy, x: torch.cat([x @ toy.made, torch.ones(2, 3)], 1) @ toy.read,
          weights(made=(5, 6), read=(9, 4)), data(2, 5), free=[3, 6], fits=False)  # fmt: skip
