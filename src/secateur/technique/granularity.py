"""Granularity: which weights form a unit, the smallest set that lives or dies together.

A weight has the axes ``o`` (output), ``i`` (input), ``d``, ``h``, ``w`` (kernel depth, height,
width). A granularity *names* some of them; the weights that agree on the named axes form one unit.
``filter`` names ``o``; ``kernel`` names ``o i``; ``weight`` names them all. An axis that a weight
does not have counts as one of extent 1, so that a linear layer is a convolution with a 1x1 kernel.
In a grouped convolution an input channel is read by the filters of its own group only, so ``i``
names a channel of the input, not a position within a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from secateur.errors import SecateurError, suggestion
from secateur.technique.syntax import Call, bind, format_call, parse_call, word

AXES = ("o", "i", "d", "h", "w")

NAMES: dict[str, frozenset[str]] = {
    "weight": frozenset("oidhw"),
    "shared_weight": frozenset("idhw"),
    "channel": frozenset("odhw"),
    "column": frozenset("oidw"),
    "row": frozenset("oidh"),
    "vertical_slice": frozenset("odw"),
    "horizontal_slice": frozenset("odh"),
    "shared_kernel": frozenset("i"),
    "kernel": frozenset("oi"),
    "filter": frozenset("o"),
    "shared_channel": frozenset("dhw"),
    "shared_column": frozenset("idw"),
    "shared_row": frozenset("idh"),
    "shared_vertical_slice": frozenset("dw"),
    "shared_horizontal_slice": frozenset("dh"),
    "layer": frozenset(),
}
"""The sixteen names of the thesis, by the axes that name a unit (B.2 of its listing inverted)."""

_WORDS = {
    "weight": "each single weight",
    "shared_weight": "one position of the filters, across all outputs",
    "channel": "one kernel position of a filter, across its inputs (a stripe)",
    "column": "a column of a kernel",
    "row": "a row of a kernel",
    "vertical_slice": "a column of a filter, across its inputs",
    "horizontal_slice": "a row of a filter, across its inputs",
    "shared_kernel": "everything that reads one input channel",
    "kernel": "one kernel: an output's weights for one input",
    "filter": "one filter: everything that makes one output channel",
    "shared_channel": "one kernel position, across the layer",
    "shared_column": "a kernel column per input, across all outputs",
    "shared_row": "a kernel row per input, across all outputs",
    "shared_vertical_slice": "a kernel column, across the layer",
    "shared_horizontal_slice": "a kernel row, across the layer",
    "layer": "the whole layer",
}
_NM = re.compile(r"(\d+):(\d+)\s*(?:\((.*)\))?")
_TILE = re.compile(r"\(\s*([a-z])\s+(\d+)\s*\)|(!?)([a-z])(?![a-z_])|(\S+)")
_MOST_DIGITS = 9
REMAINDERS = ("error", "keep")
ORDERS = ("given", "assigned")


@dataclass(frozen=True)
class Granularity:
    """Which weights form a unit: the named axes, tiles along them, or n of m along one axis.

    ``tiles`` holds the lengths of blocks along named axes; the last block of an axis is smaller
    where the length does not divide. ``kept`` and ``block`` hold n:m (at most ``block - kept`` of
    every ``block`` consecutive weights may go); ``remainder`` says what happens where ``block``
    does not divide the axis: ``error`` refuses, ``keep`` leaves the last incomplete block dense.
    ``order`` says whether channels stay where they are (``given``), or are reordered throughout the
    network before the first choice, so that the blocks keep more (``assigned``).

    >>> Granularity.parse("o i h w") == Granularity.parse("weight")
    True
    >>> str(Granularity.parse("(o 4) (i 4)")), str(Granularity.parse("2:4"))
    ('(o 4) (i 4)', '2:4')
    """

    named: frozenset[str]
    tiles: tuple[tuple[str, int], ...] = ()
    kept: int | None = None
    block: int | None = None
    along: str = "i"
    remainder: str = "error"
    head: bool = False
    order: str = "given"

    def __post_init__(self) -> None:
        object.__setattr__(self, "named", frozenset(self.named))
        for axis in (*self.named, *(axis for axis, _ in self.tiles), self.along):
            if axis not in AXES:
                raise SecateurError(f"unknown axis '{axis}': a weight has {' '.join(AXES)}")
        for axis, length in self.tiles:
            if axis not in self.named or length < 2:
                raise SecateurError(f"the tile ({axis} {length}) needs a length of at least 2")
        if (self.kept is None) != (self.block is None):
            raise SecateurError("n:m needs both numbers")
        if self.head and self.kept is not None:
            raise SecateurError(
                f"{self.kept}:{self.block} removes single weights of every block, and head whole "
                "heads: choose one of them"
            )
        if self.kept is not None and self.block is not None and not 0 < self.kept < self.block:
            raise SecateurError(f"{self.kept}:{self.block} is not n:m with 0 < n < m; try 2:4")
        if self.remainder not in REMAINDERS:
            raise SecateurError(
                f"unknown remainder '{self.remainder}': {suggestion(self.remainder, REMAINDERS)}"
            )
        if self.order not in ORDERS:
            raise SecateurError(f"unknown order '{self.order}': {suggestion(self.order, ORDERS)}")
        if self.order == "assigned" and (self.kept is None or self.along != "i"):
            given = f"n:m along {self.along}" if self.kept else "units that are no n:m"
            raise SecateurError(
                f"order=assigned is for n:m along the inputs, such as 2:4(order=assigned), and not "
                f"for {given}"
            )

    @classmethod
    def parse(cls, text: str) -> Granularity:
        """Read a name, axes (``o i``, ``(o 4) (i 4)``) or ``n:m``; raise SecateurError if neither.

        Unless it is written, the depth ``d`` of a three-dimensional kernel is named together with
        ``h`` or ``w``; ``!d`` leaves it out.
        """
        stripped = text.strip()
        if stripped in NAMES:
            return cls(NAMES[stripped])
        if stripped == "head":
            return cls(frozenset("o"), head=True)
        both = re.search(r"\d+:\d+", stripped)
        if both is not None and re.search(r"\bhead\b", stripped):
            raise SecateurError(
                f"'{stripped}': {both.group()} removes single weights of every block, and head "
                f"whole heads: choose {both.group()} or head"
            )
        match = _NM.fullmatch(stripped)
        if match is not None:
            return _parse_nm(stripped, match)
        return _parse_axes(stripped)

    @property
    def whole_outputs(self) -> bool:
        """Whether a unit holds everything that makes its outputs, so that a bias goes with it."""
        return self.named <= {"o"} and self.kept is None

    def tile(self, axis: str) -> int:
        """Return the block length along an axis, 1 where there is no tile."""
        return dict(self.tiles).get(axis, 1)

    def words(self) -> str:
        """Say in words what one unit is."""
        if self.head:
            return "an attention head"
        if self.kept is not None:
            first = ", channels reordered first so that more stays" * (self.order == "assigned")
            every = f"every {self.block} {_along(self)}{first}"
            return f"single weights, at least {self.kept} kept of {every}"
        if self.tiles:
            blocks = " by ".join(f"{length} along {axis}" for axis, length in self.tiles)
            return f"a block of {blocks}"
        return _WORDS.get(str(self), f"the weights that agree on {' '.join(self._letters())}")

    def _letters(self) -> list[str]:
        return [axis for axis in AXES if axis in self.named]

    def __str__(self) -> str:
        if self.head:
            return "head"
        if self.kept is not None:
            keywords: dict[str, object] = {}
            if self.along != "i":
                keywords["along"] = Call(self.along)
            if self.remainder != "error":
                keywords["remainder"] = Call(self.remainder)
            if self.order != "given":
                keywords["order"] = Call(self.order)
            return format_call(f"{self.kept}:{self.block}", (), keywords)
        if not self.tiles:
            for name, axes in NAMES.items():
                if axes == self.named:
                    return name
        written = []
        depth_follows = bool(self.named & {"h", "w"})
        for axis in self._letters():
            if axis == "d" and depth_follows and not self.tile("d") > 1:
                continue
            length = self.tile(axis)
            written.append(f"({axis} {length})" if length > 1 else axis)
        if depth_follows and "d" not in self.named:
            written.append("!d")
        return " ".join(written)


def _along(granularity: Granularity) -> str:
    words = {"o": "outputs", "i": "inputs"}
    return f"along the {words.get(granularity.along, f'axis {granularity.along}')}"


def _parse_nm(text: str, match: re.Match[str]) -> Granularity:
    along, remainder, order = "i", "error", "given"
    if match.group(3) is not None:
        call = parse_call(f"nm({match.group(3)})", "granularity")
        found = bind(call, ("along", "remainder", "order"), "granularity", ordered=1)
        along = word(found.get("along", along), f"'{text}': along")
        remainder = word(found.get("remainder", remainder), f"'{text}': remainder")
        order = word(found.get("order", order), f"'{text}': order")
    kept, block = _length(match.group(1)), _length(match.group(2))
    return Granularity(frozenset(AXES), (), kept, block, along, remainder, order=order)


def _length(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise SecateurError(f"the length {digits[:12]}... has too many digits")
    return int(digits)


def _parse_axes(text: str) -> Granularity:
    named: list[str] = []
    tiles: list[tuple[str, int]] = []
    dropped: set[str] = set()
    for match in _TILE.finditer(text):
        tiled, length, sign, single, other = match.groups()
        axis = tiled or single
        if other or axis not in AXES:
            names = [*NAMES, "head"]
            raise SecateurError(
                f"unknown granularity '{text}': {suggestion(text, names)}; or axes of "
                "'o i d h w' such as 'o i', tiles such as '(o 4) (i 4)', or n:m such as '2:4'"
            )
        if axis in named or axis in dropped:
            raise SecateurError(f"granularity '{text}' names the axis '{axis}' twice")
        if sign:
            if axis != "d":
                raise SecateurError(f"granularity '{text}': only '!d' exists; leave '{axis}' out")
            dropped.add(axis)
            continue
        named.append(axis)
        if tiled:
            if _length(length) < 1:
                raise SecateurError(f"granularity '{text}': a tile needs a length of at least 1")
            if int(length) > 1:
                tiles.append((axis, int(length)))
    if not named:
        raise SecateurError(f"unknown granularity '{text}': write 'layer' for whole layers")
    if {"h", "w"} & set(named) and "d" not in dropped:
        named.append("d")
    order = {axis: place for place, axis in enumerate(AXES)}
    tiles.sort(key=lambda tile: order[tile[0]])
    return Granularity(frozenset(named), tuple(tiles))
