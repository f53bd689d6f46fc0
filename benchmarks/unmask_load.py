"""A hundred clients at once on the web app of unmask: errors, waiting, memory, files left.

Starts a server of its own on loopback. Every client sends one picture after the other to
``/api/v1/inspect`` and keeps to ``Retry-After`` where the server is full. After that, single
uploads go on until ``--uploads`` pictures were accepted, and memory is compared with that after a
few seconds of the same load. Goals: no answer but 200 and 429, p95 <= 5 s, growth < 5 %, no file
left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import common
from rich.console import Console
from rich.table import Table

SERVER = """
import sys
from pathlib import Path
from unmask.web.server import serve
from unmask.web.settings import Settings
settings = Settings(folder=Path(sys.argv[1]), workers=int(sys.argv[2]))
serve(port=0, settings=settings, tell=lambda line: print(line, flush=True))
"""
WARM = 5.0  # seconds at full load, for what every server allocates once


@dataclass
class Answer:
    """A status, the headers in lower case, and the body."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Tally:
    """What all clients saw."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Site:
    """The server under test and the little HTTP that the clients need.

    A full client library would take more of the two cores than the server does.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder), str(workers)],
            stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout is not None
        address = urlsplit(self.process.stdout.readline().strip())
        self.host, self.port = str(address.hostname), int(address.port or 0)

    async def ask(self, head: str, body: bytes = b"") -> Answer:
        """Send one request on a connection of its own and read the whole answer."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(
                f"{head}\r\nHost: {self.host}\r\nConnection: close\r\n\r\n".encode() + body
            )
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            content = await reader.readexactly(int(headers["content-length"]))
            return Answer(int(lines[0].split()[1]), headers, content)
        finally:
            writer.close()

    async def get(self, path: str) -> Answer:
        """Get a path under /api/v1."""
        return await self.ask(f"GET /api/v1{path} HTTP/1.1")

    async def inspect(self, picture: bytes) -> Answer:
        """Upload a picture and wait for its report."""
        part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        body = part + picture + b"\r\n--b--\r\n"
        head = (
            "POST /api/v1/inspect HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            f"Content-Length: {len(body)}"
        )
        return await self.ask(head, body)

    async def ready(self, workers: int) -> None:
        """Wait until all workers have loaded their models."""
        while True:
            answer = await self.get("/health")
            if json.loads(answer.body)["ready"] >= workers:
                return
            await asyncio.sleep(0.5)

    def memory(self) -> int:
        """Return the resident bytes of the server and its workers."""
        pages = 0
        for found in Path("/proc").glob("[0-9]*/stat"):
            try:
                session = int(found.read_text().rpartition(")")[2].split()[3])
                if session == self.process.pid:
                    pages += int((found.parent / "statm").read_text().split()[1])
            except OSError:  # noqa: PERF203 - a process may end while it is read
                continue
        return pages * os.sysconf("SC_PAGE_SIZE")

    def left(self) -> int:
        """Return how many uploads lie in the server's folder."""
        return sum(path.name != "lock" for path in self.folder.glob("server-*/*"))


async def client(site: Site, picture: bytes, until: float, tally: Tally) -> None:
    """Send pictures until the time is up."""
    while time.monotonic() < until:
        start = time.perf_counter()
        try:
            answer = await site.inspect(picture)
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.statuses[type(error).__name__] += 1
            await asyncio.sleep(0.5)
            continue
        tally.statuses[str(answer.status)] += 1
        if answer.status == 200:
            tally.seconds.append(time.perf_counter() - start)
        elif answer.status == 429:
            wait = float(answer.headers["retry-after"])
            await asyncio.sleep(min(wait, max(0.0, until - time.monotonic())))


async def crowd(site: Site, picture: bytes, clients: int, seconds: float) -> Tally:
    """Let so many clients send pictures for so long."""
    tally, end = Tally(), time.monotonic() + seconds
    await asyncio.gather(*(client(site, picture, end, tally) for _ in range(clients)))
    return tally


async def measure(site: Site, wanted: argparse.Namespace) -> dict[str, object]:
    """Run the clients, then the single uploads, and return all figures."""
    await site.ready(wanted.workers)
    samples = json.loads((await site.get("/samples")).body)
    name = next(sample["name"] for sample in samples if sample["kind"] == "image")
    picture = (await site.get(f"/samples/{name}")).body
    await crowd(site, picture, wanted.clients, WARM)
    before = site.memory()
    tally = await crowd(site, picture, wanted.clients, wanted.seconds)
    under_load = site.memory()
    accepted = len(tally.seconds)
    for _ in range(max(0, wanted.uploads - accepted)):
        assert (await site.inspect(picture)).status == 200
    await asyncio.sleep(1)
    after = site.memory()
    cuts = statistics.quantiles(tally.seconds, n=100) if accepted > 1 else [0.0] * 99
    return {
        "clients": wanted.clients, "seconds": wanted.seconds, "workers": wanted.workers,
        "statuses": dict(tally.statuses), "accepted_per_second": accepted / wanted.seconds,
        "p50": cuts[49], "p95": cuts[94], "p99": cuts[98],
        "uploads": max(accepted, wanted.uploads), "memory_before": before,
        "memory_under_load": under_load, "memory_after": after,
        "memory_growth": after / before - 1, "files_left": site.left(),
        "health": json.loads((await site.get("/health")).body),
    }  # fmt: skip


def main() -> int:
    """Print the figures; the exit code is 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--uploads", type=int, default=1000, help="pictures for the memory figure")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the result here too")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder) / "private", wanted.workers)
        try:
            result = asyncio.run(measure(site, wanted))
        finally:
            site.process.terminate()
            site.process.wait(30)
        result["folders_left"] = len(list(Path(folder).glob("private/server-*")))
    statuses = result["statuses"]
    assert isinstance(statuses, dict)
    goals = {
        "no answer but 200 and 429": set(statuses) <= {"200", "429"},
        "p95 of accepted <= 5 s": 0 < float(str(result["p95"])) <= 5,
        "memory growth < 5 %": float(str(result["memory_growth"])) < 0.05,
        "no file left": result["files_left"] == 0 and result["folders_left"] == 0,
    }
    table = Table("", "", title="unmask under load", title_justify="left")
    for name, value in {**result, **goals}.items():
        table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    common.write(wanted.json, {"title": "unmask under load", **result, "goals": goals})
    return 0 if all(goals.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
