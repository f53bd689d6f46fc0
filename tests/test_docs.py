"""The pages: their examples run, their techniques parse, their links and tables are right."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Page

from secateur import Granularity, Schedule, Technique
from secateur.sparsify.units import Units
from secateur.structure import find_weights
from secateur.technique.catalogue import catalogue, find_technique
from secateur.technique.context import ALLOCATIONS, POOLS
from secateur.technique.criteria import CRITERIA, MODIFIERS, NORMALIZERS, REDUCERS
from secateur.technique.criteria.evidence import NEEDS
from secateur.technique.granularity import NAMES
from secateur.technique.objective import ANSWERS, OBJECTIVES, PARAMETERS
from secateur.technique.schedule import CURVES, DECAYS, MASKS, REGROWTH

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")),
    *sorted(DOCS.glob("contributions/*.md")),
]  # fmt: skip
REGISTRIES = (CRITERIA, MODIFIERS, NORMALIZERS, REDUCERS, CURVES)
NAMES_OF_PAGES = [page.relative_to(ROOT).as_posix() for page in PAGES]

# What the pages take for granted; a page asks for a fresh model with `<!-- run: ... -->`.
PRELUDE = """
from collections import OrderedDict
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        stem=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), relu=nn.ReLU(),
        layer1=nn.Conv2d(8, 16, 3), relu1=nn.ReLU(), layer2=nn.Conv2d(16, 32, 3), relu2=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), head=nn.Linear(32, 4),
    ))

