"""A bounded queue in front of worker processes that are killed and replaced when they misbehave."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections import deque
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from unmask.web import worker
from unmask.web.engine import Outcome
from unmask.web.settings import Settings
from unmask.web.vault import StoredFile
from unmask.web.worker import Failure, Task

LOG = logging.getLogger("unmask.web")
LOOK_EVERY = 0.1
IDLE_LOOK = 1.0
CANCELLED = Failure("cancelled", "The job was cancelled.")
GONE = Failure("unavailable", "The server is shutting down.")


class QueueFull(Exception):  # noqa: N818 - it is no fault
    """No place is left; ``seconds`` says when one may be."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Ticket:
    """A file on its way through the pool; ``ended`` gets an `Outcome` or a `Failure`."""

    def __init__(self, file: StoredFile, kind: str, model: str) -> None:
        self.file, self.kind, self.model = file, kind, model
        self.state = "queued"
        self.done, self.total = 0, 0
        self.ended_at: float | None = None
        self.ended: Future[Outcome | Failure] = Future()
        self.ended.set_running_or_notify_cancel()  # so that no waiter can cancel it
        self.cancel_asked = threading.Event()

    def finish(self, ended: Outcome | Failure) -> None:
        """Delete the file, then tell whoever waits; may be called again."""
        self.file.discard()
        if self.ended.done():
            return
        self.ended_at = time.monotonic()
        if isinstance(ended, Outcome):
            self.state = "done"
        else:
            self.state = "cancelled" if ended.code == "cancelled" else "failed"
        self.ended.set_result(ended)  # last: whoever waits for it reads the state


