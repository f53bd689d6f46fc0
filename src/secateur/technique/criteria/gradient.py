"""Criteria that ask what the loss says: first and second derivatives."""

from __future__ import annotations

from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion


@criterion(
    "taylor",
    summary="(sum of g w over the unit)^2",
    source="Molchanov et al. 2019",
    needs=("gradient",),
    reduce="squared_sum",
    aliases=("taylor_2019",),
)
def taylor(evidence: Evidence) -> Tensor:
    """Return g w, which the default reducer sums over the unit and squares."""
    return evidence.get("gradient") * evidence.weight


@criterion(
    "taylor_2016",
    summary="mean over examples of |sum over positions of output * its gradient|",
    source="Molchanov et al. 2017 (there with normalize=l2)",
    needs=("output_taylor",),
)
def taylor_2016(evidence: Evidence) -> Tensor:
    """Return the first-order change of the loss if the output channel were zero."""
    return evidence.get("output_taylor")


@criterion(
    "grad_crit", summary="(g w)^2, mean over the unit", source="FasterAI", needs=("gradient",)
)
def grad_crit(evidence: Evidence) -> Tensor:
    """Return (g w)^2."""
    return (evidence.get("gradient") * evidence.weight).square()


@criterion("snip", summary="|g w|", source="Lee et al. 2019", needs=("gradient",), reduce="sum")
def snip(evidence: Evidence) -> Tensor:
    """Return |g w|."""
    return (evidence.get("gradient") * evidence.weight).abs()


@criterion(
    "fisher",
    summary="F w^2 / 2 with the diagonal of the empirical Fisher matrix",
    source="Theis et al. 2018",
    needs=("fisher",),
    reduce="sum",
)
def fisher(evidence: Evidence) -> Tensor:
    """Return F w^2 / 2."""
    return evidence.get("fisher") * evidence.weight.square() / 2


@criterion(
    "hessian",
    summary="|h| w^2 / 2 with the diagonal of the Hessian",
    source="LeCun et al. 1989 (OBD); diagonal after Hutchinson",
    needs=("hessian",),
    reduce="sum",
    aliases=("obd",),
)
def hessian(evidence: Evidence) -> Tensor:
    """Return |h| w^2 / 2.

    At a minimum, where the method was derived, h is not negative and |h| is h; away from one, a
    negative h would send the weights first whose removal changes the loss most.
    """
    return evidence.get("hessian").abs() * evidence.weight.square() / 2


@criterion(
    "grasp",
    summary="w times the Hessian-gradient product: what goes weakens the gradient least",
    source="Wang et al. 2020",
    needs=("hessian_gradient",),
    reduce="sum",
)
def grasp(evidence: Evidence) -> Tensor:
    """Return w (H g); the paper removes the largest -w (H g)."""
    return evidence.weight * evidence.get("hessian_gradient")


@criterion(
    "synflow",
    summary="|w| times the gradient of a flow of ones through the absolute weights",
    source="Tanaka et al. 2020",
    needs=("synaptic_flow",),
    reduce="sum",
)
def synflow(evidence: Evidence) -> Tensor:
    """Return |w| dR/d|w|, with R the sum of the outputs for ones and absolute parameters."""
    return evidence.weight.abs() * evidence.get("synaptic_flow")