model, epochs, images = build(), 5, torch.randn(2, 3, 8, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = [(torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))) for _ in range(4)]
"""
_CODE = re.compile(r"^```python\n(.*?)^```$|^<!-- run:(.*?)-->$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^```.*?^```$|<!--.*?-->", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_every_page_is_looked_at():
    expected = {"index", "techniques", "granularity", "context", "criteria", "schedule", "update",
                "objective", "training", "export"}  # fmt: skip
    assert {page.stem for page in DOCS.glob("*.md")} >= expected


@pytest.mark.parametrize("page", PAGES, ids=NAMES_OF_PAGES)
def test_the_examples_run_and_say_what_comes_out(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for registry in REGISTRIES:
        monkeypatch.setattr(registry, "_records", dict(registry._records))
        monkeypatch.setattr(registry, "_names", dict(registry._names))
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "docs"}
    exec(PRELUDE, namespace)
    for match in _CODE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        source = match.group(1) if match.group(1) is not None else match.group(2).strip()
        _run(source, f"{page.name}, block of line {line}", namespace)


def _run(source: str, where: str, namespace: dict[str, Any]) -> None:
    """Run a block; a value in the comment behind an expression is what the expression gives."""
    lines = source.splitlines()
    for statement in ast.parse(source, where).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), where, "exec"), namespace)
            continue
        value = eval(compile(ast.Expression(statement.value), where, "eval"), namespace)
        behind = lines[(statement.end_lineno or 1) - 1].encode()[statement.end_col_offset :]
        try:
            expected = ast.literal_eval(behind.decode().strip().removeprefix("#").strip())
        except (SyntaxError, ValueError):
            continue  # no comment, or one in words
        assert value == expected, f"{where}: {ast.unparse(statement)} is {value!r}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES_OF_PAGES)
def test_techniques_in_the_text_can_be_read(page):
    for written in _quoted(page):
        if written.count(" | ") >= 3:
            assert Technique.parse(str(Technique.parse(written))) == Technique.parse(written)


def test_techniques_are_found_in_the_text():
    found = [each for page in PAGES for each in _quoted(page) if each.count(" | ") >= 3]
    assert len(found) >= 4


def _quoted(page: Path) -> list[str]:
    """Return what stands between backticks outside of code blocks; in tables a bar is escaped."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    quoted = [each.replace("\\|", "|") for each in re.findall(r"`([^`\n]+)`", text)]
    return [re.sub(r'^secateur \w+ "(.*)"$', r"\1", each) for each in quoted]


@pytest.mark.parametrize("page", PAGES, ids=NAMES_OF_PAGES)
def test_links_lead_somewhere(page):
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = Path(os.path.normpath(page.parent / path)) if path else page
        assert place.exists(), f"{page.name} links to {target}"
        assert place.is_relative_to(ROOT), f"{page.name} links to {target}, outside of the project"
        assert not anchor or anchor in _anchors(place), f"{page.name} links to {target}"


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("granularity", [*NAMES, "head"]),
        ("context", [*POOLS, *ALLOCATIONS]),
        ("criteria", [record.name for registry in REGISTRIES[:4] for record in registry]),
        ("criteria", [alias for record in CRITERIA for alias in record.aliases]),
        ("schedule", [name for record in CURVES for name in (record.name, *record.aliases)]),
        ("schedule", [*MASKS, *REGROWTH, *DECAYS]),
        ("objective", [*OBJECTIVES, *ANSWERS]),
        ("objective", [name for own in PARAMETERS.values() for name in own]),
    ],
)
def test_every_name_is_on_its_page(page, names):
    quoted = " ".join(_quoted(DOCS / f"{page}.md"))
    assert [name for name in names if not re.search(rf"\b{name}\b", quoted)] == []


def test_every_need_is_explained():
    text = (DOCS / "criteria.md").read_text(encoding="utf-8")
    assert [need for need in NEEDS if f"\n| {need} |" not in text] == []


def test_needs_of_criteria_are_those_of_the_code():
    rows = _rows(DOCS / "criteria.md")
    for record in CRITERIA:
        row = next(cells for cells in rows if cells[0].split(" ")[0] == f"`{record.name}`")
        named = {need for cell in row for need in cell.split(", ")}
        assert named & set(NEEDS) == set(record.needs), row


@pytest.mark.parametrize(
    ("file", "writes"), [("techniques.md", "page"), ("techniques.html", "table")]
)
def test_the_pages_of_techniques_are_those_of_the_catalogue(file, writes):
    place = DOCS / "list_techniques.py"
    names: dict[str, Any] = {"__name__": "list_techniques", "__file__": str(place)}
    exec(compile(place.read_text(encoding="utf-8"), str(place), "exec"), names)
    written = (DOCS / file).read_text(encoding="utf-8")
    assert written == names[writes](), "run python docs/list_techniques.py"


def test_the_table_of_techniques_stands_alone():
    text = (DOCS / "techniques.html").read_text(encoding="utf-8")
    script = text[text.index("<script>") : text.index("</script>") + len("</script>")]
    page = Page(text.replace(script, ""))
    assert not any("src" in attrs or "href" in attrs for _, attrs in page.elements)
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", script) and "{{" not in text
    named = [attrs for attrs in page.find("button") if "aria-expanded" in attrs]
    assert len(named) == len(page.find("tbody")) == len(catalogue())


def test_commands_of_the_guide_name_records_that_run():
    text = (DOCS / "guide.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`secateur compress [^`]*--technique (\w+)", text))
    assert len(named) >= 5
    for name in named:
        find_technique(name)


def test_the_numbers_of_units_are_right():
    weight = find_weights(torch.nn.Conv2d(4, 8, 3)).weights[0]
    rows = [cells for cells in _rows(DOCS / "granularity.md") if cells[-1].isdigit()]
    assert {cells[0].strip("`") for cells in rows} == set(NAMES)
    for name, axes, _, units in rows:
        granularity = Granularity.parse(name.strip("`"))
        assert Units.of(weight, granularity).count == int(units), name
        assert axes == "(none)" or Granularity.parse(axes.strip("`")) == granularity


def test_the_values_of_one_cycle_are_right():
    rows = [cells for cells in _rows(DOCS / "schedule.md") if len(cells) == 12]
    times = [float(cell) for cell in rows[0][1:]]
    assert len(rows[2:]) == 3
    for text, *values in rows[2:]:
        schedule = Schedule.parse(text.strip("`"))
        assert values == [f"{schedule.at(time):.4f}" for time in times]


def _rows(page: Path) -> list[list[str]]:
    """Return the cells of every row of a page's tables."""
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
