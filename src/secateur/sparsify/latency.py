"""A budget in measured latency, met by shrinking copies and timing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.errors import SecateurError
from secateur.measure import compare_latency

_HALVINGS = 7
_SECONDS = 0.6


@dataclass(frozen=True)
class Fit:
    """The share of MACs at which a share of the latency was measured."""

    macs: float
    latency: float


def fit_latency(
    dense: nn.Module,
    shrunk_to: Callable[[float], nn.Module],
    inputs: tuple[Any, ...],
    wanted: float,
    seconds: float = _SECONDS,
) -> Fit:
    """Find the largest share of MACs whose latency is at most ``wanted`` of the dense one.

    ``shrunk_to`` returns the network shrunk to a share of its MACs, or raises SecateurError where
    that is too little. Dense and shrunk are timed in turns in this process, on the device and with
    the threads that are in use. Raises SecateurError where no share is fast enough.
    """
    low, high = 0.0, 1.0
    best: Fit | None = None
    fastest = 1.0
    for _ in range(_HALVINGS):
        macs = (low + high) / 2
        try:
            candidate = shrunk_to(macs)
        except SecateurError:
            low = macs
            continue
        times = compare_latency(
            {"dense": dense, "shrunk": candidate}, inputs, rounds=5, seconds=seconds
        )
        found = Fit(macs, times["shrunk"].p50_ms / times["dense"].p50_ms)
        fastest = min(fastest, found.latency)
        if found.latency <= wanted:
            low = macs
            if best is None or found.macs > best.macs:
                best = found
        else:
            high = macs
    if best is None:
        raise SecateurError(
            f"latency={wanted:g} was not reached: the fastest that was measured is {fastest:.3g} "
            "of the dense latency; ask for more, or measure on a quieter machine"
        )
    return best
