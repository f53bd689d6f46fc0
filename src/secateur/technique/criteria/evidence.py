"""Evidence: all that can be known of a weight when it is scored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEEDS: dict[str, str] = {
    "saved": "the weights as they were at the start, or at the step they are rewound to",
    "previous": "the weights as they were at the previous mask update",
    "gradient": "the mean gradient of the loss",
    "fisher": "the mean squared gradient of the loss, one example at a time",
    "hessian": "the diagonal of the loss's second derivatives (Hutchinson's estimate)",
    "hessian_gradient": "the product of the loss's Hessian with its mean gradient",
    "synaptic_flow": "the gradient of a flow of ones through the absolute weights",
    "input_norm": "the L2 norm of each input channel over the data",
    "output_taylor": "the mean over examples of |sum over positions of output * its gradient|",
    "output_active": "the share of each output channel's values that are above zero",
    "output_rank": "the mean rank of each output channel's map",
    "output_independence": "the fall of the maps' nuclear norm without each output channel",
    "input_spread": "the standard deviation of each input channel over the data",
    "block_influence": "one minus the cosine of what enters and leaves the layer",
    "removal_loss": "the loss without the layer",
    "scale_taylor": "the mean over batches of |scale * its gradient| of the norm that follows",
    "propagated": "the importance of the last answers, carried back through absolute weights",
    "masked_gradient": "the mean gradient of the loss of the network as it is masked",
    "learned": "a number per unit that is trained with the weights",
    "surgeon": "what a unit's own weights cost by the inverse of its layer's second derivatives",
    "elimination": "when a unit goes as they go one by one and the others make up for each",
    "greedy": "when an input channel goes as those go that the output misses least",
    "lasso": "the penalty at which a lasso over input channels drops each",
    "fisher_surgeon": "what a unit's own weights cost by the inverse of the Fisher matrix's blocks",
    "network_elimination": "a unit's place as a network's go one by one and all others make up",
    "norm_scale": "the scale of the norm that follows the layer, found by data flow",
    "carried": "the sum of squares over all that carries a unit's channel",
}
"""What a criterion may ask for beside the weight itself."""

FROM_OUTPUTS = frozenset({"output_active", "output_rank", "output_independence", "propagated"})
"""The needs that look at a layer's answers, behind the norm that follows it."""

FROM_DATA = FROM_OUTPUTS | {
    "fisher",
    "hessian",
    "hessian_gradient",
    "input_norm",
    "input_spread",
    "block_influence",
    "removal_loss",
    "scale_taylor",
    "masked_gradient",
    "output_taylor",
    "synaptic_flow",
    "surgeon",
    "elimination",
    "greedy",
    "lasso",
    "fisher_surgeon",
    "network_elimination",
}
"""The needs that only a pass over data can fill (a gradient may also come from training)."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one weight, in the layout [groups, outputs, inputs, *kernel].

    Every tensor but ``weight`` is there only if the criterion declared that it needs it; those of
    a channel (``input_*``, ``output_*``, ``norm_scale``) have extent 1 on the other axes.
    """

    weight: Tensor
    saved: Tensor | None = None
    previous: Tensor | None = None
    gradient: Tensor | None = None
    fisher: Tensor | None = None
    hessian: Tensor | None = None
    input_norm: Tensor | None = None
    output_taylor: Tensor | None = None
    norm_scale: Tensor | None = None
    generator: torch.Generator | None = None
    hessian_gradient: Tensor | None = None
    synaptic_flow: Tensor | None = None
    output_active: Tensor | None = None
    output_rank: Tensor | None = None
    output_independence: Tensor | None = None
    input_spread: Tensor | None = None
    surgeon: Tensor | None = None
    elimination: Tensor | None = None
    greedy: Tensor | None = None
    lasso: Tensor | None = None
    fisher_surgeon: Tensor | None = None
    network_elimination: Tensor | None = None
    learned: Tensor | None = None
    block_influence: Tensor | None = None
    removal_loss: Tensor | None = None
    scale_taylor: Tensor | None = None
    propagated: Tensor | None = None
    masked_gradient: Tensor | None = None
    carried: Tensor | None = None

    def get(self, need: str) -> Tensor:
        """Return one piece of evidence, which the engine has made sure is there."""
        value: Tensor | None = getattr(self, need)
        if value is None:
            raise LookupError(f"the criterion uses '{need}' without declaring that it needs it")
        return value
