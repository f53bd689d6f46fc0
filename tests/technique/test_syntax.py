"""The texts of values: reading, writing, and refusing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.technique.syntax import (
    Call,
    Table,
    format_value,
    parse_call,
    parse_value,
    split_parts,
)

words = st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,6}\+?", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "none")
)
leaves: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | words.map(Call)
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(inner, max_size=3).map(tuple)
    keywords = st.dictionaries(words.map(lambda word: word.rstrip("+")), inner, max_size=2)
    calls = st.builds(lambda n, a, k: Call(n, a, tuple(k.items())), words, items, keywords)
    tables = st.dictionaries(st.text(max_size=5), inner, max_size=3)
    return items | calls | tables.map(lambda pairs: Table(tuple(pairs.items())))


values = st.recursive(leaves, _nested, max_leaves=8)


@settings(deadline=None)
@given(values)
def test_what_is_written_reads_back(value: Any) -> None:
    assert parse_value(format_value(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-.5", -0.5),
        ("1e-3", 0.001),
        ("true", True),
        ("none", None),
        ("'it\\'s'", "it's"),
        ('"a\\u00e9|b"', "aé|b"),
        ("[1, 2,]", (1, 2)),
        ("f", Call("f")),
        ("f()", Call("f")),
        ("uniform+", Call("uniform+")),
        ("f(1, [x], a={\"k\": none})",
         Call("f", (1, (Call("x"),)), (("a", Table((("k", None),))),))),
    ],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    assert parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "it ends where a value should follow"),
        ("f(", "it ends where a value should follow"),
        ("f(1", "it ends where , should follow"),
        ("f(1 2)", "'2' stands where ',' should"),
        ("f(a=1, 2)", "a value without a key"),
        ("f(a=1, a=2)", "'a' is given twice"),
        ("f(1))", "'\\)' stands after the end"),
        ("[1", "it ends where ,"),
        ('{"a" 1}', "'1' stands where ':' should"),
        ("{a: 1}", "'a' stands where a quoted name should"),
        ("a ; b", "unexpected ';"),
        ("'it''s'", "stands after the end"),
        ('"open', "unexpected"),
        ('"\\q"', "escape that means nothing"),
        ("[" * 100, "nested too deeply"),
    ],
)
def test_broken_texts_are_quoted(text: str, complaint: str) -> None:
    with pytest.raises(SecateurError, match=complaint) as caught:
        parse_value(text)
    assert text.strip() in str(caught.value)


@pytest.mark.parametrize("text", ["9" * 5000, "1e999", "-1e999"])
def test_numbers_beyond_all_bounds_are_refused(text: str) -> None:
    with pytest.raises(SecateurError):
        parse_value(text)


def test_a_very_long_text_is_refused() -> None:
    with pytest.raises(SecateurError, match="20001 characters"):
        parse_value("x" * 20_001)


@pytest.mark.parametrize("text", ["3", "true", "[f]", '"f"'])
def test_a_call_is_asked_for(text: str) -> None:
    with pytest.raises(SecateurError, match="expected a name"):
        parse_call(text, "schedule")


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30) | st.text("()[]{},=:\"'\\ ab1.e-+|\n", max_size=30))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        parse_value(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=5))
def test_bars_part_outside_quotes_only(parts: list[Any]) -> None:
    written = [format_value(part) for part in parts]
    assert split_parts(" | ".join(written)) == written


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a|b", ["a", "b"]),
        (" a | 'b|c' |", ["a", "'b|c'", ""]),
        ('"a\\"|b"|c', ['"a\\"|b"', "c"]),
        ('"open | c', ['"open', "c"]),
        ("", [""]),
    ],
)
def test_split_parts(text: str, parts: list[str]) -> None:
    assert split_parts(text) == parts
