"""Lazy selection against selection by all scores."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier
from secateur.sparsify import engine, lazy
from secateur.sparsify.lazy import complete, keep_best
from secateur.sparsify.scoring import score_units
from secateur.sparsify.select import keep_highest
from secateur.technique.criteria.tails import Tails

sizes = st.floats(0, width=32, allow_infinity=False) | st.sampled_from([0.0, 1.0, 2.0, 3.0])
layers = st.lists(st.lists(sizes, min_size=1, max_size=12), min_size=1, max_size=4)
bounds = st.sampled_from([-math.inf, 0.0, 0.5, 1.0, 2.0, 1e3, math.inf])


def tails(values: Tensor) -> Tails:
    made = Tails.of(values.float())
    assert made is not None
    return made


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def by_all_scores(parts: list[Tails], removing: int) -> list[Tensor]:
    return keep_highest([part.complete() for part in parts], removing)


@settings(max_examples=300, deadline=None)
@given(layers, st.data())
def test_the_same_is_kept(values: list[list[float]], data: st.DataObject) -> None:
    parts = [tails(torch.tensor(each)) for each in values]
    removing = data.draw(st.integers(0, sum(map(len, parts))))
    assert same(keep_best(parts, removing), by_all_scores(parts, removing))


@settings(max_examples=300, deadline=None)
@given(layers, st.data())
def test_a_bracket_gives_the_right_counts_or_none(
    values: list[list[float]], data: st.DataObject
) -> None:
    parts = [tails(torch.tensor(each)) for each in values]
    removing = data.draw(st.integers(0, sum(map(len, parts))))
    pairs = st.tuples(bounds, bounds).map(sorted)
    brackets = [tuple(data.draw(pairs)) for _ in parts]
    found = lazy._counts(parts, removing, brackets)  # type: ignore[arg-type]
    expected = [int((~kept).sum()) for kept in by_all_scores(parts, removing)]
    assert found in (None, expected)
    everything = [(-math.inf, math.inf)] * len(parts)
    assert lazy._counts(parts, removing, everything) == expected


KINDS = ["normal", "cubed", "ties", "half zeros", "zeros", "equal layers", "permuted layers"]


def _many(kind: str) -> list[Tails]:
    drawn = torch.randn(16_000, generator=torch.Generator().manual_seed(0))
    if kind == "cubed":
        drawn = drawn**3
    elif kind == "ties":
        drawn = (4 * drawn).round()
    elif kind == "half zeros":
        drawn[::2] = 0
    elif kind == "zeros":
        drawn[:12_000] = 0
    found = [part * 10.0**-place for place, part in enumerate(drawn.split([12_000, 3000, 990, 10]))]
    if kind == "equal layers":
        found = [drawn[:4000]] * 4
    elif kind == "permuted layers":
        # Their scores are equal across layers, so a sum that depends on its order would show.
        found = [drawn[:4000], drawn[:4000].flip(0), drawn[:4000].sort().values]
    return [tails(part.abs()) for part in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.77, 0.95, 0.9995, 1.0])
def test_the_same_is_kept_of_many(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "_SAMPLE", 1024)
    parts = _many(kind)
    removing = round(share * sum(map(len, parts)))
    assert same(keep_best(parts, removing), by_all_scores(parts, removing))


@pytest.mark.parametrize("kind", ["normal", "cubed", "equal layers", "permuted layers"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.5, 0.77, 0.95, 0.9995])
def test_few_scores_are_computed(kind: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The brackets of a sample hold, and leave out most of what is far from the threshold."""
    monkeypatch.setattr(lazy, "_SAMPLE", 1024)
    computed = []
    of_sorted = Tails.of_sorted
    monkeypatch.setattr(
        Tails, "of_sorted",
        lambda self, near, *above: computed.append(len(near)) or of_sorted(self, near, *above),
    )  # fmt: skip
    parts = _many(kind)
    total = sum(map(len, parts))
    keep_best(parts, round(share * total))
    assert sum(computed) < 0.6 * total


def test_one_layer_needs_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tails, "of_sorted", None)
    kept = keep_best([tails(torch.tensor([2.0, 1.0, 2.0, 3.0]))], 2)
    assert kept[0].tolist() == [False, False, True, True]


def test_lazy_and_complete_scores_may_meet() -> None:
    one, other = torch.tensor([3.0, 1.0]), torch.tensor([0.2, 0.01])
    kept = keep_best([tails(one), other], 2)  # 1.0, 0.1 and 0.2, 0.01
    assert [each.tolist() for each in kept] == [[True, False], [True, False]]
    assert torch.equal(complete(other), other)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("removing", [-1, 9])
def test_more_than_there_is_is_an_error(layers: int, removing: int) -> None:
    with pytest.raises(ValueError, match="cannot remove"):
        keep_best([tails(torch.ones(2))] * layers, removing)


# Whole updates


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(72, 12)
    )
    with torch.no_grad():
        network[4].weight.mul_(50)[::2] = 0
    return network


TECHNIQUES = [
    "weight | global | lamp | one_shot",
    "weight | global(keep=0.2) | lamp | one_shot",
    "weight | local | lamp | one_shot",
    "weight | row | lamp | one_shot",
    "weight | isomorphic | lamp | one_shot",
    "weight | local(lamp) | magnitude | one_shot",
    "weight | local(lamp) | lamp | one_shot",
    "weight | global | lamp(normalize=mean) | one_shot",
    "filter | global | lamp | one_shot",
    "2:4 | local | lamp | one_shot",
    "weight | global | lamp | agp",
    "weight | global | lamp | agp(mask=reselected)",
    "weight | global | lamp | agp | keep(removed=learning)",
]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_updates_are_those_of_all_scores(technique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = {} if technique.startswith("2:4") else {"sparsity": 0.6}

    def masks() -> dict[str, Tensor]:
        sparsifier = Sparsifier(_network(), technique, **budget)
        for progress in (0.3, 0.7, 1.0):
            sparsifier.step(progress)
            with torch.no_grad():
                for place, parameter in enumerate(sparsifier.model.parameters()):
                    parameter.add_(0.01 * (place + 1))
        return dict(sparsifier.masks)

    lazily = masks()
    monkeypatch.setattr(engine, "rank_units", score_units)
    at_once = masks()
    assert all(torch.equal(lazily[name], at_once[name]) for name in at_once)


def test_an_update_needs_no_complete_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tails, "complete", None)
    for technique in (
        "weight | global | lamp | one_shot",
        "weight | local(lamp) | magnitude | one_shot",
    ):
        result = Sparsifier(_network(), technique, sparsity=0.6).step(1.0)
        assert result.achieved["sparsity"] == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("value", "said"), [(math.nan, "holds NaN"), (math.inf, "'lamp' gives NaN")]
)
def test_what_is_not_finite_is_told(value: float, said: str) -> None:
    network = _network()
    with torch.no_grad():
        network[0].weight[0, 0, 0, 0] = value
    with pytest.raises(SecateurError, match=said):
        Sparsifier(network, "weight | global | lamp | one_shot", sparsity=0.5).step(1.0)
