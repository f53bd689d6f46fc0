"""Criteria that look at what a layer answers, or at how much its inputs vary.

What a layer answers is taken behind the norm that follows it, if there is one, and after a ReLU.
"""

from __future__ import annotations

from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion


@criterion(
    "apoz",
    summary="the share of outputs above zero: those that are mostly zero go",
    source="Hu et al. 2016 (one minus their average percentage of zeros)",
    needs=("output_active",),
)
def apoz(evidence: Evidence) -> Tensor:
    """Return 1 - APoZ of each output channel, in [0, 1]."""
    return evidence.get("output_active")


@criterion(
    "hrank",
    summary="the mean rank of the output maps",
    source="Lin et al. 2020",
    needs=("output_rank",),
)
def hrank(evidence: Evidence) -> Tensor:
    """Return the mean over examples of rank(map) of each output channel."""
    return evidence.get("output_rank")


@criterion(
    "chip",
    summary="how much the nuclear norm of all output maps falls without this one",
    source="Sui et al. 2021",
    needs=("output_independence",),
)
def chip(evidence: Evidence) -> Tensor:
    """Return the mean over examples of ||A||_* - ||A without row c||_*, A [channels, positions]."""
    return evidence.get("output_independence")


@criterion(
    "stade",
    summary="|w| times the standard deviation of its input; published per output row",
    source="Coello de Portugal Mecke et al. 2025",
    needs=("input_spread",),
)
def stade(evidence: Evidence) -> Tensor:
    """Return |w_ij| std(x_j)."""
    return evidence.weight.abs() * evidence.get("input_spread")


@criterion(
    "fluctuation",
    summary="the variance of an input times the squared weights that read it",
    source="An et al. 2024 (FLAP)",
    needs=("input_spread",),
    reduce="sum",
)
def fluctuation(evidence: Evidence) -> Tensor:
    """Return Var(x_j) w_ij^2, which the default reducer sums over the unit."""
    return evidence.get("input_spread").square() * evidence.weight.square()
