"""Ctrl-C that waits for the end of a step, so that a checkpoint can be written."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Interrupted(Exception):  # noqa: N818
    """The run was stopped on request; ``checkpoint`` holds what was reached."""

    def __init__(self, checkpoint: Path, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.checkpoint = checkpoint
        self.step = step


class StopRequest:
    """Whether a stop has been asked for."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_: Any) -> None:
        """Ask for a stop after the current step; a second time stops at once."""
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a stop request while inside (in the main thread only)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request.ask) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
