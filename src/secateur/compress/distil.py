"""Distillation: how far a student's answers and features are from a teacher's.

Hinton, Vinyals, Dean 2015: Distilling the Knowledge in a Neural Network (arXiv 1503.02531).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import SecateurError


def distillation_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, dim: int = 1
) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over all decisions.

    Both are scores of classes that exclude each other, [N, C] or [N, C, ...] with the classes
    along ``dim``. The factor T^2 keeps the gradient's size whatever the temperature (Hinton et
    al. 2015). Raises SecateurError where the shapes differ.

    >>> scores = torch.tensor([[2.0, 0.0, 1.0]])
    >>> float(distillation_loss(scores, scores + 5))
    0.0
    """
    check_alike(student, teacher)
    ours = functional.log_softmax(student.float() / temperature, dim)
    theirs = functional.log_softmax(teacher.float() / temperature, dim)
    distance = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim)
    return temperature**2 * distance.mean()


def binary_distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Return T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)), a mean over all entries.

    Both are scores of yes-or-no questions, of any shape: several labels, or one per pixel. One
    score z says what two classes with the scores (z, 0) say to ``distillation_loss``. Raises
    SecateurError where the shapes differ.

    >>> float(binary_distillation_loss(torch.zeros(2, 3), torch.zeros(2, 3)))
    0.0
    """
    check_alike(student, teacher)
    ours, theirs = student.float() / temperature, teacher.float() / temperature
    yes = theirs.sigmoid() * (functional.logsigmoid(theirs) - functional.logsigmoid(ours))
    no = (-theirs).sigmoid() * (functional.logsigmoid(-theirs) - functional.logsigmoid(-ours))
    return temperature**2 * (yes + no).mean()


def value_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors of plain numbers.

    Raises SecateurError where the shapes differ.
    """
    check_alike(student, teacher)
    return functional.mse_loss(student.float(), teacher.float())


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far two feature maps [N, C, ...] look at different places, from 0 to 2.

    The attention map of a layer is the mean over its channels of the squared features, as a
    vector of length 1 for each example; the distance is the mean over the examples of
    |a - b|^2 (Zagoruyko, Komodakis 2017: Paying More Attention to Attention, arXiv 1612.03928).
    The channels need not be equally many, so it suits a student that was pruned; the teacher's map
    is resized to the student's where they have another size.

    >>> features = torch.rand(2, 8, 4, 4)
    >>> float(feature_distance(features, features))
    0.0
    """
    if student.dim() < 3 or student.dim() != teacher.dim() or len(student) != len(teacher):
        raise SecateurError(
            f"features of {list(student.shape)} and {list(teacher.shape)}: expected [N, C, ...] "
            "with equally many examples and dimensions"
        )
    ours = student.float().square().mean(1, keepdim=True)
    theirs = teacher.float().square().mean(1, keepdim=True)
    if ours.shape != theirs.shape:
        mode = {3: "linear", 4: "bilinear", 5: "trilinear"}.get(ours.dim(), "nearest")
        theirs = functional.interpolate(theirs, ours.shape[2:], mode=mode)
    ours, theirs = (functional.normalize(each.flatten(1)) for each in (ours, theirs))
    return (ours - theirs).square().sum(1).mean()


def answer_distance(
    student: Any,
    teacher: Any,
    answers: str = "softmax",
    temperature: float = 4.0,
    dim: int = 1,
) -> Tensor:
    """Return the distance of a model's outputs from a teacher's: the sum over their tensors.

    ``answers`` says what the numbers mean: ``softmax``, ``sigmoid`` or ``values``. Outputs may be
    a tensor, have ``.logits``, or be tuples, lists and mappings of such. Raises SecateurError where
    the two differ in kind or shape.
    """
    distances: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "softmax": lambda ours, theirs: distillation_loss(ours, theirs, temperature, dim),
        "sigmoid": lambda ours, theirs: binary_distillation_loss(ours, theirs, temperature),
        "values": value_distance,
    }
    pairs = _pairs(student, teacher)
    if not pairs:
        raise SecateurError("the outputs hold no tensor to compare with a teacher's")
    distance = distances[answers]
    return torch.stack([distance(ours, theirs) for ours, theirs in pairs]).sum()


def _pairs(student: Any, teacher: Any) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of two outputs, whatever holds them."""
    student, teacher = (getattr(each, "logits", each) for each in (student, teacher))
    if isinstance(student, Tensor) and isinstance(teacher, Tensor):
        return [(student, teacher)]
    ours, theirs = _parts(student), _parts(teacher)
    if ours is not None and theirs is not None and ours.keys() == theirs.keys():
        return [pair for key in ours for pair in _pairs(ours[key], theirs[key])]
    kinds = type(student).__name__, type(teacher).__name__
    raise SecateurError(
        f"the student gives a {kinds[0]} and the teacher a {kinds[1]}: expected outputs of one kind"
    )


def _parts(outputs: Any) -> Mapping[Any, Any] | None:
    """Return what a mapping, tuple or list holds, by key or place."""
    if isinstance(outputs, (tuple, list)):
        return dict(enumerate(outputs))
    return outputs if isinstance(outputs, Mapping) else None


def check_alike(student: Tensor, teacher: Tensor) -> None:
    """Raise SecateurError where a student and its teacher answer in different shapes."""
    if student.shape != teacher.shape:
        raise SecateurError(
            f"the student answers in the shape {list(student.shape)}, the teacher in "
            f"{list(teacher.shape)}: they must answer the same question"
        )


def freeze(model: nn.Module) -> nn.Module:
    """Return a copy of a model that stays as it is: in eval mode, without gradients.

    Raises SecateurError where the model cannot be copied.
    """
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # a model may hold anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SecateurError(
            f"{type(model).__name__} cannot be copied to be its own teacher ({reason}): pass "
            "teacher="
        ) from error
    return copied.eval().requires_grad_(False)


def ask(teacher: Callable[..., Any], inputs: Any) -> Any:
    """Return a teacher's outputs for a model's inputs, without gradients and in eval mode.

    ``inputs`` are a tensor, a tuple of positional arguments or a mapping of keyword arguments.
    """
    if isinstance(teacher, nn.Module) and teacher.training:
        teacher.eval()
    with torch.no_grad():
        if isinstance(inputs, Mapping):
            return teacher(**inputs)
        if isinstance(inputs, (tuple, list)):
            return teacher(*inputs)
        return teacher(inputs)
