"""Gather the studies behind docs/guide.md: raw results, curves, and a table for each.

    python benchmarks/studies/guide.py --studies runs/studies --docs docs

A table tests each technique against its reference once: the accuracy averaged over the budgets,
seed by seed, with Holm's correction over the table. A technique that brings its budget along has no
curve, and stands on the study's own page alone.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from contributions import (
    HERE,
    RAW,
    _curves,
    _document,
    curve_table,
    fill,
    read,
)

from secateur.study import Study, summarise
from secateur.study.summary import Panel

MEASURES = {
    "guide_weights": "params_left",
    "guide_filters": "macs_left",
    "guide_calibrated": "params_left",
}


def main() -> None:
    """Write the three tables and pictures of the guide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    for name, measure in MEASURES.items():
        raw = arguments.docs / "results" / "studies" / name
        raw.mkdir(parents=True, exist_ok=True)
        for file in RAW:
            if (arguments.studies / name / file).is_file():
                shutil.copy(arguments.studies / name / file, raw / file)
        study = Study.read(HERE / f"{name}.yaml")
        panel = with_curves(summarise(study, read(raw)).panels[0], len(study.budgets))
        picture = _document(_curves(panel, measure))
        (arguments.docs / f"{name}.svg").write_text(picture, encoding="utf-8")
        fill(arguments.docs, name, curve_table(panel, study.reference, macs=True))


def with_curves(panel: Panel, points: int) -> Panel:
    """Leave out techniques that do not stand at every budget."""
    rows = tuple(
        row
        for row in panel.rows
        if row.role == "dense" or len(panel.curve(row.technique)) == points
    )
    return Panel(panel.model, panel.data, rows)


if __name__ == "__main__":
    main()
