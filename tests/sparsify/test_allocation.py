"""Allocations against the rules as published, written down plainly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur import Context, SecateurError, Sparsifier
from secateur.sparsify.allocation import Layer, fill, shares, tail_exponent
from secateur.structure import PrunableWeight

Shape = tuple[int, ...]


def layer(shape: Shape, name: str = "w", cost: float | None = None) -> Layer:
    weight = PrunableWeight(f"{name}.weight", f"{name}.weight", name, "Conv2d", shape)
    return Layer(weight, float(weight.numel) if cost is None else cost)


def layers_of(shapes: list[Shape]) -> list[Layer]:
    return [layer((1, *shape), f"l{place}") for place, shape in enumerate(shapes)]


# fill


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.just(0.0) | st.floats(1e-6, 10),
            st.just(0.0) | st.floats(1e-3, 1000),
            st.floats(0, 1),
        ),
        min_size=1,
        max_size=8,
    ),
    st.floats(0, 5000),
)
def test_fill_meets_its_amount_or_saturates(
    layers: list[tuple[float, float, float]], amount: float
) -> None:
    rates, costs, limits = ([part[at] for part in layers] for at in range(3))
    found = fill(rates, costs, amount, limits)
    assert all(-1e-12 <= share <= limit + 1e-12 for share, limit in zip(found, limits, strict=True))
    total = sum(cost * share for cost, share in zip(costs, found, strict=True))
    giving = [at for at, rate in enumerate(rates) if rate > 0 and limits[at] > 0]
    most = sum(costs[at] * limits[at] for at in giving)
    assert total == pytest.approx(min(amount, most), rel=1e-6, abs=1e-6)
    # Those below their limit share in proportion to their rates.
    scales = [
        found[at] / rates[at] for at in giving if 0 < found[at] < limits[at] - 1e-9 and costs[at]
    ]
    assert all(scale == pytest.approx(scales[0], rel=1e-6) for scale in scales)


@pytest.mark.parametrize("amount", [-5.0, 0.0])
def test_fill_of_nothing(amount: float) -> None:
    assert fill([1, 2], [10, 10], amount) == [0, 0]


# ERK: the loop of the RigL paper's released code, on shapes as tensors


def rigl(shapes: list[Shape], density: float, kernel: bool) -> list[float]:
    dense: set[int] = set()
    while True:
        divisor, rhs, raw = 0.0, 0.0, {}
        for place, shape in enumerate(shapes):
            size = math.prod(shape)
            if place in dense:
                rhs -= size * (1 - density)
                continue
            rhs += size * density
            counted = shape if kernel else shape[:2]
            raw[place] = sum(counted) / math.prod(counted)
            divisor += raw[place] * size
        if not raw:
            return [1.0] * len(shapes)
        epsilon = rhs / divisor
        largest = max(raw.values())
        if largest * epsilon <= 1:
            return [1.0 if p in dense else raw[p] * epsilon for p in range(len(shapes))]
        dense |= {place for place, rate in raw.items() if rate == largest}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.integers(1, 64)] * 2)
        | st.tuples(*[st.integers(1, 64)] * 2, *[st.integers(1, 5)] * 2),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.01, 0.99),
    st.booleans(),
)
def test_erk_is_the_published_rule(shapes: list[Shape], density: float, kernel: bool) -> None:
    layers = layers_of(shapes)
    amount = (1 - density) * sum(math.prod(shape) for shape in shapes)
    found = shares(Context("local", "erk" if kernel else "er"), layers, amount)
    expected = rigl(shapes, density, kernel)
    assert [1 - share for share in found] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        # Rates 20/100 and 110/1000; epsilon = 1100 density / (20 + 110).
        (0.5, [0.2 * 550 / 130, 0.11 * 550 / 130]),
        # The first would be 1.35: it stays dense and the second keeps 880 - 100 of 1000.
        (0.8, [1.0, 0.78]),
        (1.0, [1.0, 1.0]),
        (0.0, [0.0, 0.0]),
    ],
)
def test_erk_by_hand(density: float, expected: list[float]) -> None:
    layers = layers_of([(10, 10), (100, 10)])
    found = shares(Context("local", "erk"), layers, (1 - density) * 1100)
    assert [1 - share for share in found] == pytest.approx(expected)


def test_erk_counts_all_outputs_of_a_grouped_convolution() -> None:
    grouped = layer((4, 2, 3, 3, 3))  # stored as [8, 3, 3, 3]
    plain = layer((1, 8, 3, 3, 3))
    other = layer((1, 50, 50), "other")
    first = shares(Context("local", "erk"), [grouped, other], 1200)
    assert first == shares(Context("local", "erk"), [plain, other], 1200)


# uniform and uniform+


def test_uniform() -> None:
    layers = layers_of([(10, 10), (100, 10)])
    assert shares(Context("local"), layers, 550) == [0.5, 0.5]
    assert shares(Context("local"), layers, 5000) == [1.0, 1.0]


def test_uniform_plus() -> None:
    """The first convolution stays dense, the last layer gives at most 80 %, the total is met."""
    layers = layers_of([(8, 3, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (10, 16)])
    sizes = [entry.weight.numel for entry in layers]
    found = shares(Context("local", "uniform_plus"), layers, 0.5 * sum(sizes))
    assert found[0] == 0
    assert found[1] == found[2] == found[3] < 0.8
    assert sum(s * n for s, n in zip(found, sizes, strict=True)) == pytest.approx(0.5 * sum(sizes))
    found = shares(Context("local", "uniform_plus"), layers, 0.9 * sum(sizes))
    assert (found[0], found[3]) == (0, 0.8)
    assert found[1] == found[2] > 0.9
    assert shares(Context("local", "uniform_plus"), layers, sum(sizes)) == [0, 1, 1, 0.8]


def test_uniform_plus_of_linear_layers_spares_none() -> None:
    assert shares(Context("local", "uniform_plus"), layers_of([(4, 4), (4, 4)]), 32) == [1, 0.8]


# given


def test_given_shares_follow_the_schedule_and_the_first_match_counts() -> None:
    layers = [layer((1, 10, 10), name) for name in ("a.x", "a.y", "b")]
    context = Context.parse({"a.x": 0.2, "a.*": 0.8})
    assert shares(context, layers, -1.0, 1.0) == pytest.approx([0.2, 0.8, 0.0])
    assert shares(context, layers, -1.0, 0.5) == pytest.approx([0.1, 0.4, 0.0])
    assert shares(context, layers, 150.0, 1.0) == pytest.approx([0.2, 0.8, 0.5])


def test_a_given_pattern_without_a_layer_is_refused() -> None:
    with pytest.raises(SecateurError, match=r"c\.\*.*layers are a\.x"):
        shares(Context.parse({"c.*": 0.5}), [layer((1, 2, 2), "a.x")], -1.0)


def test_given_shares_beyond_the_budget_are_reported() -> None:
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    technique = 'weight | {"0": 0.9} | magnitude | one_shot'
    try:
        result = Sparsifier(model, technique, sparsity=0.1).step(1.0)
    except SecateurError:
        return
    assert result.reason is not None


# sensitivity


def test_sensitivity_takes_less_where_the_loss_grows_most() -> None:
    layers = layers_of([(10, 10), (10, 10), (10, 10)])
    damage = {"l0.weight": 1.0, "l1.weight": 0.1, "l2.weight": -0.5}
    found = shares(Context("local", "sensitivity"), layers, 60, damage=damage)
    assert found[0] < found[1] < found[2]
    assert sum(found) * 100 == pytest.approx(60)
    rates = [1 / (1e-3 + max(0.0, d)) for d in damage.values()]
    assert found == pytest.approx(fill(rates, [100] * 3, 60))


# LAMP


def plain_lamp(weight: Tensor) -> list[float]:
    squares = weight.double().flatten().square().tolist()
    return [
        mine / sum(other for other in squares if other >= mine) if mine else 0.0 for mine in squares
    ]


def test_lamp_divides_as_a_global_ranking_of_lamp_scores() -> None:
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 10))
        for _ in range(2)
    ]
    models[1].load_state_dict(models[0].state_dict())
    divided = Sparsifier(models[0], "weight | local(lamp) | magnitude | one_shot", sparsity=0.7)
    ranked = Sparsifier(models[1], "weight | global | lamp | one_shot", sparsity=0.7)
    divided.step(1.0), ranked.step(1.0)
    pairs = [
        (score, name, place)
        for name, parameter in models[0].named_parameters()
        if name in ranked.masks
        for place, score in enumerate(plain_lamp(_original(name)))
    ]
    lowest = {pair[1:] for pair in sorted(pairs)[: round(0.7 * len(pairs))]}
    for name in ranked.masks:
        assert torch.equal(divided.masks[name], ranked.masks[name])
        gone = torch.nonzero(~ranked.masks[name].flatten()).flatten().tolist()
        assert {place for other, place in lowest if other == name} == set(gone)


def _original(name: str) -> Tensor:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 10))
    return model.get_parameter(name).detach()


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=4), st.floats(0, 1))
def test_lamp_stays_within_the_amount_where_units_cost_differently(
    costs: list[float], share: float
) -> None:
    torch.manual_seed(0)
    scores = [torch.rand(20) for _ in costs]
    layers = [layer((1, 4, 5), f"l{p}", 20 * cost) for p, cost in enumerate(costs)]
    amount = share * sum(20 * cost for cost in costs)
    found = shares(Context("local", "lamp"), layers, amount, lamp_scores=scores)
    spent = sum(part * entry.cost for part, entry in zip(found, layers, strict=True))
    assert spent <= amount + max(costs) / 2 + 1e-6
    assert amount - spent <= max(costs) + 1e-6
    # One threshold parts all layers.
    counts = [round(part * 20) for part in found]
    removed = [part.sort().values[:n] for part, n in zip(scores, counts, strict=True)]
    stayed = [part.sort().values[n:] for part, n in zip(scores, counts, strict=True)]
    assert float(torch.cat(removed).max() if sum(counts) else 0) <= float(
        torch.cat(stayed).min() if sum(counts) < 20 * len(costs) else 2
    )


def test_owl_keeps_more_where_outliers_are() -> None:
    """The released code's arithmetic: ratios in 0 to 2 lambda, shifted to the mean asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20))
    with torch.no_grad():
        model[1].weight[:4, :3] *= 200
        model[2].weight[:2, :3] *= 200
    data = [(torch.randn(32, 20), torch.randint(0, 20, (32,)))]
    norms, given = [], data[0][0]
    for layer in model:
        norms.append(given.norm(dim=0))
        given = layer(given).detach()
    found = []
    for layer, norm in zip(model, norms, strict=True):
        scores = layer.weight.detach().abs() * norm
        found.append(float((scores > 5 * scores.mean()).float().mean()))
    low, high = min(found), max(found)
    ratios = [(share - low) / (high - low) * 0.08 * 2 for share in found]
    mean = sum(ratios) / 3
    expected = [0.6 - (ratio - mean) for ratio in ratios]
    sparsifier = Sparsifier(model, "weight | row(owl) | wanda | one_shot", sparsity=0.6, data=data)
    sparsifier.step(1.0)
    shares = [1 - float(mask.float().mean()) for mask in sparsifier.masks.values()]
    assert shares == pytest.approx(expected, abs=0.03)  # rows give whole weights
    assert shares[0] > shares[2] > shares[1]


