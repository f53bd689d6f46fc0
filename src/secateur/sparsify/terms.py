"""Terms: the objective of a technique, carried out on one model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from secateur.compress.distil import answer_distance, ask, freeze
from secateur.compress.regularise import group_lasso, l1, masked_l2
from secateur.errors import SecateurError
from secateur.sparsify.engine import Engine
from secateur.sparsify.gates import Gates
from secateur.sparsify.memory import Memory
from secateur.sparsify.scoring import widen
from secateur.technique import Objective, Technique

Teacher = Callable[..., Any]
_PLACES = 128


class Term:
    """What an objective adds to the loss, before its weight."""

    penalises = False
    """Whether it looks at the weights, which must be those that the sparsifier was made for."""

    held: Mapping[str, Tensor] = MappingProxyType({})
    """What removed weights hold where they learn straight through, and zero elsewhere."""

    def value(self, outputs: Any, inputs: Any) -> Tensor:
        """Return the term for what the model gave for its inputs."""
        raise NotImplementedError

    def look(self, masks: Mapping[str, Tensor], memory: Memory, progress: float) -> None:
        """Take notice of the masks, as they are at a share of training done."""

    def follow(self, memory: Memory, progress: float) -> None:  # noqa: ARG002
        """Take notice of a training step that is about to happen."""
        self.held = memory.shadow

    def after_step(self, memory: Memory) -> None:
        """Take notice of a step that the optimiser has just done."""

    def state(self) -> dict[str, Any] | None:
        """Return what a resumed run has to know, None where that is nothing."""
        return None

    def check(self, state: Any) -> None:
        """Raise SecateurError where a state is not one of this term."""
        if state is not None:
            raise SecateurError("the state's objective does not fit: it belongs to another run")

    def load(self, state: Any) -> None:
        """Take over a state that was checked."""


class Distillation(Term):
    """The distance to a teacher's answers; without one, to those of the model as it is now."""

    def __init__(self, model: nn.Module, objective: Objective, teacher: Teacher | None) -> None:
        self.options = dict(objective.parameters)
        self.own = freeze(model) if teacher is None else None
        self.teacher: Teacher = self.own if teacher is None else teacher  # type: ignore[assignment]

    def value(self, outputs: Any, inputs: Any) -> Tensor:
        """Ask the teacher the same, where the inputs are, and compare."""
        if outputs is None or inputs is None:
            raise SecateurError(
                "distillation compares answers: call objective_loss(outputs, inputs) with what the "
                "model gave for its inputs"
            )
        place = _device_of(outputs)
        if place is not None and isinstance(self.teacher, nn.Module):
            first = next(self.teacher.parameters(), None)
            if first is not None and first.device != place:
                self.teacher.to(place)
        return answer_distance(outputs, ask(self.teacher, inputs), **self.options)

    def state(self) -> dict[str, Any]:
        """Return the teacher that was copied; one that was given is the caller's to keep."""
        return {"teacher": None if self.own is None else self.own.state_dict()}

    def check(self, state: Any) -> None:
        """Refuse a teacher that is none, or of another architecture."""
        if not isinstance(state, dict) or set(state) != {"teacher"}:
            raise SecateurError("the state holds no teacher: it belongs to another run")
        if (state["teacher"] is None) != (self.own is None):
            which = "given: pass teacher= again" if self.own else "its own copy: leave teacher= out"
            raise SecateurError(f"the teacher of the state was {which}")
        if self.own is not None:
            _check_tensors("teacher", state["teacher"], self.own.state_dict())

    def load(self, state: Any) -> None:
        """Put the saved values back into the copy."""
        if self.own is not None:
            self.own.load_state_dict(state["teacher"])


class GroupLasso(Term):
    """The sum over the technique's units of the L2 norm of each.

    The units of coupled layers are the channels of an axis: the weights that score it together.
    """

    penalises = True

    def __init__(self, engine: Engine, objective: Objective) -> None:
        self.engine = engine
        self.sized = bool(dict(objective.parameters)["sized"])
        ones = [each.units.sizes().float() for each in engine.setup.prunables]
        self.sizes = self._gather(ones)

    def value(self, *_answered: Any) -> Tensor:
        """Return the term for the weights as they are."""
        squares = []
        for prunable in self.engine.setup.prunables:
            parameter = self.engine.model.get_parameter(prunable.weight.parameter)
            rows, _ = prunable.units.rows(widen(prunable.weight.view(parameter)))
            squares.append(rows.square().sum(1))
        terms = [
            group_lasso(found, sizes if self.sized else None)
            for found, sizes in zip(self._gather(squares), self.sizes, strict=True)
        ]
        return torch.stack(terms).sum()

    def _gather(self, found: list[Tensor]) -> list[Tensor]:
        """Add up what belongs to the same index of an axis, where layers are coupled."""
        groups = self.engine.setup.groups
        if not groups:
            return found
        gathered = []
        for group in groups:
            # What belongs to no index of this axis goes into one slot more, which is dropped.
            total = found[group.members[0].place].new_zeros(group.axis.size + 1)
            for member in group.members:
                index = torch.where(member.index < 0, group.axis.size, member.index)
                total = total.index_add(0, index.to(total.device), found[member.place])
            gathered.append(total[:-1])
        return gathered


