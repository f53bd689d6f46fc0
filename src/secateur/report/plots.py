"""The pictures of the report, drawn by Matplotlib and turned into SVG that lives inside HTML.

Each function returns the text of one ``<svg>`` element, or None where there is nothing to draw.
Colours are written as CSS variables with a fallback, so that a page can give them a light and a
dark value; text stays text and takes the font of the page.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, cast
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from secateur.report.text import line, number

# Each colour of the drawing stands for a CSS variable of the page.
COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "ink": "#3c4a43",
        "muted": "#7d8983",
        "line": "#a9b3ad",
        "accent": "#3f9470",
        "dense": "#7488b5",
        "track": "#8a968f",
        # Lines side by side, told apart by those who do not see all colours as well.
        "series1": "#2f8a66",
        "series2": "#d2691f",
        "series3": "#5d6fd0",
        "series4": "#b9468f",
        "series5": "#a8860d",
        "series6": "#2b93b8",
        "series7": "#8a5a3c",
        "series8": "#6c8a1e",
    }
)
WIDE, NARROW = 9.6, 4.6
MOST_LAYERS = 40
_MOST_POINTS = 600
_MARKED_POINTS = 25
# Beyond this an axis cannot be laid out in floats; such a value is drawn as a gap.
_LARGEST = 1e100
_LONGEST_LABEL = {WIDE: 44, NARROW: 22}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.linewidth": 0.8,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.alpha": 0.35,
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.major.pad": 6,
    "ytick.major.pad": 6,
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,
}


def schedule_svg(
    history: Sequence[Mapping[str, Any]], currency: str, label: str, *, width: float = WIDE
) -> str | None:
    """Draw target and achieved share of the currency over training progress 0..1."""
    points = _thinned([row for row in history if number(row.get("progress")) is not None])
    progress = _column(points, "progress")
    target, achieved = _column(points, "target"), _column(points, "achieved")
    if not _any(target) and not _any(achieved):
        return None
    with drawing(f"schedule-{width}", label, width, 3.1) as (figure, svg):
        axes = figure.add_subplot()
        # A mask holds until the next one, hence steps. Where achieved meets target, the thin dashes
        # of the target show on the thick line.
        if _any(achieved):
            axes.plot(
                progress,
                achieved,
                color=COLOURS["accent"],
                lw=2.6,
                ds="steps-post",
                label="achieved",
            )
        if _any(target):
            axes.plot(
                progress, target, color=COLOURS["ink"], lw=1.1, ls=(0, (4, 3)), label="target"
            )
        axes.set_xlim(0, max([1.0, *(value for value in progress if not math.isnan(value))]))
        _from_zero(axes, target + achieved)
        _mark_last(axes, progress, achieved)
        axes.set_xlabel("training progress")
        axes.set_ylabel(currency)
        _legend(axes, 2)
    return svg[0]


def curves_svg(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    lines: Mapping[str, str],
    ylabel: str,
    label: str,
) -> str | None:
    """Draw values per epoch, dense against pruned.

    ``lines`` maps the keys to draw to their words; the first is solid, the second dotted.
    """
    styles = ("-", (0, (1, 1.6)))
    drawn = 0
    with drawing(f"curves-{'-'.join(lines)}", label, NARROW, 3.0) as (figure, svg):
        axes = figure.add_subplot()
        for run, colour in (("dense", COLOURS["dense"]), ("pruned", COLOURS["accent"])):
            points = _thinned(
                [r for r in curves.get(run, ()) if number(r.get("epoch")) is not None]
            )
            epochs = _column(points, "epoch")
            for (key, words), style in zip(lines.items(), styles, strict=False):
                values = _column(points, key)
                if _any(values):
                    marker = "o" if len(values) <= _MARKED_POINTS and style == "-" else ""
                    text = f"{run}, {words}" if words else run
                    axes.plot(
                        epochs, values, color=colour, ls=style, marker=marker, ms=3.2, label=text
                    )
                    drawn += 1
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.margins(x=0.03, y=0.08)
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        if drawn:
            _legend(axes, 2)
    return svg[0] if drawn else None


def layers_svg(
    layers: Sequence[Mapping[str, Any]], label: str, *, width: float = WIDE
) -> str | None:
    """Draw the share of weights that each layer keeps, at most ``MOST_LAYERS`` of the largest."""
    known = [(layer, share) for layer in layers if (share := kept_share(layer)) is not None]
    if not known:
        return None
    heaviest = sorted(known, key=lambda pair: -(number(pair[0].get("weights")) or 0.0))
    shown = {id(layer) for layer, _ in heaviest[:MOST_LAYERS]}
    rows = [(layer, share) for layer, share in known if id(layer) in shown]
    names = [_layer_label(line(layer.get("name")), _LONGEST_LABEL[width]) for layer, _ in rows]
    shares = [share for _, share in rows]
    with drawing(f"layers-{width}", label, width, 0.55 + 0.24 * len(rows)) as (figure, svg):
        axes = figure.add_subplot()
        places = range(len(rows))
        axes.barh(places, [1.0] * len(rows), height=0.56, color=COLOURS["track"], alpha=0.16)
        axes.barh(places, shares, height=0.56, color=COLOURS["accent"])
        for place, share in zip(places, shares, strict=True):
            axes.text(1.012, place, f"{share:.3f}", va="center", color=COLOURS["muted"])
        axes.set_yticks(list(places), names, color=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(False)
    return svg[0]


def kept_share(layer: Mapping[str, Any]) -> float | None:
    """Return kept / weights of a layer, within 0..1, or None where it is unknown."""
    kept, weights = number(layer.get("kept")), number(layer.get("weights"))
    if kept is None or weights is None or weights <= 0:
        return None
    return min(max(kept / weights, 0.0), 1.0)


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    found = [number(row.get(key)) for row in rows]
    return [math.nan if x is None or abs(x) > _LARGEST else x for x in found]


def _any(values: Sequence[float]) -> bool:
    return any(not math.isnan(value) for value in values)


def _thinned(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Keep at most about ``_MOST_POINTS`` rows, evenly spaced, the last among them."""
    step = max(1, math.ceil(len(rows) / _MOST_POINTS))
    return [*rows[:-1:step], *rows[-1:]]


