"""Trade-off curves: accuracy against what is really left of the network, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from secateur.report.plots import COLOURS, NARROW, drawing
from secateur.study.grid import DENSE
from secateur.study.summary import Panel, Row

AXES: Mapping[str, str] = {
    "params_left": "share of parameters left",
    "macs_left": "share of multiply-accumulates left",
    "latency_left": "share of latency left, measured",
}
_SERIES = 8
_MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
# For the baselines, drawn hollow.
_HOLLOW = (("o", "○"), ("s", "□"), ("^", "△"), ("D", "◇"), ("v", "▽"))
# Of the range on a logarithmic axis; below it a linear one shows more.
_LOGARITHMIC = 0.3


@dataclass(frozen=True)
class Style:
    """How a technique's line is drawn, and how the page says so."""

    colour: str
    variable: str
    marker: str
    sign: str
    dashed: bool


def styles(panels: Iterable[Panel]) -> dict[str, Style]:
    """Give each technique of the study one style on all pictures; baselines are grey."""
    found: dict[str, Style] = {}
    drawn = hollow = 0
    rows = {row.technique: row for panel in panels for row in panel.rows}
    for row in rows.values():
        if row.role == DENSE:
            found[row.technique] = Style(COLOURS["dense"], "dense", "", "―", False)
            continue
        if row.role == "random":
            marker, sign = _HOLLOW[hollow % len(_HOLLOW)]
            found[row.technique] = Style(COLOURS["track"], "track", marker, sign, True)
            hollow += 1
            continue
        marker, sign = _MARKERS[drawn % len(_MARKERS)]
        name = f"series{drawn % _SERIES + 1}"
        found[row.technique] = Style(COLOURS[name], name, marker, sign, False)
        drawn += 1
    return found


def curves_svg(panel: Panel, measure: str, look: Mapping[str, Style]) -> str | None:
    """Draw mean accuracy and its 95 % interval over the mean of a measure, a line a technique.

    None where nothing was measured. Points stand at what was achieved, not at what was asked for.
    """
    curves = {
        row.technique: [each for each in panel.curve(row.technique) if measure in each.left]
        for row in panel.rows
        if row.role != DENSE
    }
    points = [row for curve in curves.values() for row in curve]
    if not points:
        return None
    label = f"Line chart of accuracy over the {AXES[measure]}, {panel.model} on {panel.data}."
    name = f"{measure}-{panel.model}-{panel.data}"
    with drawing(name, label, NARROW, 3.4) as (figure, svg):
        axes = figure.add_subplot()
        if panel.dense is not None:
            _dense(axes, panel.dense, look[panel.dense.technique])
        for technique, curve in curves.items():
            _curve(axes, curve, measure, look[technique])
        _scale(axes, [row.left[measure].mean for row in points])
        axes.set_xlabel(AXES[measure])
        axes.set_ylabel("accuracy")
    return svg[0]


def _dense(axes: Axes, row: Row, style: Style) -> None:
    accuracy = row.accuracy
    axes.axhline(accuracy.mean, color=style.colour, lw=1.3, zorder=1)
    if accuracy.low is not None and accuracy.high is not None:
        axes.axhspan(accuracy.low, accuracy.high, color=style.colour, alpha=0.14, lw=0, zorder=0)


def _curve(axes: Axes, curve: Sequence[Row], measure: str, style: Style) -> None:
    places = [row.left[measure].mean for row in curve]
    heights = [row.accuracy.mean for row in curve]
    line = (0, (3, 2)) if style.dashed else "-"
    axes.plot(
        places, heights, color=style.colour, ls=line, lw=1.6, marker=style.marker, ms=4.8,
        mfc="none" if style.dashed else style.colour,
    )  # fmt: skip
    for row in curve:
        accuracy, left = row.accuracy, row.left[measure]
        bar: dict[str, Any] = {"color": style.colour, "lw": 1.1, "alpha": 0.55}
        if accuracy.low is not None and accuracy.high is not None:
            ends = [max(0.0, accuracy.low), min(1.0, accuracy.high)]
            axes.plot([left.mean, left.mean], ends, **bar)
        if left.low is not None and left.high is not None:
            axes.plot([max(left.low, left.mean / 10), left.high], [accuracy.mean] * 2, **bar)


def _scale(axes: Axes, places: Sequence[float]) -> None:
    """Use a logarithmic axis where the points reach far down, with ticks that can be read."""
    low, high = min(places), max(places)
    if 0 < low < _LOGARITHMIC * high:
        axes.set_xscale("log")
        steps = [m * 10.0**e for e in range(-6, 1) for m in (1, 2, 5)]
        inside = [step for step in steps if low * 0.8 <= step <= high * 1.25]
        axes.set_xticks(inside)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.06, y=0.08)
