"""Quantized weights: against PyTorch's own rounding, and their bounds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training import fresh

from secateur import SecateurError
from secateur.compress import quantization_errors, quantize_weight

shapes = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))


def drawn(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-3, 3, rows)[:, None]
    return spread * torch.randn(rows, columns, generator=generator)


@settings(deadline=None)
@given(shapes, st.integers(2, 8))
def test_it_rounds_as_pytorch_does(shape: tuple[int, int, int], bits: int) -> None:
    weight = drawn(*shape)
    found = quantize_weight(weight, bits)
    most = 2 ** (bits - 1) - 1
    expected = torch.fake_quantize_per_channel_affine(
        weight, found.scales.flatten(), torch.zeros(len(weight), dtype=torch.int32), 0, -most, most
    )
    torch.testing.assert_close(found.restore(), expected, rtol=0, atol=0)


@settings(deadline=None)
@given(shapes, st.integers(2, 8))
def test_no_entry_is_off_by_more_than_half_a_scale(shape: tuple[int, int, int], bits: int) -> None:
    weight = drawn(*shape)
    found = quantize_weight(weight, bits)
    assert ((found.restore() - weight).abs() <= 0.5001 * found.scales).all()
    assert found.values.dtype == torch.int8
    highest = found.values.abs().amax(1)
    assert (highest == 2 ** (bits - 1) - 1).all()


def test_channels_lie_along_any_dimension_and_zero_is_exact() -> None:
    weight = drawn(4, 6, 0)
    weight[2] = 0
    turned = quantize_weight(weight.T, dim=1)
    assert torch.equal(turned.restore().T, quantize_weight(weight).restore())
    assert (quantize_weight(weight).restore()[2] == 0).all()


@pytest.mark.parametrize("bits", [1, 9, 2.5, True])
def test_bits_that_cannot_be_are_refused(bits: int) -> None:
    with pytest.raises(SecateurError, match="expected 2 to 8"):
        quantize_weight(torch.ones(2, 2), bits)


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(SecateurError, match="not finite"):
        quantize_weight(torch.tensor([1.0, torch.nan]))


def test_errors_name_the_layers_worst_first() -> None:
    model = fresh()
    model[3].weight.data[0, 0, 0, 0] = 100.0  # an outlier takes all the steps of its filter
    found = quantization_errors(model, 4)
    assert set(found) == {"0.weight", "3.weight", "8.weight"}
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(found[name] > quantization_errors(model, 8)[name] for name in found)
    weight = model[0].weight.detach().flatten(1)
    missed = quantize_weight(weight, 4).restore() - weight
    assert found["0.weight"] == pytest.approx(float(missed.norm() / weight.norm()))
