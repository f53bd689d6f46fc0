"""What the records of a study say: a row per point of a curve, and the tests between techniques."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.study.grid import DENSE, Study
from secateur.study.statistics import Interval, Paired, holm, interval, paired

SIGNIFICANT = 0.05
# How far what is left after pruning may differ, as a share of itself, and still be called equal.
TOLERANCE = 0.05
Record = Mapping[str, Any]
MEASURES = ("params_left", "macs_left", "bytes_left", "latency_left")


@dataclass(frozen=True)
class Row:
    """One technique at one budget on one model and data: means over the seeds.

    ``achieved`` is the achieved value in the currency of the budget; ``left`` maps the measures to
    the share left of the dense network.
    """

    technique: str
    text: str
    role: str
    currency: str
    budget: float | None
    accuracy: Interval
    accuracies: Mapping[int, float]
    achieved: float | None
    left: Mapping[str, Interval]
    seconds: float


@dataclass(frozen=True)
class Panel:
    """The rows of one model on one data set, the dense network first."""

    model: str
    data: str
    rows: tuple[Row, ...]

    @property
    def dense(self) -> Row | None:
        """The row of the dense network, None as long as it is missing."""
        return next((row for row in self.rows if row.role == DENSE), None)

    def curve(self, technique: str) -> list[Row]:
        """Return a technique's rows, the least pruned first."""
        found = [row for row in self.rows if row.technique == technique]
        return sorted(found, key=lambda row: -row.left["params_left"].mean)


@dataclass(frozen=True)
class Test:
    """A paired comparison of a technique with the reference at one budget.

    ``adjusted`` is the p value after Holm over all tests of the study; ``equal`` says whether both
    achieved the same, so that a difference may be laid to the techniques.
    """

    __test__ = False  # the name is no invitation to pytest

    panel: Panel
    technique: str
    role: str
    reference: str
    currency: str
    budget: float | None
    found: Paired
    achieved: tuple[float | None, float | None]
    equal: bool
    adjusted: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the corrected test and the interval both tell the two apart."""
        low, high = self.found.difference.low, self.found.difference.high
        if self.adjusted is None or low is None or high is None:
            return False
        return self.adjusted < SIGNIFICANT and (low > 0 or high < 0)

    def verdict(self) -> str:
        """Say what the test shows, and no more."""
        difference = self.found.difference
        if not self.equal:
            return "not compared: what they achieved differs"
        if self.found.p is None:
            return "not tested: one seed in common" if difference.n < 2 else (
                "not tested: the seeds do not vary")  # fmt: skip
        if not self.differs:
            return "no difference seen"
        return "above the reference" if difference.mean > 0 else "below the reference"


@dataclass(frozen=True)
class Summary:
    """All that a page shows of a study's records."""

    panels: tuple[Panel, ...]
    tests: tuple[Test, ...]


def summarise(study: Study, records: Sequence[Record]) -> Summary:
    """Average the records over seeds and test every technique against the reference."""
    panels = []
    for model, data in itertools.product(study.models, study.data):
        mine = [r for r in records if (r["model"], r["data"]) == (model.label, data.label)]
        if mine:
            panels.append(Panel(model.label, data.label, tuple(_rows(mine))))
    tests = [test for panel in panels for test in _tests(panel, study.reference)]
    counted = [test.found.p if test.equal else None for test in tests]
    adjusted = [
        Test(**{**vars(test), "adjusted": p}) for test, p in zip(tests, holm(counted), strict=True)
    ]
    return Summary(tuple(panels), tuple(adjusted))


def _rows(records: Sequence[Record]) -> list[Row]:
    """Gather the records of each point; the order of the study file is kept."""

    def point(record: Record) -> tuple[Any, ...]:
        return record["technique"], record["currency"], record["budget"]

    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(point(record), []).append(record)
    return [_row(group) for group in groups.values()]


def _row(group: Sequence[Record]) -> Row:
    first = group[0]
    achieved = [record["achieved"].get(first["currency"]) for record in group]
    known = [value for value in achieved if value is not None]
    return Row(
        first["technique"],
        first["technique_text"],
        first["role"],
        first["currency"],
        first["budget"],
        interval([record["accuracy"] for record in group]),
        {record["seed"]: record["accuracy"] for record in group},
        sum(known) / len(known) if known else None,
        {key: interval(values) for key in MEASURES if (values := _values(group, key))},
        sum(record["wall_seconds"] for record in group) / len(group),
    )


def _values(group: Sequence[Record], key: str) -> list[float]:
    return [record[key] for record in group if record[key] is not None]


def _tests(panel: Panel, reference: str) -> list[Test]:
    found = []
    others: Callable[[Row], bool] = lambda row: row.technique != reference  # noqa: E731
    for base in (row for row in panel.rows if row.technique == reference):
        for row in filter(others, panel.rows):
            dense = row.role == DENSE
            if not dense and (row.currency, row.budget) != (base.currency, base.budget):
                continue
            compared = paired(row.accuracies, base.accuracies)
            if compared is None:
                continue
            found.append(
                Test(panel, row.technique, row.role, reference, base.currency, base.budget,
                     compared, (row.achieved, base.achieved), dense or _equal(row, base))
            )  # fmt: skip
    return found


def _equal(a: Row, b: Row) -> bool:
    """Whether two techniques left the same in the currency of the budget, within the tolerance."""
    if a.achieved is None or b.achieved is None:
        # Techniques that bring their budget along are compared by the parameters they leave.
        lefts = a.left["params_left"].mean, b.left["params_left"].mean
    elif a.currency == "sparsity":
        lefts = 1 - a.achieved, 1 - b.achieved
    else:
        lefts = a.achieved, b.achieved
    return abs(lefts[0] - lefts[1]) <= TOLERANCE * max(lefts)
