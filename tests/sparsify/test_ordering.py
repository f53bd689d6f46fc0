"""Channels assigned to the blocks of n:m: against brute force, and through the engine."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, example
from torch import Tensor, nn

from secateur import Granularity, SecateurError, Sparsifier
from secateur.sparsify.ordering import assign, kept_score


def scores(rows: int, size: int, seed: int = 0) -> Tensor:
    """Rows with some channels far above the others, as activations make them."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(size, generator=generator) ** 4
    return torch.rand(rows, size, generator=generator) * (0.1 + strength)


@given(
    rows=st.integers(1, 12), blocks=st.integers(2, 6), rest=st.integers(0, 3),
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8)]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_assignment_is_an_order_that_keeps_no_less(
    rows: int, blocks: int, rest: int, pattern: tuple[int, int], seed: int
) -> None:
    kept, block = pattern
    size = blocks * block + min(rest, block - 1)
    given_scores = scores(rows, size, seed)
    order = assign(given_scores, kept, block)
    assert order.sort().values.tolist() == list(range(size))
    assert order[blocks * block :].tolist() == list(range(blocks * block, size))
    after = kept_score(given_scores[:, order], kept, block)
    assert after >= kept_score(given_scores, kept, block)


def test_small_cases_come_near_the_best_of_all_orders() -> None:
    """Eight columns have 35 partitions into two blocks of four; the best is found in most cases."""
    best_found = 0
    for seed in range(20):
        given_scores = scores(5, 8, seed)
        best = 0.0
        for chosen in itertools.combinations(range(1, 8), 3):
            first = [0, *chosen]
            rest = [column for column in range(8) if column not in first]
            best = max(best, kept_score(given_scores[:, first + rest], 2, 4))
        found = kept_score(given_scores[:, assign(given_scores, 2, 4)], 2, 4)
        given_order = kept_score(given_scores, 2, 4)
        assert found <= best * (1 + 1e-6)
        assert found >= given_order + 0.5 * (best - given_order)
        best_found += found >= best * (1 - 1e-6)
    assert best_found >= 10


def test_strong_channels_are_spread_over_the_blocks() -> None:
    """Two of four cannot keep three strong neighbours; in another order all are kept."""
    given_scores = torch.full((6, 12), 0.1)
    given_scores[:, :6] = 1.0
    order = assign(given_scores, 2, 4)
    assert kept_score(given_scores, 2, 4) < 6 * 6
    assert kept_score(given_scores[:, order], 2, 4) == pytest.approx(6 * 6)
    strong = (order < 6).reshape(3, 4).sum(1)
    assert strong.tolist() == [2, 2, 2]


def pruned(name: str, order: str) -> tuple[nn.Module, Sparsifier, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name](), example(name)
    for module in model.modules():  # channels of very different strength, as training makes them
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[1] > 1:
            with torch.no_grad():
                module.weight.mul_(torch.rand(module.weight.shape[1]).pow(4).add(0.05).reshape(
                    1, -1, *[1] * (module.weight.ndim - 2)))  # fmt: skip
    technique = f"2:4(remainder=keep, order={order}) | local | magnitude | one_shot"
    sparsifier = Sparsifier(model, technique, example_inputs=inputs)
    return model, sparsifier, inputs


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "transformer", "grouped_cnn"])
def test_reordering_keeps_more_of_the_weights(name: str) -> None:
    left = {}
    for order in ("given", "assigned"):
        model, sparsifier, _ = pruned(name, order)
        sparsifier.step(1.0)
        left[order] = 0.0
        for prunable in sparsifier._setup.prunables:
            mask = prunable.weight.view(sparsifier.masks[prunable.weight.parameter]).movedim(2, -1)
            weight = prunable.weight.view(model.get_parameter(prunable.weight.parameter))
            left[order] += float(weight.detach().abs().sum())
            whole = mask.shape[-1] // 4 * 4
            blocks = mask[..., :whole].unflatten(-1, (-1, 4)).sum(-1)
            assert bool((blocks == 2).all())
    assert left["assigned"] > (1.01 if name == "mlp" else 1.001) * left["given"]


