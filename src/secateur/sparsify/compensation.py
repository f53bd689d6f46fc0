"""Compensation carried out: survivors that make up for what goes, one weight after the other.

Everything works on a weight as rows [groups, outputs, n] over its n columns (inputs and kernel
positions), and on what those columns read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.curvature import joined, network_refit, parted
from secateur.sparsify.fisher import refit_blocks
from secateur.sparsify.passing import eliminate
from secateur.sparsify.pickers import Picker, solve_admm, swap
from secateur.sparsify.plan import Entry
from secateur.sparsify.quadratic import damped, inverse_factor, refit, rescale
from secateur.sparsify.ranks import same_on_every_rank
from secateur.sparsify.scoring import widen
from secateur.sparsify.setup import Prunable
from secateur.sparsify.statistics import Statistics
from secateur.structure.weights import PrunableWeight
from secateur.technique import Evidence, Technique
from secateur.technique.compensation import Compensation


@dataclass(frozen=True)
class Chosen:
    """What a compensation that chooses came to: what is kept [units], and the weights' new rows."""

    kept: list[Tensor]
    rows: list[Tensor]


class Compensator:
    """Changes survivors as a technique's update says; holds nothing that changes."""

    def __init__(
        self, model: nn.Module, technique: Technique, prunables: Sequence[Prunable]
    ) -> None:
        self.model = model
        self.technique = technique
        self.prunables = prunables
        self.how: Compensation | None = technique.update.compensation

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be measured on data for it."""
        return self.how.needs if self.how is not None else ()

    @property
    def chooses(self) -> bool:
        """Whether it chooses by itself what goes."""
        return self.how is not None and self.how.chooses and self.how.method != "swaps"

    def choose(
        self, entries: Sequence[Entry], evidences: Sequence[Evidence], statistics: Statistics
    ) -> Chosen:
        """Choose and compensate, weight by weight; the model is left as it is."""
        kept, solved = [], []
        factors: dict[int, Tensor] = {}
        for prunable, evidence, entry in zip(self.prunables, evidences, entries, strict=True):
            picker = Picker.of(self.technique, prunable, evidence, entry.share, entry.removed)
            rows, mask = self._pick(picker, prunable.weight.name, statistics, factors)
            kept.append(mask.reshape(-1))
            solved.append(rows)
        return Chosen(kept, solved)

    def _pick(
        self, picker: Picker, name: str, statistics: Statistics, factors: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        assert self.how is not None
        rows, gram = picker.rows, statistics["gram"][name]
        if picker.idle:
            return rows, torch.ones_like(rows, dtype=torch.bool)
        if self.how.method == "admm":
            return solve_admm(picker, gram, self.how.damping or 0.0, self.how.steps or 1)
        upper = self._factor(gram, picker, factors)
        block = self.how.block or rows.shape[2]
        block = -(-block // picker.together) * picker.together
        columns = picker.columns(rows)
        pivots = upper.diagonal(dim1=1, dim2=2)
        kept = eliminate(columns, upper, picker.chooser(pivots), block, picker.together)
        return picker.back(columns), picker.back(kept)

    def _factor(self, gram: Tensor, picker: Picker, factors: dict[int, Tensor]) -> Tensor:
        """Return the factor of the inverse; weights that read the same share it."""
        assert self.how is not None
        known = factors.get(id(gram))
        if known is not None and picker.order is None:
            return known
        found = inverse_factor(damped(picker.ordered(gram), self.how.damping or 0.0))
        if picker.order is None:
            factors.clear()
            factors[id(gram)] = found
        return found

    def adjust(
        self, kept: list[Tensor], evidences: Sequence[Evidence], statistics: Statistics
    ) -> list[Tensor]:
        """Let kept and removed weights change places, where the update says so [units]."""
        if self.how is None or self.how.method != "swaps":
            return kept
        found = []
        for prunable, evidence, mask in zip(self.prunables, evidences, kept, strict=True):
            name = prunable.weight.name
            rows = widen(evidence.weight).flatten(2)
            spread = statistics["input_spread"][name].expand(prunable.weight.shape).flatten(2)
            swapped = swap(
                rows, mask.reshape(rows.shape), statistics["input_mean"][name], spread,
                self.how.steps or 1, self.how.threshold or 0.0,
                self.technique.granularity.block,
            )  # fmt: skip
            found.append(swapped.reshape(-1))
        return found

    def solve(self, masks: Mapping[str, Tensor], statistics: Statistics) -> None:
        """Change the survivors under the masks, which are not applied yet."""
        if self.how is None or self.how.chooses:
            return
        if self.how.method == "network":
            self._solve_together(masks, statistics["network_curvature"][""])
            return
        factors: dict[int, Tensor] = {}
        for prunable in self.prunables:
            weight = prunable.weight
            parameter = self.model.get_parameter(weight.parameter)
            values = weight.view(parameter.detach())
            rows, kept = widen(values).flatten(2), weight.view(masks[weight.parameter]).flatten(2)
            if not bool((rows * ~kept).any()):
                continue
            if self.how.method == "bias":
                self._take_mean(weight, rows * ~kept, statistics["input_mean"][weight.name])
            elif self.how.method == "fisher":
                blocks = statistics["fisher_blocks"][weight.name]
                solved = refit_blocks(rows.reshape(values.shape), kept.reshape(values.shape),
                                      prunable.units, blocks)  # fmt: skip
                self._write(weight, solved)
            else:
                gram = statistics["gram"][weight.name]
                self._write(weight, self._refitted(weight, rows, kept, gram, factors))

    def _solve_together(self, masks: Mapping[str, Tensor], curvature: Tensor) -> None:
        """Change the survivors of all weights by one quadratic model."""
        kept = joined(self.prunables, masks)
        if bool(kept.all()):
            return
        values = joined(self.prunables, dict(self.model.named_parameters())).detach()
        solved = parted(self.prunables, network_refit(values, kept, curvature))
        for prunable in self.prunables:
            self._write(prunable.weight, solved[prunable.weight.name])

    def _refitted(
        self,
        weight: PrunableWeight,
        rows: Tensor,
        kept: Tensor,
        gram: Tensor,
        factors: dict[int, Tensor],
    ) -> Tensor:
        assert self.how is not None and self.how.damping is not None
        if self.how.method == "columns":
            upper = factors.get(id(gram))
            if upper is None:
                factors.clear()
                upper = factors[id(gram)] = inverse_factor(damped(gram, self.how.damping))
            columns, marks = rows.transpose(1, 2).contiguous(), kept.transpose(1, 2)
            eliminate(columns, upper, lambda start, end, _: marks[:, start:end],
                      self.how.block or rows.shape[2])  # fmt: skip
            return columns.transpose(1, 2)
        exactly = rows.double()
        if self.how.method == "scale":
            width = rows.shape[2] // weight.shape[2]
            return rescale(gram.double(), exactly, kept, width, self.how.damping)
        return refit(damped(gram.double(), self.how.damping), exactly, kept)

    def _take_mean(self, weight: PrunableWeight, gone: Tensor, mean: Tensor) -> None:
        """Add what the removed weights gave on average to the bias, where there is one."""
        for name in weight.biases[:1]:
            bias = weight.view_outputs(self.model.get_parameter(name).detach())
            added = (gone @ mean.to(gone.dtype).unsqueeze(2)).squeeze(2).to(bias.dtype)
            bias += same_on_every_rank([added.contiguous()])[0]

    def write(self, chosen: Chosen) -> None:
        """Give the model the rows that were solved for."""
        for prunable, rows in zip(self.prunables, chosen.rows, strict=True):
            self._write(prunable.weight, rows)

    def _write(self, weight: PrunableWeight, rows: Tensor) -> None:
        view = weight.view(self.model.get_parameter(weight.parameter).detach())
        solved = same_on_every_rank([rows.reshape(view.shape).to(view.dtype).contiguous()])[0]
        if not bool(torch.isfinite(solved).all()):
            raise SecateurError(
                f"'{self.technique.update}' finds no finite values for {weight.name}: pass more "
                "data, or write a larger damping="
            )
        view.copy_(solved)
