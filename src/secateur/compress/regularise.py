"""Regularisation: terms that drive units of weights towards zero while a network trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def root(squares: Tensor) -> Tensor:
    """Return the square root, with the gradient 0 where the square is 0.

    >>> squares = torch.zeros(2, requires_grad=True)
    >>> root(squares).sum().backward()
    >>> squares.grad.tolist()
    [0.0, 0.0]
    """
    above = squares > 0
    return torch.where(above, squares, 1.0).sqrt() * above


def group_lasso(squares: Tensor, sizes: Tensor | None = None) -> Tensor:
    """Return the sum over units of the L2 norm of each, from the sums of their squares [units].

    Without ``sizes`` it is that of Wen et al. 2016 (Learning Structured Sparsity in Deep Neural
    Networks); with the number of weights of each unit [units], norms count sqrt(size) times (Yuan,
    Lin 2006: Model selection and estimation in regression with grouped variables). A unit at zero
    has no gradient, and stays there.

    >>> weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    >>> float(group_lasso(weight.square().sum(1)))
    5.0
    """
    norms = root(squares)
    if sizes is not None:
        norms = norms * sizes.to(norms).sqrt()
    return norms.sum()


def l1(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of absolute values over tensors (for norm scales: Liu et al. 2017).

    >>> float(l1([torch.tensor([1.0, -2.0])]))
    3.0
    """
    return torch.stack([each.float().abs().sum() for each in values]).sum()


def masked_l2(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return half the sum of squares of the entries that a boolean mask marks, over all pairs.

    Multiplied by c it adds c w to the gradient of every marked weight w, as weight decay does
    (Wang et al. 2021: Neural Pruning via Growing Regularization).

    >>> float(masked_l2([(torch.tensor([1.0, 2.0]), torch.tensor([False, True]))]))
    2.0
    """
    squares = [(values.float() * mask).square().sum() for values, mask in pairs]
    return torch.stack(squares).sum() / 2
