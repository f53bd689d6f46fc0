"""A quadratic error and its minima: what removing weights costs, and what the others can make up.

The error of a row of weights w' beside w is (w' - w)^T H (w' - w), H [n, n] symmetric. Functions
take batches: H [b, n, n], rows of weights [b, r, n], marks of what is kept [b, r, n].
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.errors import SecateurError

_AT_ONCE = 1 << 24
"""Numbers of the matrices that are solved together."""


def damped(matrix: Tensor, damping: float) -> Tensor:
    """Return H + damping mean(diag H) I; an input that is never seen gets a one.

    >>> damped(torch.diag(torch.tensor([1.0, 3.0])), 0.5)
    tensor([[2., 0.],
            [0., 4.]])
    """
    found = matrix.clone()
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    diagonal += damping * diagonal.mean(-1, keepdim=True)
    diagonal[diagonal == 0] = 1
    return found


def inverse(matrix: Tensor) -> Tensor:
    """Return H^-1; raise SecateurError where H is not positive definite."""
    found: Tensor = torch.cholesky_inverse(factor(matrix))
    return found


def factor(matrix: Tensor) -> Tensor:
    """Return the lower L with H = L L^T; raise SecateurError where H is not positive definite."""
    lower, problem = torch.linalg.cholesky_ex(matrix)
    if bool(problem.any()):
        raise SecateurError(
            "the second derivatives have no inverse: pass more data, or write a larger damping= "
            "into compensate(...)"
        )
    return lower  # type: ignore[no-any-return]


def inverse_factor(matrix: Tensor) -> Tensor:
    """Return the upper U with H^-1 = U^T U, without forming the inverse.

    U_jj^2 is the j-th diagonal of the inverse of H[j:, j:]: of what is left after columns 0..j-1.
    H turned around is L L^T, so that H = R R^T with R = L turned around, upper; and U = R^-1.
    """
    upper = factor(matrix.flip(-2, -1)).flip(-2, -1)
    ones = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
    found: Tensor = torch.linalg.solve_triangular(upper, ones.expand_as(upper), upper=True)
    return found


def refit(matrix: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Return the rows of least error [b, r, n] that are zero where nothing is kept; exact.

    The smaller of two systems is solved: that of the kept (Hassibi and Stork's, summed up), or that
    of the removed. Rows that keep the same share one factorisation.
    """
    solved = torch.zeros_like(rows)
    for place in range(len(rows)):
        patterns, which = torch.unique(kept[place], dim=0, return_inverse=True)
        if len(patterns) <= max(1, len(which) // 4):
            for number, pattern in enumerate(patterns):
                same = which == number
                solved[place, same] = _refit_alike(matrix[place], rows[place, same], pattern)
        else:
            solved[place] = _refit_each(matrix[place], rows[place], kept[place])
    return solved


def _refit_alike(matrix: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Solve for rows [r, n] that all keep the same columns [n]."""
    found = rows * kept
    if not bool(kept.any()) or bool(kept.all()):
        return found
    inside = matrix[kept][:, kept]
    missed = rows[:, ~kept] @ matrix[~kept][:, kept]
    found[:, kept] += torch.cholesky_solve(missed.T, factor(inside)).T
    return found


def _refit_each(matrix: Tensor, rows: Tensor, kept: Tensor) -> Tensor:
    """Solve for rows that keep different columns, several at a time."""
    most = int(kept.sum(1).max())
    fewest = len(matrix) - int(kept.sum(1).min())
    size = min(most, fewest)
    if size == 0:
        return rows * kept
    over_kept = most <= fewest
    used = matrix if over_kept else inverse(matrix)
    found = []
    for part, keep in zip(*(each.split(max(1, _AT_ONCE // size**2)) for each in (rows, kept)),
                          strict=True):  # fmt: skip
        gone = part * ~keep
        if over_kept:
            found.append(part - gone + _solve_among(used, gone @ matrix, keep, size))
        else:
            found.append((part - _solve_among(used, gone, ~keep, size) @ used) * keep)
    return torch.cat(found)


def _solve_among(matrix: Tensor, right: Tensor, among: Tensor, size: int) -> Tensor:
    """Solve matrix[s, s] x = right[s] for the columns s of each row; zero elsewhere [r, n]."""
    order = torch.argsort(among.int(), dim=1, descending=True, stable=True)[:, :size]
    real = among.gather(1, order)
    blocks = matrix[order[:, :, None], order[:, None, :]]
    blocks = blocks * (real[:, :, None] & real[:, None, :])
    blocks.diagonal(dim1=1, dim2=2)[~real] = 1
    values = torch.cholesky_solve((right.gather(1, order) * real).unsqueeze(2), factor(blocks))
    return torch.zeros_like(right).scatter_(1, order, values.squeeze(2) * real)


def rescale(matrix: Tensor, rows: Tensor, kept: Tensor, width: int, damping: float) -> Tensor:
    """Return rows [b, r, n] whose kept channels of ``width`` columns are each times one number.

    The numbers are those of least summed error over all rows; a channel that goes has none.
    """
    found = rows * kept
    products = rows.transpose(1, 2) @ rows * matrix
    small = _block_sums(products, width)
    alive = kept.any(1).unflatten(1, (-1, width)).any(2)
    for place, living in enumerate(alive):
        if not bool(living.any()):
            continue
        whole = damped(small[place], damping)
        inside = factor(whole[living][:, living])
        missed = whole[living][:, ~living].sum(1, keepdim=True)
        numbers = torch.ones(len(living), dtype=rows.dtype, device=rows.device)
        numbers[living] += torch.cholesky_solve(missed, inside).squeeze(1)
        found[place] *= numbers.repeat_interleave(width)
    return found


def channel_products(matrix: Tensor, rows: Tensor, width: int) -> Tensor:
    """Return the products of what channels contribute to all rows [b, channels, channels]."""
    return _block_sums(rows.transpose(1, 2) @ rows * matrix, width)


def _block_sums(products: Tensor, width: int) -> Tensor:
    split = products.unflatten(2, (-1, width)).sum(3)
    found: Tensor = split.unflatten(1, (-1, width)).sum(2)
    return found


def error(matrix: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Return (w' - w)^T H (w' - w) summed over the rows of each batch [b]."""
    apart = others - rows
    return ((apart @ matrix) * apart).sum((1, 2))
