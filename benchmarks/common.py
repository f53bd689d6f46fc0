"""What the benchmarks share: paired timing, and tables that are also JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.train.job import hardware, versions


def arguments(description: str) -> argparse.Namespace:
    """Parse what every benchmark accepts."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=15, help="paired rounds")
    parser.add_argument("--json", type=Path, help="write the result here too")
    return parser.parse_args()


def paired(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call the contenders in turns (A B A B ...) and return the seconds each says it took.

    The order turns round every time, so that neither always comes first.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        for name in names if round_ % 2 == 0 else reversed(names):
            seconds[name].append(contenders[name]())
    return seconds


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def ratios(seconds: Mapping[str, list[float]], over: str) -> dict[str, dict[str, float]]:
    """Return, for every contender, the quartiles of its ratio to ``over`` pair by pair."""
    found = {}
    for name, values in seconds.items():
        pairs = sorted(a / b for a, b in zip(values, seconds[over], strict=True))
        low, median, high = statistics.quantiles(pairs, n=4)
        found[name] = {
            "seconds": statistics.median(values),
            "ratio": median,
            "ratio_low": low,
            "ratio_high": high,
        }
    return found


def publish(
    title: str, result: Mapping[str, Any], rows: Mapping[str, Any], path: Path | None
) -> None:
    """Print a table and write the whole result as JSON."""
    table = Table("", "median seconds", "ratio", "quartiles", title=title, title_justify="left")
    for name, row in rows.items():
        table.add_row(
            name, f"{row['seconds']:.4f}", f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
        )  # fmt: skip
    Console().print(table)
    write(path, {"title": title, **result, "rows": rows})


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    """Write a result as JSON with the versions and the hardware it depends on."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    complete = {**result, "versions": versions(), "hardware": hardware()}
    path.write_text(json.dumps(complete, indent=2) + "\n", encoding="utf-8")
