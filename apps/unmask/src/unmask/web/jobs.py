"""Jobs by their unguessable id: kept for minutes, within a cap, and then forgotten."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from unmask.web.engine import Outcome
from unmask.web.pool import Pool, Ticket
from unmask.web.problems import Problem
from unmask.web.settings import Settings
from unmask.web.uploads import Part
from unmask.web.worker import Failure


@dataclass
class Job:
    """One file that was sent, and what has become of it."""

    id: str
    name: str
    ticket: Ticket

    @property
    def state(self) -> str:
        """Return queued, running, done, failed or cancelled."""
        return self.ticket.state

    @property
    def ended(self) -> Outcome | Failure | None:
        """Return what came out, None while there is nothing."""
        return self.ticket.ended.result() if self.ticket.ended.done() else None

    def outcome(self) -> Outcome:
        """Return the outcome, or raise the problem that stands in its place."""
        ended = self.ended
        if ended is None:
            raise Problem(409, "not_ready", "The job has not ended yet.", 1)
        if isinstance(ended, Failure):
            raise Problem.of_file(ended.code, ended.message)
        return ended


class Jobs:
    """The jobs that are still remembered, oldest first."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self.pool, self.settings = pool, settings
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def add(self, parts: list[Part], model: str) -> list[Job]:
        """Queue these files, all or none."""
        jobs = []
        for part in parts:
            assert part.file is not None
            ticket = Ticket(part.file, part.kind, model)
            jobs.append(Job(secrets.token_urlsafe(18), part.name, ticket))
        self.pool.submit(*(job.ticket for job in jobs))
        self._jobs.update((job.id, job) for job in jobs)
        return jobs

    def get(self, id: str) -> Job:  # noqa: A002 - the API's word
        """Return a job, or raise ``not_found``."""
        self.forget_old()
        job = self._jobs.get(id)
        if job is None:
            raise Problem(404, "not_found", "There is no such job, or it has been forgotten.")
        return job

    def remove(self, job: Job) -> None:
        """Stop the job where it runs, and forget it."""
        self.pool.cancel(job.ticket)
        self._jobs.pop(job.id, None)

    def expires_in(self, job: Job) -> float | None:
        """Return in how many seconds an ended job is forgotten, None before its end."""
        if job.ticket.ended_at is None:
            return None
        left = job.ticket.ended_at + self.settings.keep_seconds - time.monotonic()
        return round(max(0.0, left), 1)

    def forget_old(self) -> None:
        """Forget what has been kept too long, and the oldest results where there are too many."""
        now = time.monotonic()
        ended = []
        for job in list(self._jobs.values()):
            if job.ended is None or job.ticket.ended_at is None:
                continue
            if now - job.ticket.ended_at > self.settings.keep_seconds:
                del self._jobs[job.id]
            else:
                ended.append(job)
        size = sum(_size(job) for job in ended)
        count = len(ended)
        for job in ended:
            if count <= self.settings.keep_results and size <= self.settings.keep_bytes:
                break
            del self._jobs[job.id]
            count, size = count - 1, size - _size(job)

    def clear(self) -> None:
        """Forget everything."""
        for job in list(self._jobs.values()):
            self.remove(job)


def _size(job: Job) -> int:
    ended = job.ended
    return ended.size if isinstance(ended, Outcome) else 1000
