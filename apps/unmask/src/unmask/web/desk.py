"""All that one running server holds: its folder, its workers, its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import Request

from unmask.web import uploads
from unmask.web.catalogue import Catalogue
from unmask.web.jobs import Job, Jobs
from unmask.web.pool import Pool, QueueFull
from unmask.web.problems import Problem, busy
from unmask.web.settings import Settings
from unmask.web.uploads import Form, Part
from unmask.web.vault import Vault

SWEEP_EVERY = 5.0
LOOK_EVERY = 0.25


class Desk:
    """Takes uploads in, queues them and hands results out."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self.settings, self.catalogue = settings, catalogue
        self.vault = Vault(settings.folder, settings.folder_bytes)
        self.pool = Pool(settings)
        self.jobs = Jobs(self.pool, settings)
        self._uploads = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Desk]:
        """Start the workers; at the end stop them and leave nothing behind."""
        self.pool.start()
        sweeper = asyncio.create_task(self._sweep())
        try:
            yield self
        finally:
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper
            self.jobs.clear()
            await asyncio.to_thread(self.pool.close)
            self.vault.close()

    async def take(self, request: Request, limit: int = 1) -> tuple[list[Part], str]:
        """Read an upload and return its files and the model it asks for.

        A full server says so before it reads, so that nobody sends 100 MB for nothing.
        """
        if self.pool.full():
            await self._refuse(request, self.pool.wait(), "All places in the queue are taken")
        if self._uploads >= self.settings.uploads:
            await self._refuse(request, 2.0, "Too many uploads are running")
        self._uploads += 1
        try:
            form = await uploads.receive(request, self.vault, self.settings, limit)
        finally:
            self._uploads -= 1
        try:
            model = self.catalogue.choose(form.fields.get("model"))
        except Problem:
            form.discard()
            raise
        return form.parts, model

    async def one(self, request: Request) -> Job:
        """Read an upload of one file and queue it."""
        parts, model = await self.take(request)
        if parts[0].problem is not None:
            raise parts[0].problem
        return self.queue(parts, model)[0]

    def queue(self, parts: list[Part], model: str) -> list[Job]:
        """Queue stored files, or delete them and raise ``busy``."""
        try:
            return self.jobs.add(parts, model)
        except QueueFull as full:
            Form(parts).discard()
            raise busy(full.seconds) from None
        except BaseException:
            Form(parts).discard()
            raise

    async def ended(self, job: Job, request: Request) -> bool:
        """Wait for a job; stop it and return False where the client has gone away."""
        future = asyncio.wrap_future(job.ticket.ended)
        while not future.done():
            await asyncio.wait({future}, timeout=LOOK_EVERY)
            if not future.done() and await request.is_disconnected():
                self.jobs.remove(job)
                return False
        return True

    async def changed(self, job: Job, seconds: float) -> None:
        """Wait until the job's state or progress changes, this long at most."""
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        before = (job.state, job.ticket.done)
        future = asyncio.wrap_future(job.ticket.ended)
        while not future.done() and clock() < end and (job.state, job.ticket.done) == before:
            await asyncio.wait({future}, timeout=min(LOOK_EVERY, max(0.0, end - clock())))

    async def _refuse(self, request: Request, seconds: float, why: str) -> None:
        await uploads.linger(request)
        raise busy(seconds, why)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY)
            self.jobs.forget_old()
