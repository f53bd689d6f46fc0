"""Criteria that look at how far weights have moved (thesis, B.2).

``w0`` is the weight saved at the start or at the step of a rewind, ``w-`` the weight at the
previous mask update. Two names were used for different things: the paper's mov_large_final is
|w (w - w0)|, which its toolbox called movmag; the paper's mov_mag is ||w| - |w0||. Here both carry
the paper's names, and movmag means what the toolbox computed.
"""

from __future__ import annotations

from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion

_ZHOU = "Zhou et al. 2019"
_HUBENS = "Hubens et al. 2022"


@criterion("magnitude_increase", summary="|w| - |w0|", source=_ZHOU, needs=("saved",), moves=True)
def magnitude_increase(evidence: Evidence) -> Tensor:
    """Return |w| - |w0|."""
    return evidence.weight.abs().sub_(evidence.get("saved").abs())


@criterion("movement", summary="|w - w0|", source=_ZHOU, needs=("saved",), moves=True)
def movement(evidence: Evidence) -> Tensor:
    """Return |w - w0|."""
    return (evidence.weight - evidence.get("saved")).abs_()


@criterion(
    "mov_large_final",
    summary="|w (w - w0)|",
    source=_HUBENS,
    needs=("saved",),
    moves=True,
    aliases=("movmag",),
)
def mov_large_final(evidence: Evidence) -> Tensor:
    """Return |w (w - w0)|."""
    return (evidence.weight - evidence.get("saved")).mul_(evidence.weight).abs_()


@criterion("mov_mag", summary="||w| - |w0||", source=_HUBENS, needs=("saved",), moves=True)
def mov_mag(evidence: Evidence) -> Tensor:
    """Return ||w| - |w0||."""
    return evidence.weight.abs().sub_(evidence.get("saved").abs()).abs_()


@criterion(
    "updating_magnitude_increase",
    summary="|w| - |w-|",
    source=_HUBENS,
    needs=("previous",),
    moves=True,
)
def updating_magnitude_increase(evidence: Evidence) -> Tensor:
    """Return |w| - |w-|."""
    return evidence.weight.abs().sub_(evidence.get("previous").abs())


@criterion("updating_movement", summary="|w - w-|", source=_HUBENS, needs=("previous",), moves=True)
def updating_movement(evidence: Evidence) -> Tensor:
    """Return |w - w-|."""
    return (evidence.weight - evidence.get("previous")).abs_()


@criterion(
    "updating_movmag", summary="|w (w - w-)|", source=_HUBENS, needs=("previous",), moves=True
)
def updating_movmag(evidence: Evidence) -> Tensor:
    """Return |w (w - w-)|."""
    return (evidence.weight - evidence.get("previous")).mul_(evidence.weight).abs_()