def test_tail_exponent_of_a_known_spectrum() -> None:
    """Hill's estimate of a Pareto spectrum with exponent a tends to a."""
    count, a = 4000, 2.5
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    spectrum = (1 - uniform) ** (-1 / (a - 1))
    assert tail_exponent(torch.diag(spectrum[::8].sqrt())) == pytest.approx(a, abs=0.1)
    assert tail_exponent(torch.eye(6)) == math.inf
    assert tail_exponent(torch.zeros(3, 3)) == math.inf


def test_tail_spares_heavy_tails() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(3)))
    with torch.no_grad():
        for layer, power in zip(model, (0.5, 3.0, 1.5), strict=True):
            left, _, right = torch.linalg.svd(torch.randn(32, 32))
            spectrum = torch.arange(1, 33.0) ** -power
            layer.weight.copy_(left @ torch.diag(spectrum) @ right)
    sparsifier = Sparsifier(model, "weight | local(tail) | magnitude | one_shot", sparsity=0.5)
    result = sparsifier.step(1.0)
    flat, heavy, middle = (1 - float(mask.float().mean()) for mask in sparsifier.masks.values())
    assert flat > middle > heavy
    assert result.achieved["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert flat / heavy == pytest.approx(1.3 / 0.7, abs=0.02)  # from 1 - tau to 1 + tau


def test_owl_and_tail_say_what_they_need() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(SecateurError, match="looks at the inputs of every layer: pass data="):
        Sparsifier(model, "weight | local(owl) | magnitude | one_shot", sparsity=0.5)
    with pytest.raises(SecateurError, match="single weight matrices"):
        Sparsifier(
            model, "filter | local(tail) | magnitude | one_shot", sparsity=0.5,
            example_inputs=torch.randn(1, 3, 8, 8),
        )  # fmt: skip
