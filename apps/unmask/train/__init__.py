"""Training of the detector, one command a step: prepare, train, compress, export, report."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Write a line to the terminal, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
