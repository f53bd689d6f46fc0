"""Budgets: what is achieved, recounted from the masks one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier
from secateur.sparsify.budget import Budget, Ledger, count_kept, mask_overhead


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


INPUT = (1, 3, 6, 6)
WEIGHTS = ("0.weight", "3.weight", "8.weight")
# Uses of every weight in one forward pass: 36 positions for the convolutions, 1 for the linear.
USES = {"0.weight": 36, "3.weight": 36, "8.weight": 1}


def recount(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, float]:
    """Every currency, element by element."""
    parameters = dict(model.named_parameters())
    gone = {name: masks[name].flatten().tolist().count(False) for name in masks}
    size = sum(parameter.numel() for parameter in parameters.values())
    weights = sum(parameters[name].numel() for name in WEIGHTS)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    dense = 4 * size + buffers
    packed = float(buffers)
    for name, parameter in parameters.items():
        kept = parameter.numel() - gone.get(name, 0)
        # Packed: the values kept, a bit per element, and eight bytes per dimension for the shape.
        places = math.ceil(parameter.numel() / 8) + 8 * parameter.dim()
        packed += min(4 * parameter.numel(), 4 * kept + places)
    macs = sum(USES[name] * parameters[name].numel() for name in WEIGHTS)
    saved = sum(USES[name] * gone.get(name, 0) for name in WEIGHTS)
    return {
        "sparsity": sum(gone.get(name, 0) for name in WEIGHTS) / weights,
        "params": 1 - sum(gone.values()) / size,
        "bytes": packed / dense,
        "macs": 1 - saved / macs,
    }


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_the_ledger_counts_what_a_loop_counts(share: float, seed: int) -> None:
    model = network()
    generator = torch.Generator().manual_seed(seed)
    masks = {
        name: torch.rand(parameter.shape, generator=generator) >= share
        for name, parameter in model.named_parameters()
    }
    elements = {name: model.get_parameter(name).numel() for name in WEIGHTS}
    macs = {name: USES[name] * count for name, count in elements.items()}
    ledger = Ledger.of(model, macs, sum(macs.values()))
    kept = count_kept(masks)
    assert ledger.achieved(kept, elements) == pytest.approx(recount(model, masks))
    packed = sum(ledger.packed_bytes(name, count) for name, count in kept.items())
    values = sum(4 * count for count in kept.values())
    assert mask_overhead(ledger, kept) == packed - values


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["sparsity", "params", "macs", "bytes"]),
    st.floats(0, 1),
    st.sampled_from(["weight", "kernel", "filter", "(o 3) (i 2)", "shared_kernel"]),
    st.sampled_from(["local", "global", "local(erk)"]),
)
def test_what_is_achieved_is_what_the_masks_say(
    currency: str, value: float, granularity: str, context: str
) -> None:
    # With example inputs, whole channels count otherwise: see test_coupled.py.
    whole = granularity in ("filter", "shared_kernel")
    assume(not (whole and currency == "macs"))
    model = network()
    sparsifier = Sparsifier(
        model,
        f"{granularity} | {context} | magnitude | one_shot",
        **{currency: value},
        include=["0", "3", "8"],
        example_inputs=None if whole else torch.randn(INPUT),
    )
    result = sparsifier.step(1.0)
    counted = recount(model, sparsifier.masks)
    if whole:
        del counted["macs"]
    assert dict(result.achieved) == pytest.approx(counted)
    assert result.target == pytest.approx(value)
    # Zeros in the model are those of the masks.
    for name, mask in sparsifier.masks.items():
        assert not bool(model.get_parameter(name)[~mask].any())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["sparsity", "params", "macs"]),
    st.floats(0.05, 0.95),
    st.sampled_from(["weight", "kernel"]),
    st.sampled_from(["local", "global"]),
)
def test_a_budget_is_met_to_half_a_unit_or_the_shortfall_is_told(
    currency: str, value: float, granularity: str, context: str
) -> None:
    model = network()
    technique = f"{granularity} | {context} | magnitude | one_shot"
    sparsifier = Sparsifier(
        model, technique, **{currency: value}, example_inputs=torch.randn(INPUT)
    )
    result = sparsifier.step(1.0)
    unit = 9 if granularity == "kernel" else 1
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(model.get_parameter(name).numel() for name in WEIGHTS)
    macs = sum(USES[name] * model.get_parameter(name).numel() for name in WEIGHTS)
    total = {"sparsity": weights, "params": parameters, "macs": macs}[currency]
    coarsest = unit * (36 if currency == "macs" else 1) / total
    layers = 3 if context == "local" else 1
    missed = abs(result.achieved[currency] - value)
    assert missed <= result.shortfall + layers * coarsest / 2 + 1e-9
    assert (result.reason is None) == (result.shortfall == 0)


@pytest.mark.parametrize("currency", ["params", "macs", "bytes"])
def test_an_unreachable_budget_says_what_was_reached(currency: str) -> None:
    """Convolutions alone cannot bring the model down to nothing."""
    sparsifier = Sparsifier(
        network(),
        "weight | global | magnitude | one_shot",
        **{currency: 0.0},
        include="0",
        example_inputs=torch.randn(INPUT),
    )
    result = sparsifier.step(1.0)
    assert result.shortfall == pytest.approx(result.achieved[currency], abs=0.02)
    assert result.reason is not None
    assert f"{result.achieved[currency]:.4g}" in result.reason


def test_a_budget_that_groups_cannot_reach_says_so() -> None:
    """Layers outside the groups stay dense, and the shortfall is told."""
    model = network()
    technique = 'weight | groups({"first": ["0"]}) | magnitude | one_shot'
    sparsifier = Sparsifier(model, technique, sparsity=0.9)
    result = sparsifier.step(1.0)
    assert bool(sparsifier.masks["3.weight"].all()) and bool(sparsifier.masks["8.weight"].all())
    assert not bool(sparsifier.masks["0.weight"].all())
    assert result.achieved["sparsity"] + result.shortfall == pytest.approx(0.9, abs=1e-2)
    assert result.reason is not None


def test_budgets_as_values() -> None:
    assert Budget("sparsity", 0.9).removed == 0.9
    assert Budget("params", 0.25).removed == 0.75
    assert Budget.of(sparsity=None, params=None) is None
    assert Budget.of(sparsity=0.0, params=None) == Budget("sparsity", 0.0)
    with pytest.raises(SecateurError, match="sparsity and macs"):
        Budget.of(sparsity=0.5, macs=0.5)
    with pytest.raises(SecateurError, match=r"write 0\.9"):
        Budget("sparsity", 90)


def test_packing_never_costs_more_than_dense() -> None:
    ledger = Ledger.of(nn.Linear(8, 8, bias=False))
    sizes = [ledger.packed_bytes("weight", kept) for kept in range(65)]
    assert sizes[0] == 8 + 2 * 8 and sizes[64] == 256 and max(sizes) == 256
    assert sizes == sorted(sizes)
