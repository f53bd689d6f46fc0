"""The penalties as numbers: gradients against finite differences, and their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.compress import group_lasso, l1, masked_l2
from secateur.compress.regularise import root

shapes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))


def drawn(units: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(units, size, generator=generator, dtype=torch.float64)
    return (values + values.sign()).requires_grad_()


@settings(deadline=None)
@given(shapes, st.booleans())
def test_the_gradient_of_group_lasso_is_its_slope(shape: tuple[int, int, int], sized: bool) -> None:
    rows = drawn(*shape)
    sizes = torch.arange(1, len(rows) + 1) if sized else None
    assert torch.autograd.gradcheck(lambda w: group_lasso(w.square().sum(1), sizes), (rows,))


@settings(deadline=None)
@given(shapes)
def test_group_lasso_is_a_sum_of_norms(shape: tuple[int, int, int]) -> None:
    rows = drawn(*shape).detach()
    norms = torch.linalg.vector_norm(rows, dim=1)
    torch.testing.assert_close(group_lasso(rows.square().sum(1)), norms.sum())
    sizes = torch.full((len(rows),), rows.shape[1])
    torch.testing.assert_close(
        group_lasso(rows.square().sum(1), sizes), norms.sum() * rows.shape[1] ** 0.5
    )
    # One weight to a unit: the lasso.
    single = rows.flatten()
    torch.testing.assert_close(group_lasso(single.square()), single.abs().sum())


@settings(deadline=None)
@given(shapes)
def test_the_gradient_of_masked_l2_is_the_weight_where_it_is_marked(
    shape: tuple[int, int, int],
) -> None:
    rows = drawn(*shape).float().detach().requires_grad_()
    mask = torch.rand(rows.shape, generator=torch.Generator().manual_seed(shape[2])) < 0.5
    (gradient,) = torch.autograd.grad(masked_l2([(rows, mask), (rows, mask)]), rows)
    torch.testing.assert_close(gradient, 2 * rows.detach() * mask)


def test_l1_adds_all_tensors() -> None:
    values = [torch.tensor([-1.0, 2.0]), torch.tensor([[0.5]])]
    assert float(l1(values)) == 3.5
    assert l1([torch.ones(2, dtype=torch.bfloat16)]).dtype == torch.float32


@pytest.mark.parametrize("value", [0.0, 1e-30, 4.0, 1e30])
def test_the_root_has_a_gradient_everywhere(value: float) -> None:
    square = torch.tensor(value, requires_grad=True)
    root(square).backward()
    assert float(root(square).detach()) == pytest.approx(value**0.5)
    expected = 0.5 / value**0.5 if value else 0.0
    assert float(square.grad) == pytest.approx(expected)
