"""A worker process: reads cells from its standard input, answers each with one line of JSON.

Started as ``python -m secateur.study.worker RUNS KEEP``; it ends with its parent.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from secateur.errors import SecateurError
from secateur.study.cells import Cell, carry_out, code_digest
from secateur.train import Settings
from secateur.train.data import Data
from secateur.train.job import load_settings_data

Answer = dict[str, Any]
_NEXT_TO_NOTHING = 2**20


def main() -> None:
    """Carry cells out until the input ends."""
    # Whatever a library prints goes to the log; the answers have the old output to themselves.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    runs, keep = Path(sys.argv[1]), sys.argv[2] == "1"
    code_digest()  # of the code that runs here, whatever becomes of the files later
    images = Images()
    asked: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(sys.stdin, asked), daemon=True).start()
    while True:
        answer = answer_to(asked.get(), runs, keep, images)
        answers.write(json.dumps(answer, ensure_ascii=True) + "\n")
        answers.flush()


def _listen(source: TextIO, asked: queue.Queue[str]) -> None:
    """Pass lines on; without a parent there is nobody to answer to."""
    for line in source:
        asked.put(line)
    os._exit(0)


class Images:
    """Remembers the images of the last cell: cells of one seed on one data set share them."""

    def __init__(self) -> None:
        self._last: tuple[Any, Data] | None = None

    def of(self, settings: Settings) -> Data:
        """Return the images that the settings ask for, loaded only where the last were others."""
        key = settings.data, settings.size, settings.limit, settings.seed
        if self._last is None or self._last[0] != key:
            self._last = None  # before the next are loaded, as both may be large
            self._last = key, load_settings_data(settings)
        return self._last[1]


def answer_to(line: str, runs: Path, keep: bool, images: Images) -> Answer:
    """Carry one cell out: its record, or the reason why there is none, in one line."""
    cell = Cell.from_dict(json.loads(line))
    try:
        data = images.of(cell.settings)
        return {"record": carry_out(cell, runs / cell.name, keep=keep, data=data)}
    except SecateurError as error:
        return {"reason": str(error), "disk": isinstance(error.__cause__, OSError)}
    except OSError as error:
        return {"reason": f"{type(error).__name__}: {error}", "disk": True}
    except Exception as error:  # a user's own model may raise anything; the next cell goes on
        first = (str(error).splitlines() or [""])[0]
        return {"reason": f"{type(error).__name__}: {first}", "disk": _full(runs)}


def _full(folder: Path) -> bool:
    """Whether the disk is full, which PyTorch does not say when it fails to write."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free < _NEXT_TO_NOTHING


if __name__ == "__main__":
    main()
