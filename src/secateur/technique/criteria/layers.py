"""Criteria about whole layers and the norms behind them."""

from __future__ import annotations

from torch import Tensor

from secateur.technique.criteria.evidence import Evidence
from secateur.technique.criteria.record import criterion


@criterion(
    "block_influence",
    summary="one minus the cosine of what enters and leaves a layer; for the granularity layer",
    source="Men et al. 2025 (ShortGPT)",
    needs=("block_influence",),
)
def block_influence(evidence: Evidence) -> Tensor:
    """Return 1 - E[x_in . x_out / (||x_in|| ||x_out||)], the same for all of a layer."""
    return evidence.get("block_influence")


@criterion(
    "removal_loss",
    summary="the loss on the data without the layer; for the granularity layer",
    source="Song et al. 2024 (SLEB)",
    needs=("removal_loss",),
)
def removal_loss(evidence: Evidence) -> Tensor:
    """Return the loss when the layer gives zeros, the same for all of a layer."""
    return evidence.get("removal_loss")


@criterion(
    "gate_taylor",
    summary="|scale times its gradient| of the norm that follows",
    source="You et al. 2019 (Gate Decorator)",
    needs=("scale_taylor",),
)
def gate_taylor(evidence: Evidence) -> Tensor:
    """Return the mean over batches of |gamma dL/dgamma|."""
    return evidence.get("scale_taylor")


@criterion(
    "nisp",
    summary="the last answers' importance, carried back through the absolute weights",
    source="Yu et al. 2018 (NISP)",
    needs=("propagated",),
)
def nisp(evidence: Evidence) -> Tensor:
    """Return |W_n|^T ... |W_(k+1)|^T 1 of each output, summed over its positions."""
    return evidence.get("propagated")


@criterion(
    "force",
    summary="|g w| with the gradient of the network as it is without what is removed",
    source="de Jorge et al. 2021 (FORCE)",
    needs=("masked_gradient",),
    reduce="sum",
)
def force(evidence: Evidence) -> Tensor:
    """Return |g w|, g at the masked weights and w as if nothing were removed."""
    return (evidence.get("masked_gradient") * evidence.weight).abs()
