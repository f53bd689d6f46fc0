"""The description: what a pruning technique is, as immutable values that know no model."""

from secateur.technique.context import Context
from secateur.technique.criteria import Criterion, Evidence, criterion
from secateur.technique.granularity import Granularity
from secateur.technique.objective import Objective
from secateur.technique.schedule import MaskDynamics, Schedule, schedule
from secateur.technique.technique import Technique
from secateur.technique.update import Update

__all__ = [
    "Context",
    "Criterion",
    "Evidence",
    "Granularity",
    "MaskDynamics",
    "Objective",
    "Schedule",
    "Technique",
    "Update",
    "criterion",
    "schedule",
]
