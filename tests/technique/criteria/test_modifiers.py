"""Variety against plain references of its three variants; negate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.technique.criteria.channels import MOST_PAIRED_UNITS
from secateur.technique.criteria.modifiers import negate, variety


def made(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator), torch.randn(count, size, generator=generator)


def similarity(rows: Tensor, kind: str) -> list[list[float]]:
    points = rows.double().tolist()
    if kind == "distance":
        return [[-math.dist(one, two) for two in points] for one in points]
    lengths = [math.sqrt(sum(v * v for v in one)) or 1.0 for one in points]
    return [
        [abs(sum(a * b for a, b in zip(one, two, strict=True))) / (m * n)
         for two, n in zip(points, lengths, strict=True)]
        for one, m in zip(points, lengths, strict=True)
    ]  # fmt: skip


def plain_elimination(scores: list[float], alike: list[list[float]]) -> list[int]:
    """The order in which units go: O(n^3), the most similar pair among the alive every time."""
    alive, order = list(range(len(scores))), []
    while len(alive) > 1:
        _, first, second = max(
            (alike[a][b], -a, -b) for n, a in enumerate(alive) for b in alive[n + 1 :]
        )
        a, b = -first, -second
        loser = b if scores[b] < scores[a] else a
        order.append(loser)
        alive.remove(loser)
    return order + alive


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 14), st.integers(2, 6), st.integers(0, 999),
    st.sampled_from(["cosine", "distance"]),
)  # fmt: skip
def test_pairwise_against_the_plain_elimination(
    count: int, size: int, seed: int, kind: str
) -> None:
    scores, rows = made(count, size, seed)
    found = variety(scores, rows, count // 2, "pairwise", kind)
    expected = plain_elimination(scores.tolist(), similarity(rows, kind))
    assert torch.argsort(found).tolist() == expected
    assert sorted(found.tolist()) == pytest.approx([(n + 1) / count for n in range(count)])


def test_pairwise_of_equal_units_goes_by_position() -> None:
    rows = torch.eye(2).repeat(2, 1)
    found = variety(torch.ones(4), rows, 2)
    assert torch.argsort(found).tolist()[:2] == [0, 1]
    found = variety(torch.tensor([4.0, 3.0, 2.0, 1.0]), rows, 2)
    assert set(torch.argsort(found).tolist()[:2]) == {2, 3}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.data(), st.floats(1, 4), st.integers(0, 99),
    st.sampled_from(["cosine", "distance"]),
)  # fmt: skip
def test_candidates_against_the_rule(
    count: int, data: st.DataObject, ratio: float, seed: int, kind: str
) -> None:
    removing = data.draw(st.integers(0, count))
    scores, rows = made(count, 4, seed)
    found = variety(scores, rows, removing, "candidates", kind, ratio)
    alike = similarity(rows, kind)
    redundancy = [
        max((alike[a][b] for b in range(count) if b != a), default=0.0) for a in range(count)
    ]
    number = min(count, math.ceil(ratio * removing - 1e-9))
    candidates = sorted(range(count), key=lambda unit: -redundancy[unit])[:number]
    # The two of a nearest pair have one redundancy: only the clear cases can be told.
    if 0 < number < count:
        ranked = sorted(redundancy, reverse=True)
        if ranked[number - 1] - ranked[number] < 1e-5:
            return
    values = scores.tolist()
    expected = sorted(candidates, key=lambda unit: values[unit])
    expected += sorted(set(range(count)) - set(candidates), key=lambda unit: values[unit])
    assert torch.argsort(found).tolist() == expected


def test_a_ratio_of_one_is_pure_redundancy() -> None:
    scores, rows = made(10, 4, 0)
    alike = torch.tensor(similarity(rows, "cosine")).fill_diagonal_(-1).amax(1)
    found = variety(scores, rows, 4, "candidates", ratio=1.0)
    assert set(torch.argsort(found)[:4].tolist()) == set(
        torch.argsort(alike, descending=True, stable=True)[:4].tolist()
    )


@pytest.mark.parametrize("removing", [1, 3, 7, 10])
def test_a_ratio_of_n_over_p_is_the_plain_criterion(removing: int) -> None:
    scores, rows = made(10, 4, 0)
    found = variety(scores, rows, removing, "candidates", ratio=10 / removing)
    assert torch.equal(torch.argsort(found), torch.argsort(scores))


def test_the_number_of_candidates_is_not_rounded_up_twice() -> None:
    """1.1 times 50 is 55, not 56."""
    scores, rows = made(100, 4, 0)
    alike = torch.tensor(similarity(rows, "cosine")).fill_diagonal_(-1).amax(1)
    redundant = torch.argsort(alike, descending=True, stable=True)[:55].tolist()
    found = variety(scores, rows, 50, "candidates", ratio=1.1)
    assert set(torch.argsort(found)[:55].tolist()) == set(redundant)


@pytest.mark.parametrize("kind", ["cosine", "distance"])
def test_what_is_gone_already_does_not_widen_the_choice(kind: str) -> None:
    """Of ten to remove eight are zero: two more candidates follow, not ten."""
    scores, rows = made(20, 6, 0)
    rows[:8], scores[:8] = 0, 0
    alike = torch.tensor(similarity(rows[8:], kind)).fill_diagonal_(-math.inf).amax(1)
    nearest = {8 + unit for unit in torch.argsort(alike, descending=True, stable=True)[:2].tolist()}
    found = variety(scores, rows, 10, "candidates", kind, ratio=1.0)
    assert set(torch.argsort(found)[:10].tolist()) == set(range(8)) | nearest


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.5])
def test_reweighted(gamma: float) -> None:
    scores, rows = made(10, 4, 0)
    alike = torch.tensor(similarity(rows, "cosine")).fill_diagonal_(-1).amax(1).float()
    found = variety(scores, rows, 3, "reweighted", gamma=gamma)
    assert torch.allclose(found, scores * (1 - alike) ** gamma, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", ["pairwise", "candidates", "reweighted"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_of_equal_scores_the_redundant_go_first(variant: str, sign: float) -> None:
    """Also where scores are negative, as with small_final."""
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.1], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = variety(torch.full((4,), sign), rows, 1, variant, ratio=1.0)
    assert int(torch.argsort(found)[0]) in (1, 2)


@pytest.mark.parametrize("variant", ["pairwise", "candidates", "reweighted"])
def test_zero_units_and_single_units_are_finite(variant: str) -> None:
    for rows in (torch.zeros(3, 4), torch.ones(1, 4), torch.ones(5, 1)):
        found = variety(torch.ones(len(rows)), rows, 1, variant)
        assert bool(torch.isfinite(found).all())


def test_what_is_refused() -> None:
    scores, rows = made(4, 4, 0)
    with pytest.raises(SecateurError, match="did you mean pairwise"):
        variety(scores, rows, 1, "pairwis")
    with pytest.raises(SecateurError, match="did you mean cosine"):
        variety(scores, rows, 1, similarity="cosin")
    with pytest.raises(SecateurError, match=r"0\.5.*at least 1"):
        variety(scores, rows, 1, "candidates", ratio=0.5)
    many = torch.zeros(MOST_PAIRED_UNITS + 1)
    with pytest.raises(SecateurError, match="coarser granularity"):
        variety(many, many[:, None], 1)


def test_negate() -> None:
    scores, rows = made(5, 2, 0)
    assert torch.equal(negate(scores, rows, 1), -scores)
