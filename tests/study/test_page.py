"""The page, the tables, the findings and the checklist, from records alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import Page
from studies import GRID, records

from secateur.study import Study, StudyResult, interval
from secateur.study.checklist import checklist
from secateur.study.page import findings, render_markdown, render_page
from secateur.study.summary import summarise

THREE = (
    GRID
    + """
models: {a: cnn, b: {model: cnn, learning_rate: 0.1}, c: {model: cnn, learning_rate: 0.2}}
data: ["cifar10:somewhere"]
"""
)


def result(study: Study, found: Any = None, **changes: Any) -> StudyResult:
    found = records(study) if found is None else found
    return StudyResult(study, Path(), tuple(found), **{"failures": (), **changes})


def ticked(study: Study, found: Any) -> set[str]:
    return {
        item.text.split(",")[0].split(" for")[0] for item in checklist(study, found) if item.ticked
    }


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.parse(GRID)


def accuracy(values: dict[str, float]) -> Any:
    """Records in which a technique is above the others, with a little spread over the seeds."""

    def change(cell: Any) -> dict[str, float]:
        wobble = 0.001 * ((cell.settings.seed * 7 + len(cell.technique)) % 5)
        return {"accuracy": 0.9 + values.get(cell.technique, 0.0) + wobble}

    return change


def test_the_page_asks_nothing_of_the_network(study):
    page = render_page(result(study))
    assert "://" not in page
    read = Page(page)
    assert {"script", "iframe", "object", "embed", "img"}.isdisjoint(t for t, _ in read.elements)
    assert all(attributes.get("scope") in {"row", "col"} for attributes in read.find("th"))
    pictures = read.find("svg")
    assert len(pictures) == 3
    assert all(each["role"] == "img" and each["aria-label"] for each in pictures)
    identifiers = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_what_users_write_stays_text():
    study = Study.parse(
        'title: <script>alert(1)</script>\nquestion: "a | b *c* <b>"\nseeds: 2\n'
        'techniques: {"<i>x</i> | $y$": weight | local | magnitude | agp}'
    )
    page = render_page(result(study))
    assert "<script" not in page
    assert "<i>" not in page
    assert "<script>alert(1)</script>" in Page(page).text
    table = render_markdown(result(study))
    assert "<" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {10, 8, 3}


def test_means_and_intervals_are_those_of_the_records(study):
    found = records(study)
    mine = [r for r in found if (r["technique"], r["budget"]) == ("gradual", 0.9)]
    expected = interval([r["accuracy"] for r in mine])
    cell = f"{expected.mean:.4f} ± {expected.half:.4f}"
    assert len(mine) == 4
    for text in (
        Page(render_page(result(study, found))).text,
        render_markdown(result(study, found)),
    ):
        assert cell in text


def test_a_winner_is_named_only_with_an_interval_that_excludes_zero(study):
    summary = summarise(study, records(study, accuracy({"gradual": 0.05})))
    said = " ".join(findings(summary))
    assert re.search(r"gradual is above cycle: \+0\.05\d+ \[\+0\.0", said)
    for test in summary.tests:
        if test.differs:
            low, high = test.found.difference.low, test.found.difference.high
            assert low > 0 or high < 0
            assert test.adjusted >= test.found.p
            assert test.adjusted < 0.05
    level = summarise(study, records(study, accuracy({})))
    assert not any(test.differs for test in level.tests)
    assert not re.search("above|below", " ".join(findings(level)))
    assert "no difference seen in 4 of 4" in " ".join(findings(level))


def test_unequal_points_are_not_compared(study):
    def change(cell: Any) -> dict[str, Any]:
        more = accuracy({"gradual": 0.05})(cell)
        if (cell.technique, cell.budget) == ("gradual", 0.9):
            more["achieved"] = {"sparsity": 0.89, "params": 0.11, "macs": 0.1, "bytes": 0.1}
        return more

    found = [t for t in summarise(study, records(study, change)).tests if t.technique == "gradual"]
    assert [(t.budget, t.equal) for t in found] == [
        (0.5, True), (0.8, True), (0.9, False), (0.95, True),
    ]  # fmt: skip
    assert found[2].verdict() == "not compared: what they achieved differs"
    assert found[2].adjusted is None
    assert found[1].verdict() == "above the reference"


def test_one_seed_proves_nothing():
    study = Study.parse(GRID.replace("seeds: 4", "seeds: 1"))
    summary = summarise(study, records(study))
    assert {test.verdict() for test in summary.tests} == {"not tested: one seed in common"}
    assert not any("no difference" in line for line in findings(summary))
    assert "±" not in render_markdown(result(study)).partition("## Good practice")[0]


def test_missing_cells_are_told(study):
    found = records(study)[:-3]
    failures = ((study.cells[-1], "the worker died"),)
    shown = result(study, found, failures=failures)
    for text in (render_page(shown), render_markdown(shown)):
        assert f"3 of {len(study.cells)} cells have no result" in text
        assert "the worker died" in text
    nothing = result(study, [])
    assert Page(render_page(nothing)).find("svg") == []
    assert "## Tests" not in render_markdown(nothing)
    assert ticked(study, []) == set()


def test_good_practice_is_ticked_where_the_data_shows_it(study):
    full = Study.parse(THREE)
    assert len(ticked(full, records(full))) == len(checklist(full, [])) - 1
    small = ticked(study, records(study))
    assert "At least 3 pairs of model and data" not in small
    assert "Not only toy data" not in small


def gone(**wanted: Any) -> Any:
    """Leave out the records that have all of these values."""
    return lambda r: None if all(r[key] == value for key, value in wanted.items()) else r


def other(key: str, value: Any, **wanted: Any) -> Any:
    """Change one value of the records that have all of these values."""
    return lambda r: {**r, key: value} if gone(**wanted)(r) is None else r


@pytest.mark.parametrize(
    ("lost", "change"),
    [
        ("No cell of the grid is missing", gone(seed=3)),
        ("At least 3 seeds at every point", lambda r: None if r["seed"] > 1 else r),
        ("At least 3 seeds at every point", gone(seed=3, budget=0.5)),
        ("At least 5 points per curve", gone(budget=0.5)),
        ("The dense network is trained alike", gone(role="dense", seed=1)),
        ("Random scores as a baseline", gone(technique="random filter")),
        ("Magnitude as a baseline", gone(technique="filters")),
        ("Achieved multiply-accumulates are reported", other("macs_left", None, seed=2)),
        ("What was asked", other("achieved", {"sparsity": 0.7}, budget=0.8)),
        ("The same training", other("dense_epochs", 10, technique="gradual")),
        ("The same images", other("data_digest", "x", technique="gradual")),
        ("The same versions and code", other("versions", {}, seed=2)),
        ("The same machine", other("hardware", {}, seed=2)),
    ],
)
def test_each_point_is_left_open_where_the_data_does_not_show_it(lost, change):
    study = Study.parse(THREE)
    before = ticked(study, records(study))
    after = ticked(study, [r for r in map(change, records(study)) if r is not None])
    assert any(text.startswith(lost) for text in before)
    assert not any(text.startswith(lost) for text in after)
