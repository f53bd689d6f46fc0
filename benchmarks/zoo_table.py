"""The zoo as a Markdown page: how many pass, how long they take, and every row."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from zoo_marks import BUDGETS, POINTS

Row = Mapping[str, Any]
GROUPS = ("torchvision", "timm", "transformers")


def passes(row: Row) -> bool:
    """Return whether no point failed, and the model was really made smaller and ran."""
    return False not in row["points"] and all(row["points"][point - 1] for point in (2, 3, 9))


def runs(row: Row) -> bool:
    """Return whether a forward pass works and parameters fell: the mark that peers use."""
    before, after = row["params"]
    return after is not None and after < before and row["points"][2] is True


def group_of(name: str) -> str:
    """Return the library that a name belongs to."""
    library = name.rpartition(":")[0]
    return library or "torchvision"


def page(rows: Iterable[Row], command: str, versions: Mapping[str, str]) -> str:
    """Return the whole page."""
    rows = list(rows)
    libraries = list(dict.fromkeys(row["library"] for row in rows))
    parts = [
        "# The zoo",
        f"`{command}`",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "A row passes where no point fails; – is a point that does not apply or was not reached. "
        "*Runs* asks less: a forward pass works and there are fewer parameters. Seconds are from "
        "the model to the pruned model.",
        "\n".join(f"{number}. {text}" for number, text in enumerate(POINTS, 1)),
        _budgets(rows),
        _summary(rows, libraries),
        _ratio(rows, libraries),
        *(_table(library, [row for row in rows if row["library"] == library])
          for library in libraries),
    ]  # fmt: skip
    return "\n\n".join(filter(None, parts)) + "\n"


def _budgets(rows: list[Row]) -> str:
    """Say how many rows met all budgets, where some were judged at fewer."""
    judged = [len(row["detail"].get("budgets", {})) for row in rows if row["library"] == "secateur"]
    whole = sum(count == len(BUDGETS) for count in judged)
    if whole == len(judged):
        return ""
    return (
        f"{whole} of the {len(judged)} rows of secateur are judged at all four budgets (30 and "
        "50 % of the parameters, 30 and 50 % of the MACs), the others at 50 % of the parameters."
    )


def _summary(rows: list[Row], libraries: list[str]) -> str:
    head = ["library", "models", "of", "pass", "runs", *map(str, range(1, len(POINTS) + 1))]
    lines = [_line(head), _line(["---"] * len(head))]
    for library in libraries:
        for group in GROUPS:
            own = [r for r in rows if r["library"] == library and group_of(r["name"]) == group]
            if own:
                counts = [
                    f"{sum(r['points'][k] is True for r in own)}/"
                    f"{sum(r['points'][k] is not None for r in own)}"
                    for k in range(len(POINTS))
                ]
                passed, ran = sum(map(passes, own)), sum(map(runs, own))
                lines.append(_line([library, group, len(own), passed, ran, *counts]))
    return "\n".join(lines)


def _ratio(rows: list[Row], libraries: list[str]) -> str:
    """Say how the time to a pruned model compares where both libraries prune one that runs."""
    ours = {row["name"]: row for row in rows if row["library"] == "secateur" and runs(row)}
    lines = []
    for library in libraries:
        ratios = [
            row["seconds"] / ours[row["name"]]["seconds"]
            for row in rows
            if row["library"] == library != "secateur" and runs(row) and row["name"] in ours
        ]
        if ratios:
            low, middle, high = statistics.quantiles(ratios, n=4) if ratios[1:] else ratios * 3
            lines.append(
                f"On the {len(ratios)} models that both prune, {library} takes {middle:.1f} times "
                f"as long (median; quartiles {low:.1f} to {high:.1f})."
            )
    return "\n".join(lines)


def _table(library: str, rows: list[Row]) -> str:
    head = ["model", *map(str, range(1, len(POINTS) + 1)), "params", "MACs", "seconds", "reason"]
    lines = [f"## {library}", "", _line(head), _line(["---"] * len(head))]
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        lines.append(
            _line(
                [row["name"], *map(_mark, row["points"]), _change(row["params"]),
                 _change(row["macs"]), seconds, row["reason"] or ""]
            )
        )  # fmt: skip
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in cells)} |"


def _mark(point: bool | None) -> str:
    return {True: "✓", False: "✗", None: "–"}[point]


def _change(pair: list[int | None]) -> str:
    before, after = pair
    if before is None:
        return ""
    return _number(before) if after is None else f"{_number(before)} → {_number(after)}"


def _number(count: int) -> str:
    for size, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= size:
            return f"{count / size:.3g}{sign}"
    return str(count)