class ScaleNorm(Term):
    """The L1 norm of the norms' scales behind the prunable weights."""

    penalises = True

    def __init__(self, engine: Engine) -> None:
        self.model = engine.model
        self.marked: dict[str, Tensor] = {}
        for prunable in engine.setup.prunables:
            for carrier in prunable.reach.carriers:
                if carrier.scale:
                    scale = self.model.get_parameter(carrier.parameter)
                    mark = self.marked.setdefault(
                        carrier.parameter, torch.zeros(scale.shape, dtype=torch.bool)
                    )
                    mark[carrier.offset : carrier.offset + prunable.weight.outputs] = True
        if not self.marked:
            raise SecateurError(
                "the objective 'l1_scale' needs norms with a scale behind the layers to prune, and "
                "finds none (pass example_inputs= if they are applied outside a module)"
            )

    def value(self, *_answered: Any) -> Tensor:
        """Return the term for the scales as they are."""
        scales = [(self.model.get_parameter(name), mark) for name, mark in self.marked.items()]
        return l1(scale * mark.to(scale.device) for scale, mark in scales)


class GrowingL2(Term):
    """Half the sum of squares of what is condemned: what the whole budget would remove today."""

    penalises = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.condemned: dict[str, Tensor] | None = None

    def value(self, *_answered: Any) -> Tensor:
        """Return the term for the weights as they are; nothing before the first verdict."""
        if self.condemned is None:
            if self.engine.waits_for_training:
                return torch.zeros(())
            raise SecateurError(
                "growing_l2 does not know yet what is condemned: attach the sparsifier to the "
                "optimiser, or call step() first"
            )
        pairs = ((self._whole(name), mask) for name, mask in self.condemned.items())
        return masked_l2((value, mask.to(value.device)) for value, mask in pairs)

    def _whole(self, name: str) -> Tensor:
        """Return a parameter with what its removed entries hold."""
        parameter = self.engine.model.get_parameter(name)
        return parameter + self.held[name].to(parameter) if name in self.held else parameter

    def look(self, masks: Mapping[str, Tensor], memory: Memory, progress: float) -> None:
        """Condemn what goes when the schedule claims most, chosen by the scores of today."""
        schedule = self.engine.technique.schedule
        ahead = [progress + (1 - progress) * place / _PLACES for place in range(_PLACES + 1)]
        last = {name: mask.clone() for name, mask in masks.items()}
        if not memory.settled:
            # The memory is copied, for this update is only thought of.
            self.engine.update(last, copy.copy(memory), max(ahead, key=schedule.at))
        self.condemned = {name: ~mask for name, mask in last.items()}

    def state(self) -> dict[str, Any]:
        """Return what is condemned."""
        return {"condemned": self.condemned}

    def check(self, state: Any) -> None:
        """Refuse what is not a set of masks for this model."""
        if not isinstance(state, dict) or set(state) != {"condemned"}:
            raise SecateurError("the state does not say what is condemned: it belongs to another")
        if state["condemned"] is not None:
            like = self.engine.open_masks()
            _check_tensors("condemned", state["condemned"], like)

    def load(self, state: Any) -> None:
        """Condemn the same again."""
        found = state["condemned"]
        self.condemned = None if found is None else {n: m.clone() for n, m in found.items()}


