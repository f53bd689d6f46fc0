"""The engine: one mask update, from evidence over scores and shares to new masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.allocation import Layer, shares
from secateur.sparsify.budget import count_kept, mask_overhead
from secateur.sparsify.compensation import Chosen
from secateur.sparsify.hiding import masked
from secateur.sparsify.knowledge import Knowledge
from secateur.sparsify.lazy import Scores, complete
from secateur.sparsify.memory import Memory
from secateur.sparsify.ordering import Ordering
from secateur.sparsify.plan import Choice, Entry, choose
from secateur.sparsify.ranks import same_on_every_rank
from secateur.sparsify.report import prunable_elements
from secateur.sparsify.result import StepResult, why_short
from secateur.sparsify.scoring import rank_units, refuse_nan
from secateur.sparsify.search import Division, by_momentum, recalibrated, search
from secateur.sparsify.select import count_true, keep_highest
from secateur.sparsify.setup import Prunable, Setup
from secateur.sparsify.statistics import Loss, Statistics, mean_loss
from secateur.technique import Criterion, Technique
from secateur.technique.context import SEARCHED

_PACKING_ROUNDS = 4


@dataclass(frozen=True)
class _Claim:
    """What an update should claim: the schedule's share and time, and the amount it comes to."""

    share: float
    time: float
    amount: float
    target: float


