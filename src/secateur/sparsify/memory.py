"""Memory: what the sparsifier remembers between steps, beside the masks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.setup import Setup
from secateur.structure import Reordered
from secateur.technique import Technique


@dataclass
class Memory:
    """All state that a resumed run needs to go on bit for bit.

    ``saved`` and ``previous`` hold prunable parameters by name, ``rewind`` the whole model's state
    at the step of a rewind, ``optimizer`` and ``scheduler`` theirs, and ``returning`` that they
    are to go back at the next step; ``vectors`` what biases, scales and shifts were when they were
    removed; ``shadow`` what removed weights hold while they learn straight through or wait;
    ``learned`` the numbers that are trained beside the weights, ``dense`` the parameters' own
    values while the forward pass uses something else, and ``noise`` what it drew; ``fixed`` the
    values that training must not change; ``damage`` the measured loss increase per layer;
    ``ordered`` that channels have been reordered; ``claimed`` the share claimed last, and
    ``settled`` that it will not change again; ``step`` and ``total`` count optimiser steps.
    """

    generator: Tensor
    saved: dict[str, Tensor] = field(default_factory=dict)
    previous: dict[str, Tensor] = field(default_factory=dict)
    rewind: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    returning: bool = False
    vectors: dict[str, Tensor] = field(default_factory=dict)
    shadow: dict[str, Tensor] = field(default_factory=dict)
    learned: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, Tensor] = field(default_factory=dict)
    noise: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict)
    damage: dict[str, float] = field(default_factory=dict)
    ordered: bool = False
    claimed: float | None = None
    settled: bool = False
    updates: int = 0
    step: int = 0
    total: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything, made of tensors and plain values."""
        return {each.name: copy.deepcopy(getattr(self, each.name)) for each in fields(self)}

    def follow(self, reordered: Reordered) -> None:
        """Bring what is remembered of the model's values into the order that they have now."""
        for table in (self.saved, self.previous, self.rewind, self.fixed):
            for name, tensor in table.items():
                table[name] = reordered.follow(name, tensor)

    def check(self, like: Memory, model: nn.Module) -> None:
        """Raise SecateurError where this memory cannot be one of the same run as ``like``."""
        state = model.state_dict()
        own = {name: parameter.detach() for name, parameter in model.named_parameters()}
        shapes: list[tuple[str, Any, Mapping[str, Tensor], bool]] = [
            ("saved", self.saved, like.saved, True),
            ("previous", self.previous, like.previous, True),
            ("rewind", self.rewind, state, False),
            ("vectors", self.vectors, own, False),
            ("shadow", self.shadow, own, False),
            ("learned", self.learned, like.learned, True),
            ("dense", self.dense, own, False),
            ("noise", self.noise, like.learned, False),
            ("fixed", self.fixed, own, False),
        ]
        for what, found, expected, complete in shapes:
            _check_tensors(what, found, expected, complete)
        for what in ("updates", "step", "total"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise SecateurError(f"the state's {what} is {value!r}: expected a count")
        if not isinstance(self.history, list) or not all(isinstance(r, dict) for r in self.history):
            raise SecateurError("the state's history is not a list of rows")
        if not (self.claimed is None or isinstance(self.claimed, float | int)):
            raise SecateurError(f"the state's claimed share is {self.claimed!r}")
        flags = (self.settled, self.returning, self.ordered)
        if not all(isinstance(flag, bool) for flag in flags):
            raise SecateurError("the state's flags are not true or false")
        for what in ("damage", "optimizer", "scheduler"):
            value = getattr(self, what)
            if not isinstance(value, dict) and (what == "damage" or value is not None):
                raise SecateurError(f"the state's {what} is a {type(value).__name__}")
        try:
            torch.Generator().set_state(self.generator)
        except (RuntimeError, TypeError) as error:
            raise SecateurError("the state's random generator is damaged") from error

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Memory:
        """Build a memory from a saved state; ``check`` tells whether it fits."""
        known = {each.name for each in fields(cls)}
        if not isinstance(state, Mapping) or set(state) != known:
            raise SecateurError("the sparsifier's state has wrong or missing parts")
        return cls(**copy.deepcopy(dict(state)))


def _check_tensors(what: str, found: Any, expected: Mapping[str, Tensor], complete: bool) -> None:
    fits = isinstance(found, dict) and all(
        isinstance(tensor, Tensor)
        and name in expected
        and isinstance(expected[name], Tensor)
        and tensor.shape == expected[name].shape
        for name, tensor in found.items()
    )
    if not fits or (complete and set(found) != set(expected)):
        raise SecateurError(f"the state's {what} weights do not fit this model")


def initial_memory(model: nn.Module, technique: Technique, setup: Setup, seed: int) -> Memory:
    """Remember what the technique will ask for: saved weights, or the state to rewind to."""
    memory = Memory(torch.Generator().manual_seed(seed).get_state())
    parameters = dict(model.named_parameters())
    names = {prunable.weight.parameter for prunable in setup.prunables}
    for need, kept in (("saved", memory.saved), ("previous", memory.previous)):
        if need in technique.criteria.needs:
            kept.update({name: parameters[name].detach().clone() for name in sorted(names)})
    if technique.update.survivors == "rewind" and technique.update.step == 0:
        remember_model(model, memory)
    if technique.update.survivors == "sign":
        remember_model(model, memory)
    if technique.update.survivors == "fixed":
        memory.fixed = {name: value.detach().clone() for name, value in parameters.items()}
    return memory


def remember_model(model: nn.Module, memory: Memory) -> None:
    """Keep the model's whole state to rewind to, also as the saved weights of the criteria."""
    memory.rewind = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)  # a module may add state of other kinds
    }
    for name in memory.saved:
        memory.saved[name] = memory.rewind[name].clone()
