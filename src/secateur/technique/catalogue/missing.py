"""What published techniques ask for that cannot be carried out yet, one name each.

A record names here what its six parts cannot say. What the parts say and the engine cannot do is
named by ``secateur.sparsify.lacks``.
"""

from __future__ import annotations

MISSING: dict[str, str] = {
    "block_training": "training each block alone on the dense block's outputs",
    "blockwise_gradient": "gradients of a block's own output, without the loss",
    "depth_shares": "shares of a budget that rise with a layer's depth",
    "evolved_allocation": "an evolutionary search over allocations of a fixed budget",
    "half_space_projection": "an optimiser step that projects whole groups onto zero",
    "joint_granularity": "several granularities pruned at once under one budget",
    "lagrangian": "a multiplier in the loss that holds a target size or shape",
    "latency_table": "measured times per layer and width, searched for the best allocation",
    "layer_runs": "one score for a run of consecutive layers, which goes as a whole",
    "learned_allocation": "layers' shares that are trained parameters",
    "low_rank": "a low-rank term beside the sparse weight",
    "lora": "recovery by low-rank adapters while the weights stay fixed",
    "mask_sampling": "a categorical variable per block of weights that samples its mask",
    "policy_search": "a reinforcement-learning agent that proposes each layer's share",
    "proximal_masks": "a regulariser that makes all but n of m weights zero",
    "rotation": "an orthogonal change of basis before rows and columns go",
    "soft_threshold_nm": "a continuous n:m projection with a rescaled result",
    "taken_apart": "auxiliary variables that couple layers which are pruned one by one",
    "weight_sharing": "survivors that share few values, stored as a code",
    "width_search": "candidate shapes trained shortly and compared",
}
"""Capability to the sentence that says what is missing."""
