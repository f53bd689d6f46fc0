"""Every criterion against its formula, and those with a loop inside against a plain loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur import Criterion, Evidence, Granularity
from secateur.errors import SecateurError
from secateur.sparsify.scoring import score_units
from secateur.sparsify.units import Units
from secateur.structure import PrunableWeight
from secateur.technique.criteria import CRITERIA
from secateur.technique.criteria.channels import MOST_PAIRED_UNITS, geometric_median, lamp

SHAPE = (1, 6, 4, 3, 3)


def made(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


W, W0, PREVIOUS, G, F, H = (made(seed) for seed in range(6))
X, GAMMA, TAYLOR = made(7, (1, 1, 4, 1, 1)).abs(), made(8, (1, 6, 1, 1, 1)), made(9, (
    1, 6, 1, 1, 1)).abs()  # fmt: skip
SURGEON, GONE, FISHER_SURGEON = made(16), made(17).abs(), made(18)
GREEDY, LASSO = (made(seed, (1, 1, 4, 1, 1)).abs() for seed in (19, 20))
LEARNED, MASKED, MASSES, PLACES = made(21), made(22), made(27).abs(), made(28).abs()
BLOCK, WITHOUT = (made(seed, (1, 1, 1, 1, 1)).abs() for seed in (23, 24))
SCALES, CARRIED = (made(seed, (1, 6, 1, 1, 1)).abs() for seed in (25, 26))
HG, FLOW, SPREAD = made(10), made(11).abs(), made(12, (1, 1, 4, 1, 1)).abs()
ACTIVE, RANK, APART = (made(seed, (1, 6, 1, 1, 1)).abs() for seed in (13, 14, 15))
EVIDENCE = Evidence(
    W, W0, PREVIOUS, G, F.abs(), H, X, TAYLOR, GAMMA, hessian_gradient=HG, synaptic_flow=FLOW,
    surgeon=SURGEON, elimination=GONE, greedy=GREEDY, lasso=LASSO, fisher_surgeon=FISHER_SURGEON,
    network_elimination=PLACES,
    learned=LEARNED, masked_gradient=MASKED, block_influence=BLOCK, removal_loss=WITHOUT,
    scale_taylor=SCALES, propagated=CARRIED, carried=MASSES,
    input_spread=SPREAD, output_active=ACTIVE, output_rank=RANK, output_independence=APART,
)  # fmt: skip

# Element scores; the names of the thesis (its table and its paper's two extra ones) come first.
ELEMENTS: dict[str, Tensor] = {
    "large_final": W.abs(),
    "squared_final": W * W,
    "small_final": -W.abs(),
    "large_init": W0.abs(),
    "small_init": -W0.abs(),
    "large_init_large_final": torch.where(W.abs() < W0.abs(), W.abs(), W0.abs()),
    "small_init_small_final": -torch.where(W.abs() > W0.abs(), W.abs(), W0.abs()),
    "magnitude_increase": W.abs() - W0.abs(),
    "movement": (W - W0).abs(),
    "updating_magnitude_increase": W.abs() - PREVIOUS.abs(),
    "updating_movement": (W - PREVIOUS).abs(),
    "updating_movmag": W.abs() * (W - PREVIOUS).abs(),
    "wanda": W.abs() * X,
    "grad_crit": W**2 * G**2,
    "mov_large_final": W.abs() * (W - W0).abs(),
    "movmag": W.abs() * (W - W0).abs(),
    "mov_mag": (W.abs() - W0.abs()).abs(),
    "snip": G.abs() * W.abs(),
    "fisher": 0.5 * F.abs() * W**2,
    "hessian": 0.5 * H.abs() * W**2,
    "taylor": (G * W) ** 2,
    "bn_scale": GAMMA.abs().expand(SHAPE),
    "taylor_2016": TAYLOR.expand(SHAPE),
    "grasp": HG * W,
    "synflow": FLOW * W.abs(),
    "stade": W.abs() * SPREAD,
    "fluctuation": (W * SPREAD) ** 2,
    "apoz": ACTIVE.expand(SHAPE),
    "hrank": RANK.expand(SHAPE),
    "chip": APART.expand(SHAPE),
    "obs": W * SURGEON / 2,
    "obc": GONE,
    "thinet": GREEDY.expand(SHAPE),
    "lasso": LASSO.expand(SHAPE),
    "woodfisher": W * FISHER_SURGEON / 2,
    "network_obs": PLACES,
    "learned": LEARNED,
    "popup": LEARNED.abs(),
    "hard_concrete": LEARNED,
    "annealed_gate": LEARNED,
    "soft_threshold": W.abs() - torch.sigmoid(LEARNED),
    "noise_ratio": (W * W + 1e-8).log() - LEARNED,
    "skeleton": LEARNED.abs(),
    "force": MASKED.abs() * W.abs(),
    "nisp": CARRIED.expand(SHAPE),
    "gate_taylor": SCALES.expand(SHAPE),
    "group_magnitude": MASSES,
    "block_influence": BLOCK.expand(SHAPE),
    "removal_loss": WITHOUT.expand(SHAPE),
    "gblm": W.abs() * (X + 100 * F.abs().sqrt()),
    "pruner_zero": W**2 * (G.abs() - G.abs().min()) / (G.abs().max() - G.abs().min()),
    "ria": (W.abs() / W.abs().sum((2, 3, 4), keepdim=True) + W.abs() / W.abs().sum(1, keepdim=True))
    * X.sqrt(),
}
# What a filter's score is by default, as published.
FILTERS: dict[str, Tensor] = {
    "snip": (G * W).abs().flatten(2).sum(2)[0],
    "force": (MASKED * W).abs().flatten(2).sum(2)[0],
    "fisher": (0.5 * F.abs() * W**2).flatten(2).sum(2)[0],
    "hessian": (0.5 * H.abs() * W**2).flatten(2).sum(2)[0],
    "taylor": (G * W).flatten(2).sum(2)[0] ** 2,
    "grasp": (HG * W).flatten(2).sum(2)[0],
    "synflow": (FLOW * W.abs()).flatten(2).sum(2)[0],
    "obs": (W * SURGEON / 2).flatten(2).sum(2)[0],
    "obc": GONE.flatten(2).amax(2)[0],
    "woodfisher": (W * FISHER_SURGEON / 2).flatten(2).sum(2)[0],
    "fluctuation": ((W * SPREAD) ** 2).flatten(2).sum(2)[0],
}
BY_LOOP = {"lamp", "geometric_median", "random"}


def units(granularity: str) -> Units:
    weight = PrunableWeight("w", "w", "", "Conv2d", SHAPE)
    return Units.of(weight, Granularity.parse(granularity))


@pytest.mark.parametrize("name", ELEMENTS)
def test_of_single_weights(name: str) -> None:
    scores = score_units(Criterion(name), EVIDENCE, units("weight"))
    assert torch.allclose(scores.reshape(SHAPE), ELEMENTS[name], rtol=1e-5)


@pytest.mark.parametrize("name", ELEMENTS)
def test_of_filters_the_mean_unless_published_otherwise(name: str) -> None:
    scores = score_units(Criterion(name), EVIDENCE, units("filter"))
    mean = ELEMENTS[name].flatten(2).mean(2)[0]
    expected = FILTERS.get(name, mean)
    assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_every_criterion_is_checked_here() -> None:
    checked = {CRITERIA.get(name).name for name in (*ELEMENTS, *BY_LOOP)}
    assert {record.name for record in CRITERIA} - checked == set()


@pytest.mark.parametrize("name", [record.name for record in CRITERIA])
def test_every_criterion_declares_what_it_uses(name: str) -> None:
    record = CRITERIA.get(name)
    assert record.summary
    bare = Evidence(W, generator=torch.Generator())
    if record.needs:
        with pytest.raises(LookupError, match="without declaring"):
            score_units(Criterion(name), bare, units("filter"))
    else:
        score_units(Criterion(name), bare, units("filter"))


def test_random_follows_its_generator() -> None:
    def draw(seed: int) -> Tensor:
        evidence = Evidence(W, generator=torch.Generator().manual_seed(seed))
        return score_units(Criterion("random"), evidence, units("kernel"))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert len(set(draw(1).tolist())) == 24


def plain_lamp(rows: list[list[float]]) -> list[float]:
    squares = [sum(value * value for value in row) for row in rows]
    scores = []
    for mine in squares:
        total = 0.0
        for other in squares:
            if other >= mine:
                total += other
        scores.append(mine / total if total else 0.0)
    return scores


@pytest.mark.parametrize("granularity", ["weight", "kernel", "filter"])
def test_lamp_against_a_double_loop(granularity: str) -> None:
    rows, _ = units(granularity).rows(W)
    scores = score_units(Criterion("lamp"), Evidence(W), units(granularity))
    assert scores.tolist() == pytest.approx(plain_lamp(rows.double().tolist()))
    assert float(scores.max()) == 1.0
    sizes = rows.double().square().sum(1)
    assert torch.equal(torch.argsort(scores), torch.argsort(sizes))


def test_lamp_of_ties_and_zeros() -> None:
    """Of equal units the later ones score higher, as in the authors' code; zeros score zero."""
    rows = torch.tensor([[2.0], [2.0], [0.0], [1.0]])
    assert lamp(rows, Evidence(rows)).tolist() == pytest.approx([0.5, 1.0, 0.0, 1 / 9])
    assert lamp(torch.zeros(3, 2), Evidence(W)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 6, 40, 1100])
