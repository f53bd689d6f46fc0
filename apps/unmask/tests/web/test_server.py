"""A real server in a process of its own: broken connections, signals, and what they leave."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from conftest import HERE, MP4, eventually, left

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from unmask.web import server
from unmask.web.settings import Settings
settings = Settings(
    engine="engines:make", models=Path(sys.argv[1]) / "models.json", folder=Path(sys.argv[2]),
    workers=1, waiting=4, cancel_time=0.5, image_bytes=2 * 2**20,
)
server.HEAD_SECONDS = 2
server.serve(port=0, settings=settings, tell=lambda line: print(line, flush=True))
"""


class Running:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(HERE), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:")
        self.client = httpx.Client(base_url=self.address + "api/v1", timeout=30)
        eventually(self.healthy)

    def healthy(self) -> bool:
        try:
            return bool(self.client.get("/health").json()["ready"] == 1)
        except httpx.TransportError:
            return False

    def raw(self, request: bytes) -> socket.socket:
        parts = urlsplit(self.address)
        connection = socket.create_connection((parts.hostname, parts.port))
        connection.sendall(request)
        return connection

    def group(self) -> list[int]:
        """Return the processes of the server's session that live."""
        alive = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                alive.append(int(status.parent.name))
        return alive

    def stop(self, how: signal.Signals = signal.SIGTERM) -> str:
        self.client.close()
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=30)
        return errors


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    server = Running(tmp_path / "private")
    yield server
    if server.process.poll() is None:
        server.stop()
    eventually(lambda: not server.group())


def head(length: str, path: str = "/api/v1/jobs") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{length}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    ).encode()


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
PNG = b"\x89PNG\r\n\x1a\n"


def test_uploads_that_stop_half_way_leave_nothing(running):
    for size in (0, 5, 200, 500_000):
        whole = PART + PNG + bytes(size)
        connection = running.raw(head(f"Content-Length: {len(whole) + 1000}") + whole)
        if size >= 200:
            eventually(lambda: left(running.folder))
        connection.close()
        eventually(lambda: not left(running.folder))
    assert running.healthy()


def test_a_lying_length_and_an_endless_upload(running):
    connection = running.raw(head("Transfer-Encoding: chunked"))
    connection.settimeout(20)
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    connection.sendall(b"%x\r\n" % len(PART + PNG) + PART + PNG + b"\r\n")
    for _ in range(40):
        connection.sendall(chunk)
    eventually(lambda: not left(running.folder))  # already refused: over 2 MB
    connection.sendall(b"5\r\n\r\n--b\r\n2\r\n--\r\n0\r\n\r\n")
    assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    connection.close()


def test_a_client_that_hangs_up_stops_its_inspection(running):
    whole = PART + MP4 + b"!slow\r\n--b--\r\n"
    length = f"Content-Length: {len(whole)}"
    connection = running.raw(head(length, "/api/v1/inspect") + whole)
    eventually(lambda: running.client.get("/health").json()["busy"] == 1)
    connection.close()
    eventually(lambda: running.client.get("/health").json()["busy"] == 0, 4)
    assert not left(running.folder)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopping_in_the_middle_of_work_leaves_nothing(running, how):
    running.client.post("/jobs", files={"file": ("secret-name.mp4", MP4 + b"!slow")})
    running.client.post("/jobs", files={"file": ("secret-name.mp4", MP4 + b"!slow")})
    assert left(running.folder)
    errors = running.stop(how)
    assert not list(running.folder.glob("server-*"))
    assert "secret-name" not in errors and "Traceback" not in errors


def test_after_a_crash_the_workers_end_and_the_next_start_cleans_up(running):
    running.client.post("/jobs", files={"file": ("a.mp4", MP4 + b"!slow")})
    running.client.post("/jobs", files={"file": ("b.mp4", MP4 + b"!slow")})
    running.stop(signal.SIGKILL)
    assert left(running.folder)
    eventually(lambda: not running.group(), 5)
    again = Running(running.folder)
    assert not left(running.folder)
    again.stop()


def test_a_killed_worker_is_replaced(running):
    job = running.client.post("/jobs", files={"file": ("a.mp4", MP4 + b"!slow")}).json()["id"]
    eventually(lambda: running.client.get(f"/jobs/{job}").json()["progress"]["done"])
    for pid in running.group():
        if pid != running.process.pid and "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: running.client.get(f"/jobs/{job}").json()["state"] == "failed")
    answer = running.client.post("/inspect", files={"file": ("a.png", PNG + bytes(50))})
    assert answer.status_code == 200
    assert not left(running.folder)


def test_a_worker_that_is_killed_while_it_waits_costs_nobody_a_file(running):
    (worker,) = workers(running)
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: running.client.get("/health").json()["replaced"] == 1, 20)
    eventually(running.healthy)
    assert workers(running) != [worker]
    os.kill(workers(running)[0], signal.SIGKILL)  # and nobody looks in between
    answer = running.client.post("/inspect", files={"file": ("a.png", PNG + bytes(50))})
    assert answer.status_code in {200, 422}  # the file may reach a worker as it dies
    assert running.client.post("/inspect", files={"file": ("a.png", PNG)}).status_code == 200


def workers(running):
    started = (pid for pid in running.group() if pid != running.process.pid)
    return [pid for pid in started if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_who_connects_and_says_nothing_is_sent_away(running):
    silent, slow = running.raw(b""), running.raw(b"GET / HT")
    end = time.monotonic() + 4
    for connection in (silent, slow):
        connection.settimeout(20)
    while time.monotonic() < end:
        with suppress(OSError):
            slow.sendall(b"x")  # a byte now and then does not prolong the wait
        time.sleep(0.3)
    assert silent.recv(1) == b""
    with suppress(ConnectionResetError):
        assert slow.recv(1) == b""
    patient = running.raw(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert patient.recv(100).startswith(b"HTTP/1.1 200")


def test_who_asks_before_sending_far_too_much_is_told_at_once(running):
    asking = head("Content-Length: 99999999999").replace(b"Host", b"Expect: 100-continue\r\nHost")
    connection = running.raw(asking)
    connection.settimeout(10)
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
    connection.close()


def test_memory_stays_flat(running):
    def size() -> int:
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in running.group()]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    def some(count: int) -> None:
        for _ in range(count):
            answer = running.client.post("/inspect", files={"file": ("a.png", PNG + bytes(10**5))})
            assert answer.status_code == 200
        time.sleep(0.2)

    some(40)
    before = size()
    some(160)
    assert size() < before * 1.05
