"""Makes neural networks lighter and faster.

A pruning technique is a value of four axes (``Technique``); a ``Sparsifier`` carries it out on a
model while it trains, and ``shrink`` removes for good what it has freed.
"""

from secateur.errors import SecateurError
from secateur.reload import load
from secateur.sparsify import Budget, Report, Sparsifier, StepResult
from secateur.structure import (
    Axis,
    ShrinkResult,
    Trace,
    feature_map,
    save,
    select_inputs,
    select_patches,
    shrink,
    trace,
)
from secateur.technique import (
    Context,
    Criterion,
    Evidence,
    Granularity,
    MaskDynamics,
    Objective,
    Schedule,
    Technique,
    Update,
    criterion,
    schedule,
)

__version__ = "0.1.0"

__all__ = [
    "Axis",
    "Budget",
    "Context",
    "Criterion",
    "Evidence",
    "Granularity",
    "MaskDynamics",
    "Objective",
    "Report",
    "Schedule",
    "SecateurError",
    "ShrinkResult",
    "Sparsifier",
    "StepResult",
    "Technique",
    "Trace",
    "Update",
    "__version__",
    "criterion",
    "feature_map",
    "load",
    "save",
    "schedule",
    "select_inputs",
    "select_patches",
    "shrink",
    "trace",
]
