"""Selection against a stable sort, and against torch.nn.utils.prune."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from secateur import Sparsifier
from secateur.sparsify import select
from secateur.sparsify.select import keep_highest, keep_highest_rows, keep_within, kth_smallest

values = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, 1.0, -0.0, 2.0])
parts_of_scores = st.lists(st.lists(values, max_size=12), min_size=1, max_size=4).map(
    lambda parts: [torch.tensor(part, dtype=torch.float32) for part in parts]
)


def by_stable_sort(parts: list[Tensor], removing: int) -> list[Tensor]:
    scores = torch.cat(parts)
    order = sorted(range(len(scores)), key=lambda place: float(scores[place]))
    kept = torch.ones(len(scores), dtype=torch.bool)
    kept[order[:removing]] = False
    return list(kept.split([len(part) for part in parts]))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@settings(max_examples=300, deadline=None)
@given(parts_of_scores, st.data())
def test_exactly_k_of_n_in_the_order_of_a_stable_sort(
    parts: list[Tensor], data: st.DataObject
) -> None:
    removing = data.draw(st.integers(0, sum(len(part) for part in parts)))
    kept = keep_highest(parts, removing)
    assert sum(int((~mask).sum()) for mask in kept) == removing
    assert same(kept, by_stable_sort(parts, removing))


@settings(deadline=None)
@given(parts_of_scores, st.integers(1, 100))
def test_more_than_there_is_is_an_error(parts: list[Tensor], more: int) -> None:
    with pytest.raises(ValueError, match="cannot remove"):
        keep_highest(parts, sum(len(part) for part in parts) + more)
    with pytest.raises(ValueError, match="cannot remove"):
        keep_highest(parts, -more)


def _many(kind: str) -> list[Tensor]:
    torch.manual_seed(0)
    scores = torch.randn(5000)
    if kind == "ties":
        scores = scores.round()
    elif kind == "constant":
        scores = torch.zeros(5000)
    elif kind == "sorted":
        scores = scores.sort().values
    elif kind == "infinite":
        scores[::3], scores[1::3] = -math.inf, math.inf
    elif kind == "periodic":
        # What a sample with a stride sees least of.
        scores = torch.arange(5000.0) % 7
    return list(scores.split([1, 999, 0, 3000, 1000]))


@pytest.mark.parametrize("kind", ["normal", "ties", "constant", "sorted", "infinite", "periodic"])
@pytest.mark.parametrize("removing", [1, 2, 250, 2500, 3333, 4999])
def test_the_sampled_threshold_is_exact(
    kind: str, removing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_SAMPLE", 64)  # 5000 entries are then many
    parts = _many(kind)
    ordered = torch.cat(parts).sort().values
    assert kth_smallest(parts, removing) == ordered[removing - 1]
    assert same(keep_highest(parts, removing), by_stable_sort(parts, removing))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_of_numbers(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_SAMPLE", 64)
    parts = [part.to(dtype) for part in _many("normal")]
    assert same(keep_highest(parts, 3333), by_stable_sort(parts, 3333))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 5)), min_size=1, max_size=12),
    st.floats(0, 40),
    st.integers(0, 12),
)
def test_keep_within_comes_nearest(units: list[tuple[int, int]], amount: float, cut: int) -> None:
    scores = torch.tensor([float(score) for score, _ in units])
    costs = torch.tensor([float(cost) for _, cost in units])
    kept = torch.cat(keep_within([scores[:cut], scores[cut:]], [costs[:cut], costs[cut:]], amount))
    order = sorted(range(len(units)), key=lambda place: units[place][0])
    count = int((~kept).sum())
    assert sorted(order[:count]) == torch.nonzero(~kept).flatten().tolist()
    spent = [sum(units[place][1] for place in order[:number]) for number in range(len(units) + 1)]
    distances = [abs(total - amount) for total in spent]
    assert distances[count] <= min(distances) + 1e-6
    # Where two counts are equally near, the smaller total is taken.
    assert all(
        spent[count] <= total + 1e-6
        for total, distance in zip(spent, distances, strict=True)
        if distance < distances[count] + 1e-12
    )


def test_keep_within_never_takes_infinite_scores() -> None:
    scores, costs = torch.tensor([1.0, math.inf, 2.0]), torch.tensor([1.0, 1.0, 1.0])
    assert keep_within([scores], [costs], 9.0)[0].tolist() == [False, True, False]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_rows(rows: int, units: int, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    scores = torch.randint(0, 4, (rows, units)).float()
    removing = data.draw(st.integers(0, units))
    kept = keep_highest_rows(scores, removing)
    for row, marks in zip(scores, kept, strict=True):
        assert torch.equal(marks, by_stable_sort([row], removing)[0])


# torch.nn.utils.prune as an independent oracle, on weights without ties


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(24, 10)
    )


def _masks(network: nn.Sequential, technique: str, sparsity: float) -> dict[str, Tensor]:
    sparsifier = Sparsifier(network, technique, sparsity=sparsity, include=["0", "2", "4"])
    sparsifier.step(1.0)
    return {name: mask for name, mask in sparsifier.masks.items() if name.endswith("weight")}


def _pruned(network: nn.Sequential) -> dict[str, Tensor]:
    return {f"{place}.weight": network[place].weight_mask.bool() for place in (0, 2, 4)}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_weights_locally_as_l1_unstructured(sparsity: float) -> None:
    ours, theirs = _network(), _network()
    for place in (0, 2, 4):
        prune.l1_unstructured(theirs[place], "weight", amount=sparsity)
    assert _same(_masks(ours, "weight | local | magnitude | one_shot", sparsity), _pruned(theirs))


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93])
def test_weights_globally_as_global_unstructured(sparsity: float) -> None:
    ours, theirs = _network(), _network()
    prune.global_unstructured(
        [(theirs[place], "weight") for place in (0, 2, 4)],
        pruning_method=prune.L1Unstructured,
        amount=sparsity,
    )
    assert _same(_masks(ours, "weight | global | magnitude | one_shot", sparsity), _pruned(theirs))


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
@pytest.mark.parametrize(("norm", "reduce"), [(1, "sum"), (1, "mean"), (2, "l2")])
@pytest.mark.parametrize(("dim", "granularity"), [(0, "filter"), (1, "shared_kernel")])
def test_channels_as_ln_structured(
    sparsity: float, norm: int, reduce: str, dim: int, granularity: str
) -> None:
    ours, theirs = _network(), _network()
    for place in (0, 2, 4):
        prune.ln_structured(theirs[place], "weight", amount=sparsity, n=norm, dim=dim)
    technique = f"{granularity} | local | magnitude(reduce={reduce}) | one_shot"
    assert _same(_masks(ours, technique, sparsity), _pruned(theirs))


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)
