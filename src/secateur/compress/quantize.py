"""Quantization of weights: int8 per channel as numbers, and what it costs each layer.

``secateur.export.quantize_onnx`` makes a network that computes with such weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.structure import find_weights


@dataclass(frozen=True)
class Quantized:
    """Integers and the scale of each channel: the value is ``values * scale``, 0 is exactly 0."""

    values: Tensor
    scales: Tensor

    def restore(self) -> Tensor:
        """Return the floating-point tensor that the integers stand for."""
        return self.values.float() * self.scales


def quantize_weight(weight: Tensor, bits: int = 8, dim: int = 0) -> Quantized:
    """Round a weight to integers, symmetrically and with one scale per index of ``dim``.

    The scale of a channel is max |w| / (2^(bits - 1) - 1), so that an entry is off by half a scale
    at most (Krishnamoorthi 2018, arXiv 1806.08342). Raises SecateurError for less than 2 or more
    than 8 bits, and where the weight holds what is not a number.

    >>> quantize_weight(torch.tensor([[1.0, -0.5], [0.0, 0.0]])).values.tolist()
    [[127, -64], [0, 0]]
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise SecateurError(f"bits={bits!r}: expected 2 to 8")
    if not bool(weight.isfinite().all()):
        raise SecateurError("the weight holds entries that are not finite: it cannot be quantized")
    rest = [each for each in range(weight.dim()) if each != dim % weight.dim()]
    highest = weight.detach().float().abs().amax(rest, keepdim=True)
    most = 2 ** (bits - 1) - 1
    scales = torch.where(highest > 0, highest / most, 1.0)
    values = (weight.detach().float() / scales).round().clamp(-most, most)
    return Quantized(values.to(torch.int8), scales)


def quantization_errors(model: nn.Module, bits: int = 8) -> dict[str, float]:
    """Return, worst first, how far each layer's weight is off when its outputs are quantized.

    The error is ||w - restored|| / ||w||, by the weight's name.

    >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    >>> sorted(quantization_errors(model))
    ['0.weight', '1.weight']
    """
    errors = {}
    for weight in find_weights(model).weights:
        values = weight.view(model.get_parameter(weight.parameter).detach()).float().flatten(0, 1)
        if not values.numel():
            continue
        missed = quantize_weight(values, bits).restore() - values
        errors[weight.name] = float(missed.norm() / values.norm().clamp(min=1e-30))
    return dict(sorted(errors.items(), key=lambda item: -item[1]))
