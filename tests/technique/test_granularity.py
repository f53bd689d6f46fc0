"""The granularity axis as text and value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import granularities, mutations

from secateur import Granularity, SecateurError
from secateur.technique.granularity import AXES, NAMES


@settings(deadline=None)
@given(granularities())
def test_text_reads_back(granularity: Granularity) -> None:
    again = Granularity.parse(str(granularity))
    assert again == granularity
    assert hash(again) == hash(granularity)
    assert str(again) == str(granularity)
    assert "\n" not in granularity.words()


# The thesis' table: the axes of a Conv2d weight that are reduced into one unit.
REDUCED = {
    "weight": "",
    "shared_weight": "o",
    "channel": "i",
    "column": "h",
    "row": "w",
    "vertical_slice": "ih",
    "horizontal_slice": "iw",
    "shared_kernel": "ohw",
    "kernel": "hw",
    "filter": "ihw",
    "shared_channel": "oi",
    "shared_column": "oh",
    "shared_row": "ow",
    "shared_vertical_slice": "oih",
    "shared_horizontal_slice": "oiw",
    "layer": "oihw",
}


@pytest.mark.parametrize("name", REDUCED)
def test_names_of_the_thesis(name: str) -> None:
    named = set("oihw") - set(REDUCED[name])
    assert Granularity.parse(name).named - {"d"} == named
    assert str(Granularity.parse(name)) == name
    if named:
        axes = " ".join(axis for axis in "oihw" if axis in named)
        assert Granularity.parse(axes) == Granularity.parse(name)


def test_all_sixteen_names_differ() -> None:
    assert set(NAMES) == set(REDUCED)
    assert len({Granularity.parse(name) for name in NAMES}) == 16


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("o  i h   w", "weight"),
        ("w h i o", "weight"),
        ("(o 4)(i 4)", "(o 4) (i 4)"),
        ("(i 4) (o 2)", "(o 2) (i 4)"),
        ("(o 1) i", "kernel"),
        ("h !d", "h !d"),
        ("d h", "shared_horizontal_slice"),
        ("d", "d"),
        ("2:4", "2:4"),
        (" 2:4 ", "2:4"),
        ("2:4()", "2:4"),
        ("1:16(along=o, remainder=keep)", "1:16(along=o, remainder=keep)"),
        ("2:4(o)", "2:4(along=o)"),
        ("2:4(along=i)", "2:4"),
        ("head", "head"),
    ],
)
def test_canonical_texts(text: str, canonical: str) -> None:
    assert str(Granularity.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("filtre", "did you mean filter"),
        ("", "write 'layer'"),
        ("!d", "write 'layer'"),
        ("o o", "twice"),
        ("h !d d", "twice"),
        ("!o i", "leave 'o' out"),
        ("(o 0)", "at least 1"),
        ("(x 4)", "(o 4) (i 4)"),
        ("o,i", "'o i'"),
        ("oi", "'o i'"),
        ("4:2", "try 2:4"),
        ("0:4", "try 2:4"),
        ("4:4", "try 2:4"),
        ("2:4(along=x)", "o i d h w"),
        ("2:4(remainder=pad)", "error, keep"),
        ("2:4(by=o)", "along, order, remainder"),
        ("90%", "2:4"),
        ("Filter", "did you mean filter"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Granularity.parse(text)
    message = str(caught.value)
    assert accepted in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("text", ["2:4(o, i)", "2:4(along=i(7))", "2:4(along=o, along=i)"])
def test_nothing_written_is_dropped(text: str) -> None:
    with pytest.raises(SecateurError):
        Granularity.parse(text)


@settings(max_examples=400, deadline=None)
@given(
    st.text(max_size=20)
    | st.text("oidhw ()!:0123456789", max_size=20)
    | mutations(granularities().map(str))
)
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        granularity = Granularity.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Granularity.parse(str(granularity)) == granularity


@pytest.mark.parametrize("text", ["(o " + "9" * 5000 + ")", "2:" + "9" * 5000])
def test_numbers_beyond_all_bounds(text: str) -> None:
    with pytest.raises(SecateurError):
        Granularity.parse(text)


@pytest.mark.parametrize("text", ["fil\nter", "o\ni\nx"])
def test_the_message_is_one_line_whatever_is_quoted(text: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Granularity.parse(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "given_values",
    [
        {"named": "x"},
        {"named": "o", "tiles": (("i", 4),)},
        {"named": "o", "tiles": (("o", 1),)},
        {"named": "oi", "kept": 2},
        {"named": "oi", "kept": 4, "block": 4},
        {"named": "oi", "kept": 2, "block": 4, "along": "z"},
        {"named": "oi", "kept": 2, "block": 4, "remainder": "zero"},
    ],
)
def test_wrong_values(given_values: dict[str, object]) -> None:
    with pytest.raises(SecateurError):
        Granularity(**given_values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "outputs"),
    [("filter", True), ("layer", True), ("shared_kernel", False), ("(o 4)", True),
     ("kernel", False), ("2:4", False), ("head", True)],
)  # fmt: skip
def test_whole_outputs(text: str, outputs: bool) -> None:
    assert Granularity.parse(text).whole_outputs == outputs


def test_words_and_tile() -> None:
    assert Granularity.parse("filter").words().startswith("one filter")
    assert "2 kept of every 4" in Granularity.parse("2:4").words()
    assert "along the outputs" in Granularity.parse("2:4(o)").words()
    tiled = Granularity.parse("(o 4) i")
    assert "4 along o" in tiled.words()
    assert {axis: tiled.tile(axis) for axis in AXES} == {"o": 4, "i": 1, "d": 1, "h": 1, "w": 1}


@pytest.mark.parametrize("text", ["2:4 head", "head 2:4", "2:4(head)", "2:4(along=head)"])
def test_n_of_m_and_heads_exclude_each_other(text: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Granularity.parse(text)
    assert "2:4 removes single weights" in str(caught.value) and "head" in str(caught.value)
    with pytest.raises(SecateurError, match="2:4 removes single weights of every block, and head"):
        Granularity(frozenset("oidhw"), kept=2, block=4, head=True)
