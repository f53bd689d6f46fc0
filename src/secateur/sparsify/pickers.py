"""Choosing while compensating: the choice among a weight's columns, as survivors change.

A weight is held as rows [groups, outputs, n] and, where its columns are passed over, as columns
[groups, n, outputs].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.passing import Chooser
from secateur.sparsify.quadratic import damped
from secateur.sparsify.scoring import refuse_nan, score_units, widen
from secateur.sparsify.select import keep_highest, keep_highest_rows
from secateur.sparsify.setup import Prunable
from secateur.sparsify.units import Units
from secateur.structure.weights import PrunableWeight
from secateur.technique import Evidence, Technique


@dataclass(frozen=True)
class Picker:
    """How one weight's columns are chosen: by which scores, in which order, how many.

    ``order`` is the order in which columns are gone through: as they lie, or for n:m with all
    inputs of a kernel position together. ``together`` columns are chosen at once.
    """

    technique: Technique
    weight: PrunableWeight
    evidence: Evidence
    share: float
    removed: Tensor
    order: Tensor | None
    together: int

    @classmethod
    def of(
        cls, technique: Technique, prunable: Prunable, evidence: Evidence, share: float,
        removed: Tensor,
    ) -> Picker:  # fmt: skip
        """Prepare the choice for a weight; raise SecateurError where n:m cannot be met."""
        weight, granularity = prunable.weight, technique.granularity
        inputs, kernel = weight.shape[2], math.prod(weight.shape[3:])
        order, together = None, 1
        if granularity.block is not None:
            together = granularity.block
            if kernel > 1:
                order = torch.arange(inputs * kernel).reshape(inputs, kernel).T.flatten()
            if kernel > 1 and inputs % together and inputs > together:
                raise SecateurError(
                    f"'{technique.update}' goes through the inputs of {weight.name} by {together}, "
                    f"and there are {inputs}: exclude it, or write compensate(columns)"
                )
            most = 1 - (granularity.kept or 0) / together
            if 0 < share < most - 1e-6:
                raise SecateurError(
                    f"'{technique.update}' chooses all of '{granularity}' at once, and "
                    f"'{technique.schedule}' asks for a part of it: write one_shot, or "
                    "compensate(columns)"
                )
        flat = _flattened(evidence)
        return cls(technique, weight, flat, share, removed.reshape(flat.weight.shape), order,
                   together)  # fmt: skip

    @property
    def rows(self) -> Tensor:
        """The weights as rows, widened."""
        return widen(self.evidence.weight)

    @property
    def idle(self) -> bool:
        """Whether nothing is to go: no share, or fewer inputs than n:m has in a block."""
        return self.share == 0 or self.together > self.weight.shape[2]

    def columns(self, rows: Tensor) -> Tensor:
        """Return rows as columns in the order they are gone through; a copy."""
        ordered = rows if self.order is None else rows[:, :, self.order]
        return ordered.transpose(1, 2).contiguous()

    def back(self, columns: Tensor) -> Tensor:
        """Return columns in that order as rows."""
        rows = columns.transpose(1, 2)
        return rows if self.order is None else rows[:, :, torch.argsort(self.order)]

    def ordered(self, matrix: Tensor) -> Tensor:
        """Return a matrix over the columns in that order."""
        if self.order is None:
            return matrix.to(self.rows.dtype)
        return matrix.to(self.rows.dtype)[:, self.order][:, :, self.order]

    def chooser(self, pivots: Tensor) -> Chooser:
        """Return a chooser for ``eliminate``; over all columns it removes exactly the share.

        ``pivots`` [groups, n] are the diagonal of the inverse's factor.
        """
        passed = 0
        gone = self.columns(self.removed)

        def choose(start: int, end: int, columns: Tensor) -> Tensor:
            nonlocal passed
            evidence = self._part(start, end, columns, pivots[:, None, start:end])
            units = Units(tuple(evidence.weight.shape), (True,) * 3, (1,) * 3)
            removed = gone[:, start:end].transpose(1, 2)
            count = self._count(end) - self._count(passed)
            passed = end
            scores = score_units(self.technique.criteria, evidence, units, count)
            refuse_nan(scores, self.weight.name, evidence.weight, self.technique.criteria)
            scores = scores.reshape(removed.shape).masked_fill(removed, -torch.inf)
            return self._kept(scores, count, removed).transpose(1, 2)

        return choose

    def project(self, rows: Tensor) -> Tensor:
        """Return what is kept [groups, outputs, n] of all columns at once, by the criterion."""
        columns = self.columns(rows)
        choose = self.chooser(torch.ones_like(columns[:, :, 0]))
        if self.together == 1:
            return self.back(choose(0, columns.shape[1], columns))
        kept = [
            choose(start, min(start + self.together, columns.shape[1]),
                   columns[:, start : start + self.together])
            for start in range(0, columns.shape[1], self.together)
        ]  # fmt: skip
        return self.back(torch.cat(kept, 1))

    def _count(self, end: int) -> int:
        """How many of the columns up to ``end`` go: of each row, or of all rows together."""
        groups, outputs, _ = self.evidence.weight.shape
        rows = 1 if self.technique.context.pool == "row" else groups * outputs
        return round(self.share * end * rows)

    def _part(self, start: int, end: int, columns: Tensor, pivots: Tensor) -> Evidence:
        """Return the evidence of some columns, with their weights as they are now."""
        place = slice(start, end) if self.order is None else self.order[start:end]
        known: dict[str, Any] = {}
        for each in fields(self.evidence):
            value = getattr(self.evidence, each.name)
            if isinstance(value, Tensor):
                known[each.name] = value[:, :, place]
        rows = columns.transpose(1, 2)
        known |= {"weight": rows}
        if "surgeon" in self.technique.criteria.needs:
            known["surgeon"] = rows / pivots.square()
        return replace(self.evidence, **known)

    def _kept(self, scores: Tensor, count: int, removed: Tensor) -> Tensor:
        flat = scores.flatten(0, 1)
        if self.together > 1:
            most = self.together - (self.technique.granularity.kept or 0)
            if flat.shape[1] < self.together:
                return torch.ones_like(removed)
            return keep_highest_rows(flat, most).reshape(scores.shape)
        if self.technique.context.pool == "row":
            most = int(removed.sum(2).max())
            return keep_highest_rows(flat, max(count, most)).reshape(scores.shape)
        least = int(removed.sum())
        return keep_highest([flat.reshape(-1)], max(count, least))[0].reshape(scores.shape)


def _flattened(evidence: Evidence) -> Evidence:
    """Return evidence with every tensor of the weight's layout as [groups, outputs or 1, n]."""
    shape = evidence.weight.shape
    known: dict[str, Any] = {}
    for each in fields(evidence):
        value = getattr(evidence, each.name)
        if isinstance(value, Tensor):
            known[each.name] = value.expand(*value.shape[:2], *shape[2:]).flatten(2)
    return replace(evidence, **known)


