"""Distillation as numbers: against PyTorch's own divergence, a hand formula, and properties."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from secateur import SecateurError
from secateur.compress import (
    answer_distance,
    binary_distillation_loss,
    distillation_loss,
    feature_distance,
    value_distance,
)
from secateur.compress.distil import ask, freeze

temperatures = st.floats(0.5, 20)
seeds = st.integers(0, 10**6)


def scores(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(*shape, generator=generator, dtype=torch.float32),
        3 * torch.randn(*shape, generator=generator, dtype=torch.float32),
    )


@settings(deadline=None)
@given(seeds, temperatures, st.integers(1, 5), st.integers(2, 7))
def test_it_is_the_divergence_of_softened_answers(
    seed: int, temperature: float, examples: int, classes: int
) -> None:
    student, teacher = scores(seed, examples, classes)
    expected = functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).softmax(1),
        reduction="batchmean",
    )
    found = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(found, temperature**2 * expected, rtol=1e-3, atol=1e-5)
    p = [[math.exp(v / temperature) for v in row] for row in teacher.double().tolist()]
    q = [[math.exp(v / temperature) for v in row] for row in student.double().tolist()]
    by_hand = 0.0
    for ours, theirs in zip(q, p, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            share = other / sum(theirs)
            by_hand += share * math.log(share / (one / sum(ours)))
    wanted = temperature**2 * by_hand / examples
    assert float(found) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@settings(deadline=None)
@given(seeds, temperatures)
def test_it_is_zero_for_equal_answers_and_never_negative(seed: int, temperature: float) -> None:
    student, teacher = scores(seed, 4, 5)
    assert float(distillation_loss(student, teacher, temperature)) > 0
    assert float(distillation_loss(student, student + 3, temperature)) == pytest.approx(0, abs=1e-4)
    assert float(binary_distillation_loss(student, teacher, temperature)) > 0
    assert float(binary_distillation_loss(student, student, temperature)) == 0


@settings(deadline=None)
@given(seeds, temperatures)
def test_one_score_says_what_two_classes_say(seed: int, temperature: float) -> None:
    student, teacher = scores(seed, 6, 1)
    nothing = torch.zeros(6, 1)
    two = distillation_loss(
        torch.cat([student, nothing], 1), torch.cat([teacher, nothing], 1), temperature
    )
    one = binary_distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_a_hot_answer_is_that_of_matched_scores() -> None:
    # Hinton et al. 2015, equation 4: for T far above the scores and scores of mean zero, the
    # gradient by a score is (z - v) / N, whatever T.
    student, teacher = (each - each.mean(1, keepdim=True) for each in scores(0, 1, 5))
    student.requires_grad_()
    distillation_loss(student, teacher, 1000.0).backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 5, rtol=0.02, atol=1e-2)


def test_classes_lie_along_any_dimension() -> None:
    student, teacher = scores(1, 2, 3, 4)
    flat = [each.transpose(1, 2).reshape(8, 3) for each in (student, teacher)]
    torch.testing.assert_close(distillation_loss(student, teacher), distillation_loss(*flat))
    turned = (each.transpose(1, 2) for each in (student, teacher))
    torch.testing.assert_close(
        distillation_loss(*turned, dim=-1), distillation_loss(student, teacher)
    )


def test_extreme_answers_stay_finite() -> None:
    sure = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    for loss in (distillation_loss, binary_distillation_loss):
        value = loss(sure, -sure.detach(), 1.0)
        (gradient,) = torch.autograd.grad(value, sure)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_half_precision_is_compared_in_single() -> None:
    student, teacher = (each.bfloat16() for each in scores(2, 3, 4))
    assert distillation_loss(student, teacher).dtype == torch.float32
    torch.testing.assert_close(
        distillation_loss(student, teacher), distillation_loss(student.float(), teacher.float())
    )


@pytest.mark.parametrize("loss", [distillation_loss, binary_distillation_loss, value_distance])
def test_answers_of_other_shapes_are_refused(loss: object) -> None:
    with pytest.raises(SecateurError, match=r"\[2, 3\], the teacher in \[2, 1\]"):
        loss(torch.zeros(2, 3), torch.zeros(2, 1))  # type: ignore[operator]


@settings(deadline=None)
@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_features_of_other_widths_compare(seed: int, wide: int, narrow: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    one = torch.rand(2, wide, 5, 4, generator=generator) + 0.1
    other = torch.rand(2, narrow, 5, 4, generator=generator) + 0.1
    distance = feature_distance(one, other)
    maps = [each.square().mean(1).flatten(1) for each in (one, other)]
    maps = [each / each.norm(dim=1, keepdim=True) for each in maps]
    cosine = (maps[0] * maps[1]).sum(1)
    torch.testing.assert_close(distance, (2 - 2 * cosine).mean(), rtol=1e-3, atol=1e-6)
    assert 0 <= float(distance) <= 2
    assert float(feature_distance(one, 7 * one)) == pytest.approx(0, abs=1e-6)


def test_features_of_other_sizes_are_resized_and_others_refused() -> None:
    small, large = torch.rand(2, 3, 4, 4), torch.ones(2, 8, 8, 8)
    even = feature_distance(torch.ones(2, 5, 4, 4), large)
    assert float(even) == pytest.approx(0, abs=1e-6)
    assert float(feature_distance(small, large)) > 0
    with pytest.raises(SecateurError, match="equally many examples"):
        feature_distance(small, large[:1])
    with pytest.raises(SecateurError, match="expected"):
        feature_distance(torch.zeros(2, 3), torch.zeros(2, 3))


def test_outputs_of_any_kind_are_compared_part_by_part() -> None:
    student, teacher = scores(3, 4, 5)
    plain = answer_distance(student, teacher, "sigmoid", 2.0)
    wrapped = [{"a": each, "b": (each, [each])} for each in (student, teacher)]
    torch.testing.assert_close(answer_distance(*wrapped, "sigmoid", 2.0), 3 * plain)
    logits = [SimpleNamespace(logits=each, loss=None) for each in (student, teacher)]
    torch.testing.assert_close(answer_distance(*logits, "sigmoid", 2.0), plain)
    torch.testing.assert_close(
        answer_distance(student, teacher, "values"), (student - teacher).square().mean()
    )
    for other in ({"a": teacher}, (teacher,), [], "text", None):
        with pytest.raises(SecateurError):
            answer_distance(student, other)
    with pytest.raises(SecateurError, match="no tensor"):
        answer_distance([], [])


def test_a_frozen_copy_neither_learns_nor_counts() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train()
    inputs = torch.randn(6, 4)
    teacher = freeze(model)
    first = ask(teacher, inputs)
    with torch.no_grad():
        model[0].weight.zero_()
    again = ask(teacher.train(), inputs)  # whatever mode it was left in
    assert torch.equal(first, again)
    assert not again.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_teacher_is_asked_as_the_model_was() -> None:
    one, two = torch.randn(2, 2), torch.randn(2, 2)

    def minus(a: Tensor, b: Tensor | float = 0.0) -> Tensor:
        return a - b

    assert torch.equal(ask(minus, one), one)
    assert torch.equal(ask(minus, (one, two)), one - two)
    assert torch.equal(ask(minus, {"b": one, "a": two}), two - one)


def test_what_cannot_be_copied_is_told() -> None:
    model = nn.Linear(2, 2)
    model.handle = (each for each in "x")  # type: ignore[assignment]
    with pytest.raises(SecateurError, match="pass teacher="):
        freeze(model)
