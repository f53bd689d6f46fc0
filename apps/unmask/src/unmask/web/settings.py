"""Every limit of the server in one place."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from unmask.media import LIMITS, MIB

ENGINE = "unmask.web.engine:make"


def _workers() -> int:
    return max(1, min(4, os.cpu_count() or 1))


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"unmask-{os.getuid()}"


@dataclass(frozen=True)
class Settings:
    """The limits of a server; sizes in bytes, times in seconds.

    ``engine`` names the function that each worker process calls once, as ``module:function``; it
    returns the function that inspects a file (see `unmask.web.engine`). ``models`` is another list
    of models than the one that ships.
    """

    engine: str = ENGINE
    models: Path | None = None
    folder: Path = field(default_factory=_folder)
    workers: int = field(default_factory=_workers)
    waiting: int = 16
    uploads: int = 32
    batch: int = 10
    image_bytes: int = LIMITS.image_bytes
    image_pixels: int = LIMITS.image_pixels
    video_bytes: int = LIMITS.video_bytes
    video_seconds: float = LIMITS.video_seconds
    frames: int = 32
    body_bytes: int = 400 * MIB
    upload_seconds: float = 120.0
    stall_seconds: float = 20.0
    folder_bytes: int = 2048 * MIB
    image_time: float = 30.0
    video_time: float = 120.0
    start_time: float = 180.0
    cancel_time: float = 3.0
    worker_bytes: int = 1536 * MIB
    keep_seconds: float = 600.0
    keep_results: int = 200
    keep_bytes: int = 96 * MIB

    def time_for(self, kind: str) -> float:
        """Return how long a worker may take over one file of this kind."""
        return self.video_time if kind == "video" else self.image_time

    def bytes_for(self, kind: str) -> int:
        """Return how many bytes a file of this kind may have."""
        return self.video_bytes if kind == "video" else self.image_bytes
