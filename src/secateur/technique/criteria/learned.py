"""Criteria whose scores are trained: every one comes with the gate that lets the loss teach it.

The numbers are trained by plain gradient steps, ``rate`` times as long as those of their weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from secateur.errors import SecateurError
from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.gate import Gate, constant, drawn, through, zeros
from secateur.technique.criteria.record import criterion

_LEARNED = ("learned",)


def _straight(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float, **parameters: float
) -> Tensor:
    return weight * through(mask, learned)


def _open_share(weight: Tensor, learned: Tensor, time: float, **parameters: float) -> Tensor:
    return learned.sigmoid()


@criterion(
    "learned",
    summary="a trained score S: every step adds -g w, straight through the mask",
    source="Sanh et al. 2020 (movement pruning)",
    needs=_LEARNED,
    moves=True,
    gate=Gate(_straight, _open_share, zeros, "the sum of sigmoid(S)"),
)
def learned(evidence: Evidence, rate: float = 1.0, threshold: float = 0.5) -> Tensor:
    """Return S - logit(threshold): what is below zero has sigmoid(S) below the threshold."""
    if not 0 < threshold < 1:
        raise SecateurError(f"learned: threshold={threshold:g} is not between 0 and 1")
    return evidence.get("learned") - math.log(threshold / (1 - threshold))


def _popped(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float, **parameters: float
) -> Tensor:
    return weight * through(mask, learned.abs())


def _size(weight: Tensor, learned: Tensor, time: float, **parameters: float) -> Tensor:
    return learned.abs()


@criterion(
    "popup",
    summary="the size of a trained score that was drawn at random, straight through the mask",
    source="Ramanujan et al. 2020 (edge-popup)",
    needs=_LEARNED,
    gate=Gate(_popped, _size, drawn, "the sum of |S|"),
)
def popup(evidence: Evidence, rate: float = 1.0) -> Tensor:
    """Return |S|."""
    return evidence.get("learned").abs()


def _stretched(gate: Tensor, low: float, high: float) -> Tensor:
    return (gate * (high - low) + low).clamp(0, 1)


def _concrete(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float,
    slope: float = 0.0, low: float = 0.0, high: float = 0.0, **parameters: float,
) -> Tensor:  # fmt: skip
    drawn_gate = ((torch.logit(noise) + learned) / slope).sigmoid()
    return weight * mask * _stretched(drawn_gate, low, high)


def _concrete_final(
    weight: Tensor, learned: Tensor, low: float = 0.0, high: float = 0.0, **parameters: float
) -> Tensor:
    return weight * _stretched(learned.sigmoid(), low, high)


def _likely_open(
    weight: Tensor, learned: Tensor, time: float,
    slope: float = 0.0, low: float = 0.0, high: float = 0.0, **parameters: float,
) -> Tensor:  # fmt: skip
    return (learned - slope * math.log(-low / high)).sigmoid()


@criterion(
    "hard_concrete",
    summary="log alpha of a stochastic gate: a concrete variable, stretched and clipped to 0..1",
    source="Louizos et al. 2018",
    needs=_LEARNED,
    gate=Gate(_concrete, _likely_open, constant("start"), "the expected number of open gates",
              final=_concrete_final, by_size=True, noisy=True),
)  # fmt: skip
def hard_concrete(
    evidence: Evidence,
    rate: float = 1.0,
    start: float = 2.0,
    slope: float = 2 / 3,
    low: float = -0.1,
    high: float = 1.1,
) -> Tensor:
    """Return log alpha; a gate is min(1, max(0, s (high - low) + low)).

    There s = sigmoid((log u - log(1 - u) + log alpha) / slope) with u uniform on (0, 1), and
    sigmoid(log alpha) once training has ended.
    """
    if not (slope > 0 and low < 0 and high > 1):
        raise SecateurError(
            f"hard_concrete: slope={slope:g}, low={low:g}, high={high:g}: expected a slope above "
            "0, low below 0 and high above 1"
        )
    return evidence.get("learned")


def _slope(time: float) -> float:
    """Return how steep the gates are: from 1 to 200, by the same factor at every step."""
    return float(200.0**time)


def _annealed(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float, **parameters: float
) -> Tensor:
    return weight * mask * torch.sigmoid(_slope(time) * learned)


def _annealed_share(weight: Tensor, learned: Tensor, time: float, **parameters: float) -> Tensor:
    return torch.sigmoid(_slope(time) * learned)


@criterion(
    "annealed_gate",
    summary="a trained s, with a gate sigmoid(b s) whose slope b grows from 1 to 200",
    source="Savarese et al. 2020 (continuous sparsification)",
    needs=_LEARNED,
    gate=Gate(_annealed, _annealed_share, constant("start"), "the sum of the gates", by_size=True),
)
def annealed_gate(evidence: Evidence, rate: float = 1.0, start: float = 0.1) -> Tensor:
    """Return s."""
    return evidence.get("learned")


def _shrunk(weight: Tensor, learned: Tensor) -> Tensor:
    return weight.sign() * relu(weight.abs() - learned.sigmoid())


def _thresholded(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float, **parameters: float
) -> Tensor:
    return mask * _shrunk(weight, learned)


def _thresholded_final(weight: Tensor, learned: Tensor, **parameters: float) -> Tensor:
    return _shrunk(weight, learned)


def _half_square(weight: Tensor, learned: Tensor, time: float, **parameters: float) -> Tensor:
    return learned.square() / 2


@criterion(
    "soft_threshold",
    summary="|w| - sigmoid(s), s a trained number per layer; weights shrink by the threshold",
    source="Kusupati et al. 2020 (STR)",
    needs=_LEARNED,
    gate=Gate(_thresholded, _half_square, constant("start"), "half the squares of s",
              final=_thresholded_final, shared=True),
)  # fmt: skip
def soft_threshold(evidence: Evidence, rate: float = 1.0, start: float = -5.0) -> Tensor:
    """Return |w| - sigmoid(s); the forward pass uses sign(w) max(0, |w| - sigmoid(s))."""
    return evidence.weight.abs() - evidence.get("learned").sigmoid()


def _noised(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float, **parameters: float
) -> Tensor:
    deviation = (learned / 2).exp()
    normal: Tensor = torch.special.ndtri(noise)
    return mask * (weight + deviation * normal)


def _dropout_divergence(
    weight: Tensor, learned: Tensor, time: float, **parameters: float
) -> Tensor:
    ratio = learned - (weight.square() + 1e-8).log()
    return 0.63576 - 0.63576 * (1.87320 + 1.48695 * ratio).sigmoid() + softplus(-ratio) / 2


@criterion(
    "noise_ratio",
    summary="log(w^2 / variance) of a weight whose noise is trained with it",
    source="Molchanov et al. 2017 (variational dropout)",
    needs=_LEARNED,
    gate=Gate(_noised, _dropout_divergence, constant("start"),
              "the divergence from a log-uniform prior (their approximation)",
              by_size=True, noisy=True),
)  # fmt: skip
def noise_ratio(evidence: Evidence, rate: float = 1.0, start: float = -10.0) -> Tensor:
    """Return log w^2 - log sigma^2, which is -log alpha."""
    return (evidence.weight.square() + 1e-8).log() - evidence.get("learned")


def _scaled(
    weight: Tensor, learned: Tensor, mask: Tensor, noise: Tensor, time: float, **parameters: float
) -> Tensor:
    return weight * mask * learned


def _scaled_final(weight: Tensor, learned: Tensor, **parameters: float) -> Tensor:
    return weight * learned


@criterion(
    "skeleton",
    summary="the size of a trained factor of each unit, which starts at one",
    source="Meng et al. 2020 (stripe pruning)",
    needs=_LEARNED,
    gate=Gate(_scaled, _size, constant("start"), "the L1 norm of the factors",
              final=_scaled_final),
)  # fmt: skip
def skeleton(evidence: Evidence, rate: float = 1.0, start: float = 1.0) -> Tensor:
    """Return |s|; the forward pass uses s w."""
    return evidence.get("learned").abs()
