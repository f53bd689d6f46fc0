"""The calibrated criteria against their formulas, written out entry by entry."""

from __future__ import annotations

import pytest
import torch

from secateur.technique.criteria import CRITERIA, Evidence

WEIGHT = torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]])[None]
NORM = torch.tensor([4.0, 9.0, 16.0])[None, None]


def test_ria_divides_by_row_and_column() -> None:
    scores = CRITERIA.get("ria").function(Evidence(WEIGHT, input_norm=NORM))
    expected = [[(1 / 3 + 1 / 4) * 2, (2 / 3 + 2 / 6) * 3, 0], [(3 / 7 + 3 / 4) * 2,
                (4 / 7 + 4 / 6) * 3, 0]]  # fmt: skip
    torch.testing.assert_close(scores[0], torch.tensor(expected))
    plain = CRITERIA.get("ria").function(Evidence(WEIGHT, input_norm=NORM), a=0.0)
    assert plain[0, 0, 0].item() == pytest.approx(1 / 3 + 1 / 4)


def test_ria_of_a_convolution_takes_a_column_per_kernel_position() -> None:
    weight = torch.arange(1.0, 9.0).reshape(1, 2, 2, 2)
    scores = CRITERIA.get("ria").function(Evidence(weight, input_norm=torch.ones(1, 1, 2, 1)))
    flat = weight.reshape(2, 4)
    expected = flat / flat.sum(1, keepdim=True) + flat / flat.sum(0, keepdim=True)
    torch.testing.assert_close(scores.reshape(2, 4), expected)


def test_gblm_adds_the_gradient_to_the_input() -> None:
    fisher = torch.full_like(WEIGHT, 0.04)
    scores = CRITERIA.get("gblm").function(
        Evidence(WEIGHT, input_norm=NORM, fisher=fisher), alpha=10.0
    )
    torch.testing.assert_close(
        scores[0], torch.tensor([[6.0, 22.0, 0.0], [18.0, 44.0, 0.0]])
    )  # |w| (norm + 10 * 0.2)


def test_pruner_zero_scales_gradients_within_the_layer() -> None:
    gradient = torch.tensor([[1.0, -3.0, 5.0], [2.0, -1.0, 0.0]])[None] + 0.0
    scores = CRITERIA.get("pruner_zero").function(Evidence(WEIGHT, gradient=gradient))
    torch.testing.assert_close(
        scores[0], torch.tensor([[0.2, 4 * 0.6, 0.0], [9 * 0.4, 16 * 0.2, 0.0]])
    )
    flat = CRITERIA.get("pruner_zero").function(Evidence(WEIGHT, gradient=torch.ones_like(WEIGHT)))
    assert not flat.any()
