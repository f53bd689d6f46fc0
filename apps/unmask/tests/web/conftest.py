from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from unmask import samples
from unmask.web.app import create_app
from unmask.web.samples import png
from unmask.web.settings import Settings

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # worker processes import the engines by name

MP4 = b"\x00\x00\x00\x18ftypisom" + bytes(64)


@pytest.fixture(scope="session")
def image() -> bytes:
    return png(samples.draw((320, 240), (samples.Place(160, 110, 60),), seed=3))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        engine="engines:make", models=HERE / "models.json", folder=tmp_path / "private",
        workers=1, waiting=4, cancel_time=0.5, image_time=5, video_time=5, worker_bytes=256 * 2**20,
    )  # fmt: skip


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        ready(client)
        yield client
        eventually(lambda: not left(settings.folder))


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """Run a server in a thread and yield its address; nothing may be left at its end."""
    config = uvicorn.Config(create_app(settings), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    assert not left(settings.folder)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server") / "private"
    settings = Settings(
        engine="engines:make", models=HERE / "models.json", folder=folder, workers=2, waiting=8,
        cancel_time=0.5,
    )  # fmt: skip
    with serving(settings) as found:
        yield found


def ready(client: TestClient) -> None:
    eventually(lambda: client.get("/api/v1/health").json()["ready"] == 1)


def eventually(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this should have come true by now"
        time.sleep(0.05)


def left(folder: Path) -> list[Path]:
    """Return the uploads that lie in the folders of all servers."""
    return [path for path in folder.glob("server-*/*") if path.name != "lock"]
