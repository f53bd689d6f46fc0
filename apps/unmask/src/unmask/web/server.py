"""Start the server and say where it is."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from unmask.errors import UnmaskError
from unmask.web.app import create_app
from unmask.web.settings import Settings


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
