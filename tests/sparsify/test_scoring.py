"""From a criterion's values to a score per unit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur import Criterion, Evidence, Granularity, SecateurError
from secateur.sparsify.scoring import refuse_nan, score_units, widen
from secateur.sparsify.units import Units
from secateur.structure import PrunableWeight
from secateur.technique.criteria import NORMALIZERS, REDUCERS

SHAPE = (2, 3, 5, 3, 3)


def units(granularity: str, shape: tuple[int, ...] = SHAPE) -> Units:
    weight = PrunableWeight("w", "w", "", "Conv2d", shape)
    return Units.of(weight, Granularity.parse(granularity))


def tensor(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PLAIN = {
    "mean": lambda row: sum(row) / len(row),
    "sum": sum,
    "l2": lambda row: math.sqrt(sum(value * value for value in row)),
    "squared_sum": lambda row: sum(row) ** 2,
    "max": max,
    "min": min,
}


@pytest.mark.parametrize("name", [record.name for record in REDUCERS])
@pytest.mark.parametrize("granularity", ["weight", "filter", "(o 2) (i 2) (h 2)", "layer", "row"])
@pytest.mark.parametrize("criterion", ["magnitude", "small_final"])
def test_reducers_against_plain_loops(name: str, granularity: str, criterion: str) -> None:
    """Also where the last tiles are incomplete, and where all scores are negative."""
    parts, weight = units(granularity), tensor()
    owner = parts.spread(torch.arange(parts.count)).flatten().tolist()
    rows: list[list[float]] = [[] for _ in range(parts.count)]
    sign = -1 if criterion == "small_final" else 1
    for unit, value in zip(owner, weight.flatten().tolist(), strict=True):
        rows[unit].append(sign * abs(value))
    expected = [PLAIN[name](row) for row in rows]
    scores = score_units(Criterion.parse(f"{criterion}(reduce={name})"), Evidence(weight), parts)
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_every_reducer_has_a_plain_counterpart() -> None:
    assert {record.name for record in REDUCERS} == set(PLAIN)


@pytest.mark.parametrize("name", [record.name for record in NORMALIZERS])
@pytest.mark.parametrize("criterion", ["magnitude", "small_final", "magnitude_increase"])
def test_normalizers_keep_the_order_within_a_layer(name: str, criterion: str) -> None:
    """Whatever the sign of the scores: a normaliser only makes layers comparable."""
    for seed in range(6):
        evidence = Evidence(tensor(seed), saved=tensor(seed + 100))
        plain = score_units(Criterion(criterion), evidence, units("filter"))
        scaled = score_units(Criterion(criterion, normalize=name), evidence, units("filter"))
        assert torch.equal(torch.argsort(plain), torch.argsort(scaled))
        assert bool(torch.isfinite(scaled).all())


@pytest.mark.parametrize("name", [record.name for record in NORMALIZERS])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_normalizers_of_equal_scores_are_finite_and_equal(name: str, value: float) -> None:
    scores = NORMALIZERS.get(name).function(torch.full((5,), value))
    assert bool(torch.isfinite(scores).all())
    if name != "rank":
        assert len(set(scores.tolist())) == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", [0.1, 0.2, 0.3, 0.4]),
        ("mean", [0.4, 0.8, 1.2, 1.6]),
        ("max", [0.25, 0.5, 0.75, 1]),
        ("l2", [x / math.sqrt(30) for x in (1, 2, 3, 4)]),
        ("std", [x / math.sqrt(1.25) for x in (1, 2, 3, 4)]),
        ("minmax", [0, 1 / 3, 2 / 3, 1]),
        ("standard", [(x - 2.5) / math.sqrt(1.25) for x in (1, 2, 3, 4)]),
        ("rank", [0.25, 0.5, 0.75, 1]),
    ],
)
def test_normalizers_by_hand(name: str, expected: list[float]) -> None:
    scores = NORMALIZERS.get(name).function(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert scores.tolist() == pytest.approx(expected)


def test_normalized_scores_do_not_depend_on_the_scale_of_a_layer() -> None:
    for name in ("sum", "mean", "max", "l2", "std", "minmax", "standard", "rank"):
        criterion = Criterion("magnitude", normalize=name)
        one = score_units(criterion, Evidence(tensor()), units("filter"))
        other = score_units(criterion, Evidence(tensor() * 50), units("filter"))
        assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    ("text", "large", "small"),
    [("squared_final", 400.0, 1e-4), ("grad_crit", 400.0, 1e-3), ("taylor", 400.0, 1e-5),
     ("snip", 400.0, 1e-5)],
)  # fmt: skip
def test_half_precision_is_scored_in_single(text: str, large: float, small: float) -> None:
    """Squares and products neither overflow nor vanish where float16 would let them."""
    values = torch.tensor([[[large, 2 * large, small, 2 * small]]]).half()
    evidence = Evidence(values, gradient=values)
    scores = score_units(Criterion.parse(text), evidence, units("weight", (1, 1, 4)))
    assert bool(torch.isfinite(scores).all())
    assert torch.argsort(scores).tolist() == [2, 3, 0, 1]
    assert float(scores[2]) > 0


def test_widen() -> None:
    assert widen(torch.ones(1).half()).dtype == torch.float32
    assert widen(torch.ones(1).bfloat16()).dtype == torch.float32
    assert widen(torch.ones(1).double()).dtype == torch.float64


def test_channel_criteria_score_every_weight() -> None:
    norm = torch.rand(2, 1, 5, 1, 1)
    scores = score_units(Criterion("wanda"), Evidence(tensor(), input_norm=norm), units("weight"))
    assert torch.equal(scores.reshape(SHAPE), tensor().abs() * norm)
    gamma = torch.rand(2, 3, 1, 1, 1)
    scores = score_units(Criterion("bn_scale"), Evidence(tensor(), norm_scale=gamma),
                         units("filter"))  # fmt: skip
    assert torch.allclose(scores, gamma.flatten())


def test_nan_is_refused_with_its_cause() -> None:
    criterion = Criterion("magnitude")
    good, bad = torch.ones(3), torch.tensor([1.0, math.nan, 2.0])
    refuse_nan(good, "layer", good, criterion)
    refuse_nan(torch.tensor([math.inf, -math.inf]), "layer", good, criterion)
    with pytest.raises(SecateurError, match="layer holds NaN"):
        refuse_nan(bad, "layer", bad, criterion)
    with pytest.raises(SecateurError, match="'magnitude' gives NaN for layer"):
        refuse_nan(bad, "layer", good, criterion)
