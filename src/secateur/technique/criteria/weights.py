"""Criteria that look at weights alone, now and as they were saved (thesis, B.2).

``w`` is the weight now, ``w0`` the weight saved at the start or at the step of a rewind. The names
are the thesis'; its paper prints small_init as |-w0|, which would be large_init: the minus stands
outside here, as in its code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion

_ZHOU = "Zhou et al. 2019"


@criterion("random", summary="a random number per unit; the baseline of all", level="unit")
def random(rows: Tensor, evidence: Evidence) -> Tensor:
    """Return uniform random numbers from the run's own generator."""
    drawn = torch.rand(len(rows), generator=evidence.generator, dtype=torch.float32)
    return drawn.to(rows.device)


@criterion("magnitude", summary="|w|", source="Han et al. 2015", aliases=("large_final", "l1"))
def magnitude(evidence: Evidence) -> Tensor:
    """Return |w|."""
    return evidence.weight.abs()


@criterion("squared_final", summary="w^2", source="Hubens et al. 2022")
def squared_final(evidence: Evidence) -> Tensor:
    """Return w^2."""
    return evidence.weight.square()


@criterion("small_final", summary="-|w|: the large ones go", source=_ZHOU)
def small_final(evidence: Evidence) -> Tensor:
    """Return -|w|."""
    return evidence.weight.abs().neg_()


@criterion("large_init", summary="|w0|", source=_ZHOU, needs=("saved",))
def large_init(evidence: Evidence) -> Tensor:
    """Return |w0|."""
    return evidence.get("saved").abs()


@criterion("small_init", summary="-|w0|", source=_ZHOU, needs=("saved",))
def small_init(evidence: Evidence) -> Tensor:
    """Return -|w0|."""
    return evidence.get("saved").abs().neg_()


@criterion("large_init_large_final", summary="min(|w|, |w0|)", source=_ZHOU, needs=("saved",))
def large_init_large_final(evidence: Evidence) -> Tensor:
    """Return min(|w|, |w0|)."""
    size = evidence.weight.abs()
    return torch.minimum(size, evidence.get("saved").abs(), out=size)


@criterion("small_init_small_final", summary="-max(|w|, |w0|)", source=_ZHOU, needs=("saved",))
def small_init_small_final(evidence: Evidence) -> Tensor:
    """Return -max(|w|, |w0|)."""
    size = evidence.weight.abs()
    return torch.maximum(size, evidence.get("saved").abs(), out=size).neg_()
