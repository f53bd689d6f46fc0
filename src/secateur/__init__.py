"""Makes neural networks lighter and faster.

A pruning technique is a value of four axes (``Technique``); a ``Sparsifier`` carries it out on a
model while it trains.
"""

from secateur.errors import SecateurError
from secateur.sparsify import Budget, Report, Sparsifier, StepResult
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
    "Sparsifier",
    "StepResult",
    "Technique",
    "Update",
    "__version__",
    "criterion",
    "schedule",
]
