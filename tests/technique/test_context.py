"""The context axis as text and value."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import contexts, mutations

from secateur import Context, SecateurError
from secateur.technique.context import check_share


@settings(deadline=None)
@given(contexts())
def test_text_reads_back(context: Context) -> None:
    again = Context.parse(str(context))
    assert again == context
    assert hash(again) == hash(context)
    assert str(again) == str(context)
    assert len(context.words().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("layer", "local"),
        ("model", "global"),
        ("local(uniform)", "local"),
        ("local(uniform+)", "local(uniform_plus)"),
        ("local(allocation=erk)", "local(erk)"),
        ("global(keep=0.05)", "global(keep=0.05)"),
        ("global(keep=0)", "global"),
        ('{"layer1.*": 0.5, "*": 1}', '{"layer1.*": 0.5, "*": 1}'),
        ('local({"a": 0.5})', '{"a": 0.5}'),
        ('row({"a": 0.5})', 'row({"a": 0.5})'),
        ('groups({"early": "a.*", "late": ["b", "c"]}, lamp)',
         'groups({"early": ["a.*"], "late": ["b", "c"]}, lamp)'),
        ('groups({"e": ["a"]}, {"a": 0.5})', 'groups({"e": ["a"]}, {"a": 0.5})'),
    ],
)  # fmt: skip
def test_canonical_texts(text: str, canonical: str) -> None:
    assert str(Context.parse(text)) == canonical


def test_a_mapping_is_a_context() -> None:
    assert Context.parse({"a": 0.5, "b*": 1}) == Context.parse('{"a": 0.5, "b*": 1}')


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("globl", "did you mean global"),
        ("local(erkk)", "did you mean erk"),
        ("local(3)", "erk"),
        ("global(erk)", "write local(erk)"),
        ("groups", '"early"'),
        ('groups({"a": 3})', '["layer1.*"]'),
        ('groups({"a": ["b", 3]})', '["layer1.*"]'),
        ('local(groups={"a": ["b"]})', "has no 'groups'"),
        ("local(given)", '"layer1.*": 0.5'),
        ("local(keep=2)", "0.02"),
        ("global(keep=x)", "fraction between 0 and 1"),
        ("global(least=0.1)", "keep"),
        ('{"a": 90}', "for 90 percent write 0.9"),
        ('{"a": -0.1}', "fraction between 0 and 1"),
        ('{"a": true}', "fraction between 0 and 1"),
        ('{"a": "0.5"}', "fraction between 0 and 1"),
        ("{}", '"layer1.*": 0.5'),
        ("5", "global"),
        ('"global"', "did you mean global"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Context.parse(text)
    assert accepted in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    ["local(erk, lamp)", "local(erk(3))", "local(erk(power=2))", 'local({"a": 0.5}, erk)',
     "global(keep=0.1, allocation=uniform, allocation=erk)"],
)  # fmt: skip
def test_nothing_written_is_dropped(text: str) -> None:
    with pytest.raises(SecateurError):
        Context.parse(text)


@pytest.mark.parametrize("text", ["lo\ncal", '{"a\nb": 0.5}', 'local("x\ny")'])
def test_the_message_is_one_line_whatever_is_quoted(text: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Context.parse(text)
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=20) | mutations(contexts().map(str)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        context = Context.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Context.parse(str(context)) == context


@pytest.mark.parametrize("value", [0, 1, 0.5, 1e-300])
def test_shares(value: float) -> None:
    assert check_share(value, "sparsity") == value


@pytest.mark.parametrize(
    ("value", "hint"),
    [(90, "write 0.9"), (1.5, "write 0.015"), (-1, "fraction"), (float("nan"), "nan"),
     (float("inf"), "inf"), ("90", "'90'"), (None, "none"), (True, "true")],
)  # fmt: skip
def test_what_is_no_share(value: Any, hint: str) -> None:
    with pytest.raises(SecateurError, match="sparsity is") as caught:
        check_share(value, "sparsity")
    assert hint in str(caught.value)
