"""Carries a technique out on a model: statistics, scores, budgets, masks."""

from secateur.sparsify.attachment import check_length
from secateur.sparsify.budget import CURRENCIES, Budget
from secateur.sparsify.capabilities import lacks
from secateur.sparsify.clashes import refuse_untrained
from secateur.sparsify.describe import LayerDescription, describe_layers
from secateur.sparsify.listing import KINDS, listing
from secateur.sparsify.report import Report
from secateur.sparsify.result import StepResult
from secateur.sparsify.sparsifier import Sparsifier

__all__ = [
    "CURRENCIES",
    "KINDS",
    "Budget",
    "LayerDescription",
    "Report",
    "Sparsifier",
    "StepResult",
    "check_length",
    "describe_layers",
    "lacks",
    "listing",
    "refuse_untrained",
]
