"""How long one forward pass takes, for several networks side by side."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError

_FEWEST_CALLS = 3
# The share of the time budget that goes into warming up before anything is timed.
_WARM_UP = 0.1


@dataclass(frozen=True)
class Latency:
    """The time of one forward pass of a batch, in milliseconds.

    ``p50_ms`` is the median over rounds of each round's median, ``low_ms`` and ``high_ms`` are the
    lowest and the highest of these medians; ``p95_ms`` is taken over all ``calls`` timed calls.
    """

    p50_ms: float
    p95_ms: float
    low_ms: float
    high_ms: float
    rounds: int
    calls: int
    threads: int
    batch: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the fields as plain numbers, ready for JSON."""
        return asdict(self)


def compare_latency(
    models: Mapping[str, nn.Module],
    example_inputs: tuple[Tensor, ...],
    *,
    rounds: int = 7,
    seconds: float = 2.0,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Time the networks in turns (A B A B), so that a slow moment of the machine hits all alike.

    Each network gets about ``seconds`` of timed calls over all rounds, and at least three calls a
    round. The networks run in evaluation mode without gradients, on ``threads`` CPU threads (as
    many as now where None), and are afterwards in the mode they were in. Raises ``SecateurError``
    for a request without a network, an input, a round or a thread.

    >>> found = compare_latency({"dense": nn.Linear(4, 2)}, (torch.zeros(8, 4),), seconds=0.01)
    >>> found["dense"].batch, found["dense"].low_ms <= found["dense"].p50_ms
    (8, True)
    """
    _check(models, example_inputs, rounds, seconds, threads)
    with _evaluating(models), _threads(threads) as used, torch.inference_mode():
        calls = {name: _timed(model, example_inputs) for name, model in models.items()}
        share = seconds / rounds
        counts = {name: _calls(share, _warm_up(call, seconds)) for name, call in calls.items()}
        times: dict[str, list[list[float]]] = {name: [] for name in models}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append([call() for _ in range(counts[name])])
    batch = example_inputs[0].shape[0] if example_inputs[0].dim() else 1
    return {name: summary(times[name], threads=used, batch=batch) for name in models}


def summary(rounds: list[list[float]], *, threads: int, batch: int) -> Latency:
    """Summarise the seconds of each call of each round.

    >>> found = summary([[0.001, 0.002, 0.009], [0.004, 0.004, 0.004]], threads=1, batch=1)
    >>> found.p50_ms, found.low_ms, found.high_ms, found.calls
    (3.0, 2.0, 4.0, 6)
    """
    medians = [statistics.median(times) for times in rounds]
    every = sorted(time for times in rounds for time in times)
    return Latency(
        p50_ms=1000 * statistics.median(medians),
        p95_ms=1000 * _quantile(every, 0.95),
        low_ms=1000 * min(medians),
        high_ms=1000 * max(medians),
        rounds=len(rounds),
        calls=len(every),
        threads=threads,
        batch=batch,
    )


def _quantile(ordered: list[float], share: float) -> float:
    """Interpolate linearly between the two nearest of the ordered values."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def _check(
    models: Mapping[str, nn.Module],
    example_inputs: tuple[Tensor, ...],
    rounds: int,
    seconds: float,
    threads: int | None,
) -> None:
    if not models:
        raise SecateurError("there is no network to time; give at least one")
    if not example_inputs:
        raise SecateurError("there is no example input to time with; give at least one tensor")
    if rounds < 1:
        raise SecateurError(f"cannot time {rounds} rounds; give at least 1")
    if not (math.isfinite(seconds) and seconds > 0):
        raise SecateurError(f"cannot time for {seconds} seconds; give a number above 0")
    if threads is not None and threads < 1:
        raise SecateurError(f"cannot run on {threads} threads; give at least 1")


def _timed(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], float]:
    """Return a function that runs the network once and says how many seconds that took."""
    tensors = (*inputs, *model.parameters(), *model.buffers())
    device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)

    def call() -> float:
        # A GPU works behind the caller's back: it must be idle before and done after.
        if device is not None:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        model(*inputs)
        if device is not None:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return call


def _warm_up(call: Callable[[], float], seconds: float) -> float:
    """Call until warm and return the seconds that one warm call takes."""
    times = [call() for _ in range(_FEWEST_CALLS)]
    while sum(times) < _WARM_UP * seconds:
        times.append(call())
    return statistics.median(times[len(times) // 2 :])


def _calls(seconds: float, one: float) -> int:
    return max(_FEWEST_CALLS, int(seconds / max(one, 1e-9)))


@contextmanager
def _evaluating(models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode at the end."""
    modes = {module: module.training for model in models.values() for module in model.modules()}
    try:
        for model in models.values():
            model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Compute on so many CPU threads, then on as many as before."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
