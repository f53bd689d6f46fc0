"""Any order of any axis that can be removed: the network computes what it did."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import NETWORKS, example
from structure.image_blocks import IMAGE_BLOCKS
from structure.random_networks import Plan, build, inputs_of, plan_of, plans
from structure.token_blocks import TOKEN_BLOCKS
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur import SecateurError, Trace, trace
from secateur.structure import reorder


def random_orders(structure: Trace, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        axis.name: torch.randperm(axis.size, generator=generator) for axis in structure.removable
    }


def check(model: nn.Module, inputs: tuple[Tensor, ...], seed: int = 0) -> None:
    """Every removable axis in a random order: the same outputs, other weights."""
    model = model.double().eval()
    inputs = tree_map(lambda each: each.double() if each.is_floating_point() else each, inputs)
    structure = trace(model, inputs)
    orders = random_orders(structure, seed)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with torch.no_grad():
        wanted = model(*inputs)
        reorder(model, structure, orders, inputs)
        found = model(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    moved = any(not torch.equal(each, before[name]) for name, each in model.state_dict().items())
    moves = any(not torch.equal(order, order.sort().values) for order in orders.values())
    assert moved == moves


@pytest.mark.parametrize("name", [*IMAGE_BLOCKS, *TOKEN_BLOCKS])
def test_every_block(name: str) -> None:
    plan = plan_of(name)
    check(build(plan), inputs_of(plan))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_toy_network(name: str) -> None:
    torch.manual_seed(0)
    check(NETWORKS[name](), example(name))


@settings(max_examples=15, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])  # fmt: skip
@given(plan=plans(), seed=st.integers(0, 9999))
def test_random_networks(plan: Plan, seed: int) -> None:
    check(build(plan), inputs_of(plan), seed)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def test_training_goes_on_as_if_nothing_had_happened() -> None:
    """Gradients and the optimiser's state move along, and the parameters stay the same objects."""
    plain, inputs = two_layers(), torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    moved = copy.deepcopy(plain)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    for model in (plain, moved):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        held = [id(each) for each in model.parameters()]
        for step in range(4):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            if model is moved and step == 2:  # the gradients of this step are there already
                structure = trace(model, (inputs,))
                reorder(model, structure, {"0": order}, (inputs,), optimizer)
            optimizer.step()
        assert held == [id(each) for each in model.parameters()]
    torch.testing.assert_close(moved[0].weight, plain[0].weight[order])
    torch.testing.assert_close(moved[2].weight, plain[2].weight[:, order])


def test_what_lies_beside_the_model_follows() -> None:
    model, inputs = two_layers(), (torch.ones(2, 4),)
    aside = {name: each.clone() for name, each in model.state_dict().items()}
    done = reorder(model, trace(model, inputs), {"0": torch.arange(6).flip(0)}, inputs)
    for name, each in model.state_dict().items():
        assert torch.equal(done.follow(name, aside[name]), each)
    assert torch.equal(done.follow("elsewhere", aside["0.bias"]), aside["0.bias"])


def test_a_pinned_axis_is_refused() -> None:
    model, inputs = two_layers(), (torch.ones(2, 4),)
    structure = trace(model, inputs)
    name = structure.pinned[0][0]
    with pytest.raises(SecateurError, match="cannot be reordered"):
        reorder(model, structure, {name: torch.arange(4).flip(0)}, inputs)


def test_a_wrong_order_leaves_the_model_as_it_was() -> None:
    """An order that takes one channel twice changes what comes out, and is undone."""
    model, inputs = two_layers(), (torch.randn(2, 4),)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(SecateurError, match="left as it was"):
        reorder(model, trace(model, inputs), {"0": torch.zeros(6, dtype=torch.long)}, inputs)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