class Admm(Term):
    """Half the squared distance of the weights from Z - U, with Z and U renewed in rounds.

    Z is the nearest to W + U among what the whole budget would leave, and U sums up how far W has
    been from Z (Zhang et al. 2018, eq. 9 and 12).
    """

    penalises = True

    def __init__(self, engine: Engine, objective: Objective) -> None:
        self.engine = engine
        self.every = int(dict(objective.parameters)["every"])
        self.projected: dict[str, Tensor] = {}
        self.dual: dict[str, Tensor] = {}

    def look(self, masks: Mapping[str, Tensor], memory: Memory, progress: float) -> None:  # noqa: ARG002
        """Begin with the weights as they are."""
        if not self.projected and not memory.settled:
            self._renew(memory)

    def after_step(self, memory: Memory) -> None:
        """Renew Z and U at the end of a round, until the masks are final."""
        if not memory.settled and memory.step % self.every == 0:
            self._renew(memory)

    def _renew(self, memory: Memory) -> None:
        weights = self._weights()
        if self.projected:
            for name, weight in weights.items():
                self.dual[name] = self.dual[name] + weight - self.projected[name]
        else:
            self.dual = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        self._project(memory, weights)

    def _weights(self) -> dict[str, Tensor]:
        names = self.engine.open_masks()
        return {name: self.engine.model.get_parameter(name).detach().clone() for name in names}

    @torch.no_grad()
    def _project(self, memory: Memory, weights: Mapping[str, Tensor]) -> None:
        """Set Z to W + U without what the whole budget would remove of it."""
        masks = self.engine.open_masks()
        thought = copy.copy(memory)
        thought.history = []
        try:
            for name, weight in weights.items():
                self.engine.model.get_parameter(name).copy_(weight + self.dual[name])
            self.engine.update(masks, thought, 1.0, 1.0)
        finally:
            for name, weight in weights.items():
                self.engine.model.get_parameter(name).copy_(weight)
        self.projected = {
            name: (weight + self.dual[name]) * masks[name] for name, weight in weights.items()
        }

    def value(self, *_answered: Any) -> Tensor:
        """Return the term for the weights as they are."""
        distances = [
            (self.engine.model.get_parameter(name) - projected + self.dual[name]).square().sum()
            for name, projected in self.projected.items()
        ]
        return torch.stack(distances).sum() / 2 if distances else torch.zeros(())

    def state(self) -> dict[str, Any]:
        """Return Z and U."""
        return {"projected": self.projected, "dual": self.dual}

    def check(self, state: Any) -> None:
        """Refuse what is not Z and U of this model."""
        if not isinstance(state, dict) or set(state) != {"projected", "dual"}:
            raise SecateurError("the state holds no dual variables: it belongs to another run")
        for what in ("projected", "dual"):
            if state[what]:
                _check_tensors(what, state[what], self.engine.open_masks())

    def load(self, state: Any) -> None:
        """Go on with Z and U."""
        self.projected = {name: value.clone() for name, value in state["projected"].items()}
        self.dual = {name: value.clone() for name, value in state["dual"].items()}


class GatePenalty(Term):
    """What the criterion's gate asks of its learned numbers.

    Its gradient reaches them when the optimiser steps, so that the value given here has none.
    """

    penalises = True

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.memory: Memory | None = None
        self.progress = 0.0

    def follow(self, memory: Memory, progress: float) -> None:
        """Note where the learned numbers are."""
        self.memory, self.progress = memory, progress

    def value(self, *_answered: Any) -> Tensor:
        """Return the term for the numbers as they are; nothing once the gates have settled."""
        if self.memory is None or self.memory.settled:
            return torch.zeros(())
        return self.gates.penalty(self.memory, self.progress)


def make_term(
    engine: Engine, technique: Technique, teacher: Teacher | None, gates: Gates | None = None
) -> Term | None:
    """Return the term of a technique's objective, None where nothing is added to the loss.

    Raises SecateurError for a teacher that is not asked for, or is none.
    """
    objective = technique.objective
    if teacher is not None and objective.name != "distillation":
        raise SecateurError(
            f"teacher= is for the objective distillation, and '{technique}' has {objective.name}"
        )
    if teacher is not None and not callable(teacher):
        raise SecateurError(f"the teacher is a {type(teacher).__name__}: expected a model")
    if objective.name == "gates":
        if gates is None:
            raise SecateurError(
                f"the objective '{objective}' is about trained scores, and '{technique.criteria}' "
                "trains none: choose a criterion such as hard_concrete, or another objective"
            )
        return GatePenalty(gates)
    if objective.name == "admm":
        return Admm(engine, objective)
    if objective.name == "distillation":
        return Distillation(engine.model, objective, teacher)
    if objective.name == "group_lasso":
        return GroupLasso(engine, objective)
    if objective.name == "l1_scale":
        return ScaleNorm(engine)
    return GrowingL2(engine) if objective.name == "growing_l2" else None


def _device_of(outputs: Any) -> torch.device | None:
    """Return where the first tensor of some outputs lies."""
    outputs = getattr(outputs, "logits", outputs)
    if isinstance(outputs, Tensor):
        return outputs.device
    parts = outputs.values() if isinstance(outputs, Mapping) else outputs
    if isinstance(parts, (str, bytes)) or not hasattr(parts, "__iter__"):
        return None
    return next((place for part in parts if (place := _device_of(part)) is not None), None)


def _check_tensors(what: str, found: Any, like: Mapping[str, Any]) -> None:
    fits = isinstance(found, dict) and set(found) == set(like) and all(
        not isinstance(own, Tensor)
        or (isinstance(found[name], Tensor) and found[name].shape == own.shape)
        for name, own in like.items()
    )  # fmt: skip
    if not fits:
        raise SecateurError(f"the state's {what} tensors do not fit this model")
