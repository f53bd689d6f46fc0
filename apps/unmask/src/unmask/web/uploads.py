"""Multipart uploads read as a stream into the vault: sizes are counted, never believed."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from unmask.errors import MediaError
from unmask.media import HEAD, MIB, sniff
from unmask.web.problems import Problem, busy
from unmask.web.settings import Settings
from unmask.web.vault import Full, StoredFile, Vault

FIELD_BYTES = 200
NAME_LENGTH = 255
LINGER_BYTES, LINGER_SECONDS = 128 * MIB, 20.0
BREAKS = {"Cc", "Cs", "Zl", "Zp"}
# They turn the order of the characters that follow, so that a name looks like another one. The
# other invisible characters stay: Persian names and many emoji need them.
TURNS = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def clean_name(raw: str) -> str:
    """Return a file's name as shown in its report, or raise a `Problem` for one that is a path.

    >>> clean_name("me and you.jpg")
    'me and you.jpg'
    """
    # Browsers write these three characters of a name so (HTML, multipart/form-data encoding).
    name = re.sub("%0[dD]", "\r", re.sub("%0[aA]", "\n", raw.replace("%22", '"')))
    if TURNS & set(name) or any(unicodedata.category(c) in BREAKS for c in name):
        raise Problem(422, "bad_name", "The file's name holds line breaks or control characters.")
    if "/" in name or "\\" in name or name in {".", ".."}:
        raise Problem(422, "bad_name", "The file's name holds folders; send the plain name.")
    if not name.strip() or len(name) > NAME_LENGTH:
        raise Problem(422, "bad_name", f"The file's name must have 1 to {NAME_LENGTH} characters.")
    return name


@dataclass
class Part:
    """One file of an upload: stored, or refused with a problem."""

    name: str = ""
    kind: str = ""
    file: StoredFile | None = None
    problem: Problem | None = None


@dataclass
class Form:
    """What an upload held: its files in order, and its plain fields."""

    parts: list[Part] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def discard(self) -> None:
        """Delete all files."""
        for part in self.parts:
            if part.file is not None:
                part.file.discard()


class _Reader:
    """The callbacks of the multipart parser."""

    def __init__(self, vault: Vault, settings: Settings, limit: int) -> None:
        self.vault, self.settings, self.limit = vault, settings, limit
        self.form = Form()
        self.ended = False
        self._header, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._part: Part | None = None
        self._head = b""
        self._field, self._text = "", b""

    def on_part_begin(self) -> None:
        self._headers, self._part, self._head = {}, None, b""
        self._field, self._text = "", b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def on_headers_finished(self) -> None:
        header = self._headers.get(b"content-disposition", b"")
        _, options = parse_options_header(header)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        sent = _raw_name(header, options.get(b"filename"))
        if sent is None:
            if len(self.form.fields) >= 8:
                raise Problem(422, "malformed", "The upload has too many fields.")
            return
        if self._field != "file":
            raise Problem(422, "no_file", f"Files go into parts named 'file', not {self._field!r}.")
        if len(self.form.parts) >= self.limit:
            raise Problem(
                422, "too_many_files", f"One request may hold {self.limit} file(s), not more."
            )
        self._part = Part()
        self.form.parts.append(self._part)
        try:
            self._part.name = clean_name(sent.decode("utf-8"))
        except UnicodeDecodeError:
            self._part.problem = Problem(422, "bad_name", "The file's name is not valid UTF-8.")
        except Problem as problem:
            self._part.problem = problem

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part is None:
            self._text += data[start:end]
            if len(self._text) > FIELD_BYTES:
                raise Problem(422, "malformed", f"The field {self._field[:40]!r} is too long.")
        elif part.problem is None:
            try:
                self._store(part, data[start:end])
            except Problem as problem:
                part.problem = problem
                self._drop(part)

    def on_part_end(self) -> None:
        part = self._part
        if part is None:
            self.form.fields[self._field] = self._text.decode("utf-8", "replace")
            return
        if part.problem is None:
            try:
                self._settle(part)
            except Problem as problem:
                part.problem = problem
                self._drop(part)
        if part.file is not None:
            part.file.close()

    def on_end(self) -> None:
        self.ended = True

    def _store(self, part: Part, data: bytes) -> None:
        if part.file is None:
            self._head += data
            if len(self._head) < HEAD:
                return
            data = self._open(part)
        assert part.file is not None
        limit = self.settings.bytes_for(part.kind)
        if part.file.size + len(data) > limit:
            raise Problem(
                413, "too_large",
                f"{part.kind.capitalize()}s may have {limit / MIB:.0f} MB; this one has more.",
            )  # fmt: skip
        _write(part.file, data)

    def _settle(self, part: Part) -> None:
        """Deal with files so small that they ended before their kind was known."""
        if part.file is None and not self._head:
            raise Problem(422, "empty", "The file is empty.")
        if part.file is None:
            data = self._open(part)
            assert part.file is not None
            _write(part.file, data)

    def _open(self, part: Part) -> bytes:
        """Open the part's file, if its kind is known, and return the bytes held back so far."""
        try:
            part.kind, _ = sniff(self._head)
        except MediaError as error:
            raise Problem.of_file(error.code, str(error)) from None
        part.file = self.vault.new()
        return self._head

    def _drop(self, part: Part) -> None:
        if part.file is not None:
            part.file.discard()
            part.file = None


