"""Recording: the operators of one pass, and a model that is left as it was."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from secateur.structure.record import record
from secateur.structure.rules import operator_name


class Remembers(nn.Module):
    """Stores what it computes: in an attribute, in a dictionary, in a list, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        self.cache[str(h.device)] = h
        self.seen.append(h)
        self.last = h
        self.extra = h
        self.count = self.count + 1
        return h


@pytest.mark.parametrize("real", [False, True])
def test_what_a_pass_stores_on_the_model_is_put_back(real: bool) -> None:
    model = Remembers()
    cache, count = model.cache, model.count
    assert record(model, (torch.zeros(2, 5),), real=real).failure is None
    assert model.cache is cache
    assert (cache, model.seen, model.last) == ({}, [], None)
    assert not hasattr(model, "extra")
    assert model.count is count
    assert set(model.state_dict()) == {"linear.weight", "linear.bias", "count"}


def test_hooks_and_modes_stay() -> None:
    model = Remembers()
    model.linear.train()
    model.linear.register_forward_hook(lambda *given: None)
    hooks = dict(model.linear._forward_hooks)
    record(model, (torch.zeros(2, 5),))
    assert model.linear._forward_hooks == hooks
    assert model.linear.training


class Cast(nn.Module):
    """Reads its parameter in another type, as norms in half precision do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(torch.float64).neg().to(x.dtype)


def test_a_parameter_in_another_type_is_no_constant() -> None:
    recording = record(Cast(), (torch.zeros(2, 6),))
    assert [operator_name(node) for node in recording.steps] == ["to", "neg", "to", "mul"]
    assert all("value" not in node.meta for node in recording.steps)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Strict(tuple):  # type: ignore[type-arg]
    """A tuple that cannot be made anew from what it holds."""

    def __new__(cls, tensor: Tensor) -> Any:
        assert isinstance(tensor, Tensor)
        return super().__new__(cls, (tensor,))


class Passes(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind, self.inner = kind, nn.Identity()

    def forward(self, x: Tensor) -> Any:
        given = self.kind(x, x + 1) if self.kind is Pair else self.kind(x)
        return self.inner(given)[0]


@pytest.mark.parametrize("kind", [Pair, Strict])
def test_tuples_of_other_classes_go_between_modules(kind: Any) -> None:
    recording = record(Passes(kind), (torch.zeros(2, 6),))
    assert recording.failure is None
    inner = recording.calls[1]
    assert inner.path == "inner"
    assert inner.inputs[0][0][0] is recording.inputs[0]


class Fails(nn.Module):
    """Raises in a module inside, and in another that it recovers from."""

    def __init__(self, recovers: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3))
        self.recovers = recovers

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x)
        except RuntimeError:
            if self.recovers:
                return x + 1
            raise


def test_a_failure_names_the_module_and_the_line() -> None:
    recording = record(Fails(recovers=False), (torch.zeros(2, 5),))
    assert recording.failure is not None
    assert recording.failure.module == "inner.0"
    assert "test_record.py" in recording.failure.place


def test_a_failure_that_the_code_recovers_from_is_none() -> None:
    recording = record(Fails(recovers=True), (torch.zeros(2, 5),))
    assert recording.failure is None
    assert recording.module(recording.steps[-1]) == ""


def test_a_recording_knows_whether_it_ran_on_data() -> None:
    model = nn.Linear(5, 6)
    assert record(model, (torch.zeros(2, 5),), real=True).real
    assert not record(model, (torch.zeros(2, 5),)).real
