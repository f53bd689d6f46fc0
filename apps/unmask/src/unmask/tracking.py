"""One row per person: faces of successive frames joined by place, size and motion.

Sampled frames may lie seconds apart, so boxes need not overlap: a face belongs to the row whose
expected place is nearest, measured in sizes of the face, within a reach that grows with the time
since the row was last seen. No face is recognised: whoever leaves and comes back elsewhere gets a
new row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from unmask.faces import Box, Face

REACH = 0.5  # how far a face may be from its expected place, in sides of the face
SPEED = 0.75  # by how much that grows in a second
FAR = 1.5  # and its end
RATIO = 2.0  # how much larger or smaller a face may become
OVERLAP = 0.3  # boxes that share this much belong together wherever their centres are
PATIENCE = 5.0  # seconds after which a row that is not seen is closed


@dataclass(frozen=True)
class Seen:
    """A face in the frame with this index, at this time in seconds."""

    frame: int
    time: float
    face: Face


def track(frames: Iterable[tuple[float, Sequence[Face]]]) -> tuple[tuple[Seen, ...], ...]:
    """Return one row per person of the (time, faces) of frames in order; every face is in one row.

    A row holds at most one face of a frame. Rows come in the order in which they begin.

    >>> face = Face((0, 0, 50, 50), 1.0)
    >>> [[seen.frame for seen in row] for row in track([(0.0, [face]), (0.5, []), (1.0, [face])])]
    [[0, 2]]
    """
    rows: list[list[Seen]] = []
    for index, (time, faces) in enumerate(frames):
        pairs = sorted(
            (cost, row, place)
            for row, seen in enumerate(rows)
            for place, face in enumerate(faces)
            if (cost := _cost(seen, face, time)) is not None
        )
        taken: dict[int, int] = {}
        for _, row, place in pairs:
            if place not in taken and row not in taken.values():
                taken[place] = row
        for place, face in enumerate(faces):
            if place not in taken:
                rows.append([])
            rows[taken.get(place, len(rows) - 1)].append(Seen(index, time, face))
    return tuple(tuple(row) for row in rows)


def overlap(one: Box, other: Box) -> float:
    """Return the area that two boxes share over the area that they cover together.

    >>> overlap((0, 0, 2, 2), (1, 0, 3, 2))
    0.3333333333333333
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    whole = _area(one) + _area(other) - shared
    return shared / whole if whole > 0 else 0.0


def _cost(row: Sequence[Seen], face: Face, time: float) -> float | None:
    """Return how badly a face goes on a row, None where it cannot."""
    last = row[-1]
    gap = time - last.time
    if gap > PATIENCE:
        return None
    size = math.sqrt(last.face.side * face.side)
    growth = abs(math.log2(face.side / last.face.side))
    if growth > math.log2(RATIO):
        return None
    expected = _expected(row, time)
    distance = math.dist(_centre(expected), _centre(face.box)) / size
    near = distance <= min(REACH + SPEED * gap, FAR)
    if not near and overlap(last.face.box, face.box) < OVERLAP:
        return None
    return distance + growth - overlap(expected, face.box)


def _expected(row: Sequence[Seen], time: float) -> Box:
    """Return where the row's box is by now if it moves on as between its last two places.

    The motion is followed for as long as it was seen, and no longer.
    """
    box = row[-1].face.box
    if len(row) < 2 or row[-1].time <= row[-2].time:
        return box
    (x, y), (before_x, before_y) = _centre(box), _centre(row[-2].face.box)
    share = min((time - row[-1].time) / (row[-1].time - row[-2].time), 1.0)
    dx, dy = share * (x - before_x), share * (y - before_y)
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
