"""The page of a study: every word and number of it, as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from secateur.report import text
from secateur.report.html import style
from secateur.study.checklist import Item, checklist
from secateur.study.curves import AXES, Style, curves_svg, styles
from secateur.study.grid import DENSE
from secateur.study.statistics import Interval
from secateur.study.summary import SIGNIFICANT, TOLERANCE, Panel, Row, Summary, Test, summarise

if TYPE_CHECKING:
    from secateur.study.run import StudyResult

_HEADINGS = ("technique", "asked", "achieved", "accuracy", "drop", "parameters left", "MACs left",
             "latency left", "seeds")  # fmt: skip
_TITLES = {
    "params_left": "Accuracy over parameters",
    "macs_left": "Accuracy over multiply-accumulates",
    "latency_left": "Accuracy over latency",
}
_TESTS = ("technique", "at", "difference", "95 % interval", "p", "p, corrected", "verdict")


@dataclass(frozen=True)
class Line:
    """One row of a table: its cells, and the style of the technique in the pictures."""

    cells: tuple[str, ...]
    style: Style | None = None
    tone: str = ""


def render_page(result: StudyResult) -> str:
    """Return the study's page as one HTML file that needs nothing from outside."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("secateur.study").joinpath("template.html.j2")
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(_page(result), style=style())


def _page(result: StudyResult) -> dict[str, Any]:
    study, records = result.study, result.records
    summary = summarise(study, records)
    look = styles(summary.panels)
    return {
        "title": study.title,
        "question": study.question,
        "tiles": _tiles(result, summary),
        "missing": _missing(result),
        "remarks": list(result.remarks),
        "findings": findings(summary),
        "panels": [_panel(panel, look) for panel in summary.panels],
        "headings": _HEADINGS,
        "tests": [
            Line(_test(test, summary), look[test.technique], _tone(test)) for test in summary.tests
        ],
        "test_headings": _TESTS,
        "about_tests": about_tests(result, summary),
        "items": checklist(study, records),
        "settings": _settings(result),
        "techniques": [
            Line((label, line), look.get(label)) for label, line in _texts(summary).items()
        ],
    }


def render_markdown(result: StudyResult) -> str:
    """Return the study's tables as Markdown."""
    study = result.study
    summary = summarise(study, result.records)
    parts = [f"# {_plain(study.title)}", _plain(study.question)]
    parts += [f"**{line}**" for line in _missing(result)]
    parts += ["\n".join(f"- {_plain(line)}" for line in findings(summary))]
    for panel in summary.panels:
        rows = [_row(row, panel) for row in panel.rows]
        parts += [f"## {_plain(_heading(panel))}", _table(_HEADINGS, rows)]
    if summary.tests:
        parts += ["## Tests", _plain(about_tests(result, summary))]
        parts += [_table(_TESTS, [_test(test, summary) for test in summary.tests])]
    parts += ["## Good practice", _boxes(checklist(study, result.records))]
    parts += ["## Techniques", _table(("label", "technique"), list(_texts(summary).items()))]
    parts += ["## How it was run", _table(("", ""), _settings(result))]
    return "\n\n".join(part for part in parts if part) + "\n"


def findings(summary: Summary) -> list[str]:
    """Say what the tests show, one sentence a technique; none without an interval behind it."""
    said = []
    for technique in dict.fromkeys(test.technique for test in summary.tests):
        mine = [test for test in summary.tests if test.technique == technique]
        reference = mine[0].reference
        name = "the dense network" if mine[0].role == DENSE else technique
        for words, wins in (
            ("above", [t for t in mine if t.equal and t.differs and t.found.difference.mean > 0]),
            ("below", [t for t in mine if t.equal and t.differs and t.found.difference.mean < 0]),
        ):
            if wins:
                where = "; ".join(_finding(test, summary) for test in wins)
                said.append(f"{name} is {words} {reference}: {where}.")
        untested = sum(test.equal and test.found.p is None for test in mine)
        if untested:
            said.append(f"{name} and {reference}: not testable in {untested} of "
                        f"{len(mine)} comparisons: few seeds, or no variation.")  # fmt: skip
        level = sum(test.equal and not test.differs for test in mine) - untested
        if level:
            said.append(f"{name} and {reference}: no difference seen in {level} of "
                        f"{len(mine)} comparisons.")  # fmt: skip
        unequal = sum(not test.equal for test in mine)
        if unequal:
            said.append(f"{name} and {reference}: not compared in {unequal} of {len(mine)} "
                        "places, where what they achieved differs.")  # fmt: skip
    return said


def _finding(test: Test, summary: Summary) -> str:
    difference = test.found.difference
    return f"{text.signed(difference.mean)} {_bounds(difference)} at {_place(test, summary)}"


def _place(test: Test, summary: Summary) -> str:
    """Say at which budget a test was made and, where there are several, on what."""
    where = f", {_heading(test.panel)}" if len(summary.panels) > 1 else ""
    return _asked(test.currency, test.budget) + where


def about_tests(result: StudyResult, summary: Summary) -> str:
    """Say how the tests were made."""
    counted = sum(test.equal and test.found.p is not None for test in summary.tests)
    return (
        f"Each technique against {result.study.reference}, seed by seed: accuracy minus that of "
        f"the reference, two-sided paired t tests, p corrected after Holm for {counted} tests. "
        f"Two differ where the corrected p is below {SIGNIFICANT:g} and the interval excludes "
        f"zero. Compared are only points whose shares left differ by at most {TOLERANCE:.0%}; the "
        "dense network is there to show the drop."
    )


