"""Passing over the columns: SparseGPT's elimination (Frantar and Alistarh 2023).

Weights are held as [b, n, r]: for every matrix H of the batch, n columns of r rows. With the upper
U of H^-1 = U^T U, a weight that goes at column j costs w_j^2 / U_jj^2, and the columns after j make
up for it by -w_j / U_jj times the rest of U's row j.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Chooser = Callable[[int, int, Tensor], Tensor]
"""From the first column, the end and the weights there as corrected so far [b, m, r] to kept."""

_SMALLEST = 16


def eliminate(
    columns: Tensor, upper: Tensor, choose: Chooser, block: int, together: int = 1
) -> Tensor:
    """Remove what the chooser does not keep, in place; return what is kept [b, n, r].

    The chooser is asked for ``block`` columns at a time; with ``together`` more than 1, for as many
    columns at a time, each with all corrections of the columns before (as n:m asks).
    """
    size = columns.shape[1]
    kept = torch.ones_like(columns, dtype=torch.bool)
    errors = torch.empty_like(columns[:, :block])
    for start in range(0, size, block):
        end = min(size, start + block)
        if together == 1:
            kept[:, start:end] = choose(start, end, columns[:, start:end])
        found = errors[:, : end - start]
        _block(columns, upper, kept, found, (start, end), start, choose, together)
        if end < size:
            _subtract(columns[:, end:], upper[:, start:end, end:], found)
    columns.mul_(kept)
    return kept


def _block(
    columns: Tensor,
    upper: Tensor,
    kept: Tensor,
    errors: Tensor,
    span: tuple[int, int],
    first: int,
    choose: Chooser,
    together: int,
) -> None:
    """Go through a span of columns by halves, so that most of the work is matrix products."""
    start, end = span
    if end - start > max(_SMALLEST, together):
        half = start + -(-((end - start) // 2) // together) * together
        _block(columns, upper, kept, errors, (start, half), first, choose, together)
        done = errors[:, start - first : half - first]
        _subtract(columns[:, half:end], upper[:, start:half, half:end], done)
        _block(columns, upper, kept, errors, (half, end), first, choose, together)
        return
    for place in range(start, end):
        if together > 1 and place % together == 0:
            until = min(columns.shape[1], place + together)
            kept[:, place:until] = choose(place, until, columns[:, place:until])
        pivot = upper[:, place, place].unsqueeze(1)
        gone = columns[:, place] * ~kept[:, place] / pivot
        errors[:, place - first] = gone
        if place + 1 < end:
            rest = upper[:, place, place + 1 : end]
            _subtract(columns[:, place + 1 : end], rest.unsqueeze(1), gone.unsqueeze(1))


def _subtract(columns: Tensor, upper: Tensor, errors: Tensor) -> None:
    """Take upper^T [m, k] errors [k, r] from the columns [m, r], in place."""
    if len(columns) == 1:
        columns[0].addmm_(upper[0].T, errors[0], alpha=-1)
    else:
        columns.baddbmm_(upper.transpose(1, 2), errors, alpha=-1)