def _raw_name(header: bytes, parsed: bytes | None) -> bytes | None:
    """Return the name as it was sent: the parser cuts the folders of Windows paths off.

    Some clients send a name that is not ASCII only as RFC 2231 has it, which the parser passes by.
    """
    match = re.search(rb'filename="((?:[^"\\]|\\.)*)"', header)
    if match:
        return match.group(1).replace(b'\\"', b'"')
    coded = re.search(rb"filename\*\s*=\s*utf-8'[^']*'([^;\s]*)", header, re.IGNORECASE)
    return unquote_to_bytes(coded.group(1)) if parsed is None and coded else parsed


def _write(file: StoredFile, data: bytes) -> None:
    try:
        file.write(data)
    except Full:
        raise busy(5, "Too many uploads are being looked at") from None
    except OSError:
        raise Problem(503, "unavailable", "The server has no room for uploads.", 30) from None


async def receive(request: Request, vault: Vault, settings: Settings, limit: int = 1) -> Form:
    """Read an upload of at most ``limit`` files; nothing is left where it fails or stops.

    A file that is refused stands in the form with its problem; what is wrong with the upload as a
    whole is raised.
    """
    boundary = _boundary(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.body_bytes:
        await linger(request)
        raise _too_much(settings)
    reader = _Reader(vault, settings, limit)
    callbacks = {name: getattr(reader, name) for name in dir(reader) if name.startswith("on_")}
    stream = request.stream()
    try:
        parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        await asyncio.wait_for(_feed(stream, parser, settings), settings.upload_seconds)
        parser.finalize()
        if not reader.ended:
            raise Problem(400, "malformed", "The upload ended half-way.")
        if not reader.form.parts:
            raise Problem(422, "no_file", "The upload has no part named 'file' with a file name.")
    except (Problem, MultipartParseError) as error:
        reader.form.discard()
        await linger(request, stream)
        if isinstance(error, Problem):
            raise
        if "header size" in str(error):
            raise Problem(422, "bad_name", "The file's name is far too long.") from error
        raise Problem(400, "malformed", "The upload is not a valid multipart body.") from error
    except ClientDisconnect:
        reader.form.discard()
        raise Problem(400, "malformed", "The upload ended half-way.") from None
    except asyncio.TimeoutError:
        reader.form.discard()
        raise Problem(408, "too_slow", "The upload took too long.") from None
    except BaseException:
        reader.form.discard()
        raise
    return reader.form


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 1 <= len(boundary) <= 200:
        raise Problem(
            415, "not_multipart", "Send the file as multipart/form-data, in a part named 'file'."
        )
    return boundary


async def _feed(stream: AsyncIterator[bytes], parser: MultipartParser, settings: Settings) -> None:
    total = 0
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), settings.stall_seconds)
        except StopAsyncIteration:
            return
        total += len(chunk)
        if total > settings.body_bytes:
            raise _too_much(settings)
        if chunk:
            parser.write(chunk)


def _too_much(settings: Settings) -> Problem:
    limit = settings.body_bytes / MIB
    return Problem(413, "too_large", f"One request may have {limit:.0f} MB, not more.")


async def linger(request: Request, begun: AsyncIterator[bytes] | None = None) -> None:
    """Read what still comes and forget it, within bounds.

    A server that hangs up while the client still sends makes the client miss the answer. One that
    asks before it sends (``begun`` is None where nothing was read) needs no more than the answer.
    """
    if begun is None and request.headers.get("expect", "").lower() == "100-continue":
        return
    stream = begun or request.stream()

    async def read() -> None:
        total = 0
        async for chunk in stream:
            total += len(chunk)
            if total > LINGER_BYTES:
                return

    try:
        await asyncio.wait_for(read(), LINGER_SECONDS)
    except (asyncio.TimeoutError, ClientDisconnect, RuntimeError):
        return
