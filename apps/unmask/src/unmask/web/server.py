"""Start the server and say where it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unmask.errors import UnmaskError
from unmask.web.app import create_app
from unmask.web.settings import Settings

HEAD_SECONDS = 10.0


class PatientProtocol(H11Protocol):
    """HTTP that hangs up on whoever connects and does not say in time what is wanted.

    Uvicorn itself waits for ever, and a few hundred silent connections would take all its places.
    """

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of a request."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        """Wait on where the head is not complete; the time does not begin anew with every byte."""
        super().data_received(data)
        waits = self.cycle is None or self.cycle.response_complete
        if not waits:
            self._stop_waiting()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    settings: Settings | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Run until interrupted; ``tell`` gets the address as soon as the server listens there.

    Where ``port`` is taken by another program the next free one of ten is used; port 0 means any.
    Neither addresses nor file names are logged.
    """
    app = create_app(settings)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, lifespan="on",
        http=PatientProtocol,
        timeout_keep_alive=10, timeout_graceful_shutdown=5, ws="none", limit_concurrency=400,
    )  # fmt: skip
    server = uvicorn.Server(config)
    shown = f"[{host}]" if ":" in host else host
    tell(f"http://{shown}:{listener.getsockname()[1]}/")
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        listener.close()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    error: OSError | None = None
    for candidate in range(port, port + 10) if port else [0]:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen(256)
        except (OSError, OverflowError) as problem:
            error = problem if isinstance(problem, OSError) else OSError(str(problem))
            listener.close()
        else:
            return listener
    raise UnmaskError(f"cannot listen on {host!r}, port {port}: {error}")