def _tiles(result: StudyResult, summary: Summary) -> list[tuple[str, str, str]]:
    study, records = result.study, result.records
    hours = sum(record["wall_seconds"] for record in records) / 3600
    differing = sum(test.differs for test in summary.tests)
    spent = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    ticked = sum(item.ticked for item in checklist(study, records))
    return [
        ("Cells", f"{len(records)}", f"of {len(study.cells)}, {spent} of work"),
        ("Seeds", f"{len(study.seeds)}", "for every point"),
        ("Differences", f"{differing}", f"in {len(summary.tests)} comparisons"),
        ("Good practice", f"{ticked}", f"of {len(checklist(study, records))} points ticked"),
    ]


def _missing(result: StudyResult) -> list[str]:
    gone = len(result.study.cells) - len(result.records)
    if not gone:
        return []
    said = [f"{gone} of {len(result.study.cells)} cells have no result; what is shown is less "
            "than the study."]  # fmt: skip
    return said + [f"{cell.words()}: {reason}" for cell, reason in result.failures]


def _panel(panel: Panel, look: dict[str, Style]) -> dict[str, Any]:
    pictures = [(_TITLES[measure], curves_svg(panel, measure, look)) for measure in AXES]
    names = dict.fromkeys(row.technique for row in panel.rows)
    return {
        "heading": _heading(panel),
        # The drawing is ours, and the parser that made it inline has escaped every text in it.
        "pictures": [(words, Markup(svg)) for words, svg in pictures if svg is not None],
        "legend": [(name, look[name]) for name in names],
        "rows": [Line(_row(row, panel), look[row.technique]) for row in panel.rows],
    }


def _heading(panel: Panel) -> str:
    return f"{panel.model} on {panel.data}"


def _row(row: Row, panel: Panel) -> tuple[str, ...]:
    drop = text.NOTHING
    if panel.dense is not None and row.role != DENSE:
        drop = text.signed(row.accuracy.mean - panel.dense.accuracy.mean)
    asked = text.NOTHING if row.role == DENSE else _asked(row.currency, row.budget)
    achieved = text.NOTHING if row.role == DENSE else text.share(row.achieved)
    lefts = [row.left.get(key) for key in AXES]
    return (
        row.technique, asked, achieved, _with_interval(row.accuracy), drop,
        *(text.NOTHING if left is None else _with_interval(left, 3) for left in lefts),
        str(row.accuracy.n),
    )  # fmt: skip


def _test(test: Test, summary: Summary) -> tuple[str, ...]:
    difference, place = test.found.difference, _place(test, summary)
    return (
        test.technique, place, text.signed(difference.mean),
        _bounds(difference), _p(test.found.p), _p(test.adjusted), test.verdict(),
    )  # fmt: skip


def _tone(test: Test) -> str:
    if not (test.equal and test.differs):
        return ""
    return "better" if test.found.difference.mean > 0 else "worse"


def _asked(currency: str, budget: float | None) -> str:
    return "its own budget" if budget is None else f"{currency} {text.short(budget)}"


def _with_interval(found: Interval, places: int = 4) -> str:
    """Write a mean and half of its interval, as in 0.9123 ± 0.0045."""
    if found.half is None:
        return f"{found.mean:.{places}f}"
    return f"{found.mean:.{places}f} ± {found.half:.{places}f}"


def _bounds(found: Interval) -> str:
    if found.low is None or found.high is None:
        return "(one seed)"
    return f"[{text.signed(found.low)}, {text.signed(found.high)}]"


def _p(value: float | None) -> str:
    if value is None:
        return text.NOTHING
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _texts(summary: Summary) -> dict[str, str]:
    rows = {row.technique: row for panel in summary.panels for row in panel.rows}
    return {
        name: "nothing is removed" if row.role == DENSE else row.text for name, row in rows.items()
    }


def _settings(result: StudyResult) -> list[tuple[str, str]]:
    records = result.records
    found = [("reference", result.study.reference)]
    found.append(("seeds", ", ".join(map(str, result.study.seeds))))
    for words, key in (
        ("epochs", "epochs"), ("batch size", "batch_size"), ("learning rate", "learning_rate"),
        ("images at most", "limit"), ("augmentation", "augmentation"), ("versions", "versions"),
        ("hardware", "hardware"),
    ):  # fmt: skip
        values = list(dict.fromkeys(text.line(text.clean(record[key])) for record in records))
        found.append((words, "; ".join(values[:4]) or text.NOTHING))
    resumed = sum(record["resumed"] for record in records)
    if resumed:
        found.append(("resumed", f"{resumed} cells went on from a checkpoint; their time counts "
                      "from there"))  # fmt: skip
    return found


def _boxes(items: Sequence[Item]) -> str:
    return "\n".join(
        f"- [{'x' if item.ticked else ' '}] {_plain(f'{item.text} ({item.seen})')}"
        for item in items
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _plain(words: str) -> str:
    """Keep a text in its place in Markdown: one line, nothing of it read as markup."""
    line = " ".join(str(words).split())
    for character in "\\`*_[]<>|":
        line = line.replace(character, f"\\{character}" if character != "<" else "&lt;")
    return line