class Engine(Knowledge):
    """Computes mask updates; holds nothing that changes."""

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
        self.currency = setup.budget.currency if setup.budget else "sparsity"
        self.elements = prunable_elements(setup)

    @property
    def returning(self) -> tuple[str, ...]:
        """Parameters whose values are remembered on removal, and given back to what returns."""
        return self.vectors

    def zeroed(self, masks: Mapping[str, Tensor], learning: bool) -> Mapping[str, Tensor]:
        """Return the masks to apply; weights that learn on can do so if their vectors stay."""
        if not learning:
            return masks
        return {name: mask for name, mask in masks.items() if name not in set(self.vectors)}

    @property
    def vectors(self) -> tuple[str, ...]:
        """Parameters that go with whole outputs: biases, and the norms' scales and shifts."""
        names: list[str] = []
        if self.technique.granularity.whole_outputs:
            for prunable in self.setup.prunables:
                names += prunable.weight.biases
                names += [carrier.parameter for carrier in prunable.reach.carriers]
        return tuple(dict.fromkeys(names))

    def open_masks(self) -> dict[str, Tensor]:
        """Return masks that keep everything, laid out like their parameters."""
        parameters = dict(self.model.named_parameters())
        return {
            name: torch.ones_like(parameters[name], dtype=torch.bool, requires_grad=False)
            for name in (*self.elements, *self.vectors)
        }

    def rounds(self, memory: Memory, progress: float) -> list[float]:
        """Return the shares that an update claims one after the other, the schedule's the last.

        What is kept shrinks by the same factor every time, as in SynFlow.
        """
        number, claimed = self.technique.schedule.rounds, self.technique.schedule.at(progress)
        removed = self.setup.budget.removed if self.setup.budget else 1.0
        before = memory.claimed or 0.0
        if number == 1 or removed == 0 or claimed == before:
            return [claimed]
        first, last = 1 - removed * before, 1 - removed * claimed
        parts = [place / number for place in range(1, number)]
        return [*((1 - first ** (1 - part) * last**part) / removed for part in parts), claimed]

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
        if self.setup.ordering is not None and claimed > 0 and not memory.ordered:
            self._order_channels(self.setup.ordering, masks, memory)
        statistics = self._statistics(masks)
        generator = torch.Generator()
        generator.set_state(memory.generator)
        self._measure_damage(memory)
        removed = [self._removed(prunable, masks) for prunable in self.setup.prunables]
        overhead = self._first_overhead()
        for _ in range(_PACKING_ROUNDS):
            claim = self._claim(claimed, schedule.time(progress), overhead)
            entries = self._entries(claim, removed, memory, statistics, generator)
            rising = claimed >= (memory.claimed or 0.0)
            choice, chosen = self._decide(entries, claim, rising, memory, statistics, generator)
            kept = same_on_every_rank(choice.kept)
            self._write(masks, kept)
            counts = count_kept(masks)
            settled = mask_overhead(self.setup.ledger, counts)
            if self.currency != "bytes" or abs(settled - overhead) < 1:
                break
            overhead = settled
        if chosen is not None:
            self.compensator.write(chosen)
        self.compensator.solve(masks, statistics)
        memory.generator = generator.get_state()
        memory.claimed = claimed
        return self._result(progress, claim, entries, Choice(kept, choice.unmet), removed, counts)

    def _order_channels(self, ordering: Ordering, masks: dict[str, Tensor], memory: Memory) -> None:
        """Reorder the model's channels by the scores of this moment, and what is remembered."""
        generator = torch.Generator()
        generator.set_state(memory.generator)
        scores = self._scores(memory, self._statistics(masks), generator)
        weights = [prunable.weight for prunable in self.setup.prunables]
        done = ordering.carry_out(
            self.model, self.technique.granularity, weights, scores, self.optimizer
        )
        memory.follow(done)
        memory.ordered = True

    def _decide(
        self,
        entries: list[Entry],
        claim: _Claim,
        rising: bool,
        memory: Memory,
        statistics: Statistics,
        generator: torch.Generator,
    ) -> tuple[Choice, Chosen | None]:
        """Choose by scores; or let the compensation choose, and return its rows too."""
        moving = self.compensator.how is not None and self.compensator.how.chooses
        evidences = [
            self._evidence(prunable, memory, statistics, generator, passing=True)
            for prunable in (self.setup.prunables if moving else ())
        ]
        if self.compensator.chooses:
            if not rising:
                raise SecateurError(
                    f"'{self.technique.update}' changed survivors for good, and "
                    f"'{self.technique.schedule}' asks for some back: choose a rising schedule"
                )
            chosen = self.compensator.choose(entries, evidences, statistics)
            wanted = sum(entry.share * entry.cost for entry in entries)
            found = sum(
                entry.unit_cost * (len(kept) - count_true(kept))
                for entry, kept in zip(entries, chosen.kept, strict=True)
            )
            coarsest = max((entry.unit_cost for entry in entries), default=0.0)
            missed = wanted - found if wanted - found > coarsest * len(entries) else 0.0
            return Choice(chosen.kept, missed), chosen
        choice = choose(
            self.technique,
            entries,
            claim.amount,
            claim.time,
            exact_total=self.currency != "sparsity",
            rising=rising,
        )
        kept = self.compensator.adjust(choice.kept, evidences, statistics)
        return Choice(kept, choice.unmet), None

    def remember(self, memory: Memory, result: StepResult) -> None:
        """Note the update in the memory, with the weights as they now are if they are asked for."""
        memory.updates += 1
        memory.history.append(
            {
                "step": memory.step,
                "progress": result.progress,
                "target": result.target,
                "achieved": result.achieved[self.currency],
            }
        )
        parameters = dict(self.model.named_parameters())
        for name in memory.previous:
            memory.previous[name] = parameters[name].detach().clone()

    def _claim(self, share: float, time: float, overhead: float) -> _Claim:
        budget = self.setup.budget
        if budget is None:
            return _Claim(share, time, -1.0, share)
        total = self.setup.ledger.total(self.currency, sum(self.elements.values()))
        gone = share * budget.removed
        target = gone if self.currency == "sparsity" else 1 - gone
        return _Claim(share, time, total * gone + (overhead if gone else 0.0), target)

    def _first_overhead(self) -> float:
        """Guess that every prunable parameter is packed: one bit per element."""
        if self.currency != "bytes":
            return 0.0
        return sum(self.setup.ledger.places_bytes(name) for name in self.elements)

    def _unit_cost(self, prunable: Prunable) -> float:
        """Return what a complete unit costs, the vectors that go with its outputs included."""
        price, weight, units = self.setup.ledger.price, prunable.weight, prunable.units
        cost = price(self.currency, weight.parameter) * units.largest
        if self.technique.granularity.whole_outputs and self.currency in ("params", "bytes"):
            outputs = units.largest / (weight.numel / weight.outputs)
            vectors = [*weight.biases, *(carrier.parameter for carrier in prunable.reach.carriers)]
            cost += outputs * sum(price(self.currency, vector) for vector in vectors)
        return cost

    def _entries(
        self,
        claim: _Claim,
        removed: Sequence[Tensor],
        memory: Memory,
        statistics: Statistics,
        generator: torch.Generator,
    ) -> list[Entry]:
        plain = [
            Entry(p.weight, p.units, self._unit_cost(p), torch.empty(0), gone, 0.0,
                  gone=count_true(gone))
            for p, gone in zip(self.setup.prunables, removed, strict=True)
        ]  # fmt: skip
        divided = self._shares(plain, claim, memory, statistics, generator)
        entries = []
        if self.compensator.chooses:
            return [replace(entry, share=share)
                    for entry, share in zip(plain, divided, strict=True)]  # fmt: skip
        for entry, prunable, share in zip(plain, self.setup.prunables, divided, strict=True):
            evidence = self._evidence(prunable, memory, statistics, generator)
            removing = round(share * entry.units.count)
            scores = rank_units(self.technique.criteria, evidence, entry.units, removing)
            refuse_nan(scores, entry.weight.name, evidence.weight, self.technique.criteria)
            claimed = share
            if self.technique.context.allocation == "threshold" and claim.share:
                claimed = float((complete(scores) < 0).double().mean())
            growth = self._growth(evidence, entry, generator)
            entries.append(replace(entry, scores=scores, share=claimed, growth=growth))
        return entries

    def _shares(
        self,
        entries: Sequence[Entry],
        claim: _Claim,
        memory: Memory,
        statistics: Statistics,
        generator: torch.Generator,
    ) -> list[float]:
        lamp: list[Scores] = []
        if self.technique.context.allocation == "lamp":
            lamp = [
                rank_units(
                    Criterion("lamp"),
                    self._evidence(prunable, memory, {}, generator, plain=True),
                    prunable.units,
                )
                for prunable in self.setup.prunables
            ]
        layers = [Layer(entry.weight, entry.cost) for entry in entries]
        if self.technique.context.allocation in SEARCHED:
            return self._searched(entries, layers, claim, memory, statistics, generator)
        if self.technique.context.allocation == "momentum" and any(each.gone for each in entries):
            return by_momentum(
                [entry.cost for entry in entries],
                [entry.spent() for entry in entries],
                claim.amount,
                self.technique.schedule.mask.share_at(claim.time),
                self._momenta(entries),
            )
        return shares(
            self.technique.context,
            layers,
            claim.amount,
            claim.share,
            lamp,
            memory.damage,
            self.setup.ends,
            self._traits(memory, statistics, generator),
        )

    def _searched(
        self,
        entries: Sequence[Entry],
        layers: Sequence[Layer],
        claim: _Claim,
        memory: Memory,
        statistics: Statistics,
        generator: torch.Generator,
    ) -> list[float]:
        """Try divisions of what is claimed on the model, by the scores of this moment."""
        assert self.data is not None
        data = self.data
        scores = [
            found.masked_fill(entry.removed, -torch.inf)
            for entry, found in zip(
                entries, self._scores(memory, statistics, generator), strict=True
            )
        ]

        def trial(divide: Division) -> float:
            kept = [
                keep_highest([part], min(len(part), round(share * len(part))))[0]
                for part, share in zip(scores, divide(claim.amount), strict=True)
            ]
            masks = self.open_masks()
            self._write(masks, kept)
            with masked(self.model, masks), recalibrated(self.model, data):
                return mean_loss(self.model, data, self.loss)

        spent = [entry.spent() for entry in entries]
        name = self.technique.context.allocation
        divide = search(name, layers, scores, spent, claim.amount, trial, generator)
        return divide(claim.amount)

    def _removed(self, prunable: Prunable, masks: dict[str, Tensor]) -> Tensor:
        """Return which units are removed now [units]."""
        view = prunable.weight.view(masks[prunable.weight.parameter])
        return ~prunable.units.pick(view)

    def _write(self, masks: dict[str, Tensor], kept: Sequence[Tensor]) -> None:
        """Spread the units over the weights' masks, and whole outputs over their vectors."""
        pairs = list(zip(self.setup.prunables, kept, strict=True))
        for prunable, units_kept in pairs:
            view = prunable.weight.view(masks[prunable.weight.parameter])
            view.copy_(prunable.units.spread(units_kept))
        if not self.technique.granularity.whole_outputs:
            return
        outputs = {}
        for prunable, units_kept in pairs:
            spread = prunable.units.spread(units_kept)
            outputs[prunable.weight.name] = spread.flatten(2)[:, :, 0]
            for carrier in prunable.reach.carriers:
                end = carrier.offset + prunable.weight.outputs
                masks[carrier.parameter][carrier.offset : end] = False
        for prunable, _ in pairs:
            alive = outputs[prunable.weight.name]
            for bias in prunable.weight.biases:
                prunable.weight.view_outputs(masks[bias]).copy_(alive)
            for carrier in prunable.reach.carriers:
                end = carrier.offset + prunable.weight.outputs
                masks[carrier.parameter][carrier.offset : end] |= alive.reshape(-1)

    def _result(
        self,
        progress: float,
        claim: _Claim,
        entries: Sequence[Entry],
        choice: Choice,
        removed: Sequence[Tensor],
        counts: dict[str, int],
    ) -> StepResult:
        total = self.setup.ledger.total(self.currency, sum(self.elements.values()))
        offered = sum(entry.share * entry.cost for entry in entries)
        coarsest = max((entry.unit_cost for entry in entries), default=0.0)
        unmet = choice.unmet
        if claim.amount >= 0 and claim.amount - offered > coarsest / 2 + 1e-6 * total:
            unmet += claim.amount - offered
        numbers = [len(kept) - count_true(kept) for kept in choice.kept]
        changed = sum(
            count_true(kept == before) if entry.gone else number
            for kept, before, entry, number in zip(
                choice.kept, removed, entries, numbers, strict=True
            )
        )
        achieved = self.setup.ledger.achieved(counts, self.elements)
        return StepResult(
            progress,
            sum(numbers),
            changed,
            self.currency,
            claim.target if self.setup.budget else offered / max(1.0, total),
            achieved,
            unmet / total if total else 0.0,
            why_short(self.technique, self.currency, claim.target, achieved) if unmet > 0 else None,
            tuple(
                entry.weight.name
                for entry, number in zip(entries, numbers, strict=True)
                if number == entry.units.count
            ),
            {
                entry.weight.name: number / max(1, entry.units.count)
                for entry, number in zip(entries, numbers, strict=True)
            },
        )
