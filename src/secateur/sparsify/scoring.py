"""Scoring: a criterion's value turned into one score per unit of a weight."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.sparsify.lazy import Scores
from secateur.sparsify.units import Units
from secateur.technique.criteria import (
    CRITERIA,
    MODIFIERS,
    NORMALIZERS,
    REDUCERS,
    Criterion,
    Evidence,
)

_HALF = (torch.float16, torch.bfloat16)


def score_units(
    criterion: Criterion, evidence: Evidence, units: Units, removing: int = 0
) -> Tensor:
    """Score the units of one weight [units]; the lowest go first.

    ``removing`` is the number of units that the budget takes from this weight, which some
    modifiers ask for. Half precision is scored in float32.
    """
    evidence = _widen_all(evidence)
    if criterion.inner is not None:
        inner = score_units(criterion.inner, evidence, units, removing)
        rows, _ = units.rows(evidence.weight)
        modify = MODIFIERS.get(criterion.name).function
        scores = modify(inner, rows, removing, **dict(criterion.parameters))
    else:
        scores = _plain_scores(criterion, evidence, units)
    if criterion.normalize is not None:
        scores = NORMALIZERS.get(criterion.normalize).function(scores)
    return scores


def rank_units(criterion: Criterion, evidence: Evidence, units: Units, removing: int = 0) -> Scores:
    """Score units as ``score_units`` does, but lazily where the criterion can; then without NaN."""
    if criterion.inner is None and criterion.normalize is None:
        lazily = CRITERIA.get(criterion.name).lazily
        found = lazily(units.rows(widen(evidence.weight))[0]) if lazily else None
        if found is not None:
            return found
    return score_units(criterion, evidence, units, removing)


def _plain_scores(criterion: Criterion, evidence: Evidence, units: Units) -> Tensor:
    record = CRITERIA.get(criterion.name)
    parameters = dict(criterion.parameters)
    if record.level == "unit":
        rows, _ = units.rows(evidence.weight)
        return record.function(rows, evidence, **parameters)
    scores = record.function(evidence, **parameters)
    name = criterion.reduce or record.reduce
    if units.single and name in ("mean", "sum", "max", "min"):
        return scores.expand(units.shape).reshape(-1)
    rows, counts = units.rows(scores)
    return REDUCERS.get(name).function(rows, counts)


def _widen_all(evidence: Evidence) -> Evidence:
    """Widen every tensor, so that products and squares are computed in at least float32."""
    if evidence.weight.dtype not in _HALF:
        return evidence
    known = {each.name: getattr(evidence, each.name) for each in fields(evidence)}
    tensors: dict[str, Any] = {k: widen(v) for k, v in known.items() if isinstance(v, Tensor)}
    return replace(evidence, **tensors)


def widen(tensor: Tensor) -> Tensor:
    """Return at least float32, so that half-precision scores do not overflow or tie."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def refuse_nan(scores: Scores, name: str, weight: Tensor, criterion: Criterion) -> None:
    """Raise SecateurError where a score is not a number, and say whether the weight was."""
    if not isinstance(scores, Tensor):
        return  # lazy scores are made of finite sizes only
    # A sum is NaN where an entry is, or where infinities meet, and takes one pass instead of two.
    if not bool(torch.isnan(scores.sum())) or not bool(torch.isnan(scores).any()):
        return
    if bool(torch.isnan(weight).any()):
        raise SecateurError(
            f"{name} holds NaN: the training has diverged; lower the learning rate or start from "
            "an earlier checkpoint"
        )
    raise SecateurError(f"the criterion '{criterion}' gives NaN for {name}")
