"""Units against a plain loop over indices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.units import Units, check_blocks, removable
from secateur.structure import PrunableWeight
from secateur.technique import Granularity

LETTERS = {0: "", 1: "w", 2: "hw", 3: "dhw"}


def weight_of(*shape: int) -> PrunableWeight:
    return PrunableWeight("w", "w", "", "Conv", shape)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[PrunableWeight, Granularity]:
    kernel = draw(st.lists(st.integers(1, 3), max_size=3))
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)), *kernel)
    named = draw(st.frozensets(st.sampled_from("oidhw")))
    tiles = {axis: draw(st.integers(1, 4)) for axis in "oidhw" if axis in named}
    tiled = tuple((axis, length) for axis, length in tiles.items() if length > 1)
    return weight_of(*shape), Granularity(named, tiled)


def plain_units(weight: PrunableWeight, granularity: Granularity) -> dict[tuple[int, ...], list]:
    """Unit (as block numbers along the axes) to the flat places of its weights, in order."""
    letters = "goi" + LETTERS[len(weight.shape) - 3]
    units: dict[tuple[int, ...], list[int]] = {}
    for place, index in enumerate(itertools.product(*(range(size) for size in weight.shape))):
        key = []
        for letter, at in zip(letters, index, strict=True):
            if letter == "g":
                # A group numbers outputs and inputs, so it goes with whichever is named.
                key.append(at if granularity.named & {"o", "i"} else 0)
            else:
                key.append(at // granularity.tile(letter) if letter in granularity.named else 0)
        units.setdefault(tuple(key), []).append(place)
    return dict(sorted(units.items()))


@settings(max_examples=200, deadline=None)
@given(partitions())
def test_units_are_what_a_plain_loop_says(case: tuple[PrunableWeight, Granularity]) -> None:
    weight, granularity = case
    units = Units.of(weight, granularity)
    expected = list(plain_units(weight, granularity).values())
    assert units.count == len(expected) == math.prod(units.grid)
    assert units.sizes().tolist() == [len(places) for places in expected]
    assert int(units.sizes().sum()) == weight.numel
    assert units.largest == max(len(places) for places in expected)
    assert units.single == all(len(places) == 1 for places in expected)
    places = torch.arange(weight.numel).reshape(weight.shape)
    spread = units.spread(torch.arange(units.count))
    assert spread.shape == weight.shape
    owner = spread.flatten().tolist()
    for unit, mine in enumerate(expected):
        assert {owner[place] for place in mine} == {unit}
    assert units.pick(places).tolist() == [mine[0] for mine in expected]
    rows, counts = units.rows(places + 1)
    assert rows.shape[0] == units.count
    for unit, mine in enumerate(expected):
        assert sorted(v - 1 for v in rows[unit].tolist() if v) == mine
        if counts is None:
            assert rows.shape[1] == len(mine)
        else:
            assert int(counts[unit]) == len(mine)


@settings(deadline=None)
@given(partitions())
def test_rows_of_a_spread_are_constant(case: tuple[PrunableWeight, Granularity]) -> None:
    units = Units.of(*case)
    values = torch.arange(1, units.count + 1)
    rows, _ = units.rows(units.spread(values))
    for value, row in zip(values.tolist(), rows.tolist(), strict=True):
        assert set(row) - {0} == {value}
    assert torch.equal(units.pick(units.spread(values)), values)


@settings(deadline=None)
@given(partitions())
def test_equal_means_equal(case: tuple[PrunableWeight, Granularity]) -> None:
    """A tile longer than its axis makes one block, not an incomplete one."""
    units = Units.of(*case)
    sizes = [len(places) for places in plain_units(*case).values()]
    assert units.equal == (len(set(sizes)) == 1)


@settings(deadline=None)
@given(partitions())
def test_channel_statistics_spread_over_rows(case: tuple[PrunableWeight, Granularity]) -> None:
    weight, granularity = case
    units = Units.of(weight, granularity)
    per_output = torch.arange(weight.outputs).reshape(*weight.shape[:2], *[1] * (
        len(weight.shape) - 2))  # fmt: skip
    rows, counts = units.rows(per_output)
    full, also = units.rows(per_output.expand(weight.shape).clone())
    assert torch.equal(rows, full)
    assert (counts is None) == (also is None)


@pytest.mark.parametrize(
    ("shape", "granularity", "count", "size"),
    [
        ((1, 8, 4, 3, 3), "filter", 8, 36),
        ((1, 8, 4, 3, 3), "kernel", 32, 9),
        ((1, 8, 4, 3, 3), "shared_kernel", 4, 72),
        ((2, 4, 4, 3, 3), "filter", 8, 36),
        ((2, 4, 4, 3, 3), "shared_kernel", 8, 36),
        ((8, 1, 1, 3, 3), "shared_kernel", 8, 9),
        ((8, 1, 1, 3, 3), "filter", 8, 9),
        ((8, 1, 1, 3, 3), "shared_channel", 9, 8),
        ((8, 1, 1, 3, 3), "layer", 1, 72),
        ((1, 8, 4), "filter", 8, 4),
        ((1, 8, 4), "row", 32, 1),
        ((1, 8, 4), "shared_channel", 1, 32),
        ((1, 8, 4, 5), "row", 32, 5),
        ((1, 8, 4, 5), "column", 160, 1),
        ((1, 2, 2, 3, 4, 5), "row", 2 * 2 * 3 * 4, 5),
        ((1, 2, 2, 3, 4, 5), "o i h !d", 2 * 2 * 4, 15),
        ((1, 8, 8), "(o 4) (i 4)", 4, 16),
        ((1, 8, 8), "head", 8, 8),
    ],
)  # fmt: skip
def test_known_partitions(shape: tuple[int, ...], granularity: str, count: int, size: int) -> None:
    units = Units.of(weight_of(*shape), Granularity.parse(granularity))
    assert (units.count, units.largest) == (count, size)


@pytest.mark.parametrize(
    ("shape", "granularity", "per_output"),
    [((2, 3, 4, 3, 3), "kernel", 4), ((2, 3, 4, 3, 3), "weight", 36), ((2, 3, 4, 3, 3), "row", 12),
     ((1, 3, 4), "2:4", 4), ((1, 3, 8), "o (i 4) h w", 2)],
)  # fmt: skip
def test_units_per_output(shape: tuple[int, ...], granularity: str, per_output: int) -> None:
    assert Units.of(weight_of(*shape), Granularity.parse(granularity)).per_output == per_output


# n:m


def plain_removable(
    scores: Tensor, weight: PrunableWeight, granularity: Granularity
) -> set[tuple[int, ...]]:
    """The n:m weights that may go, block by block."""
    assert granularity.block is not None and granularity.kept is not None
    letters = "goi" + LETTERS[len(weight.shape) - 3]
    dim = letters.index(granularity.along)
    layout = scores.reshape(weight.shape)
    others = [range(size) for at, size in enumerate(weight.shape) if at != dim]
    allowed = set()
    for other in itertools.product(*others):
        line = [(*other[:dim], at, *other[dim:]) for at in range(weight.shape[dim])]
        for start in range(0, len(line) - granularity.block + 1, granularity.block):
            block = line[start : start + granularity.block]
            ordered = sorted(block, key=lambda index: float(layout[index]))  # stable
            allowed |= set(ordered[: granularity.block - granularity.kept])
    return allowed


@settings(max_examples=100, deadline=None)
@given(
    st.data(),
    st.sampled_from(["2:4", "1:4", "3:4", "1:2", "2:5"]),
    st.sampled_from("oihw"),
    st.booleans(),
)
def test_n_of_m_against_a_plain_loop(
    data: st.DataObject, numbers: str, along: str, tied: bool
) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 9), st.integers(1, 9), st.integers(1, 5)]))
    weight = weight_of(data.draw(st.integers(1, 2)), *shape, 1)
    granularity = Granularity.parse(f"{numbers}(along={along}, remainder=keep)")
    torch.manual_seed(data.draw(st.integers(0, 9)))
    scores = torch.randint(0, 3, (weight.numel,)) if tied else torch.rand(weight.numel)
    allowed = removable(scores.float(), weight, granularity).reshape(weight.shape)
    found = {tuple(index) for index in torch.nonzero(allowed).tolist()}
    assert found == plain_removable(scores.float(), weight, granularity)


@pytest.mark.parametrize(
    ("shape", "text", "refused"),
    [
        ((1, 3, 8), "2:4", False),
        ((1, 3, 6), "2:4", True),
        ((1, 3, 6), "2:4(remainder=keep)", False),
        ((1, 6, 8), "2:4(along=o)", True),
        ((1, 8, 6), "2:4(along=o)", False),
        ((4, 1, 1, 3, 3), "2:4", True),
        ((1, 4, 4), "2:4(along=w)", True),
        ((1, 4, 4), "2:4(along=w, remainder=keep)", False),
        ((1, 4, 4), "weight", False),
    ],
)
def test_blocks_that_do_not_divide(shape: tuple[int, ...], text: str, refused: bool) -> None:
    """An axis that a weight does not have counts as one of extent 1, which m does not divide."""
    if refused:
        with pytest.raises(SecateurError, match="remainder=keep"):
            check_blocks(weight_of(*shape), Granularity.parse(text))
    else:
        check_blocks(weight_of(*shape), Granularity.parse(text))
