"""Random networks of toy blocks: random indices of random axes go, and nothing else changes.

A run of the tests takes fifty of them, the same ones every time; ``make networks`` takes thousands.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from structure.image_blocks import IMAGE_BLOCKS
from structure.random_networks import Part, Plan, build, inputs_of, plan_of, plans
from structure.token_blocks import TOKEN_BLOCKS
from testers import RemovalTester, choose_axes

from secateur import trace

NETWORKS = int(os.environ.get("NETWORKS", "50"))
REPEATED = NETWORKS <= 50


@settings(
    max_examples=NETWORKS,
    deadline=None,
    derandomize=REPEATED,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(plan=plans(), seed=st.integers(0, 9999), share=st.sampled_from((0.4, 0.2, 0.7)))
def test_a_random_network_computes_what_it_did(plan: Plan, seed: int, share: float) -> None:
    """Outputs, gradients and a step are those of the masked network, twice in a row."""
    model, inputs = build(plan), inputs_of(plan)
    others = [inputs_of(plan, batch=3, seed=1)]
    chosen = choose_axes(model, inputs, seed, share)
    event(f"{len(plan.blocks)} blocks of {plan.source}s")
    if not chosen.gone:
        event("nothing can be removed exactly")
        assert all(reason for _, reason in chosen.structure.pinned)
        return
    result = RemovalTester().check(model, inputs, chosen, others)
    event("grafted" if result.grafts else "in place")
    again = choose_axes(model, inputs, seed + 1, share)
    if again.gone and seed % 3 == 0:
        RemovalTester().check(model, inputs, again, others)


def test_the_last_pair_of_heads_of_a_grafted_attention() -> None:
    """Views may be left out where one index stays, and yet one may be where the code fails."""
    options = (("made", "grouped query"), ("norm", "none"), ("heads", 4), ("width", 3),
               ("fused", False), ("bias", True))  # fmt: skip
    plan = Plan("words", (Part("attention", options), Part("mixer", (("hidden", 6),))), width=8)
    model, inputs = build(plan), inputs_of(plan)
    RemovalTester().check(model, inputs, choose_axes(model, inputs, 9999, 0.4))
    again = choose_axes(model, inputs, 10000, 0.4)
    assert again.gone["blocks.0.query[0]"] == [0]
    RemovalTester().check(model, inputs, again)


@pytest.mark.parametrize("name", [*IMAGE_BLOCKS, *TOKEN_BLOCKS])
def test_every_block_once(name: str) -> None:
    """Every block comes up whatever chance brings."""
    plan = plan_of(name)
    model, inputs = build(plan), inputs_of(plan)
    chosen = choose_axes(model, inputs, seed=len(name))
    assert chosen.gone, chosen.structure.pinned
    RemovalTester().check(model, inputs, chosen, [inputs_of(plan, batch=3, seed=1)])


def test_networks_are_what_their_plan_says() -> None:
    plan = plan_of("inverted")
    one, two = build(plan), build(plan)
    for (name, left), right in zip(
        one.state_dict().items(), two.state_dict().values(), strict=True
    ):
        assert torch.equal(left, right)
        if left.is_floating_point():
            assert bool((left != 0).all()), f"{name} has zeros"
    assert "inverted(norm='batch', act='relu'" in repr(plan)


def test_a_plan_can_be_traced_without_being_changed() -> None:
    plan = plan_of("attention")
    model, inputs = build(plan), inputs_of(plan)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    wanted = model(*inputs)
    trace(model, inputs)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert torch.equal(model(*inputs), wanted)
