"""The plan of one update: pools, counts, permanence, regrowth, what must stay."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur import SecateurError, Technique
from secateur.sparsify.plan import Entry, choose
from secateur.sparsify.units import Units
from secateur.structure import PrunableWeight

Shape = tuple[int, ...]


def entry(
    technique: Technique,
    shape: Shape,
    share: float,
    name: str = "a",
    kind: str = "Linear",
    scores: Tensor | None = None,
    removed: Tensor | None = None,
    growth: Tensor | None = None,
    price: float = 1.0,
) -> Entry:
    weight = PrunableWeight(f"{name}.weight", f"{name}.weight", name, kind, shape)
    units = Units.of(weight, technique.granularity)
    generator = torch.Generator().manual_seed(len(name) + sum(shape))
    drawn = torch.rand(units.count, generator=generator) if scores is None else scores
    out = torch.zeros(units.count, dtype=torch.bool) if removed is None else removed
    return Entry(
        weight, units, price * units.largest, drawn, out, share, growth, gone=int(out.sum())
    )


def removed_by(
    technique: Technique,
    entries: list[Entry],
    amount: float | None = None,
    time: float = 1.0,
    exact_total: bool = False,
) -> list[set[int]]:
    total = sum(e.share * e.cost for e in entries) if amount is None else amount
    choice = choose(technique, entries, total, time, exact_total)
    return [set(torch.nonzero(~kept).flatten().tolist()) for kept in choice.kept]


def lowest(scores: Tensor, count: int) -> set[int]:
    values = scores.tolist()
    return set(sorted(range(len(values)), key=lambda place: values[place])[:count])


def technique(
    context: str = "local", schedule: str = "one_shot", granularity: str = "weight"
) -> Technique:
    return Technique(granularity, context, "magnitude", schedule)


# pools


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.floats(0, 1))
def test_local_removes_the_lowest_of_every_layer(
    outputs: int, inputs: int, first: float, second: float
) -> None:
    how = technique()
    entries = [entry(how, (1, outputs, inputs), first), entry(how, (1, inputs, 3), second, "bb")]
    for found, one in zip(removed_by(how, entries), entries, strict=True):
        assert found == lowest(one.scores, round(one.share * one.units.count))


def test_global_removes_the_lowest_of_all() -> None:
    how = technique("global")
    entries = [entry(how, (1, 4, 5), 0.5, name) for name in ("a", "bb", "ccc")]
    found = removed_by(how, entries)
    together = lowest(torch.cat([one.scores for one in entries]), 30)
    for start, mine in zip((0, 20, 40), found, strict=True):
        assert {place + start for place in mine} == together & set(range(start, start + 20))


def test_rows_compete_for_themselves() -> None:
    how = technique("row")
    one = entry(how, (2, 3, 8), 0.5)
    (found,) = removed_by(how, [one])
    for row in range(6):
        mine = {place - 8 * row for place in found if 8 * row <= place < 8 * row + 8}
        assert mine == lowest(one.scores[8 * row : 8 * row + 8], 4)


def test_groups_compete_inside_and_the_rest_stays_dense() -> None:
    how = technique('groups({"x": ["a", "b*"], "y": ["c", "a"]})')
    entries = [entry(how, (1, 4, 5), 0.5, name) for name in ("a", "b1", "c", "d")]
    found = removed_by(how, entries)
    together = lowest(torch.cat([entries[0].scores, entries[1].scores]), 20)
    assert found[0] | {place + 20 for place in found[1]} == together
    assert found[2] == lowest(entries[2].scores, 10)
    assert found[3] == set()


def test_a_group_without_a_layer_is_refused() -> None:
    how = technique('groups({"x": ["a"], "y": ["nowhere"]})')
    with pytest.raises(SecateurError, match="group 'y'"):
        removed_by(how, [entry(how, (1, 4, 5), 0.5)])


def test_isomorphic_layers_have_units_of_one_kind_and_shape() -> None:
    how = technique("isomorphic", granularity="filter")
    shapes = {"a": (1, 6, 4, 3, 3), "bb": (2, 5, 4, 3, 3), "ccc": (1, 7, 9, 2, 2), "d": (1, 9, 36)}
    kinds = {"a": "Conv2d", "bb": "Conv2d", "ccc": "Conv2d", "d": "Linear"}
    entries = [
        entry(how, shape, 0.5, name, kinds[name], scores=place + torch.rand(shape[0] * shape[1]))
        for place, (name, shape) in enumerate(reversed(shapes.items()))
    ][::-1]
    found = removed_by(how, entries)
    together = lowest(torch.cat([entries[0].scores, entries[1].scores]), 8)
    assert found[0] | {place + 6 for place in found[1]} == together
    # Units of 36 weights too, but of another shape or kind.
    assert found[2] == lowest(entries[2].scores, round(3.5))
    assert found[3] == lowest(entries[3].scores, round(4.5))


# permanence


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["local", "global", "row"]),
    st.lists(st.floats(0, 1), min_size=2, max_size=5),
    st.integers(0, 99),
)
def test_a_permanent_mask_only_moves_one_way(context: str, shares: list[float], seed: int) -> None:
    """While the share rises nothing returns; while it falls nothing more goes."""
    how = technique(context, "linear")
    torch.manual_seed(seed)
    removed = [torch.zeros(24, dtype=torch.bool), torch.zeros(12, dtype=torch.bool)]
    before = 0
    for share in shares:
        entries = [
            entry(how, (1, 4, 6), share, "a", scores=torch.rand(24), removed=removed[0]),
            entry(how, (1, 4, 3), share, "b", scores=torch.rand(12), removed=removed[1]),
        ]
        choice = choose(how, entries, share * 36, 0.5, False)
        now = [~kept for kept in choice.kept]
        count = sum(int(part.sum()) for part in now)
        if context == "global":
            assert count == round(share * 36)
        for old, new in zip(removed, now, strict=True):
            if count >= before:
                assert bool((new | ~old).all())
            else:
                assert bool((old | ~new).all())
        removed, before = now, count


def test_a_falling_share_gives_the_highest_back() -> None:
    how = technique("global", "dsd")
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 9.0, 8.0])
    out = torch.tensor([True, True, True, True, False, False])
    one = entry(how, (1, 2, 3), 2 / 6, scores=scores, removed=out)
    assert removed_by(how, [one]) == [{1, 3}]
    nothing = entry(how, (1, 2, 3), 0.0, scores=scores, removed=out)
    assert removed_by(how, [nothing]) == [set()]


def test_a_reselected_mask_chooses_afresh() -> None:
    how = technique("global", "constant(mask=reselected)")
    out = torch.tensor([False, False, True, True])
    one = entry(how, (1, 2, 2), 0.5, scores=torch.tensor([1.0, 2.0, 3.0, 4.0]), removed=out)
    assert removed_by(how, [one]) == [{0, 1}]


# regrowth


def test_regrowth_drops_the_lowest_survivors_and_regrows_the_highest() -> None:
    how = technique("global", "constant(mask=regrown(share=0.5, decay=constant))")
    out = torch.tensor([False, False, False, False, True, True, True, True])
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0])
    growth = torch.tensor([9.0, 9.0, 9.0, 0.0, 1.0, 4.0, 2.0, 3.0])
    one = entry(how, (1, 2, 4), 0.5, scores=scores, removed=out, growth=growth)
    # Of four survivors 1 and 3 are dropped; the largest growth among the removed is at 1 and 5.
    assert removed_by(how, [one]) == [{3, 4, 6, 7}]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 24), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_regrowth_keeps_the_count_exact(
    gone: int, share: float, exchanged: float, seed: int
) -> None:
    how = technique("global", f"constant(mask=regrown(share={exchanged!r}, decay=constant))")
    torch.manual_seed(seed)
    out = torch.zeros(24, dtype=torch.bool)
    out[torch.randperm(24)[:gone]] = True
    one = entry(how, (1, 4, 6), share, scores=torch.rand(24), removed=out, growth=torch.rand(24))
    (found,) = removed_by(how, [one])
    assert len(found) == round(share * 24)
    if gone:
        stayed = set(range(24)) - found - set(torch.nonzero(out).flatten().tolist())
        alive = 24 - gone
        wanted = min(24 - round(share * 24), alive)
        assert len(stayed) >= wanted - int(exchanged * wanted)


@pytest.mark.parametrize("prices", [(1.0, 3.0)])
def test_units_of_unequal_price_are_exchanged_too(prices: tuple[float, float]) -> None:
    """A survivor of low score goes and a removed unit of high growth returns, at any price."""
    how = technique("global", "constant(mask=regrown(share=0.5, decay=constant))")
    out = torch.tensor([False, False, True, True])
    entries = [
        entry(how, (1, 2, 2), 0.5, name, scores=torch.tensor([2.0, 1.0, 0.0, 0.0]), removed=out,
              growth=torch.tensor([0.0, 0.0, 1.0, 9.0]), price=price)
        for name, price in zip(("a", "b"), prices, strict=True)
    ]  # fmt: skip
    for found in removed_by(how, entries):
        assert 3 not in found
        assert 1 in found


@pytest.mark.parametrize("context", ["global", "local", "row"])
def test_regrowth_respects_n_of_m_and_tells_the_shortfall(context: str) -> None:
    how = technique(context, "constant(mask=regrown(share=0.3, decay=constant))", "2:4")
    torch.manual_seed(0)
    out = torch.tensor([True, True, False, False] * 4)
    scores = torch.rand(16).masked_fill(out, 0)
    one = entry(how, (1, 2, 8), 0.9, scores=scores, removed=out, growth=torch.rand(16))
    choice = choose(how, [one], 0.9 * 16, 0.5, False)
    assert int(choice.kept[0].reshape(-1, 4).sum(1).min()) >= 2
    assert choice.unmet == pytest.approx(14 - 8, abs=0.5)


def test_regrowth_respects_n_of_m_whatever_the_removed_score() -> None:
    """A removed weight may score high (small_final, random): it counts as removed all the same."""
    how = technique("global", "constant(mask=regrown(share=0.5, decay=constant))", "2:4")
    out = torch.tensor([True, True, False, False, False, False, False, False])
    scores = torch.tensor([9.0, 9.0, 1.0, 2.0, 5.0, 6.0, 7.0, 8.0])
    growth = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    one = entry(how, (1, 1, 8), 0.5, scores=scores, removed=out, growth=growth)
    (found,) = removed_by(how, [one])
    assert all(len(found & set(range(start, start + 4))) <= 2 for start in (0, 4))


def test_regrowth_respects_the_least_share() -> None:
    how = technique("global(keep=0.5)", "constant(mask=regrown(share=0.3, decay=constant))")
    out = torch.tensor([True, True, False, False])
    one = entry(
        how, (1, 2, 2), 0.75, scores=torch.tensor([0.0, 0.0, 1.0, 2.0]), removed=out,
        growth=torch.rand(4),
    )  # fmt: skip
    choice = choose(how, [one], 3.0, 0.5, False)
    assert int(choice.kept[0].sum()) == 2
    assert choice.unmet == 1


# what must stay


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(["local", "global"]))
def test_every_layer_keeps_its_least_share(keep: float, share: float, pool: str) -> None:
    how = Technique("weight", f"{pool}(keep={keep!r})", "magnitude", "one_shot")
    entries = [
        entry(how, (1, 4, 6), share, "a", scores=torch.rand(24) * 0.01),
        entry(how, (1, 5, 5), share, "b", scores=torch.rand(25)),
    ]
    choice = choose(how, entries, share * 49, 1.0, False)
    removed = 0
    for kept, one in zip(choice.kept, entries, strict=True):
        assert int(kept.sum()) >= math.ceil(keep * one.units.count - 1e-9)
        removed += int((~kept).sum())
    if pool == "global":
        assert removed + choice.unmet == pytest.approx(round(share * 49))


@pytest.mark.parametrize(("numbers", "least"), [("2:4", 2), ("1:4", 1), ("3:4", 3)])
@pytest.mark.parametrize("context", ["local", "global", "row"])
@pytest.mark.parametrize("tied", [True, False])
def test_n_of_m_holds_at_every_share(numbers: str, least: int, context: str, tied: bool) -> None:
    how = technique(context, "one_shot", numbers)
    scores = torch.ones(96) if tied else torch.rand(96, generator=torch.Generator().manual_seed(0))
    for share in (0.0, 0.25, 0.5, 1.0):
        one = entry(how, (1, 6, 16), share, scores=scores)
        choice = choose(how, [one], share * 96, 1.0, False)
        assert int(choice.kept[0].reshape(-1, 4).sum(1).min()) >= least
        most = round(min(share, 1 - least / 4) * 96)
        assert int((~choice.kept[0]).sum()) == most
        assert choice.unmet == pytest.approx(round(share * 96) - most)


# exact totals


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), min_size=1, max_size=5))
def test_an_exact_total_is_met_to_half_a_unit(layers: list[tuple[int, float]]) -> None:
    how = technique()
    entries = [
        entry(how, (1, size, 7), share, f"l{place}") for place, (size, share) in enumerate(layers)
    ]
    amount = sum(one.share * one.cost for one in entries)
    found = removed_by(how, entries, amount, exact_total=True)
    assert abs(sum(len(mine) for mine in found) - amount) <= 0.5 + 1e-9
    for mine, one in zip(found, entries, strict=True):
        assert abs(len(mine) - one.share * one.units.count) <= 1 + 1e-9


def test_units_of_unequal_price_meet_the_amount() -> None:
    how = technique("global")
    entries = [entry(how, (1, 4, 5), 0.5, "a", price=1.0), entry(how, (1, 4, 5), 0.5, "b",
                                                                 price=7.0)]  # fmt: skip
    for amount in (0.0, 10.0, 55.5, 80.0, 159.0):
        share = amount / 160
        both = [Entry(e.weight, e.units, e.unit_cost, e.scores, e.removed, share) for e in entries]
        found = removed_by(how, both, amount, exact_total=True)
        spent = len(found[0]) + 7 * len(found[1])
        assert abs(spent - amount) <= 3.5


def test_a_tile_longer_than_the_row_does_not_keep_rows_from_competing() -> None:
    how = technique("row", "one_shot", "o (i 4) h w")
    one = entry(how, (1, 3, 2, 3, 3), 1.0, kind="Conv2d")
    assert removed_by(how, [one]) == [set(range(27))]


def test_rows_with_an_incomplete_tile_are_refused() -> None:
    how = technique("row", "one_shot", "o (i 4) h w")
    with pytest.raises(SecateurError, match="does not divide"):
        removed_by(how, [entry(how, (1, 3, 6, 3, 3), 0.5, kind="Conv2d")])
