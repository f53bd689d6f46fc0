"""The Sparsifier: carries a technique out on a model, and keeps all state outside of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify import hiding, updates
from secateur.sparsify.attachment import Attachment
from secateur.sparsify.budget import Budget, count_kept
from secateur.sparsify.coupled import CoupledEngine
from secateur.sparsify.engine import Engine
from secateur.sparsify.gates import Gates
from secateur.sparsify.given import positional
from secateur.sparsify.latency import fit_latency
from secateur.sparsify.memory import initial_memory
from secateur.sparsify.pieces import Pieces
from secateur.sparsify.report import Report, make_report
from secateur.sparsify.result import StepResult
from secateur.sparsify.setup import Setup, prepare
from secateur.sparsify.state import save_state, take_state
from secateur.sparsify.statistics import Loss
from secateur.sparsify.terms import Teacher, make_term
from secateur.structure import Trace, shrink, unwrap
from secateur.technique import Technique
from secateur.technique.catalogue import find_technique
from secateur.technique.update import HIDDEN

_SHRUNK = "the model's tensors have other sizes than its masks: after shrink, make a new Sparsifier"


class Sparsifier:
    """Prunes a model under a technique until a budget is reached.

    ``sparsity`` is the share of the prunable weights that goes; ``params``, ``macs`` and ``bytes``
    are shares of the model that stay, and ``latency`` of the time that it takes on the example
    inputs here, for which copies are shrunk and timed. ``include`` and ``exclude`` are glob
    patterns over layer names. ``technique`` may be a value, its text, or a name of the catalogue.
    ``data`` (batches) and ``loss`` serve criteria that ask for them. Weights whose outputs are the
    model's outputs keep their filters unless ``include`` names them.

    ``example_inputs`` (positional arguments of the model) is needed for ``macs``, and couples the
    layers for ``filter``, ``shared_kernel`` and ``head``: masks clear all that carries a channel,
    so that ``shrink`` can remove it, and budgets count what that leaves. Every layer keeps a
    channel; ``round_to`` keeps widths at multiples of a number; ``inexact`` admits channels whose
    removal changes what the masked network computes (a norm averages over them).

    ``teacher`` (a model) is what ``distillation`` learns from, by default a copy of the model as
    it is now. An objective needs one line in the loop: see ``objective_loss``.

    Raises SecateurError where the request cannot be carried out, with what to do instead.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> sparsifier = Sparsifier(model, "weight | global | magnitude | one_shot", sparsity=0.5)
    >>> sparsifier.step(1.0).achieved["sparsity"]
    0.5
    """

    def __init__(
        self,
        model: nn.Module,
        technique: Technique | str,
        *,
        sparsity: float | None = None,
        params: float | None = None,
        macs: float | None = None,
        bytes: float | None = None,  # noqa: A002
        latency: float | None = None,
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        example_inputs: tuple[Any, ...] | Tensor | None = None,
        data: Iterable[Any] | None = None,
        loss: Loss | None = None,
        inexact: bool = False,
        round_to: int = 1,
        teacher: Teacher | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise SecateurError(f"the model is a {type(model).__name__}: expected an nn.Module")
        if isinstance(technique, str):
            technique = find_technique(technique)
        if not isinstance(technique, Technique):
            kind = type(technique).__name__
            raise SecateurError(f"the technique is a {kind}: expected a text or a Technique")
        if data is not None and not isinstance(data, Iterable):
            raise SecateurError(f"data is a {type(data).__name__}: expected batches to go through")
        self.technique = technique
        self.model = unwrap(model)
        inputs = positional(example_inputs)
        budget = Budget.of(
            sparsity=sparsity, params=params, macs=macs, bytes=bytes, latency=latency
        )
        self._setup = prepare(
            self.model, self.technique, budget, include, exclude, inputs, data, inexact, round_to
        )
        self.budget = self._setup.budget
        if self.budget is not None and self.budget.currency == "latency":
            options = {"include": include, "exclude": exclude, "data": data, "loss": loss,
                       "inexact": inexact, "round_to": round_to, "seed": seed}  # fmt: skip
            self._setup = self._fitted(self.budget.value, inputs, options)
        kind = CoupledEngine if self._setup.groups else Engine
        self._engine = kind(self.model, self.technique, self._setup, data, loss, seed)
        gated = self.technique.criteria.gate is not None or self.technique.update.drop > 0
        self._gates = Gates(self.model, self.technique, self._setup) if gated else None
        self._term = make_term(self._engine, self.technique, teacher, self._gates)
        self._term_added = False
        self._masks = self._engine.open_masks()
        self._memory = initial_memory(self.model, self.technique, self._setup, seed)
        if self._gates is not None:
            self._gates.begin(self._memory, seed)
        self._attachment: Attachment | None = None
        self._applied: list[tuple[nn.Module, str, Tensor]] = []
        self._zeroed: dict[str, Tensor] = {}
        self._pieces = Pieces()
        self._last: StepResult | None = None

    def _fitted(
        self, latency: float, inputs: tuple[Any, ...] | None, options: dict[str, Any]
    ) -> Setup:
        """Turn a budget in latency into the share of MACs at which it was measured."""
        assert inputs is not None
        at_once = Technique(
            self.technique.granularity, self.technique.context, self.technique.criteria, "one_shot"
        )

        def shrunk_to(macs: float) -> nn.Module:
            copied = copy.deepcopy(self.model)
            sparsifier = Sparsifier(copied, at_once, macs=macs, example_inputs=inputs, **options)
            sparsifier.step(1.0)
            shrink(copied, sparsifier, inputs)
            return copied

        fit = fit_latency(self.model, shrunk_to, inputs, latency)
        note = (
            f"latency {latency:g} was asked for: {fit.macs:.4g} of the MACs took {fit.latency:.3g} "
            "of the dense network's time, as measured here"
        )
        return replace(
            self._setup, budget=Budget("macs", fit.macs), notes=(*self._setup.notes, note)
        )

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name to boolean tensor, True where the entry is kept."""
        return self._masks

    @property
    def coupled(self) -> bool:
        """Whether whole channels are pruned over coupled axes, so that ``shrink`` removes them."""
        return bool(self._setup.groups)

    @property
    def structure(self) -> Trace | None:
        """The structure that was traced, None where single weights are pruned."""
        return self._setup.measure.structure if self._setup.measure is not None else None

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimiser that advances it, None where it is not attached."""
        return self._attachment.optimizer if self._attachment is not None else None

    @property
    def history(self) -> list[dict[str, float]]:
        """One row per mask update: step, progress, target and achieved share in the currency."""
        return self._memory.history

    @property
    def steps(self) -> int:
        """Number of optimiser steps that the schedule has followed."""
        return self._memory.step

    @property
    def last_result(self) -> StepResult | None:
        """The result of the latest mask update, None before the first."""
        return self._last

    @property
    def progress(self) -> float:
        """Share of the training done: by the optimiser's steps, or as told to ``step`` last."""
        if self._memory.total:
            return min(1.0, self._memory.step / self._memory.total)
        return self._last.progress if self._last is not None else 0.0

    def objective_loss(self, outputs: Any = None, inputs: Any = None) -> Tensor:
        """Return what the technique's objective adds to the loss at this moment, a scalar.

        Add it to your own loss before ``backward()``. ``inputs`` is what the model was given (a
        tensor, a tuple of positional or a mapping of keyword arguments) and ``outputs`` what it
        answered; penalties on weights need neither. It is zero for the objective ``none``.
        """
        nothing = torch.zeros((), device=next(self.model.parameters()).device)
        self._term_added = True
        if self._term is None:
            return nothing
        if self._term.penalises:
            self._refuse_shrunk()
        self._term.follow(self._memory, self.progress)
        weight = self.technique.objective.at(self.progress)
        return nothing if weight == 0 else nothing + weight * self._term.value(outputs, inputs)

    def step(self, progress: float) -> StepResult:
        """Claim the share of the budget that the schedule asks for at a progress in [0, 1].

        Updates the masks, applies them, and says what was done; see ``StepResult``.
        """
        update = self.technique.update
        if update.step and self._attachment is None and not self._memory.rewind:
            raise SecateurError(
                f"'{update}' returns to a step of the training: attach the sparsifier to the "
                "optimiser"
            )
        self._refuse_shrunk()
        self._follow_devices()
        gated = self._gated
        changed, planned = 0, self._engine.rounds(self._memory, progress)
        for number, share in enumerate(planned, 1):
            self.reveal()
            before = {name: self._masks[name].clone() for name in self._engine.returning}
            result = self._engine.update(self._masks, self._memory, progress, share)
            changed += result.changed
            last = number == len(planned)
            self._memory.settled = last and self.technique.schedule.settles(progress)
            with torch.no_grad():
                back = self.technique.update.removed == "frozen"
                hiding.exchange(self.model, self._memory, before, self._masks, back)
            self._refresh()
            if not last:
                self.apply()
        result = replace(result, changed=changed)
        if gated and not self._gated and self._gates is not None:
            with torch.no_grad():
                self._gates.settle(self._memory)
        if result.changed and (progress < 1 or self._attachment is None):
            pruned = [prunable.weight.parameter for prunable in self._setup.prunables]
            updates.after_removal(
                self.model, self.technique.update, self._memory, self.optimizer, pruned
            )
        self.apply()
        self._engine.remember(self._memory, result)
        self._last = result
        self._look()
        return result

    def _look(self) -> None:
        """Let the objective take notice of the masks."""
        if self._term is not None:
            self._term.look(self._masks, self._memory, self.progress)

    def _refuse_shrunk(self) -> None:
        if any(self.model.get_parameter(n).shape != m.shape for n, m in self._masks.items()):
            raise SecateurError(_SHRUNK)

    def apply(self) -> None:
        """Set the removed entries of the model's parameters to zero, whatever they hold.

        Where they learn straight through, or wait, what they hold is kept aside; where the
        criterion learns, the other entries become what its gate makes of them.
        """
        with torch.no_grad():
            if self._gated and self._gates is not None and not self._memory.dense:
                self._gates.hide(self._memory, self._masks, self.progress)
            memory = self._memory
            hides = self.technique.update.removed in HIDDEN and not memory.settled
            if hides and not memory.shadow:
                hiding.hide(self.model, memory, self._zeroed)
            for parameter, mask in self._current():
                parameter.masked_fill_(mask == 0, 0)

    def reveal(self) -> None:
        """Give removed entries that learn straight through, or wait, what they hold.

        The optimiser then moves it by the gradient at zero, which is the straight-through one.
        """
        with torch.no_grad():
            hiding.show(self.model, self._memory)
            if self._gates is not None:
                self._gates.show(self._memory)

    @property
    def _gated(self) -> bool:
        """Whether the forward pass uses what a gate makes of the weights."""
        following = self._attachment is not None and not self._memory.settled
        return self._gates is not None and following

    def _before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the gradients back to what is trained, and show the optimiser what it trains."""
        if self._gates is not None and self._memory.dense:
            objective = self.technique.objective
            weight = objective.at(self.progress) if objective.name == "gates" else 0.0
            with torch.no_grad():
                self._gates.learn(self._memory, self._masks, optimizer, self.progress, weight)
        if self.technique.update.removed == "held":
            with torch.no_grad():
                hiding.stop_learning(self.model, self._memory, self._masks)
        self.reveal()

    def reapply(self) -> None:
        """Set removed entries to zero after an optimiser's step; faster, for finite values."""
        with torch.no_grad():
            self._pieces = self._pieces.renewed(self._current())
            self._pieces.multiply()

    def _current(self) -> list[tuple[Tensor, Tensor]]:
        """Pair the parameters, as they are now, with the masks that have something removed."""
        found = [(module._parameters[name], mask) for module, name, mask in self._applied]
        pairs: list[tuple[Tensor, Tensor]] = []
        pairs += [(parameter, mask) for parameter, mask in found if parameter is not None]
        if any(parameter.shape != mask.shape for parameter, mask in pairs):
            raise SecateurError(_SHRUNK)
        if any(parameter.device != mask.device for parameter, mask in pairs):
            self._follow_devices()
            return self._current()
        return pairs

    def _follow_devices(self) -> None:
        """Bring the masks to where the parameters are, after the model has moved."""
        places = {name: self.model.get_parameter(name).device for name in self._masks}
        if any(mask.device != places[name] for name, mask in self._masks.items()):
            for name, mask in self._masks.items():
                self._masks[name] = mask.to(places[name])
            for name, stored in self._memory.vectors.items():
                self._memory.vectors[name] = stored.to(places[name])
            self._refresh()

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        *,
        steps_per_epoch: int | None = None,
        scheduler: Any = None,
    ) -> None:
        """Let the optimiser's own steps advance the schedule and re-apply the masks.

        ``total_steps`` counts optimiser steps of the whole training. ``steps_per_epoch`` is needed
        for schedules in epochs; ``scheduler`` (a learning-rate scheduler) is rewound with the
        weights where the technique says so. After ``load_state_dict`` it goes on where it stopped;
        once the schedule has ended, a new attachment of any length just holds the masks.
        """
        if self._attachment is not None:
            raise SecateurError("the sparsifier is attached already; call detach() first")
        attachment = Attachment(self, optimizer, total_steps, steps_per_epoch, scheduler)
        attachment.check(self._memory)
        self._attachment = attachment
        try:
            attachment.start(self._memory)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Stop following the optimiser; masks and weights stay as they are."""
        if self._attachment is not None:
            self._attachment.stop()
            self._attachment = None

    def report(self) -> Report:
        """Return what is removed where, and what was passed over and why; it prints as a table."""
        return make_report(self.technique, self._setup, self._masks)

    def state_dict(self) -> dict[str, Any]:
        """Return all state, made of tensors and plain values only, to save beside the model's."""
        return save_state(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; a state of another technique, budget or model is refused.

        The weights are not touched: load them too, then ``attach`` (or ``apply``) sets to zero what
        the masks remove.
        """
        take_state(self, state)

    def _refresh(self) -> None:
        """List the parameters that have something removed, with masks ready to multiply by.

        A product with bytes is twice as fast as one with booleans; the memory is shared. Weights
        that learn on while removed can do so only if their scales and shifts stay.
        """
        learning = self.technique.update.removed != "frozen" and not self._memory.settled
        masks = self._engine.zeroed(self._masks, learning)
        self._applied, self._zeroed = [], {}
        for name, kept in count_kept(masks).items():
            if kept < masks[name].numel():
                self._zeroed[name] = masks[name]
                path, _, attribute = name.rpartition(".")
                module = self.model.get_submodule(path)
                self._applied.append((module, attribute, masks[name].view(torch.uint8)))
