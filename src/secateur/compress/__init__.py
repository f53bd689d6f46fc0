"""Other ways to a smaller network: distillation, regularisation, quantization."""

from secateur.compress.distil import (
    answer_distance,
    binary_distillation_loss,
    distillation_loss,
    feature_distance,
    value_distance,
)
from secateur.compress.quantize import Quantized, quantization_errors, quantize_weight
from secateur.compress.regularise import group_lasso, l1, masked_l2

__all__ = [
    "Quantized",
    "answer_distance",
    "binary_distillation_loss",
    "distillation_loss",
    "feature_distance",
    "group_lasso",
    "l1",
    "masked_l2",
    "quantization_errors",
    "quantize_weight",
    "value_distance",
]