def test_the_network_computes_what_it_did_but_for_what_went() -> None:
    """At a share of nothing the reordered network is the network."""
    model, _, inputs = pruned("transformer", "assigned")
    before = copy.deepcopy(model).eval()
    technique = "2:4(remainder=keep, order=assigned) | local | magnitude | one_shot"
    sparsifier = Sparsifier(model, technique, sparsity=1e-6, example_inputs=inputs)
    sparsifier.step(1.0)
    moved = [not torch.equal(one, other) for one, other in
             zip(model.parameters(), before.parameters(), strict=True)]  # fmt: skip
    assert any(moved)
    torch.testing.assert_close(model.eval()(*inputs), before(*inputs), rtol=1e-4, atol=1e-5)


def test_it_is_done_once_and_a_resumed_run_knows() -> None:
    model, _, inputs = pruned("mlp", "assigned")
    technique = "2:4(remainder=keep, order=assigned) | local | magnitude | iterative(n=2)"
    sparsifier = Sparsifier(model, technique, example_inputs=inputs)
    sparsifier.step(0.5)
    middle = {name: each.clone() for name, each in model.state_dict().items()}
    state = sparsifier.state_dict()
    sparsifier.step(1.0)
    again = copy.deepcopy(model)
    again.load_state_dict(middle)
    resumed = Sparsifier(again, technique, example_inputs=inputs)
    resumed.load_state_dict(state)
    resumed.step(1.0)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    kept = sparsifier.masks["1.weight"]
    assert torch.equal(model[1].weight[kept], middle["1.weight"][kept])


@pytest.mark.parametrize("name", ["movement", "updating_movement"])
def test_what_is_remembered_of_the_weights_follows(name: str) -> None:
    """Scores that compare with earlier weights see no movement in a change of places."""
    model, _, inputs = pruned("mlp", "assigned")
    technique = f"2:4(remainder=keep, order=assigned) | local | {name} | one_shot"
    sparsifier = Sparsifier(model, technique, example_inputs=inputs)
    with torch.no_grad():
        model[1].weight[:, 5] += 1.0  # the one channel of the input that moves: it is pinned
        model[3].weight[:, 7] += 1.0
    moved = model[3].weight[:, 7].clone()
    sparsifier.step(1.0)
    places = [place for place in range(32) if torch.equal(model[3].weight[:, place], moved)]
    assert len(places) == 1 and bool((model[1].weight[:, 5] != 0).all())


REFUSED = {
    "no inputs": ("magnitude", "keep", None, "example_inputs"),
    "rewinds": ("magnitude", "rewind(step=0)", (torch.zeros(1, 64),), "other places"),
    "learned": ("popup", "keep", (torch.zeros(1, 64),), "other places"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_clashes_is_refused(name: str) -> None:
    criterion, update, inputs, complaint = REFUSED[name]
    technique = f"2:4(order=assigned) | local | {criterion} | one_shot | {update}"
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    with pytest.raises(SecateurError, match=complaint):
        Sparsifier(model, technique, example_inputs=inputs)


def test_a_network_without_a_channel_of_its_own_is_refused() -> None:
    with pytest.raises(SecateurError, match="no channels of Linear can be reordered"):
        Sparsifier(nn.Linear(8, 4), "2:4(order=assigned) | local | magnitude | one_shot",
                   example_inputs=(torch.zeros(1, 8),))  # fmt: skip


@pytest.mark.parametrize("text", ["weight(order=assigned)", "2:4(order=assigned, along=o)",
                                  "2:4(order=sorted)"])  # fmt: skip
def test_what_is_no_granularity_is_refused(text: str) -> None:
    with pytest.raises(SecateurError):
        Granularity.parse(text)


def test_it_is_written_as_it_is_read() -> None:
    text = "2:4(remainder=keep, order=assigned)"
    granularity = Granularity.parse(text)
    assert str(granularity) == text
    assert "reordered first" in granularity.words()