def test_geometric_median_against_a_double_loop(count: int) -> None:
    rows = made(3, (count, 5))
    scores = geometric_median(rows, Evidence(rows))
    points = rows.double().tolist()
    for place in range(0, count, max(1, count // 20)):
        expected = sum(math.dist(points[place], other) for other in points)
        assert float(scores[place]) == pytest.approx(expected, rel=1e-4)


def test_geometric_median_sees_small_distances() -> None:
    """Far from the origin the distances of near units are not lost in rounding."""
    rows = 100 + 0.01 * made(3, (40, 5))
    scores = geometric_median(rows, Evidence(rows))
    points = rows.double().tolist()
    expected = [sum(math.dist(mine, other) for other in points) for mine in points]
    assert scores.tolist() == pytest.approx(expected, rel=1e-3)


def test_equal_units_have_equal_medians_and_the_first_goes_first() -> None:
    rows = torch.cat([made(4, (3, 90)).repeat(12, 1), made(5, (4, 90))])
    scores = geometric_median(rows, Evidence(rows))
    for place in range(3):
        assert len(set(scores[place:36:3].tolist())) == 1


def test_pairs_of_too_many_units_are_refused() -> None:
    with pytest.raises(SecateurError, match="coarser granularity"):
        geometric_median(torch.zeros(MOST_PAIRED_UNITS + 1, 1), EVIDENCE)
