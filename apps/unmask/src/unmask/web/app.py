"""The application: the API, the pages, and the headers that keep both to themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unmask.web import api, catalogue, problems
from unmask.web.desk import Desk
from unmask.web.problems import Problem
from unmask.web.samples import Samples
from unmask.web.settings import Settings

STATIC = Path(str(resources.files("unmask.web"))) / "static"
PAGES = {"/": "index.html", "/about": "about.html", "/api": "api.html"}
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; media-src 'self' blob:; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
DESCRIPTION = """
Looks for signs of manipulation in the faces of a picture or a video. The verdict has three values:
`signs of manipulation`, `no sign found` and `cannot say`; a file is never called authentic.

Uploads lie in a private folder only while they are looked at. Results stay in memory for minutes.
Every error has the form `{"error": {"code": ..., "message": ...}}`.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; its folder and its workers exist while it runs."""
    settings = settings or Settings()
    known = catalogue.read(settings.models)  # a broken installation says so before it listens

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        desk = Desk(settings, known)
        async with desk.running():
            app.state.desk = desk
            yield

    app = FastAPI(
        title="unmask",
        version="1",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # these pages load their code from elsewhere
        redoc_url=None,
        openapi_url=f"{api.PREFIX}/openapi.json",
    )
    app.state.samples = Samples()
    problems.install(app)
    app.include_router(api.router)
    for path, name in PAGES.items():
        app.add_api_route(
            path, _page(STATIC / name), methods=["GET", "HEAD"], include_in_schema=False
        )
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Guard)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI description with the error codes in it."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        schema["x-error-codes"] = problems.CODES
    assert app.openapi_schema is not None
    return app.openapi_schema


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, media_type="text/html")

    return page


class Guard:
    """Sets the security headers, and turns requests away that another site's page has made."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        static = not scope["path"].startswith(api.PREFIX)
        head = scope["method"] == "HEAD"
        if head:  # what answers GET answers HEAD, without the body
            scope = {**scope, "method": "GET"}

        async def guarded(message: Message) -> None:
            if head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY)
                headers.setdefault("Cache-Control", "no-cache" if static else "no-store")
            await send(message)

        from_elsewhere = Headers(scope=scope).get("sec-fetch-site") in {"cross-site", "same-site"}
        if from_elsewhere and scope["method"] not in {"GET", "HEAD", "OPTIONS"}:
            problem = Problem(403, "cross_site", "Pages of other sites may not use this server.")
            await problem.response()(scope, receive, guarded)
            return
        await self.app(scope, receive, guarded)
