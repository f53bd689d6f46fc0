"""What is known of a network's build: its weights, how they are used, where their outputs flow."""

from secateur.structure.depth import Branch, find_branches
from secateur.structure.flow import Flow, trace_flow
from secateur.structure.heads import head_axes
from secateur.structure.inspection import Inspection, inspect_model
from secateur.structure.reload import save
from secateur.structure.removal import Removal, positions
from secateur.structure.reorder import Reordered, reorder
from secateur.structure.rules import rule
from secateur.structure.selector import (
    InputSelector,
    PatchSelector,
    SelectedInputs,
    feature_map,
    select_inputs,
    select_patches,
)
from secateur.structure.shrink import ShrinkResult, shrink
from secateur.structure.trace import Axis, Trace, trace
from secateur.structure.usage import Usage, observe
from secateur.structure.weights import PrunableWeight, choose_weights, find_weights
from secateur.structure.wrapping import unwrap

__all__ = [
    "Axis",
    "Branch",
    "Flow",
    "InputSelector",
    "Inspection",
    "PatchSelector",
    "PrunableWeight",
    "Removal",
    "Reordered",
    "SelectedInputs",
    "ShrinkResult",
    "Trace",
    "Usage",
    "choose_weights",
    "feature_map",
    "find_branches",
    "find_weights",
    "head_axes",
    "inspect_model",
    "observe",
    "positions",
    "reorder",
    "rule",
    "save",
    "select_inputs",
    "select_patches",
    "shrink",
    "trace",
    "trace_flow",
    "unwrap",
]
