"""The engine for coupled axes: what is masked can be removed, and budgets count what is left."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.allocation import Layer, shares, written
from secateur.sparsify.coupling import Measure, fewest
from secateur.sparsify.engine import Engine
from secateur.sparsify.hiding import masked
from secateur.sparsify.lazy import complete
from secateur.sparsify.memory import Memory
from secateur.sparsify.plan import Choice, Entry, choose
from secateur.sparsify.ranks import same_on_every_rank
from secateur.sparsify.result import StepResult
from secateur.sparsify.scoring import refuse_nan, score_units, widen
from secateur.sparsify.search import Division, recalibrated, search
from secateur.sparsify.select import count_true
from secateur.sparsify.setup import Setup
from secateur.sparsify.statistics import Loss, Statistics, mean_loss
from secateur.technique import Criterion, Technique
from secateur.technique.context import SEARCHED
from secateur.technique.criteria import REDUCERS

_HALVINGS = 40


class CoupledEngine(Engine):
    """Computes mask updates over axes; holds nothing that changes."""

    def __init__(
        self,
        model: nn.Module,
        technique: Technique,
        setup: Setup,
        data: Iterable[Any] | None,
        loss: Loss | None,
        seed: int,
    ) -> None:
        super().__init__(model, technique, setup, data, loss, seed)
        assert setup.measure is not None
        self.measure: Measure = setup.measure
        self.groups = setup.groups
        self.prices = [self.measure.price(group, self.currency) for group in self.groups]

    @property
    def returning(self) -> tuple[str, ...]:
        """All that carries an axis, if channels may return: they get the values that they had.

        No weight of a channel that is zero in every layer has a gradient, so it could not learn
        from zero; see CHEX (Hou et al. 2022), whose channels return so too.
        """
        schedule = self.technique.schedule
        shares = [schedule.at(place / 128) for place in range(129)]
        falls = any(later < earlier for earlier, later in itertools.pairwise(shares))
        if self.technique.update.removed != "frozen":
            return ()
        return self._carriers if falls or schedule.mask.kind != "permanent" else ()

    @property
    def _carriers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for group in self.groups for name, _, _ in group.carriers))

    def zeroed(self, masks: Mapping[str, Tensor], learning: bool) -> Mapping[str, Tensor]:
        """Return the masks to apply; weights that learn on can do so if what reads them stays."""
        if not learning:
            return masks
        made = {name: torch.ones_like(mask) for name, mask in masks.items()}
        for group in self.groups:
            group.write(made, ~group.gone(masks), group.made)
        return made

    def open_masks(self) -> dict[str, Tensor]:
        """Return masks that keep everything, laid out like their parameters."""
        parameters = dict(self.model.named_parameters())
        return {
            name: torch.ones_like(parameters[name], dtype=torch.bool, requires_grad=False)
            for name in self._carriers
        }

    @torch.no_grad()
    def update(
        self,
        masks: dict[str, Tensor],
        memory: Memory,
        progress: float,
        share: float | None = None,
    ) -> StepResult:
        """Choose what is kept at a progress in [0, 1] and write it into the masks.

        ``share`` is claimed in place of the schedule's share.
        """
        schedule = self.technique.schedule
        claimed = schedule.at(progress) if share is None else share
        generator = torch.Generator()
        generator.set_state(memory.generator)
        self._measure_damage(memory)
        removed = [group.gone(masks) for group in self.groups]
        rising = claimed >= (memory.claimed or 0.0)
        statistics = self._statistics(masks)
        entries = self._scored(claimed, removed, memory, statistics, generator)
        time = schedule.time(progress)
        divide = self._division(entries, claimed, time, rising, memory, generator)
        kept, shortfall = self._search(entries, claimed, time, rising, memory, divide)
        # Some backends of a process group broadcast only what lies on the accelerator.
        place = next(iter(masks.values())).device
        kept = [each.cpu() for each in same_on_every_rank([each.to(place) for each in kept])]
        for mask in masks.values():
            mask.fill_(True)
        for group, mask in zip(self.groups, kept, strict=True):
            group.write(masks, mask)
        self.compensator.solve(masks, statistics)
        memory.generator = generator.get_state()
        memory.claimed = claimed
        return self._outcome(progress, claimed, kept, removed, shortfall)

    def _scored(
        self,
        claimed: float,
        removed: Sequence[Tensor],
        memory: Memory,
        statistics: Statistics,
        generator: torch.Generator,
    ) -> list[Entry]:
        """Score every axis by its weights; the best index of each may not go."""
        wanted = claimed * (self.setup.budget.removed if self.setup.budget else 0.0)
        scores = []
        squares = self._squares()
        for place, prunable in enumerate(self.setup.prunables):
            evidence = self._evidence(prunable, memory, statistics, generator)
            if squares:
                own = prunable.units.pick(evidence.get("carried"))
                carried = self._carried(place, squares, own.double().cpu())
                evidence = replace(evidence, carried=prunable.units.spread(carried))
            removing = round(wanted * prunable.units.count)
            found = score_units(self.technique.criteria, evidence, prunable.units, removing)
            refuse_nan(found, prunable.weight.name, evidence.weight, self.technique.criteria)
            scores.append(found)
        growths = self._growths(memory, generator)
        entries = []
        for place, (group, gone) in enumerate(zip(self.groups, removed, strict=True)):
            own = group.score(scores)
            able = own
            if self.technique.schedule.mask.kind != "reselected":
                able = own.masked_fill(gone, -torch.inf)
            if group.least:
                own[_best(able)] = torch.inf
            growth = growths[place] if growths else None
            entries.append(
                Entry(group.weight, group.units, self.prices[place], own, gone, 0.0,
                      growth=growth, gone=count_true(gone), coupled=group.weights)
            )  # fmt: skip
        return entries

    def _squares(self) -> list[Tensor]:
        """Sum the squares of all that carries each axis, where the criterion asks for it."""
        if "carried" not in self.needs:
            return []
        parameters = dict(self.model.named_parameters())
        return [group.squares(parameters) for group in self.groups]

    def _carried(self, place: int, squares: Sequence[Tensor], own: Tensor) -> Tensor:
        """Return the sums of a weight's units, which may belong to several axes or to none."""
        total, carried = torch.zeros_like(own), torch.zeros_like(own, dtype=torch.bool)
        for group, sums in zip(self.groups, squares, strict=True):
            for member in group.members:
                if member.place == place:
                    total += sums[member.index.clamp(min=0)] * (member.index >= 0)
                    carried |= member.index >= 0
        return torch.where(carried, total, own)

    def _growths(self, memory: Memory, generator: torch.Generator) -> list[Tensor]:
        """Score, for every axis, the removed indices that may return; the highest return first."""
        dynamics = self.technique.schedule.mask
        if dynamics.kind != "regrown":
            return []
        if dynamics.by == "random":
            return [torch.rand(group.axis.size, generator=generator) for group in self.groups]
        found = []
        for prunable in self.setup.prunables:
            weight = prunable.weight
            values = self.model.get_parameter(weight.parameter).detach().abs()
            if weight.parameter in memory.vectors:
                values = values.maximum(memory.vectors[weight.parameter].abs())
            rows = prunable.units.rows(widen(weight.view(values)))
            found.append(REDUCERS.get("mean").function(*rows))
        return [group.score(found) for group in self.groups]

    def _lamp(self, memory: Memory, generator: torch.Generator) -> list[Tensor]:
        """Return the LAMP scores of every axis' weights, by which the allocation ranks."""
        if self.technique.context.allocation != "lamp":
            return []
        scores = [
            score_units(Criterion("lamp"), self._evidence(each, memory, {}, generator, plain=True),
                        each.units)
            for each in self.setup.prunables
        ]  # fmt: skip
        return [group.score(scores) for group in self.groups]

    def _division(
        self,
        entries: list[Entry],
        claimed: float,
        time: float,
        rising: bool,
        memory: Memory,
        generator: torch.Generator,
    ) -> Division | None:
        """Search for a division on the model, where the allocation asks for one."""
        name, budget = self.technique.context.allocation, self.setup.budget
        if name not in SEARCHED or budget is None:
            return None
        assert self.data is not None
        data = self.data

        def trial(divide: Division) -> float:
            kept, _ = self._search(entries, claimed, time, rising, memory, divide)
            masks = self.open_masks()
            for group, mask in zip(self.groups, kept, strict=True):
                group.write(masks, mask)
            with masked(self.model, masks), recalibrated(self.model, data):
                return mean_loss(self.model, data, self.loss)

        scores = [
            complete(entry.scores).masked_fill(entry.removed, -torch.inf) for entry in entries
        ]
        spent = [entry.spent() for entry in entries]
        amount = claimed * budget.removed * sum(entry.cost for entry in entries)
        return search(name, _layers(entries), scores, spent, amount, trial, generator)

    def _search(
        self,
        entries: list[Entry],
        claimed: float,
        time: float,
        rising: bool,
        memory: Memory,
        divide: Division | None = None,
    ) -> tuple[list[Tensor], float]:
        """Find the claim whose outcome, counted over the real structure, is nearest the target.

        Prices add up only while little is removed: a channel's cost falls with every neighbour
        that goes. So the claim is found by halving.
        """
        budget, context = self.setup.budget, self.technique.context
        lamp = self._lamp(memory, torch.Generator())

        def choose_for(amount: float) -> list[Tensor]:
            return self._choose(entries, amount, claimed, time, rising, memory, lamp, divide)

        if budget is None:
            return choose_for(-1.0), 0.0
        target = claimed * budget.removed
        everything = sum(entry.cost for entry in entries)
        low, high = 0.0, everything
        if context.allocation == "given":
            low = written(context, _layers(entries), claimed)
        finest = min((entry.unit_cost for entry in entries), default=0.0)
        best: tuple[float, list[Tensor]] | None = None
        amount = low
        for _ in range(_HALVINGS):
            kept = choose_for(amount)
            gap = self._removed_by(kept) - target
            if best is None or abs(gap) < abs(best[0]):
                best = (gap, kept)
            low, high = (amount, high) if gap < 0 else (low, amount)
            if gap == 0 or high - low < finest / 4:
                break
            amount = (low + high) / 2
        assert best is not None
        if context.allocation == "given" and best[0] > max(self.prices):
            raise SecateurError(
                f"the shares written in {context} remove {target + best[0]:.4g} in "
                f"{self.currency}, more than the budget's {target:.4g}; give one of them"
            )
        if best[0] >= 0:
            return best[1], 0.0
        # Short of the target by a rounding, or because no more may go?
        most = self._removed_by(choose_for(everything)) - target
        return best[1], -best[0] if most <= best[0] + 1e-9 else 0.0

    def _choose(
        self,
        entries: list[Entry],
        amount: float,
        claimed: float,
        time: float,
        rising: bool,
        memory: Memory,
        lamp: Sequence[Tensor],
        divide: Division | None = None,
    ) -> list[Tensor]:
        divided = divide(amount) if divide is not None else shares(
            self.technique.context, _layers(entries), amount, claimed, lamp, memory.damage,
            self.setup.ends,
        )  # fmt: skip
        shared = [
            replace(entry, share=share) for entry, share in zip(entries, divided, strict=True)
        ]
        choice: Choice = choose(
            self.technique, shared, amount, time, exact_total=True, rising=rising
        )
        return [self._round(kept, entry) for kept, entry in zip(choice.kept, shared, strict=True)]

    def _round(self, kept: Tensor, entry: Entry) -> Tensor:
        """Keep a multiple of ``round_to`` indices, the nearest one; or all, where none has gone."""
        multiple, size, count = self.setup.round_to, len(kept), count_true(kept)
        if multiple == 1 or count in (0, size) or count % multiple == 0:
            return kept
        least = math.ceil(self.technique.context.keep * size / multiple - 1e-9) * multiple
        least = max(least, fewest(size, multiple))
        wanted = min(size, max(least, round(count / multiple) * multiple))
        if abs(size - count) < abs(wanted - count):
            wanted = size
        scores = complete(entry.scores)
        if self.technique.schedule.mask.kind != "reselected":
            scores = scores.masked_fill(entry.removed, -torch.inf)
        order = scores.argsort(descending=True, stable=True)
        # What is chosen comes before what is not; the best of either comes first.
        order = order[torch.argsort((~kept[order]).int(), stable=True)]
        rounded = torch.zeros_like(kept)
        rounded[order[:wanted]] = True
        return rounded

    def _removed_by(self, kept: Sequence[Tensor]) -> float:
        leaves = {group.leaf: mask for group, mask in zip(self.groups, kept, strict=True)}
        return self.measure.removed(self.currency, leaves)

    def _outcome(
        self,
        progress: float,
        claimed: float,
        kept: Sequence[Tensor],
        removed: Sequence[Tensor],
        shortfall: float,
    ) -> StepResult:
        leaves = {group.leaf: mask for group, mask in zip(self.groups, kept, strict=True)}
        achieved = self.measure.shares(leaves)
        budget = self.setup.budget
        gone = [len(mask) - count_true(mask) for mask in kept]
        target = achieved["sparsity"]
        if budget is not None:
            target = claimed * budget.removed
            target = target if self.currency == "sparsity" else 1 - target
        return StepResult(
            progress,
            sum(gone),
            sum(int((mask == before).sum()) for mask, before in zip(kept, removed, strict=True)),
            self.currency,
            target,
            achieved,
            shortfall,
            self._why(target, achieved[self.currency]) if shortfall else None,
            tuple(group.axis.name for group, number in zip(self.groups, gone, strict=True)
                  if number == group.axis.size - 1 > 1),
            {group.axis.name: number / group.axis.size
             for group, number in zip(self.groups, gone, strict=True)},
        )  # fmt: skip

    def _why(self, target: float, reached: float) -> str:
        """Say why a claim could not be met."""
        context, round_to = self.technique.context, self.setup.round_to
        causes = ["one channel stays of every axis"]
        if not all(group.least for group in self.groups):
            causes = ["whole branches are coarse"]
        if context.keep:
            causes = [f"every axis keeps {context.keep:g} of its channels"]
        if round_to > 1:
            causes.append(f"widths are multiples of {round_to}")
        if context.allocation in ("uniform_plus", "given"):
            causes.append(f"the allocation {context.allocation} spares some layers")
        if context.pool == "groups":
            causes.append("layers outside the groups stay dense")
        said = " and ".join(causes)
        return f"asked for {self.currency} {target:.4g}, reached {reached:.4g}: {said}"


def _best(scores: Tensor) -> int:
    """Return the place of the highest score; of equal ones the last, as the first goes first."""
    return int((scores == scores.max()).nonzero()[-1])


def _layers(entries: Sequence[Entry]) -> list[Layer]:
    return [Layer(entry.weight, entry.cost, entry.coupled) for entry in entries]
