"""Hypothesis strategies that build any valid value of each axis, and of whole techniques."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.technique import (
    Context,
    Criterion,
    Granularity,
    MaskDynamics,
    Objective,
    Schedule,
    Technique,
    Update,
)
from secateur.technique.compensation import METHODS, Compensation
from secateur.technique.context import ALLOCATIONS, POOLS
from secateur.technique.criteria import CRITERIA, MODIFIERS, NORMALIZERS, REDUCERS
from secateur.technique.granularity import AXES, REMAINDERS
from secateur.technique.objective import ANSWERS, OBJECTIVES
from secateur.technique.schedule import CURVES, DECAYS, REGROWTH
from secateur.technique.update import OPTIMIZER, REMOVED, SURVIVORS

shares = st.floats(0, 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(max_size=8)


@st.composite
def granularities(draw: st.DrawFn) -> Granularity:
    kind = draw(st.sampled_from(["axes", "tiles", "n:m", "head"]))
    if kind == "head":
        return Granularity(frozenset("o"), head=True)
    if kind == "n:m":
        block = draw(st.integers(2, 64))
        return Granularity(
            frozenset(AXES),
            (),
            draw(st.integers(1, block - 1)),
            block,
            draw(st.sampled_from(AXES)),
            draw(st.sampled_from(REMAINDERS)),
        )
    named = draw(st.frozensets(st.sampled_from(AXES)))
    tiles = ()
    if kind == "tiles":
        lengths = {axis: draw(st.integers(1, 70)) for axis in AXES if axis in named}
        tiles = tuple((axis, length) for axis, length in lengths.items() if length > 1)
    return Granularity(named, tiles)


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    pool = draw(st.sampled_from(sorted(POOLS)))
    allowed = ["uniform"] if pool == "global" else sorted(ALLOCATIONS)
    allocation = draw(st.sampled_from(allowed))
    patterns = st.lists(names, min_size=1, max_size=3).map(tuple)
    groups = st.lists(st.tuples(names, patterns), min_size=1, max_size=3).map(tuple)
    given_shares = st.lists(st.tuples(names, shares), min_size=1, max_size=3).map(tuple)
    return Context(
        pool,
        allocation,
        draw(groups) if pool == "groups" else (),
        draw(given_shares) if allocation == "given" else (),
        draw(st.just(0.0) | shares),
    )


def _parameter(name: str, default: Any) -> st.SearchStrategy[Any]:
    words = {
        "variant": ["pairwise", "candidates", "reweighted"],
        "similarity": ["cosine", "distance"],
    }
    if name in words:
        return st.sampled_from(words[name])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, float):
        return st.just(default) | st.floats(1, 1e6)
    if isinstance(default, int):
        return st.integers(1, 1000)
    return st.just(default)


@st.composite
def criteria(draw: st.DrawFn, depth: int = 3) -> Criterion:
    normalize = draw(st.none() | st.sampled_from([record.name for record in NORMALIZERS]))
    if depth and draw(st.booleans()):
        record: Any = draw(st.sampled_from(list(MODIFIERS)))
        inner, reduce = draw(criteria(depth - 1)), None
    else:
        record, inner = draw(st.sampled_from(list(CRITERIA))), None
        reducers = st.none() | st.sampled_from([reducer.name for reducer in REDUCERS])
        reduce = draw(reducers) if record.level == "weight" else None
    own = tuple((key, draw(_parameter(key, default))) for key, default in record.parameters)
    return Criterion(record.name, own, reduce, normalize, inner)


@st.composite
def dynamics(draw: st.DrawFn) -> MaskDynamics:
    kind = draw(st.sampled_from(["permanent", "reselected", "regrown"]))
    if kind != "regrown":
        return MaskDynamics(kind)
    return MaskDynamics(
        kind, draw(st.sampled_from(REGROWTH)), draw(shares), draw(st.sampled_from(DECAYS))
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    record = draw(st.sampled_from(list(CURVES)))
    own: dict[str, Any] = {}
    if record.name == "one_cycle":
        own = {
            "alpha": draw(st.floats(8, 20)),
            "beta": draw(st.floats(2, 7)),
            "exact": draw(st.booleans()),
        }
    elif record.name == "iterative":
        own = {"n": draw(st.integers(1, 50))}
    elif record.name == "exponential":
        own = {"rate": draw(st.floats(0.1, 20))}
    elif record.name == "piecewise":
        times = sorted(draw(st.lists(shares, min_size=2, max_size=5, unique=True)))
        own = {"points": tuple((time, draw(shares)) for time in times)}
    start, end = sorted(draw(st.lists(shares, min_size=2, max_size=2, unique=True)))
    counts = draw(st.sampled_from(["every", "epochs", "neither"]))
    number = draw(st.integers(1, 10**6))
    return Schedule(
        record.name,
        tuple(own.items()),
        start,
        end,
        draw(shares),
        number if counts == "every" else None,
        number if counts == "epochs" else None,
        draw(dynamics()),
        rounds=draw(st.integers(1, 100)),
    )


@st.composite
def updates(draw: st.DrawFn) -> Update:
    survivors = draw(st.sampled_from(sorted(SURVIVORS)))
    rewinds = survivors == "rewind"
    compensates = survivors == "compensate"
    fates = [fate for fate in sorted(OPTIMIZER) if rewinds or fate != "rewind"]
    if compensates:
        fates.remove("rewind_rate")
    fate = draw(st.sampled_from(fates))
    rewinds = rewinds or fate == "rewind_rate"
    return Update(
        survivors,
        draw(st.none() | st.integers(0, 10**9)) if rewinds else None,
        draw(st.sampled_from(sorted(REMOVED))),
        fate,
        compensation=draw(compensations()) if compensates else None,
        drop=0.0 if compensates else draw(st.floats(0, 1)),
    )


@st.composite
def compensations(draw: st.DrawFn) -> Compensation:
    method = draw(st.sampled_from(sorted(METHODS)))
    drawn: dict[str, Any] = {}
    for key in METHODS[method].settings:
        whole = key in ("block", "steps")
        drawn[key] = draw(st.none() | (st.integers(1, 10**6) if whole else st.floats(0, 1e6)))
    return Compensation(method, **drawn)


@st.composite
def objectives(draw: st.DrawFn) -> Objective:
    name = draw(st.sampled_from(sorted(OBJECTIVES)))
    own: dict[str, Any] = {}
    if name == "group_lasso":
        own = {"sized": draw(st.booleans())}
    elif name == "distillation":
        own = {"answers": draw(st.sampled_from(sorted(ANSWERS)))}
        if own["answers"] != "values":
            own["temperature"] = draw(st.floats(0.01, 1e6))
        if own["answers"] == "softmax":
            own["dim"] = draw(st.integers(-3, 3))
    return Objective(name, draw(numbers), str(draw(schedules())), tuple(own.items()))


@st.composite
def techniques(draw: st.DrawFn) -> Technique:
    parts = [draw(axis()) for axis in (granularities, contexts, criteria, schedules)]
    if parts[1].pool == "row":
        parts[0] = Granularity.parse(draw(st.sampled_from(["weight", "kernel", "o h", "2:4"])))
    if parts[0].block is not None and parts[3].mask.kind == "regrown":
        parts[3] = Schedule("agp")
    try:
        return Technique(*parts, draw(updates()), draw(objectives()))
    except SecateurError as error:  # pragma: no cover - a strategy that builds invalid values
        raise AssertionError(f"{parts} are valid one by one: {error}") from error


@st.composite
def mutations(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> str:
    """A valid text with a few characters dropped, doubled, swapped or put in."""
    text = list(draw(texts))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(text)))
        deed = draw(st.sampled_from(["drop", "double", "put", "cut", "word"]))
        if deed == "put":
            text.insert(place, draw(st.sampled_from(list("()[]{},=:|\"'\\!- \n0159.eé;"))))
        elif deed == "word":
            words = ["none", "true", "3", "-1", '"x"', "[1]", '{"a": 1}', "f(1)", "1e999", "9" * 30]
            text[place:place] = list(draw(st.sampled_from(words)))
        elif deed == "cut":
            text = text[:place]
        elif place < len(text):
            text[place : place + 1] = [] if deed == "drop" else text[place] * 2
    return "".join(text)
