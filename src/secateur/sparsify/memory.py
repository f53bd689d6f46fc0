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
from secateur.technique import Technique


@dataclass
class Memory:
    """All state that a resumed run needs to go on bit for bit.

    ``saved`` and ``previous`` hold prunable parameters by name, ``rewind`` the whole model's state
    at the step of a rewind, ``optimizer`` and ``scheduler`` theirs; ``damage`` the measured loss
    increase per layer; ``step`` and ``total`` count optimiser steps.
    """

    generator: Tensor
    saved: dict[str, Tensor] = field(default_factory=dict)
    previous: dict[str, Tensor] = field(default_factory=dict)
    rewind: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    damage: dict[str, float] = field(default_factory=dict)
    claimed: float | None = None
    updates: int = 0
    step: int = 0
    total: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything, made of tensors and plain values."""
        return {each.name: copy.deepcopy(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Memory:
        """Build a memory from a saved state."""
        known = {each.name for each in fields(cls)}
        if set(state) != known:
            wrong = sorted(set(state) ^ known)
            raise SecateurError(f"the sparsifier's state has wrong or missing parts: {wrong}")
        return cls(**copy.deepcopy(dict(state)))


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
    return memory


def remember_model(model: nn.Module, memory: Memory) -> None:
    """Keep the model's whole state to rewind to, also as the saved weights of the criteria."""
    memory.rewind = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name in memory.saved:
        memory.saved[name] = memory.rewind[name].clone()
