"""Budgets: what a unit costs in a currency, and what masks achieve in each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.select import count_true
from secateur.technique.context import check_share

CURRENCIES: dict[str, str] = {
    "sparsity": "share of the prunable weights that goes",
    "params": "share of the model's parameters that stays",
    "macs": "share of the model's multiply-accumulates that stays",
    "bytes": "share of the model's bytes that stays, removed weights packed as a bit mask",
    "latency": "share of the measured time that stays, for whole channels",
}


@dataclass(frozen=True)
class Budget:
    """An amount in a named currency: for ``sparsity`` what goes, for the others what stays."""

    currency: str
    value: float

    def __post_init__(self) -> None:
        check_share(self.value, self.currency)

    @property
    def removed(self) -> float:
        """The share that goes."""
        return self.value if self.currency == "sparsity" else 1 - self.value

    @classmethod
    def of(cls, **given: float | None) -> Budget | None:
        """Return the one budget that is given, None where there is none; refuse two."""
        asked = {name: value for name, value in given.items() if value is not None}
        if len(asked) > 1:
            raise SecateurError(f"give one budget, not {' and '.join(asked)}")
        return next((cls(name, value) for name, value in asked.items()), None)


@dataclass(frozen=True)
class Ledger:
    """The model's totals: elements, bytes per element and MACs per element of every parameter."""

    elements: Mapping[str, int]
    itemsize: Mapping[str, int]
    dimensions: Mapping[str, int]
    macs: Mapping[str, float] = field(default_factory=dict)
    all_macs: int | None = None
    buffer_bytes: int = 0

    @classmethod
    def of(
        cls, model: nn.Module, macs: Mapping[str, int] | None = None, all_macs: int | None = None
    ) -> Ledger:
        """Read the totals off a model; ``macs`` are the uses of each parameter in a forward."""
        parameters = dict(model.named_parameters())
        per_element = {
            name: used / parameters[name].numel()
            for name, used in (macs or {}).items()
            if parameters[name].numel()
        }
        return cls(
            {name: parameter.numel() for name, parameter in parameters.items()},
            {name: parameter.element_size() for name, parameter in parameters.items()},
            {name: parameter.dim() for name, parameter in parameters.items()},
            per_element,
            all_macs,
            sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
        )

    def total(self, currency: str, prunable: int) -> float:
        """Return what the dense model costs; ``prunable`` is its number of prunable weights."""
        if currency == "sparsity":
            return prunable
        if currency == "params":
            return sum(self.elements.values())
        if currency == "macs":
            return float(self.all_macs or 0)
        return self.buffer_bytes + sum(
            self.elements[name] * self.itemsize[name] for name in self.elements
        )

    def price(self, currency: str, parameter: str) -> float:
        """Return what one element of a parameter costs."""
        if currency == "macs":
            return self.macs.get(parameter, 0.0)
        return float(self.itemsize[parameter]) if currency == "bytes" else 1.0

    def packed_bytes(self, parameter: str, kept: int) -> int:
        """Return the bytes of a parameter: kept values and their places, or dense where smaller."""
        elements, size = self.elements[parameter], self.itemsize[parameter]
        return min(elements * size, kept * size + self.places_bytes(parameter))

    def places_bytes(self, parameter: str) -> int:
        """Return the bytes that say which values are kept: a bit mask and the shape."""
        return -(-self.elements[parameter] // 8) + 8 * self.dimensions[parameter]

    def achieved(self, kept: Mapping[str, int], prunable: Mapping[str, int]) -> dict[str, float]:
        """Return sparsity, and the share of params, bytes and (if known) MACs that is left.

        ``kept`` counts the kept elements of each masked parameter, ``prunable`` the prunable
        elements of each prunable parameter.
        """
        weights = sum(prunable.values())
        gone = {
            name: self.elements[name] - kept.get(name, self.elements[name])
            for name in self.elements
        }
        dense = self.total("bytes", weights)
        packed = sum(self.packed_bytes(n, self.elements[n] - gone[n]) for n in self.elements)
        shares = {
            "sparsity": sum(gone[name] for name in prunable) / max(1, weights),
            "params": 1 - sum(gone.values()) / max(1, sum(self.elements.values())),
            "bytes": (packed + self.buffer_bytes) / max(1.0, dense),
        }
        if self.all_macs:
            saved = sum(self.macs.get(name, 0.0) * gone[name] for name in gone)
            shares["macs"] = 1 - saved / self.all_macs
        return shares


def mask_overhead(ledger: Ledger, kept: Mapping[str, int]) -> float:
    """Return the bytes that bit masks add, which a bytes budget has to earn back too."""
    return sum(
        ledger.packed_bytes(name, count) - count * ledger.itemsize[name]
        for name, count in kept.items()
        if count < ledger.elements[name]
    )


def count_kept(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the kept elements of every mask."""
    return {name: count_true(mask) for name, mask in masks.items()}
