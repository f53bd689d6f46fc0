"""What is known of a network's build: its weights, how they are used, where their outputs flow."""

from secateur.structure.flow import Flow, trace_flow
from secateur.structure.inspection import Inspection, inspect_model
from secateur.structure.usage import Usage, observe
from secateur.structure.weights import PrunableWeight, choose_weights, find_weights

__all__ = [
    "Flow",
    "Inspection",
    "PrunableWeight",
    "Usage",
    "choose_weights",
    "find_weights",
    "inspect_model",
    "observe",
    "trace_flow",
]
