"""What the API says when it cannot do what was asked: a status, a code and one plain sentence."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from unmask.errors import MEDIA_CODES
from unmask.web.worker import sentence

STATUS = {
    "too_large": 413,
    "too_many_pixels": 413,
    "unknown_type": 415,
    "not_multipart": 415,
    "cancelled": 410,
    "missing": 500,
    "not_a_file": 500,
    "failed": 500,
    "unavailable": 503,
}
MISSING = Path(__file__).parent / "static" / "missing.html"
NAMES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed"}


def status_of(code: str) -> int:
    """Return the HTTP status that goes with a code; what a file itself is guilty of is a 4xx.

    >>> status_of("too_large"), status_of("corrupt")
    (413, 422)
    """
    return STATUS.get(code, 422)


class Problem(Exception):  # noqa: N818 - the API's word for it
    """A request that cannot be carried out; the message is one plain sentence for people."""

    def __init__(self, status: int, code: str, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after = retry_after

    @classmethod
    def of_file(cls, code: str, message: str) -> Problem:
        """Return the problem for what the analysis found wrong with a file."""
        return cls(status_of(code), code, sentence(message))

    def body(self) -> dict[str, Any]:
        """Return what the API answers."""
        return {"error": {"code": self.code, "message": self.message}}

    def response(self) -> JSONResponse:
        """Return the answer, with Retry-After where coming back helps."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        return JSONResponse(self.body(), self.status, headers)


def busy(seconds: float, what: str = "All places in the queue are taken") -> Problem:
    """Return the answer of a full server."""
    wait = max(1, math.ceil(seconds))
    plural = "" if wait == 1 else "s"
    return Problem(429, "busy", f"{what}. Try again in {wait} second{plural}.", wait)


def install(app: FastAPI) -> None:
    """Make every error of the app take the one form."""

    @app.exception_handler(Problem)
    async def _problem(request: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0] if error.errors() else {}
        where = ".".join(str(part) for part in first.get("loc", ())[1:]) or "the request"
        return Problem(422, "invalid", f"{where}: {first.get('msg', 'not valid')}.").response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404 and _is_page(request):
            return FileResponse(MISSING, 404, media_type="text/html")
        code = NAMES.get(error.status_code, "error")
        response = Problem(error.status_code, code, f"{error.detail}.").response()
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_methods(app, request))
        return response

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> JSONResponse:
        return Problem(500, "failed", "The server made a mistake; nothing was kept.").response()


def _is_page(request: Request) -> bool:
    """Whether a person asked for a page, not a script for data."""
    wanted = request.headers.get("accept", "")
    return "text/html" in wanted and not request.url.path.startswith(("/api/", "/static/"))


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Return what may be done with a path; the router names the methods of one route only."""
    paths = app.openapi()["paths"]
    known = [set(found) for path, found in paths.items() if _fits(path, request.url.path)]
    allowed = {method.upper() for methods in known for method in methods} or {"GET"}
    return sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))


def _fits(template: str, path: str) -> bool:
    pattern = re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template))
    return re.fullmatch(pattern, path) is not None


CODES = {
    **MEDIA_CODES,
    "bad_name": "the file's name holds folders, line breaks or other control characters",
    "bad_request": "the request is not valid",
    "busy": "the queue is full, or too many uploads run at once; see Retry-After",
    "cancelled": "the job was cancelled",
    "crashed": "the file made the analysis stop; it was started anew",
    "cross_site": "a page of another site made the request",
    "failed": "the server made a mistake",
    "invalid": "a parameter is not valid",
    "malformed": "the upload is no valid multipart body, or ended half-way",
    "method_not_allowed": "the path knows no such method",
    "no_file": "the upload has no part named `file`",
    "not_found": "there is no such job or picture, or it has been forgotten",
    "not_multipart": "uploads are multipart/form-data",
    "not_ready": "the job has not ended yet",
    "too_many_files": "more files than one request may hold",
    "too_much_memory": "the file needs more memory than one analysis may have",
    "too_slow": "the analysis or the upload took longer than allowed",
    "unavailable": "no worker could be started",
    "unknown_model": "there is no such model",
}