def solve_admm(
    picker: Picker, gram: Tensor, damping: float, steps: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return rows of least error among those with so many zeros, and what they keep (ALPS).

    Meng et al. 2024: the error's minimum under a pull towards the sparse rows, the choice, and the
    multipliers take turns, ever more tightly; the support is then refined by conjugate gradients.
    """
    matrix = damped(gram, damping).double()
    scale = matrix.diagonal(dim1=1, dim2=2).sqrt().unsqueeze(1)
    matrix = matrix / scale / scale.transpose(1, 2)
    wanted = picker.rows.double() * scale
    values, vectors = torch.linalg.eigh(matrix)
    target = wanted @ matrix
    kept = picker.project(wanted)
    sparse, pull, rho = wanted * kept, torch.zeros_like(wanted), 0.1
    for step in range(steps):
        inner = ((target - pull + rho * sparse) @ vectors) / (values + rho).unsqueeze(1)
        dense = inner @ vectors.transpose(1, 2)
        found = picker.project(dense + pull / rho)
        sparse = (dense + pull / rho) * found
        pull += rho * (dense - sparse)
        if step % 3 == 2:
            moved = int((found ^ kept).sum()) / max(1, int((~found).sum()))
            kept = found
            if moved == 0 and step > 10:
                break
            rho *= 1.3 if moved > 0.1 else 1.2 if moved > 0.005 else 1.1
    kept = found
    refined = _conjugate(matrix, wanted, wanted * kept, kept)
    return (refined / scale).to(picker.rows.dtype), kept


def _conjugate(matrix: Tensor, wanted: Tensor, start: Tensor, kept: Tensor) -> Tensor:
    """Lower the error of rows within what they keep, by conjugate gradients of all rows at once."""
    rows = start.clone()
    residual = ((wanted - rows) @ matrix) * kept
    direction = residual.clone()
    size = residual.square().sum(2, keepdim=True)
    for _ in range(50):
        step = (direction @ matrix) * kept
        along = (direction * step).sum(2, keepdim=True)
        length = size / along.clamp(min=1e-30)
        rows += length * direction
        residual -= length * step
        after = residual.square().sum(2, keepdim=True)
        if bool((after <= 1e-20).all()):
            break
        direction = residual + after / size.clamp(min=1e-30) * direction
        size = after
    return rows


def swap(
    rows: Tensor, kept: Tensor, mean: Tensor, spread: Tensor, steps: int, threshold: float,
    block: int | None,
) -> Tensor:  # fmt: skip
    """Return what is kept after swaps that lower each row's mean error (Zhang et al. 2024).

    The mean error is what the removed weights gave on average. The weight that returns lowers it
    most for the variance of its input, and the one that goes for it, the least of |w| times its
    input's root mean square, does not raise it. Of n:m, both lie in the same block.
    """
    gives = rows * mean.to(rows.dtype).unsqueeze(1)
    size = rows.abs() * (spread.square() + mean.unsqueeze(1).square()).sqrt()
    quiet = gives / spread.square().clamp(min=1e-12)
    kept = kept.clone()
    active = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
    labels = torch.arange(rows.shape[2], device=rows.device) // (block or rows.shape[2])
    for _ in range(steps):
        missed = (gives * ~kept).sum(2, keepdim=True)
        sign = torch.sign(missed)
        active &= missed.squeeze(2).abs() > threshold
        back = (quiet * sign).masked_fill(kept, -torch.inf)
        best, comes = back.max(2, keepdim=True)
        able = kept & (labels == labels[comes]) & (gives * sign <= 0)
        least, goes = size.masked_fill(~able, torch.inf).min(2, keepdim=True)
        after = missed - gives.gather(2, comes) + gives.gather(2, goes)
        fits = (best > 0) & (least < torch.inf) & (after.abs() < missed.abs())
        active &= fits.squeeze(2)
        if not bool(active.any()):
            break
        now = active.unsqueeze(2)
        kept.scatter_(2, comes, kept.gather(2, comes) | now)
        kept.scatter_(2, goes, kept.gather(2, goes) & ~now)
    return kept