def _layer_label(name: str, longest: int) -> str:
    """Shorten a layer's name: words lose all but their first letter, the leftmost first.

    Numbers stay, for it is they that tell layers apart.
    """
    name = " ".join(name.split()).removesuffix(".weight")
    parts = name.split(".")
    for place, part in enumerate(parts):
        if (
            len(".".join(parts)) > longest
            and part[:1].isalpha()
            and not any(map(str.isdigit, part))
        ):
            parts[place] = part[0]
    short = ".".join(parts)
    if len(short) <= longest:
        return short
    head = longest // 3
    return f"{short[:head]}…{short[head + 1 - longest :]}"


def _from_zero(axes: Axes, values: Sequence[float]) -> None:
    known = [value for value in values if not math.isnan(value)]
    low, high = min(0.0, *known), max(known)
    axes.set_ylim(low * 1.08, high * 1.08 if high > low else low + 1.0)


def _mark_last(axes: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if not math.isnan(y)]
    if known:
        x, y = known[-1]
        axes.plot([x], [y], "o", color=COLOURS["accent"], ms=5, clip_on=False)
        axes.annotate(
            f"{y:.3f}",
            (x, y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
        )


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        borderpad=0.2,
        handlelength=1.7,
        columnspacing=1.4,
    )


@contextmanager
def drawing(
    name: str, label: str, width: float, height: float
) -> Iterator[tuple[Figure, list[str]]]:
    """Yield an empty figure (in inches), and a list that holds its SVG once the block is left.

    ``name`` makes identifiers of the page's pictures differ; ``label`` is the text for readers.
    """
    svg: list[str] = []
    # Matplotlib reads its style from global settings: they are set here and put back afterwards.
    with mpl.rc_context(), warnings.catch_warnings():
        # The page's font draws the text; Matplotlib's own need not know every letter.
        warnings.filterwarnings("ignore", message="Glyph")
        mpl.rcdefaults()
        mpl.rcParams.update(cast("Any", {**_STYLE, "svg.hashsalt": name}))
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        yield figure, svg
        for axes in figure.axes:
            axes.set_facecolor("none")
        text = io.StringIO()
        figure.savefig(text, format="svg", facecolor="none", metadata=_NO_METADATA)
    svg.append(_inline(text.getvalue(), label))


_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}
_VARIABLES = {hexadecimal: f"var(--{name}, {hexadecimal})" for name, hexadecimal in COLOURS.items()}
_HEXADECIMAL = re.compile("|".join(_VARIABLES))


def _inline(document: str, label: str) -> str:
    """Turn Matplotlib's SVG document into an element for HTML, sized and coloured by the page."""
    root = ElementTree.fromstring(document)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key in list(element.attrib):
            value = element.attrib.pop(key)
            element.set(key.rpartition("}")[2], value)
        if "style" in element.attrib:
            element.set(
                "style", _HEXADECIMAL.sub(lambda m: _VARIABLES[m[0]], element.get("style", ""))
            )
        if element.tag == "g":
            # Matplotlib numbers its groups anew in each figure, and nothing refers to them.
            element.attrib.pop("id", None)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {"metadata", "style"}:
                parent.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return ElementTree.tostring(root, encoding="unicode")
