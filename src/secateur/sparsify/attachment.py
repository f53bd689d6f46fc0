"""Attachment: an optimiser's own steps advance the schedule and re-apply the masks."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch

from secateur.errors import SecateurError
from secateur.sparsify.memory import Memory, remember_model
from secateur.sparsify.updates import hold
from secateur.technique import Schedule, Technique
from secateur.technique.syntax import count
from secateur.technique.update import HIDDEN

if TYPE_CHECKING:
    from secateur.sparsify.sparsifier import Sparsifier

CLAIM_STEP = 0.005
"""Without a stated trigger, a mask is updated when the claimed share has moved by this much."""

MOVING_UPDATES = 100
"""Without a stated trigger, masks that move are updated so many times."""


class Attachment:
    """Follows one optimiser through its step hook."""

    def __init__(
        self,
        sparsifier: Sparsifier,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        steps_per_epoch: int | None,
        scheduler: Any,
    ) -> None:
        check_length(sparsifier.technique, total_steps)
        self.sparsifier = sparsifier
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            kind = type(self.optimizer).__name__
            raise SecateurError(f"the optimiser is a {kind}: expected a torch.optim.Optimizer")
        self.holds = False
        self.total = total_steps
        self.scheduler = scheduler
        self.every = _steps_between(sparsifier.technique.schedule, total_steps, steps_per_epoch)
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        own = dict(sparsifier.model.named_parameters())
        if not any(id(own[name]) in known for name in sparsifier.masks):
            raise SecateurError("the optimiser holds none of the parameters that are to be pruned")
        self._handles: list[Any] = []

    def check(self, memory: Memory) -> None:
        """Raise SecateurError where a memory belongs to a run of another length."""
        if not _ended(memory) and memory.total not in (0, self.total):
            raise SecateurError(
                f"the schedule is at step {memory.step} of a run of {memory.total} steps, which "
                f"cannot go on as one of {self.total}"
            )

    def start(self, memory: Memory) -> None:
        """Begin at step 0, or go on where a loaded state stopped."""
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        self.holds = _ended(memory)
        self.sparsifier._engine.optimizer = self.optimizer
        if memory.step == 0 and not self.holds:
            self._remember(memory)
            schedule = self.sparsifier.technique.schedule
            if not self._waits_for_training():
                if schedule.at(0.0) > 0:
                    self.sparsifier.step(0.0)
                else:
                    self.sparsifier._look()
        frozen = self.sparsifier.technique.update.removed == "frozen"
        # What learns on while it is removed goes on with what it has learnt.
        if frozen or memory.settled or memory.step == 0:
            self.sparsifier.apply()
        if not self.holds:
            memory.total = self.total

    def stop(self) -> None:
        """Take the hooks off the optimiser."""
        self.sparsifier._engine.optimizer = None
        for handle in self._handles:
            handle.remove()

    def _before_step(self, *_: Any) -> None:
        """Show what learns unseen, and remember or rewind the learning rate before a step.

        The learning rate waits until here, as its scheduler moves it after the step before.
        """
        self.sparsifier._before_step(self.optimizer)
        memory = self.sparsifier._memory
        update = self.sparsifier.technique.update
        alone = update.optimizer == "rewind_rate"
        if not alone and (update.optimizer != "rewind" or self.scheduler is None):
            return
        if memory.returning and memory.scheduler is not None:
            if self.scheduler is not None:
                self.scheduler.load_state_dict(copy.deepcopy(memory.scheduler["state"]))
            for group, settings in zip(
                self.optimizer.param_groups, memory.scheduler["groups"], strict=True
            ):
                group.update(copy.deepcopy(settings))
            memory.returning = False
        elif memory.step == update.step and memory.scheduler is None:
            groups = [
                {name: value for name, value in group.items() if name != "params"}
                for group in self.optimizer.param_groups
            ]
            state = self.scheduler.state_dict() if self.scheduler is not None else None
            memory.scheduler = copy.deepcopy({"state": state, "groups": groups})

    def _after_step(self, *_: Any) -> None:
        memory = self.sparsifier._memory
        hold(self.sparsifier.model, memory)
        if self.holds:
            self.sparsifier.reapply()
            return
        self._check_objective()
        memory.step += 1
        self._remember(memory)
        if self.sparsifier._term is not None:
            self.sparsifier._term.after_step(memory)
        if memory.step == 1 and self._waits_for_training():
            self.sparsifier._look()
        if memory.step <= self.total and self._due(memory):
            self.sparsifier.step(memory.step / self.total)
        elif self.sparsifier._gated:
            self.sparsifier.apply()
        elif self.sparsifier.technique.update.removed == "frozen" or memory.settled:
            self.sparsifier.reapply()
        elif self.sparsifier.technique.update.removed in HIDDEN:
            self.sparsifier.apply()

    def _check_objective(self) -> None:
        """Raise SecateurError where a loop leaves out what the technique adds to the loss."""
        objective = self.sparsifier.technique.objective
        if objective.name != "none" and not self.sparsifier._term_added:
            raise SecateurError(
                f"'{objective}' is a term of the loss, and this training does not add it: write "
                "loss = loss + sparsifier.objective_loss(outputs, inputs) before backward()"
            )
        self.sparsifier._term_added = False

    def _remember(self, memory: Memory) -> None:
        update = self.sparsifier.technique.update
        if update.survivors == "rewind" and update.step == memory.step:
            remember_model(self.sparsifier.model, memory)
            if update.optimizer == "rewind":
                memory.optimizer = copy.deepcopy(self.optimizer.state_dict())

    def _waits_for_training(self) -> bool:
        return self.sparsifier._engine.waits_for_training

    def _due(self, memory: Memory) -> bool:
        """Whether a mask update falls on the step just done."""
        schedule = self.sparsifier.technique.schedule
        first = math.ceil(schedule.start * self.total - 1e-9)
        last = math.ceil(schedule.end * self.total - 1e-9)
        if memory.step < first or memory.step > last:
            return False
        claims = schedule.at(memory.step / self.total)
        claimed = memory.claimed or 0.0
        if memory.updates and schedule.mask.kind == "permanent" and claims == claimed:
            return False
        if memory.step in (first, last) or (memory.updates == 0 and self._waits_for_training()):
            return True
        if self.every is not None:
            return (memory.step - first) % self.every == 0
        return abs(claims - claimed) >= CLAIM_STEP


def check_length(technique: Technique, total_steps: int) -> None:
    """Raise SecateurError where a training of so many optimiser steps cannot be followed."""
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise SecateurError(f"total_steps is {total_steps!r}: expected a count of at least 1")
    step = technique.update.step
    if step is not None and step >= total_steps:
        raise SecateurError(
            f"'{technique.update}' returns to step {step}, and the training has only {total_steps} "
            "steps; choose an earlier step or train longer"
        )
    if step:
        _check_return(technique, step / total_steps)


def _check_return(technique: Technique, after: float) -> None:
    """Raise SecateurError where no mask changes after the step that its removal would return to."""
    schedule = technique.schedule
    shares = {schedule.at(min(1.0, after + (1 - after) * place / MOVING_UPDATES))
              for place in range(MOVING_UPDATES + 1)}  # fmt: skip
    if schedule.mask.kind == "permanent" and len(shares) == 1:
        raise SecateurError(
            f"'{technique.update}' returns to a step that does not exist yet when "
            f"'{schedule}' removes for the last time: choose an earlier step or a later removal"
        )


def _ended(memory: Memory) -> bool:
    """Whether the schedule has ended, by steps or by hand, so that masks need only be held."""
    return memory.updates > 0 and memory.settled and memory.step >= memory.total


def _steps_between(schedule: Schedule, total_steps: int, steps_per_epoch: int | None) -> int | None:
    if schedule.epochs is not None:
        if steps_per_epoch is None:
            raise SecateurError(f"the schedule '{schedule}' counts epochs: pass steps_per_epoch=")
        count(steps_per_epoch, "steps_per_epoch")
        return schedule.epochs * steps_per_epoch
    if schedule.every is None and schedule.mask.kind != "permanent":
        return max(1, total_steps // MOVING_UPDATES)
    return schedule.every
