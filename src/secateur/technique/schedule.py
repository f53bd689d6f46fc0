"""Schedule: when the budget is claimed, and whether a mask may change its mind.

A curve s(t) maps the share of training done to the share of the budget claimed. Curves are pure
functions, registered by name; a ``Schedule`` places one between ``start`` and ``end``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.technique.context import check_share
from secateur.technique.registry import Registry
from secateur.technique.syntax import Call, bind, count, format_call, format_value, parse_call, word

Curve = Callable[..., float]


@dataclass(frozen=True)
class CurveRecord:
    """A named curve: what it does, where it was published, its parameters and their defaults."""

    name: str
    function: Curve
    summary: str
    source: str
    parameters: tuple[tuple[str, Any], ...]
    aliases: tuple[str, ...] = ()


CURVES: Registry[CurveRecord] = Registry("schedule")
_PLACEMENT = ("start", "end", "initial", "every", "epochs", "rounds", "mask")


def schedule(
    name: str, *, summary: str, source: str = "", aliases: tuple[str, ...] = ()
) -> Callable[[Curve], Curve]:
    """Register a curve ``f(t, **parameters)`` on [0, 1] under a name.

    Raises SecateurError where the name is taken or a parameter shadows ``start``, ``end``,
    ``initial``, ``every``, ``epochs``, ``rounds`` or ``mask``.
    """

    def register(function: Curve) -> Curve:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        for parameter in parameters:
            if parameter.name in _PLACEMENT:
                raise SecateurError(f"schedule '{name}': '{parameter.name}' is taken by Schedule")
        pairs = tuple((parameter.name, parameter.default) for parameter in parameters)
        CURVES.add(CurveRecord(name, function, summary, source, pairs, aliases))
        return function

    return register


@schedule("one_shot", summary="the whole budget at once, at the start")
def one_shot(t: float) -> float:
    """Return 1 from the first moment on."""
    return 1.0


@schedule("constant", summary="the same share all the time; for masks that move")
def constant(t: float) -> float:
    """Return 1: the budget is claimed from the start and stays claimed."""
    return 1.0


@schedule("iterative", summary="n equal steps", source="Han et al. 2015; n=3 in FasterAI")
def iterative(t: float, n: int = 3) -> float:
    """Return ceil(n t) / n.

    >>> [round(iterative(t), 3) for t in (0.0, 0.2, 0.5, 1.0)]
    [0.0, 0.333, 0.667, 1.0]
    """
    count(n, "n")
    return math.ceil(round(t * n, 9)) / n


@schedule("linear", summary="in proportion to time", aliases=("lin",))
def linear(t: float) -> float:
    """Return t."""
    return t


@schedule("agp", summary="cubic: fast first, then slower", source="Zhu, Gupta 2017")
def agp(t: float) -> float:
    """Return 1 - (1 - t)^3."""
    return 1 - (1 - t) ** 3


@schedule("cosine", summary="half a cosine wave: slow, fast, slow", aliases=("cos",))
def cosine(t: float) -> float:
    """Return (1 - cos(pi t)) / 2."""
    return (1 - math.cos(math.pi * t)) / 2


@schedule("exponential", summary="slow first, then ever faster", aliases=("exp",))
def exponential(t: float, rate: float = 5.0) -> float:
    """Return (e^(rate t) - 1) / (e^rate - 1)."""
    return math.expm1(rate * t) / math.expm1(rate)


@schedule("dsd", summary="up to the budget at half time, then back to dense", source="Han 2017")
def dsd(t: float) -> float:
    """Return a cosine rise until t = 1/2 and a cosine fall to 0 afterwards."""
    return cosine(2 * t) if t < 0.5 else cosine(2 * (1 - t))


@schedule(
    "alternating",
    summary="n dense phases, each followed by a sparse one; the last is sparse",
    source="Peste et al. 2021 (AC/DC)",
)
def alternating(t: float, n: int = 4) -> float:
    """Return 0 in the first half of each n-th part of the time, and 1 in its second half.

    >>> [alternating(t, n=2) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 1.0, 0.0, 1.0, 1.0]
    """
    count(n, "n")
    return 1.0 if t >= 1 else float(math.floor(round(t * 2 * n, 9)) % 2)


@schedule(
    "one_cycle",
    summary="a logistic curve over the whole training; 'exact' starts at 0",
    source="Hubens et al. 2022 (One-Cycle Pruning): alpha=14, beta=5 in 2021, beta=6 since",
)
def one_cycle(t: float, alpha: float = 14.0, beta: float = 6.0, exact: bool = False) -> float:
    """Return (1 + e^(beta-alpha)) / (1 + e^(beta-alpha t)), or its variant through (0, 0).

    With ``exact`` the curve is (sigma(alpha t - beta) - sigma(-beta)) / (sigma(alpha - beta) -
    sigma(-beta)); without, it begins at 0.25 % (beta=6) or 0.67 % (beta=5), as published.
    """

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    if exact:
        return (sigma(alpha * t - beta) - sigma(-beta)) / (sigma(alpha - beta) - sigma(-beta))
    return sigma(alpha * t - beta) / sigma(alpha - beta)


@schedule("piecewise", summary="straight lines through the points [[t, s], ...]")
def piecewise(t: float, points: tuple[tuple[float, float], ...] = ((0, 0), (1, 1))) -> float:
    """Return the value at t of straight lines through (t, s) points with rising t."""
    times = [float(place) for place, _ in points]
    if times != sorted(times) or any(
        not 0 <= float(value) <= 1 for pair in points for value in pair
    ):
        raise SecateurError("its points need rising times, and times and shares from 0 to 1")
    before, after = points[0], points[-1]
    if t <= before[0]:
        return float(before[1])
    for point in points[1:]:
        if t <= point[0]:
            after = point
            break
        before = point
    else:
        return float(points[-1][1])
    return before[1] + (after[1] - before[1]) * (t - before[0]) / (after[0] - before[0])


MASKS: dict[str, str] = {
    "permanent": "what is removed stays removed while the share rises",
    "reselected": "every update chooses afresh among all units",
    "regrown": "every update drops a share of the survivors and regrows as many removed units",
}
REGROWTH = ("gradient", "momentum", "random", "magnitude")
DECAYS = ("cosine", "constant")


@dataclass(frozen=True)
class MaskDynamics:
    """Whether removed units may return; for ``regrown``, how many and chosen by what.

    ``share`` is the share of the survivors exchanged at an update, at the start; ``decay`` lets
    it fall to 0 by a half cosine at the end of the schedule, or keeps it constant. Regrown weights
    start at zero.
    """

    kind: str = "permanent"
    by: str = "gradient"
    share: float = 0.3
    decay: str = "cosine"

    def __post_init__(self) -> None:
        for value, accepted, what in (
            (self.kind, MASKS, "mask dynamics"),
            (self.by, REGROWTH, "regrowth"),
            (self.decay, DECAYS, "decay"),
        ):
            if value not in accepted:
                raise SecateurError(f"unknown {what} '{value}': {suggestion(value, accepted)}")
        check_share(self.share, "the regrown share")
        own = (self.by, self.share, self.decay)
        if self.kind != "regrown" and own != ("gradient", 0.3, "cosine"):
            raise SecateurError(
                f"mask={self.kind} regrows nothing, and by={self.by}, share={self.share:g}, "
                f"decay={self.decay} say how to: write mask=regrown(...)"
            )

    def share_at(self, t: float) -> float:
        """Return the share of survivors exchanged at schedule time t."""
        return self.share * (1 - cosine(t)) if self.decay == "cosine" else self.share

    @classmethod
    def from_value(cls, value: Any) -> MaskDynamics:
        """Read ``permanent``, ``reselected`` or ``regrown(by=gradient, share=0.3)``."""
        if isinstance(value, MaskDynamics):
            return value
        call = value if isinstance(value, Call) else parse_call(str(value), "mask dynamics")
        accepted = ("by", "share", "decay") if call.name == "regrown" else ()
        if call.name in MASKS and not accepted and (call.arguments or call.keywords):
            given = format_call("regrown", call.arguments, dict(call.keywords))
            raise SecateurError(
                f"mask={format_value(call)}: regrowth and a {call.name} mask exclude each other: "
                f"write mask={given} or mask={call.name}"
            )
        found = bind(call, accepted, "mask dynamics")
        for key in set(found) & {"by", "decay"}:
            found[key] = word(found[key], f"{key} of {call.name}")
        return cls(call.name, **found)

    def __str__(self) -> str:
        if self.kind != "regrown":
            return self.kind
        keywords: dict[str, Any] = {"by": Call(self.by), "share": self.share}
        if self.decay != "cosine":
            keywords["decay"] = Call(self.decay)
        return format_call(self.kind, (), keywords)


@dataclass(frozen=True)
class Schedule:
    """A curve placed in training: from ``start`` to ``end``, updated every so often.

    ``start`` and ``end`` are shares of training; ``initial`` is the share of the budget claimed
    before and at the start; ``every`` counts optimiser steps between mask updates, ``epochs``
    counts epochs instead. With neither, an update comes as soon as the claimed share has moved by
    half a percent (masks that move: a hundred updates, evenly spaced). The first and the last
    update happen in any case, unless the mask is permanent and nothing is left to claim.
    ``rounds`` lets every update go its way in so many steps, each scored anew on what the steps
    before have left, with what is kept shrinking by the same factor each time.

    >>> Schedule.parse("agp(start=0.2)").at(0.2), Schedule.parse("agp").at(1.0)
    (0.0, 1.0)
    """

    curve: str = "one_cycle"
    parameters: tuple[tuple[str, Any], ...] = ()
    start: float = 0.0
    end: float = 1.0
    initial: float = 0.0
    every: int | None = None
    epochs: int | None = None
    mask: MaskDynamics = MaskDynamics()
    function: Callable[[float], float] | None = None
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.function is None:
            record = CURVES.get(self.curve)
            object.__setattr__(self, "curve", record.name)
            object.__setattr__(self, "parameters", _parameters(record, dict(self.parameters)))
        for share, what in ((self.start, "start"), (self.end, "end"), (self.initial, "initial")):
            check_share(share, f"schedule {self.curve}: {what}")
        if self.start > self.end or (self.start == self.end and self.curve != "one_shot"):
            raise SecateurError(f"schedule {self.curve}: start={self.start:g} is not before end")
        for number, what in ((self.every, "every"), (self.epochs, "epochs")):
            if number is not None:
                count(number, f"schedule {self.curve}: {what}")
        count(self.rounds, f"schedule {self.curve}: rounds")
        if self.epochs is not None and self.every is not None:
            raise SecateurError(f"schedule {self.curve}: give every= or epochs=, not both")

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read ``agp(start=0.2, every=100, mask=reselected)``."""
        return cls.from_call(parse_call(text, "schedule"))

    @classmethod
    def from_call(cls, call: Call) -> Schedule:
        """Build a schedule from a parsed call."""
        record = CURVES.get(call.name)
        names = [name for name, _ in record.parameters]
        given = bind(call, (*names, *_PLACEMENT), "schedule", ordered=len(names))
        own = {key: value for key, value in given.items() if key in names}
        placed = {key: value for key, value in given.items() if key in _PLACEMENT}
        if "mask" in placed:
            placed["mask"] = MaskDynamics.from_value(placed["mask"])
        return cls(record.name, tuple(own.items()), **placed)

    @classmethod
    def of(cls, function: Callable[[float], float], **placement: Any) -> Schedule:
        """Place a function of your own; such a schedule has a text that cannot be read back."""
        name = getattr(function, "__name__", type(function).__name__)
        return cls(f"function {name}", (), function=function, **placement)

    def time(self, progress: float) -> float:
        """Return the schedule's own time in [0, 1] at a share of training done."""
        if progress >= self.end:
            return 1.0
        if progress <= self.start:
            return 0.0
        return (progress - self.start) / (self.end - self.start)

    def at(self, progress: float) -> float:
        """Return the share of the budget claimed at a share of training done, both in [0, 1]."""
        check_share(progress, "progress")
        if progress < self.start:
            return self.initial
        if self.function is not None:
            value = float(self.function(self.time(progress)))
        else:
            record = CURVES.get(self.curve)
            value = record.function(self.time(progress), **dict(self.parameters))
        if not -1e-9 <= value <= 1 + 1e-9:
            raise SecateurError(f"schedule {self} gives {value:g} at {progress:g}: not in [0, 1]")
        value = min(1.0, max(0.0, value))
        return self.initial + (1 - self.initial) * value

    def settles(self, progress: float) -> bool:
        """Whether nothing changes any more from a share of training on."""
        if progress >= self.end:
            return True
        ahead = (progress + (self.end - progress) * step / 32 for step in range(33))
        return self.mask.kind == "permanent" and len({self.at(share) for share in ahead}) == 1

    def words(self) -> str:
        """Say in words when the budget is claimed."""
        summary = "a function of your own" if self.function else CURVES.get(self.curve).summary
        said = f"{summary}; from {self.start:.3g} to {self.end:.3g} of training"
        for number, unit in ((self.epochs, "epochs"), (self.every, "steps")):
            if number is not None:
                said += f", an update every {f'{number} {unit}' if number > 1 else unit[:-1]}"
        if self.rounds > 1:
            said += f", each in {self.rounds} rounds"
        return f"{said}; {MASKS[self.mask.kind]}"

    def __str__(self) -> str:
        keywords: dict[str, Any] = {}
        if self.function is None:
            defaults = dict(CURVES.get(self.curve).parameters)
            keywords = {k: v for k, v in self.parameters if v != defaults[k]}
        for key, default in (("start", 0), ("end", 1), ("initial", 0), ("every", None)):
            if getattr(self, key) != default:
                keywords[key] = getattr(self, key)
        if self.epochs is not None:
            keywords["epochs"] = self.epochs
        if self.rounds > 1:
            keywords["rounds"] = self.rounds
        if self.mask != MaskDynamics():
            keywords["mask"] = Call(str(self.mask))
        return format_call(self.curve, (), keywords)


def _parameters(record: CurveRecord, given: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Fill in the defaults, refuse strangers, and try the curve once at both ends."""
    defaults = dict(record.parameters)
    for key in given:
        if key not in defaults:
            accepted = [*defaults, *_PLACEMENT]
            raise SecateurError(
                f"schedule '{record.name}' has no '{key}': {suggestion(key, accepted)}"
            )
    complete = {key: given.get(key, default) for key, default in defaults.items()}
    shown = format_call(record.name, (), complete)
    try:
        values = [float(record.function(t, **complete)) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise SecateurError(f"schedule {shown} cannot be computed: {error}") from error
    if not all(-1e-9 <= value <= 1 + 1e-9 for value in values):
        raise SecateurError(
            f"schedule {shown} leaves the range 0 to 1: {min(values)} to {max(values)}"
        )
    return tuple(complete.items())
