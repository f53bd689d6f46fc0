"""The update axis as text and value."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import mutations, updates

from secateur import SecateurError, Update


@settings(deadline=None)
@given(updates())
def test_text_reads_back(update: Update) -> None:
    again = Update.parse(str(update))
    assert again == update
    assert hash(again) == hash(update)
    assert str(again) == str(update)
    assert len(update.words().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("keep", "keep"),
        ("rewind", "rewind(step=0)"),
        ("rewind(500)", "rewind(step=500)"),
        ("rewind(optimizer=rewind, step=5)", "rewind(step=5, optimizer=rewind)"),
        ("keep(removed=frozen, optimizer=keep)", "keep"),
        ("reinitialise(optimizer=reset)", "reinitialise(optimizer=reset)"),
        ("keep(optimizer=rewind_rate)", "keep(step=0, optimizer=rewind_rate)"),
        (
            "keep(20, removed=held, optimizer=rewind_rate)",
            "keep(step=20, removed=held, optimizer=rewind_rate)",
        ),
        ("fixed(removed=held)", "fixed(removed=held)"),
        ("compensate", "compensate(exact)"),
        ("compensate(sparsegpt, block=128)", "compensate(sparsegpt)"),
        (
            "compensate(exact, damping=0.5, optimizer=reset)",
            "compensate(exact, damping=0.5, optimizer=reset)",
        ),
    ],
)
def test_canonical_texts(text: str, canonical: str) -> None:
    assert str(Update.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("rewnd", "did you mean rewind"),
        ("reinitialize", "did you mean reinitialise"),
        ("keep(step=5)", "no meaning"),
        ("rewind(step=-1)", "count >= 0"),
        ("rewind(step=0.5)", "count >= 0"),
        ("rewind(steps=5)", "did you mean step"),
        ("keep(removed=dead)", "frozen, held, learning, straight_through"),
        ("keep(optimizer=clear)", "keep, reset, rewind"),
        ("keep(optimizer=rewind)", "goes with rewind"),
        ("compensate(exact, optimizer=rewind_rate)", "write keep(optimizer=rewind_rate)"),
        ("fixed(step=2)", "no meaning"),
        ("3", "expected a name"),
        ("compensate(sparsgpt)", "did you mean sparsegpt"),
        ("compensate(bias, damping=1)", "has no 'damping'"),
        ("compensate(exact, damping=-1)", ">= 0"),
        ("compensate(sparsegpt, block=0)", "count >= 1"),
        ("compensate(exact, dampening=1)", "did you mean damping"),
        ("compensate(0.1)", "name of a method"),
        ("compensate(sparsegpt(block=3))", "key=value"),
        ("compensate(exact, damping=none)", "not a number"),
    ],
)
def test_wrong_texts(text: str, accepted: str) -> None:
    with pytest.raises(SecateurError) as caught:
        Update.parse(text)
    assert accepted in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["keep(removed=3)", "keep(removed=none)", "keep(optimizer=[1])", 'keep(optimizer={"a": 1})'],
)
def test_odd_values_are_refused_alike(text: str) -> None:
    with pytest.raises(SecateurError):
        Update.parse(text)


@pytest.mark.parametrize(
    "text",
    ["keep(none, frozen, keep, 9)", "rewind(5, step=6)", "keep(removed=frozen(3))",
     "rewind(step=true)"],
)  # fmt: skip
def test_nothing_written_is_dropped(text: str) -> None:
    with pytest.raises(SecateurError):
        Update.parse(text)


@settings(deadline=None)
@given(st.text(max_size=20) | mutations(updates().map(str)))
def test_nothing_but_secateur_errors_escapes(text: str) -> None:
    try:
        update = Update.parse(text)
    except SecateurError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert Update.parse(str(update)) == update
