"""What runs in a worker process: one file after the other, under limits, and nothing kept."""

from __future__ import annotations

import importlib
import os
import queue
import resource
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from unmask.errors import Cancelled, MediaError, UnmaskError
from unmask.web.engine import Inspector, Outcome, Progress

TELL_EVERY = 0.05


@dataclass(frozen=True)
class Task:
    """What a worker is asked to do."""

    path: Path
    model: str


@dataclass(frozen=True)
class Failure:
    """Why a task has no outcome."""

    code: str
    message: str


def main(pipe: Connection, engine: str, memory: int) -> None:
    """Prepare the engine, say "ready", then answer tasks until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A core dump would write what is being looked at to the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    cancelled = threading.Event()
    threading.Thread(target=_listen, args=(pipe, tasks, cancelled), daemon=True).start()
    inspector = load(engine)
    _limit_memory(memory)
    pipe.send(("ready", None))
    while True:
        task = tasks.get()
        ended = run(inspector, task, _teller(pipe), cancelled)
        cancelled.clear()
        pipe.send(("ended", ended))
        del ended


def load(engine: str) -> Inspector:
    """Return the inspector that ``module:function`` makes."""
    module, _, function = engine.partition(":")
    inspector: Inspector = getattr(importlib.import_module(module), function)()
    return inspector


def run(
    inspector: Inspector, task: Task, progress: Progress, cancelled: threading.Event
) -> Outcome | Failure:
    """Inspect one file and turn everything that can go wrong into a failure with a code."""
    try:
        return inspector(task.path, task.model, progress, cancelled.is_set)
    except Cancelled as error:
        return Failure("cancelled", sentence(str(error)))
    except MediaError as error:
        return Failure(error.code, sentence(str(error)))
    except UnmaskError as error:
        return Failure("invalid", sentence(str(error)))
    except MemoryError:
        return TOO_MUCH_MEMORY
    except Exception as error:
        if _out_of_memory(error):
            return TOO_MUCH_MEMORY
        return Failure("crashed", f"The analysis of this file stopped ({type(error).__name__}).")


TOO_MUCH_MEMORY = Failure(
    "too_much_memory", "This file needs more memory than one analysis may have."
)


def sentence(text: str) -> str:
    """Return a message of the library as a sentence of its own.

    >>> sentence("the file is empty")
    'The file is empty.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _out_of_memory(error: Exception) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in ("bad_alloc", "cannot allocate memory", "can't allocate"))


def _listen(pipe: Connection, tasks: queue.SimpleQueue[Task], cancelled: threading.Event) -> None:
    """Hand tasks on; end the process at once where the server is gone."""
    try:
        while True:
            message = pipe.recv()
            if isinstance(message, Task):
                cancelled.clear()
                tasks.put(message)
            else:
                cancelled.set()
    except (EOFError, OSError):
        os._exit(0)


def _teller(pipe: Connection) -> Progress:
    """Return a progress function that speaks at most 20 times a second, and at the end."""
    last = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TELL_EVERY or done >= total:
            last = now
            pipe.send(("progress", (done, total)))

    return tell


def _limit_memory(allowance: int) -> None:
    """Let the process's data grow by this many bytes over what the loaded models take."""
    held = 0
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmData:"):
                held = int(line.split()[1]) * 1024
    limit = held + allowance
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
