"""Knowledge: what an engine knows of a model's weights, beside their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.activations import look
from secateur.sparsify.allocation import outliers, tail_exponent
from secateur.sparsify.compensation import Compensator
from secateur.sparsify.curvature import refuse_curvature
from secateur.sparsify.hiding import masked
from secateur.sparsify.influence import influences
from secateur.sparsify.memory import Memory
from secateur.sparsify.plan import Entry
from secateur.sparsify.scoring import score_units, widen
from secateur.sparsify.second_order import OF_THE_NETWORK, SECOND_ORDER, derived, measure
from secateur.sparsify.setup import Prunable, Setup
from secateur.sparsify.sites import learned_of
from secateur.sparsify.statistics import Loss, Statistics, collect, mean_loss, reiterable
from secateur.structure import PrunableWeight
from secateur.technique import Criterion, Evidence, Technique
from secateur.technique.criteria import REDUCERS


class Knowledge:
    """Gathers evidence for scores, growth and shares; holds nothing that changes by itself.

    ``optimizer`` is the one that is followed, if any.
    """

    def __init__(
        self,
        model: nn.Module,
        technique: Technique,
        setup: Setup,
        data: Iterable[Any] | None,
        loss: Loss | None,
        seed: int,
    ) -> None:
        self.model = model
        self.technique = technique
        self.setup = setup
        self.data = None if data is None else reiterable(data)
        self.loss = loss
        self.seed = seed
        self.optimizer: torch.optim.Optimizer | None = None
        self.compensator = Compensator(model, technique, setup.prunables)
        if OF_THE_NETWORK & {*self.needs, *self.compensator.needs}:
            refuse_curvature(setup.prunables, loss)

    @property
    def needs(self) -> set[str]:
        """What must be known beside the weights, for the scores and for regrowth."""
        dynamics = self.technique.schedule.mask
        grows = dynamics.kind == "regrown" and dynamics.by == "gradient"
        divides = self.technique.context.allocation == "owl"
        return {
            *self.technique.criteria.needs,
            *(["gradient"] if grows else []),
            *(["input_norm"] if divides else []),
        }

    @property
    def waits_for_training(self) -> bool:
        """Whether nothing can be told units apart by before the first optimiser step.

        So it is where gradients come from the training, and where the criterion looks at movement.
        """
        return ("gradient" in self.needs and self.data is None) or self.technique.criteria.moves

    def _evidence(
        self,
        prunable: Prunable,
        memory: Memory,
        statistics: Statistics,
        generator: torch.Generator,
        plain: bool = False,
        passing: bool = False,
    ) -> Evidence:
        weight = prunable.weight
        parameter = self.model.get_parameter(weight.parameter)
        known: dict[str, Any] = {"weight": weight.view(parameter.detach()), "generator": generator}
        for need in () if plain else sorted(self.needs):
            if need in SECOND_ORDER:
                if not passing:
                    known[need] = derived(need, prunable, known["weight"], statistics)
            elif need in statistics:
                known[need] = statistics[need][weight.name]
            elif need in ("saved", "previous"):
                stored = getattr(memory, need)[weight.parameter]
                known[need] = weight.view(stored.to(parameter.device))
            elif need == "gradient":
                known[need] = weight.view(_training_gradient(parameter, weight.parameter))
            elif need == "learned":
                known[need] = learned_of(self.setup, prunable, memory.learned)
            elif need == "norm_scale":
                known[need] = self._norm_scale(prunable)
            elif need == "carried":
                rows, _ = prunable.units.rows(widen(known["weight"]))
                known[need] = prunable.units.spread(rows.square().sum(1))
        return Evidence(**known)

    def _scores(
        self, memory: Memory, statistics: Statistics, generator: torch.Generator
    ) -> list[Tensor]:
        """Score the units of every weight, as the weights now are."""
        return [
            score_units(
                self.technique.criteria,
                self._evidence(prunable, memory, statistics, generator),
                prunable.units,
            )
            for prunable in self.setup.prunables
        ]

    def _norm_scale(self, prunable: Prunable) -> Tensor:
        weight = prunable.weight
        carrier = next(carrier for carrier in prunable.reach.carriers if carrier.scale)
        scale = self.model.get_parameter(carrier.parameter).detach()
        own = scale[carrier.offset : carrier.offset + weight.outputs]
        return own.reshape(*weight.shape[:2], *[1] * (len(weight.shape) - 2))

    def _growth(
        self, evidence: Evidence, entry: Entry, generator: torch.Generator
    ) -> Tensor | None:
        """Score removed units that may return; the highest return first."""
        dynamics = self.technique.schedule.mask
        if dynamics.kind != "regrown":
            return None
        if dynamics.by == "random":
            drawn = torch.rand(entry.units.count, generator=generator)
            return drawn.to(evidence.weight.device)
        source = evidence.weight
        if dynamics.by == "gradient":
            source = evidence.get("gradient")
        elif dynamics.by == "momentum":
            source = self._momentum(entry.weight, bool(entry.gone))
        return REDUCERS.get("mean").function(*entry.units.rows(widen(source).abs()))

    def _statistics(self, masks: Mapping[str, Tensor]) -> Statistics:
        needs = self.needs - {"saved", "previous", "learned", "norm_scale", "carried"}
        needs |= {*self.compensator.needs}
        if not needs or self.data is None:
            return {}
        weights = [prunable.weight for prunable in self.setup.prunables]
        seen = look(self.model, self.setup.prunables, needs, self.data)
        read = measure(self.model, self.setup.prunables, needs, self.data, self.loss,
                       self.compensator.how)  # fmt: skip
        read |= influences(self.model, self.setup, needs, self.data, self.loss)
        if "masked_gradient" in needs:
            with masked(self.model, masks):
                found = collect(self.model, weights, {"gradient"}, self.data, self.loss, self.seed)
            read["masked_gradient"] = found["gradient"]
        return seen | read | collect(self.model, weights, needs, self.data, self.loss, self.seed)

    def _momentum(self, weight: PrunableWeight, needed: bool) -> Tensor:
        """Return the optimiser's running mean of a weight's gradients; zeros if not needed yet."""
        parameter = self.model.get_parameter(weight.parameter)
        state = self.optimizer.state.get(parameter, {}) if self.optimizer is not None else {}
        found = state.get("momentum_buffer", state.get("exp_avg"))
        if found is None and needed:
            raise SecateurError(
                f"'{self.technique.schedule}' looks at the optimiser's momentum, and there is none "
                f"of {weight.parameter}: attach to an optimiser that has it, such as SGD with "
                "momentum or Adam"
            )
        return weight.view(torch.zeros_like(parameter) if found is None else found.detach())

    def _momenta(self, entries: Sequence[Entry]) -> list[float]:
        """Return the mean size of the momentum of each layer's surviving weights."""
        found = []
        for entry in entries:
            size = self._momentum(entry.weight, needed=True).abs()
            kept = entry.units.spread(~entry.removed)
            found.append(float((size * kept).sum() / kept.sum().clamp(min=1)))
        return found

    def _traits(
        self, memory: Memory, statistics: Statistics, generator: torch.Generator
    ) -> list[float]:
        """Return what the allocation asks of each layer's values: outliers, or its spectrum."""
        name = self.technique.context.allocation
        found: list[float] = []
        for prunable in self.setup.prunables if name in ("owl", "tail") else ():
            evidence = self._evidence(prunable, memory, statistics, generator, passing=True)
            if name == "owl":
                found.append(outliers(widen(evidence.weight).abs() * evidence.get("input_norm")))
            else:
                found.append(tail_exponent(evidence.weight.flatten(2).flatten(0, 1)))
        return found

    def _measure_damage(self, memory: Memory) -> None:
        """Measure, once, how much the loss grows when each layer alone is pruned by magnitude."""
        budget = self.setup.budget
        if self.technique.context.allocation != "sensitivity" or memory.damage or budget is None:
            return
        assert self.data is not None
        base = mean_loss(self.model, self.data, self.loss)
        for prunable in self.setup.prunables:
            parameter = self.model.get_parameter(prunable.weight.parameter)
            before = parameter.detach().clone()
            view = prunable.weight.view(parameter.detach())
            scores = score_units(Criterion("magnitude"), Evidence(view), prunable.units)
            count = round(budget.removed * prunable.units.count)
            kept = torch.ones_like(scores, dtype=torch.bool)
            kept[torch.argsort(scores, stable=True)[:count]] = False
            try:
                view.mul_(prunable.units.spread(kept))
                damaged = mean_loss(self.model, self.data, self.loss)
            finally:
                parameter.copy_(before)
            memory.damage[prunable.weight.name] = damaged - base


def _training_gradient(parameter: nn.Parameter, name: str) -> Tensor:
    if parameter.grad is None:
        raise SecateurError(
            f"the criterion needs gradients and {name} has none: pass data=, attach to the "
            "optimiser and train (before zero_grad), or exclude it if the loss does not use it"
        )
    return parameter.grad.detach()
