"""The registry: which rule an operator gets, what a rule sees, and what it says of zeros."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from structure.axes import check, data, look, weights
from torch import Tensor, fx

from secateur import SecateurError
from secateur.structure.rules import (
    Call,
    arguments_of,
    find_rule,
    has_rule,
    operator_name,
    registry,
    rule,
)
from secateur.structure.terms import Pin, Term


@pytest.fixture
def own_rules() -> Iterator[None]:
    """Rules that a test adds go with it."""
    before = dict(registry._RULES)
    yield
    registry._RULES.clear()
    registry._RULES.update(before)


@pytest.fixture(scope="module")
def blur() -> Any:
    library = torch.library.Library("secateur_tests", "FRAGMENT")
    library.define("blur(Tensor x, float by=0.5) -> Tensor")
    library.impl("blur", lambda x, by=0.5: x * by, "CompositeExplicitAutograd")
    library.impl("blur", lambda x, by=0.5: torch.empty_like(x), "Meta")
    yield torch.ops.secateur_tests.blur
    library._destroy()


def node_of(function: Any, *inputs: Tensor) -> fx.Node:
    seen = look(function, weights(made=(5, 6)), *inputs)
    return seen.recording.steps[-1]


def test_an_unknown_operator_pins_what_meets_there_and_is_counted(blur: Any) -> None:
    seen = look(lambda toy, x: blur(x @ toy.made) @ toy.read, weights(made=(5, 6), read=(6, 3)),
                data(2, 5))  # fmt: skip
    assert seen.findings.unknown == {"blur": 1}
    assert seen.sizes == []
    assert "the operator blur has no rule" in seen.reasons


def test_a_rule_of_a_user_is_used(blur: Any, own_rules: None) -> None:
    @rule("secateur_tests::blur", zero="first")
    def _blur(call: Call) -> Any:
        assert call.get("by") == 0.5
        assert call.get("nothing", 3) == 3
        return call.need("x")

    assert has_rule("secateur_tests.blur.default")
    check(lambda toy, x: blur(x @ toy.made).sum(-1), weights(made=(5, 6)), data(2, 5), free=[6])


def test_an_overload_comes_before_the_plain_name(blur: Any, own_rules: None) -> None:
    rule("secateur_tests::blur", zero="all")(lambda call: call.need("x"))
    with pytest.raises(SecateurError, match="'secateur_tests::blur' has a rule already"):
        rule("secateur_tests::blur")(lambda call: call.need("x"))
    maximum = node_of(lambda toy, x: torch.max(x, x), data(2, 5))
    greatest = node_of(lambda toy, x: torch.max(x), data(2, 5))
    assert find_rule(maximum) is registry._RULES["max.other"]
    assert find_rule(greatest) is registry._RULES["max"]


@pytest.mark.parametrize(
    ("name", "known"),
    [("aten.linear.default", True), ("aten.relu_.default", True), ("aten._softmax.default", True),
     ("aten.max.other", True), ("aten.set_.source_Tensor", False), ("os.system", False)],
)  # fmt: skip
def test_which_operators_have_rules(name: str, known: bool) -> None:
    assert has_rule(name) == known


def test_names_and_arguments() -> None:
    node = node_of(lambda toy, x: (x @ toy.made).clamp_(min=0), data(2, 5))
    assert operator_name(node) == "clamp"
    assert arguments_of(node) == {"self": node.args[0], "min": 0, "max": None}
    part = node_of(lambda toy, x: (x @ toy.made).split(2, 1)[1], data(2, 5))
    assert operator_name(part) == "getitem"
    assert arguments_of(part) == {"input": part.args[0], "index": 2}


def test_a_rule_that_fails_pins(blur: Any, own_rules: None) -> None:
    @rule("secateur_tests::blur")
    def _missing(call: Call) -> Any:
        return call.need("y")

    seen = look(lambda toy, x: blur(x @ toy.made), weights(made=(5, 6)), data(2, 5))
    assert "blur could not be followed: y is not a tensor" in seen.reasons
    assert seen.sizes == []


def test_a_rule_that_gives_other_sizes_pins(blur: Any, own_rules: None) -> None:
    rule("secateur_tests::blur")(lambda call: call.need("x")[:1])
    seen = look(lambda toy, x: blur(x @ toy.made), weights(made=(5, 6)), data(2, 5))
    assert "blur could not be followed" in seen.reasons


def test_what_is_written_to_through_a_view_is_no_zero() -> None:
    """A tensor of zeros is filled in part: afterwards it is none."""

    def code(toy: Any, x: Tensor) -> Tensor:
        whole = torch.zeros(2, toy.made.shape[1], dtype=x.dtype)
        whole[:1].copy_(x[:1].exp().sum(1, keepdim=True))
        return (whole + x @ toy.made).sum(-1)

    check(code, weights(made=(5, 6)), data(2, 5), free=[6], inexact=[6])


def test_what_is_written_to_in_place_is_followed() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        h.relu_()
        h += x @ toy.more
        return h.mul_(2).sum(-1)

    check(code, weights(made=(5, 6), more=(5, 6)), data(2, 5), free=[6])


def test_a_view_sees_what_is_written_under_it() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        view = h[None]
        h.add_(1)
        return view.sum(-1)

    check(code, weights(made=(5, 6)), data(2, 5), free=[6], inexact=[6])


def test_a_clash_pins_both_with_the_place() -> None:
    """Halves of a sum of two and four thirds of it have no common refinement."""
    seen = look(lambda toy, x: torch.cat([x @ toy.one, x @ toy.two], -1).view(-1, 2, 3).mT,
                weights(one=(5, 2), two=(5, 4)), data(2, 5))  # fmt: skip
    pins = [term.pinned for name in ("one", "two") for term in seen.terms[name][1:]]
    assert all(isinstance(pin, Pin) and "test_registry.py" in pin.place for pin in pins)
    assert all("no multiples" in pin.reason for pin in pins if pin)


def test_broadcasting_leaves_dimensions_of_one_alone() -> None:
    call = Call(fx.Graph().placeholder("x"), {}, registry.Findings())
    four, one = Term(4), Term(1)
    made = call.broadcast([[Term(3), one], [four]], [3, 4])
    assert made[1] is four
    assert [term.size for term in made] == [3, 4]
    assert [term.size for term in call.broadcast([[one]], [5])] == [5]