class Pool:
    """``settings.workers`` processes, one supervising thread each, and one bounded queue."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._queue: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._seconds = 1.0
        self._slots = [_Slot(self, settings) for _ in range(settings.workers)]

    def start(self) -> None:
        """Start the workers; they load their models on their own time."""
        for slot in self._slots:
            slot.start()

    def submit(self, *tickets: Ticket) -> None:
        """Queue all of these, or raise `QueueFull` and queue none."""
        with self._changed:
            if self._stopping or len(self._queue) + len(tickets) > self.settings.waiting:
                raise QueueFull(self.wait())
            self._queue.extend(tickets)
            self._changed.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Drop a ticket from the queue, or ask its worker to stop."""
        ticket.cancel_asked.set()
        with self._changed:
            queued = ticket in self._queue
            if queued:
                self._queue.remove(ticket)
        if queued:
            ticket.finish(CANCELLED)

    def full(self) -> bool:
        """Return whether a new ticket would be refused now."""
        return len(self._queue) >= self.settings.waiting

    def wait(self) -> float:
        """Return roughly how many seconds a new ticket would wait."""
        return max(1.0, self._seconds * (len(self._queue) + 1) / len(self._slots))

    def counts(self) -> dict[str, int]:
        """Return how many workers are ready and busy, and how many tickets wait."""
        return {
            "workers": len(self._slots),
            "ready": sum(slot.ready for slot in self._slots),
            "busy": sum(slot.busy for slot in self._slots),
            "waiting": len(self._queue),
            "replaced": sum(slot.replaced for slot in self._slots),
        }

    def processes(self) -> list[int]:
        """Return the ids of the living worker processes."""
        return [pid for slot in self._slots if (pid := slot.pid()) is not None]

    def next(self, seconds: float) -> Ticket | None:
        """Wait this long for the next ticket; None where none comes, or the pool stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping, seconds)
            return self._queue.popleft() if self._queue and not self._stopping else None

    def took(self, seconds: float) -> None:
        """Remember how long files take, the latest most."""
        self._seconds += 0.2 * (seconds - self._seconds)

    @property
    def stopping(self) -> bool:
        """Whether the pool is being closed."""
        return self._stopping

    def close(self) -> None:
        """Stop everything: what waits and what runs ends as a failure, the processes are gone."""
        with self._changed:
            self._stopping = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for ticket in left:
            ticket.finish(GONE)
        for slot in self._slots:
            slot.join()


class _Slot(threading.Thread):
    """One worker process and the thread that feeds it, watches it and replaces it."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.pool, self.settings = pool, settings
        self.ready = self.busy = False
        self.replaced = 0
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self) -> None:
        """Serve tickets until the pool stops."""
        self._begin()
        while not self.pool.stopping:
            ticket = self.pool.next(IDLE_LOOK)
            self.busy = ticket is not None
            if self.ready and self.pid() is None:  # somebody killed it while it had nothing to do
                self._replace()
            if ticket is not None:
                self._take(ticket)
            del ticket
        self._kill()

    def _take(self, ticket: Ticket) -> None:
        started = time.monotonic()
        try:
            ended = self._serve(ticket)
        except Exception as error:
            LOG.error("a supervisor met %s", type(error).__name__)
            ended = Failure("failed", "The server made a mistake; nothing was kept.")
            self._kill()
        self.pool.took(time.monotonic() - started)
        self.busy = False
        ticket.finish(ended)
        if not self.ready and not self.pool.stopping:
            self._replace()

    def pid(self) -> int | None:
        """Return the id of the worker process, where one lives."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    def _replace(self) -> None:
        self._kill()
        self.replaced += 1
        self._begin()

    def _serve(self, ticket: Ticket) -> Outcome | Failure:
        if ticket.cancel_asked.is_set():
            return CANCELLED
        if not self.ready and not self._begin():
            return Failure("unavailable", "No worker could be started; try again later.")
        assert self._pipe is not None
        ticket.state = "running"
        self._pipe.send(Task(ticket.file.path, ticket.model))
        return self._watch(ticket, self._pipe)

    def _watch(self, ticket: Ticket, pipe: Connection) -> Outcome | Failure:
        """Follow one task to its end, or make an end of it."""
        limit = self.settings.time_for(ticket.kind)
        deadline = time.monotonic() + limit
        told = False
        while True:
            try:
                if pipe.poll(LOOK_EVERY):
                    what, value = pipe.recv()
                    if what == "ended":
                        ended: Outcome | Failure = value
                        return ended
                    ticket.done, ticket.total = value
                now = time.monotonic()
                if ticket.cancel_asked.is_set() and not told:
                    told = True
                    deadline = min(deadline, now + self.settings.cancel_time)
                    pipe.send("cancel")
            except (EOFError, OSError):
                return self._died()
            if self.pool.stopping:
                self._kill()
                return GONE
            if now > deadline:
                self._kill()
                if told:
                    return CANCELLED
                return Failure("too_slow", f"The analysis took longer than {limit:.0f} seconds.")

    def _died(self) -> Failure:
        """Say why the process ended by itself, and start another."""
        process = self._process
        if process is not None:
            process.join(5)
        code = None if process is None else process.exitcode
        LOG.warning("a worker ended with exit code %s", code)
        self._kill()
        if code in {-6, -9}:  # std::bad_alloc aborts; the kernel kills, and so may others
            return Failure(
                "too_much_memory",
                "The system stopped the analysis of this file, most likely for want of memory.",
            )
        return Failure("crashed", "The analysis of this file stopped the worker it ran in.")

    def _begin(self) -> bool:
        """Start a process and wait until it is ready."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker.main,
            args=(theirs, self.settings.engine, self.settings.worker_bytes),
            daemon=True,
        )
        process.start()
        theirs.close()
        self._process, self._pipe = process, ours
        self.ready = self._said_ready(ours)
        if not self.ready:
            if not self.pool.stopping:
                LOG.error("a worker could not be started")
            self._kill()
        return self.ready

    def _said_ready(self, pipe: Connection) -> bool:
        deadline = time.monotonic() + self.settings.start_time
        try:
            while time.monotonic() < deadline and not self.pool.stopping:
                if pipe.poll(LOOK_EVERY):
                    message: tuple[str, Any] = pipe.recv()
                    return message[0] == "ready"
        except (EOFError, OSError):
            pass
        return False

    def _kill(self) -> None:
        self.ready = False
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.join(5)
            self._process = None
