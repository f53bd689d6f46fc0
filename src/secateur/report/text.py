"""How the report writes values: clean text, numbers to be read, a dash where nothing is known."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"
# What neither HTML nor SVG can hold: control characters, lone surrogates, non-characters.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_PREFIXES = ("", "k", "M", "G", "T", "P")


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else.

    >>> number(0.5), number(float("nan")), number("0.5"), number(None)
    (0.5, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def clean(value: Any) -> Any:
    """Copy what JSON can say: text without control characters, finite numbers, lists, mappings."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [clean(item) for item in value]
    return clean(str(value))


def line(value: Any) -> str:
    """Say any value in one line, a dash where there is none."""
    if value is None or value in ("", [], {}):
        return NOTHING
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {line(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(line(item) for item in value)
    return short(value) if isinstance(value, float) else str(value)


def lines(value: Any) -> list[str]:
    """Say each item of a list, or the one value; nothing for None."""
    if isinstance(value, list):
        return [line(item) for item in value if item is not None]
    return [] if value in (None, "") else [line(value)]


def share(value: float | None) -> str:
    """Write a fraction with four places, as in 0.9000."""
    return NOTHING if value is None else f"{value:.4f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def short(value: float | None) -> str:
    """Write a number with as many places as it needs, at most six digits."""
    return NOTHING if value is None else f"{value:.6g}".replace("-", "−")


def significant(value: float) -> str:
    """Write three significant digits, and never fewer than the digits before the point."""
    if value == 0 or not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3g}".replace("-", "−")
    rounded = abs(float(f"{value:.2e}"))
    places = max(0, 2 - math.floor(math.log10(rounded)))
    return f"{value:,.{places}f}".replace("-", "−")


def count(value: float | None, largest: float = 0.0) -> str:
    """Write how many: whole below a million, else in M or G like ``largest``."""
    if value is None:
        return NOTHING
    if max(abs(value), largest) < 1e6:
        return f"{value:,.0f}".replace("-", "−")
    return _scaled(value, "", largest)


def size(value: float | None, largest: float = 0.0) -> str:
    """Write a number of bytes in B, kB, MB..., in the unit of ``largest`` where that is larger."""
    return NOTHING if value is None else _scaled(value, "B", largest)


def _scaled(value: float, unit: str, largest: float) -> str:
    """Write with the prefix that suits the largest value it stands beside."""
    reference, prefixes = max(abs(value), largest), list(_PREFIXES)
    while reference >= 999.5 and len(prefixes) > 1:
        value, reference, prefixes = value / 1000, reference / 1000, prefixes[1:]
    digits = significant(value) if prefixes[0] else f"{value:,.0f}".replace("-", "−")
    return f"{digits}\u00a0{prefixes[0]}{unit}".rstrip("\u00a0")


def milliseconds(value: float | None) -> str:
    """Write a time in milliseconds."""
    return NOTHING if value is None else f"{significant(value)}\u00a0ms"
