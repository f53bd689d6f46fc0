"""The one kind of error that users of secateur meet."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SecateurError(ValueError):
    """A request that cannot be carried out; the message says in one line what to do.

    >>> str(SecateurError("no such layer: 'a\\nb'"))
    "no such layer: 'a\\\\nb'"
    """

    def __init__(self, message: str) -> None:
        # Quoted user text may hold line breaks, which would tear the one line apart.
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))


def suggestion(text: object, accepted: Iterable[str]) -> str:
    """Name the accepted words, the closest to what was written first.

    >>> suggestion("magnitud", ["movement", "magnitude"])
    'did you mean magnitude? Accepted: magnitude, movement'
    """
    names = sorted(accepted)
    close = difflib.get_close_matches(str(text), names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}Accepted: {', '.join(names)}"
