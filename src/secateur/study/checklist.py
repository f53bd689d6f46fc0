"""Good practice in comparing pruning techniques, ticked by looking at the records.

After the advice of Blalock et al. 2020, "What is the State of Neural Network Pruning?" (MLSys),
in our words and with items of our own; a tick is a finding about the data, never a promise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.study.grid import DENSE, Study
from secateur.study.summary import TOLERANCE, Record
from secateur.technique import Technique

_FEWEST_PANELS, _FEWEST_POINTS, _FEWEST_SEEDS = 3, 5, 3
_TOYS = ("digits", "fashion-mnist")


@dataclass(frozen=True)
class Item:
    """One point of good practice, whether the data shows it kept, and what was seen."""

    text: str
    ticked: bool
    seen: str


def checklist(study: Study, records: Sequence[Record]) -> list[Item]:
    """Look through the records of a study and tick what they show."""
    return [
        Item(text, *(look(study, records) if records else (False, "no cell is finished")))
        for text, look in _ITEMS
    ]


Look = Callable[[Study, Sequence[Record]], tuple[bool, str]]


def _whole(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    missing = len(study.cells) - len(records)
    return missing == 0, f"{len(records)} of {len(study.cells)} cells are finished"


def _panels(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    found = {(record["model"], record["data"]) for record in records}
    return len(found) >= _FEWEST_PANELS, f"{_count(len(found), 'pair')}"


def _no_toys(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    found = {record["data_spec"] for record in records}
    return bool(found - set(_TOYS)), f"data: {', '.join(sorted(found))}"


def _points(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    curves: dict[tuple[str, str, str], set[Any]] = {}
    for record in records:
        if record["role"] == "technique":
            place = record["technique"], record["model"], record["data"]
            curves.setdefault(place, set()).add((record["currency"], record["budget"]))
    # The dense network is the point where every curve begins.
    fewest = 1 + min((len(budgets) for budgets in curves.values()), default=0)
    return fewest >= _FEWEST_POINTS, f"the shortest curve has {_count(fewest, 'point')}"


def _seeds(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    points: dict[tuple[Any, ...], set[int]] = {}
    for record in records:
        points.setdefault(_point(record), set()).add(record["seed"])
    every = {record["seed"] for record in records}
    fewest = min(len(seeds) for seeds in points.values())
    same = all(seeds == every for seeds in points.values())
    seen = f"{_count(fewest, 'seed')} at the least" + ("" if same else ", not the same everywhere")
    return fewest >= _FEWEST_SEEDS and same, seen


def _measured(key: str) -> Look:
    def look(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
        known = sum(record[key] is not None for record in records)
        return known == len(records), f"known for {known} of {len(records)} cells"

    return look


def _dense(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    needed = {(r["model"], r["data"], r["seed"]) for r in records}
    found = {(r["model"], r["data"], r["seed"]) for r in records if r["role"] == DENSE}
    return needed == found, f"{len(found)} of {len(needed)} pairs and seeds"


def _baseline(criterion: str) -> Look:
    def look(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
        def places(rows: Iterable[Record]) -> set[tuple[Any, ...]]:
            return {
                (str(Technique.parse(r["technique_text"]).granularity), *_point(r)[1:], r["seed"])
                for r in rows
                if r["role"] != DENSE
            }

        has = [
            r for r in records if str(Technique.parse(r["technique_text"]).criteria) == criterion
        ]
        needed, found = places(records), places(has)
        return needed == found, f"at {len(found)} of {len(needed)} points and seeds"

    return look


def _same_training(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    by_panel: dict[tuple[str, str], set[tuple[Any, ...]]] = {}
    for record in records:
        training = tuple(
            record[key] for key in ("epochs", "batch_size", "learning_rate", "dense_epochs")
        )
        by_panel.setdefault((record["model"], record["data"]), set()).add(training)
    unequal = sum(len(found) > 1 for found in by_panel.values())
    if unequal:
        return False, f"it differs within {_count(unequal, 'pair')} of model and data"
    epochs = sorted({record["epochs"] for record in records})
    return True, f"{', '.join(map(str, epochs))} epochs"


def _same_data(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    found: dict[tuple[str, int], set[str]] = {}
    for record in records:
        found.setdefault((record["data"], record["seed"]), set()).add(record["data_digest"])
    unequal = [place for place, digests in found.items() if len(digests) > 1]
    if unequal:
        return False, f"the images of {unequal[0][0]} changed between cells"
    return True, "the hashes of the images agree"


def _same_code(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    versions = {tuple(sorted(record["versions"].items())) for record in records}
    return len(versions) == 1, f"{_count(len(versions), 'set')} of versions and code"


def _same_machine(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    machines = {tuple(sorted(map(str, record["hardware"].items()))) for record in records}
    return len(machines) == 1, f"{_count(len(machines), 'machine')}, threads counted"


def _achieved(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    asked = [r for r in records if r["role"] != DENSE and r["budget"] is not None]
    missed = sum(not _met(record) for record in asked)
    return missed == 0, f"{missed} of {len(asked)} cells missed it"


def _met(record: Record) -> bool:
    asked, got = record["budget"], record["achieved"].get(record["currency"])
    if got is None:
        return False
    left = 1 - asked if record["currency"] == "sparsity" else asked
    return bool(abs(got - asked) <= TOLERANCE * left)


def _untuned(study: Study, records: Sequence[Record]) -> tuple[bool, str]:
    return False, "cannot be seen in the data; say it in the study's question"


def _point(record: Record) -> tuple[Any, ...]:
    keys = ("technique", "model", "data", "currency", "budget")
    return tuple(record[key] for key in keys)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


_ITEMS: tuple[tuple[str, Look], ...] = (
    ("No cell of the grid is missing", _whole),
    (f"At least {_FEWEST_PANELS} pairs of model and data", _panels),
    ("Not only toy data", _no_toys),
    (f"At least {_FEWEST_POINTS} points per curve, the dense network among them", _points),
    (f"At least {_FEWEST_SEEDS} seeds at every point, the same for all", _seeds),
    ("The dense network is trained alike, for every pair and seed", _dense),
    ("Random scores as a baseline, for every granularity and budget", _baseline("random")),
    ("Magnitude as a baseline, for every granularity and budget", _baseline("magnitude")),
    ("Achieved parameters are reported", _measured("params_left")),
    ("Achieved multiply-accumulates are reported", _measured("macs_left")),
    ("Latency is measured", _measured("latency_left")),
    (f"What was asked for was achieved, within {TOLERANCE:.0%} of what is left", _achieved),
    ("The same training for all techniques", _same_training),
    ("The same images for all techniques", _same_data),
    ("The same versions and code for all techniques", _same_code),
    ("The same machine for all techniques", _same_machine),
    ("Nothing was tuned on the images that accuracy is counted on, or all alike", _untuned),
)
