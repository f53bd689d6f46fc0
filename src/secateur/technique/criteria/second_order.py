"""Criteria that know how far the other weights can make up for one that goes.

They go with the update ``compensate``, which lets them do so.
"""

from __future__ import annotations

from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion


@criterion(
    "obs",
    summary="what the layer's output loses when the unit goes and the others make up for it",
    source="Hassibi and Stork 1993; Dong et al. 2017",
    needs=("surgeon",),
    reduce="sum",
)
def obs(evidence: Evidence) -> Tensor:
    """Return w_Q^T (H^-1[Q, Q])^-1 w_Q / 2 once summed over a unit Q; w^2 / 2 H^-1[q, q] of one."""
    return evidence.weight * evidence.get("surgeon") / 2


@criterion(
    "obc",
    summary="the dearest step until the unit goes, as they go one by one and the others make up",
    source="Frantar and Alistarh 2022; of whole inputs, Kurtic et al. 2023",
    needs=("elimination",),
    reduce="max",
)
def obc(evidence: Evidence) -> Tensor:
    """Return the greatest cost of a step of the exact elimination, up to the unit's own."""
    return evidence.get("elimination")


@criterion(
    "thinet",
    summary="when an input channel goes, as always that one goes which the output misses least",
    source="Luo et al. 2017",
    needs=("greedy",),
)
def thinet(evidence: Evidence) -> Tensor:
    """Return the place of the input channel in the greedy order."""
    return evidence.get("greedy")


@criterion(
    "lasso",
    summary="the penalty at which a lasso over the input channels drops this one",
    source="He et al. 2017",
    needs=("lasso",),
)
def lasso(evidence: Evidence) -> Tensor:
    """Return the penalty at which the input channel's number becomes zero."""
    return evidence.get("lasso")


@criterion(
    "woodfisher",
    summary="what the loss rises when the unit goes and its block of weights makes up for it",
    source="Singh and Alistarh 2020; of blocks, Kurtic et al. 2022",
    needs=("fisher_surgeon",),
    reduce="sum",
)
def woodfisher(evidence: Evidence) -> Tensor:
    """Return w_Q^T (F^-1[Q, Q])^-1 w_Q / 2 once summed over a unit Q, F the empirical Fisher."""
    return evidence.weight * evidence.get("fisher_surgeon") / 2


@criterion(
    "network_obs",
    summary="when the unit goes, as a network's go one by one and all the others make up",
    source="Hassibi and Stork 1992",
    needs=("network_elimination",),
)
def network_obs(evidence: Evidence) -> Tensor:
    """Return the unit's place; the next Q has the least w_Q^T (H^-1[Q, Q])^-1 w_Q / 2 of all."""
    return evidence.get("network_elimination")
