"""A drawing of a network's coupling: layers downwards, one lane for every axis they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from secateur.structure import Axis, Trace

_ROW, _LANE, _TEXT = 18, 16, 7
_COLOURS = {"exact": "#1a7f5a", "inexact": "#b7791f", "pinned": "#9aa0a6"}
_LEGEND = {
    "exact": "can be removed",
    "inexact": "can be removed, and changes the masked result",
    "pinned": "cannot be removed",
}


@dataclass(frozen=True)
class _Lane:
    """An axis as it is drawn: the rows it touches (with whether they make it), and its lane."""

    axis: Axis
    rows: tuple[tuple[int, bool], ...]
    number: int

    @property
    def status(self) -> str:
        if self.axis.pinned is not None:
            return "pinned"
        return "inexact" if self.axis.inexact is not None else "exact"


def draw_coupling(trace: Trace) -> str:
    """Return an SVG of the layers and the axes that couple them.

    A filled dot is a layer that makes an axis, a hollow one a layer that reads it.

    >>> import torch
    >>> from secateur import trace
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    >>> draw_coupling(trace(model, torch.zeros(1, 8))).count("<circle")
    7
    """
    names = [name for name, dims in trace.held.items()
             if name in trace.parameters and len(dims) > 1]  # fmt: skip
    titles = [name.removesuffix(".weight") for name in names]
    lanes = _lanes(trace.axes, {name: row for row, name in enumerate(names)})
    left = 24 + _TEXT * max((len(title) for title in titles), default=0)
    width = left + _LANE * (1 + max((lane.number for lane in lanes), default=0)) + 24
    width = max(width, 600)
    top = 30
    height = top + _ROW * len(names) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="ui-monospace, monospace" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="18" font-weight="bold">{_headline(trace)}</text>',
    ]
    for row, title in enumerate(titles):
        y = top + _ROW * row + _ROW // 2
        if row % 2:
            parts.append(
                f'<rect x="0" y="{y - _ROW // 2}" width="{width}" height="{_ROW}" fill="#f6f7f8"/>'
            )
        parts.append(f'<text x="12" y="{y + 4}">{escape(title)}</text>')
    parts += [_draw(lane, left, top) for lane in lanes]
    parts.append(_legend(height))
    return "\n".join([*parts, "</svg>"])


def _headline(trace: Trace) -> str:
    reach = trace.reach
    return escape(
        f"{len(trace.removable)} removable axes reach {reach['params']:.1%} of the parameters "
        f"and {reach['macs']:.1%} of the MACs"
    )


def _lanes(axes: Sequence[Axis], places: dict[str, int]) -> list[_Lane]:
    """Give every axis the first lane that is free over the rows it spans."""
    spans = []
    for axis in axes:
        rows: dict[int, bool] = {}
        for name, dim in axis.carriers:
            if name in places:
                row = places[name]
                rows[row] = rows.get(row, False) or dim == 0
        alone = axis.pinned is not None and len(axis.carriers) < 2
        if rows and not _is_extent(axis) and not (alone and not _ends(rows, places)):
            spans.append((min(rows), max(rows), axis, tuple(sorted(rows.items()))))
    spans.sort(key=lambda span: (span[0], span[1]))
    ends: list[int] = []
    lanes = []
    for first, last, axis, drawn in spans:
        number = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        if number == len(ends):
            ends.append(last)
        ends[number] = last
        lanes.append(_Lane(axis, drawn, number))
    return lanes


def _is_extent(axis: Axis) -> bool:
    """Whether an axis is a kernel's or an image's extent, which goes without saying."""
    return axis.size == 1 or (axis.pinned is not None and "extent" in axis.pinned)


def _ends(rows: dict[int, bool], places: dict[str, int]) -> bool:
    """Whether an axis that one layer alone carries is the network's input or output."""
    return min(rows) == 0 or max(rows) == len(places) - 1


def _draw(lane: _Lane, left: int, top: int) -> str:
    x = left + _LANE * lane.number + _LANE // 2
    colour = _COLOURS[lane.status]
    ys = [top + _ROW * row + _ROW // 2 for row, _ in lane.rows]
    reason = lane.axis.pinned or lane.axis.inexact or "removable"
    said = escape(f"{lane.axis.name}: {lane.axis.size} ({reason})")
    dash = ' stroke-dasharray="3 3"' if lane.status == "pinned" else ""
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="4" fill="{colour if makes else "#ffffff"}" '
        f'stroke="{colour}" stroke-width="1.5"/>'
        for y, (_, makes) in zip(ys, lane.rows, strict=True)
    )
    return (
        f'<g><title>{said}</title><line x1="{x}" y1="{ys[0]}" x2="{x}" y2="{ys[-1]}" '
        f'stroke="{colour}" stroke-width="2"{dash}/>{dots}</g>'
    )


def _legend(height: int) -> str:
    x, parts = 12, []
    for status, words in _LEGEND.items():
        colour = _COLOURS[status]
        parts.append(
            f'<g font-size="10"><circle cx="{x + 4}" cy="{height - 14}" r="4" fill="{colour}" '
            f'stroke="{colour}"/><text x="{x + 12}" y="{height - 10}">{words}</text></g>'
        )
        x += 24 + int(6.2 * len(words))
    return "".join(parts)
