"""The text of a technique: calls such as ``agp(start=0.2, every=100)``, parsed and printed.

The grammar, for every part of a technique except the granularity's axes::

    value = number | true | false | none | "text" | call | [value, ...] | {"text": value, ...}
    call  = name | name(value, ..., key=value, ...)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from secateur.errors import SecateurError, suggestion

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*\+?)"
    r"|(?P<string>\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')"
    r"|(?P<sign>[()\[\]{},=:]))"
)
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}
_MOST_CHARACTERS = 20_000
_MOST_DIGITS = 300
_DEEPEST = 32


@dataclass(frozen=True)
class Call:
    """A name with the values it was given."""

    name: str
    arguments: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()


def parse_value(text: str) -> Any:
    """Read one value; names become calls, lists tuples, tables tuples of pairs.

    >>> parse_value("agp(start=0.2)")
    Call(name='agp', arguments=(), keywords=(('start', 0.2),))
    """
    if len(text) > _MOST_CHARACTERS:
        raise SecateurError(f"a text of {len(text)} characters is too long to be a technique")
    return _Parser(text).whole()


def parse_call(text: str, what: str) -> Call:
    """Read one call, or say that something else stands there."""
    value = parse_value(text)
    if value is None:
        return Call("none")
    if not isinstance(value, Call):
        raise SecateurError(f"cannot read {what} '{text}': expected a name such as name(key=value)")
    return value


def bind(
    call: Call, accepted: Sequence[str], what: str, ordered: int | None = None
) -> dict[str, Any]:
    """Give the values of a call their names; the first ``ordered`` may come without a key.

    Raises SecateurError for too many values, unknown keys, and keys given twice.
    """
    most = len(accepted) if ordered is None else ordered
    if len(call.arguments) > most:
        raise SecateurError(f"{what} '{call.name}' takes {most} values without a key")
    found: dict[str, Any] = dict(zip(accepted, call.arguments, strict=False))
    for key, value in call.keywords:
        if key not in accepted:
            hint = f": {suggestion(key, accepted)}" if accepted else ", nor any other key"
            raise SecateurError(f"{what} '{call.name}' has no '{key}'{hint}")
        if key in found:
            raise SecateurError(f"{what} '{call.name}': '{key}' is given twice")
        found[key] = value
    return found


def word(value: Any, what: str) -> str:
    """Return a bare or quoted word, or say that something else stands there."""
    if isinstance(value, Call) and not value.arguments and not value.keywords:
        return value.name
    if isinstance(value, str):
        return value
    raise SecateurError(f"{what} is {format_value(value)}: expected a word")


def count(value: Any, what: str, least: int = 1) -> int:
    """Return a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SecateurError(f"{what}={format_value(value)} is not a count >= {least}")
    return value


def split_parts(text: str) -> list[str]:
    """Split at the bars that stand outside quotes."""
    pieces = re.findall(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|\||[^|\"']+|[\"']", text)
    parts = [""]
    for piece in pieces:
        if piece == "|":
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]


def format_value(value: Any) -> str:
    """Write a value so that ``parse_value`` reads the same value back."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Call):
        return format_call(value.name, value.arguments, dict(value.keywords))
    if isinstance(value, Table):
        pairs = (f"{json.dumps(k, ensure_ascii=False)}: {format_value(v)}" for k, v in value.pairs)
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    return str(value)


def format_call(
    name: str, arguments: tuple[Any, ...] = (), keywords: Mapping[str, Any] | None = None
) -> str:
    """Write a call; without arguments it is the bare name."""
    written = [format_value(value) for value in arguments]
    written += [f"{key}={format_value(value)}" for key, value in (keywords or {}).items()]
    return f"{name}({', '.join(written)})" if written else name


@dataclass(frozen=True)
class Table:
    """An immutable mapping from text to values that keeps its order."""

    pairs: tuple[tuple[str, Any], ...]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        position = 0
        stripped = text.rstrip()
        while position < len(stripped):
            match = _TOKEN.match(stripped, position)
            if match is None:
                self.fail(f"unexpected '{stripped[position:].strip()[:12]}'")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match.group(kind)))
            position = match.end()
        self.at = 0

    def fail(self, reason: str) -> NoReturn:
        raise SecateurError(f"cannot read '{self.text.strip()}': {reason}")

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> tuple[str, str]:
        if self.at >= len(self.tokens):
            self.fail(f"it ends where {expected or 'a value'} should follow")
        token = self.tokens[self.at]
        if expected is not None and token != ("sign", expected):
            self.fail(f"'{token[1]}' stands where '{expected}' should")
        self.at += 1
        return token

    def whole(self) -> Any:
        value = self.value(0)
        if self.at < len(self.tokens):
            self.fail(f"'{self.peek()}' stands after the end")
        return value

    def value(self, depth: int) -> Any:
        if depth > _DEEPEST:
            self.fail("it is nested too deeply")
        kind, token = self.take()
        if kind == "number":
            return self.number(token)
        if kind == "string":
            return self.string(token)
        if kind == "name":
            if token in _WORDS and self.peek() != "(":
                return _WORDS[token]
            return self.call(token, depth)
        if token == "[":
            return self.items("]", depth)
        if token != "{":
            self.fail(f"'{token}' stands where a value should")
        return self.table(depth)

    def number(self, token: str) -> int | float:
        if len(token) > _MOST_DIGITS:
            self.fail(f"the number {token[:12]}... has too many digits")
        value = float(token) if re.search(r"[.eE]", token) else int(token)
        if not math.isfinite(value):
            self.fail(f"the number {token} is too large")
        return value

    def string(self, token: str) -> str:
        if token[0] == '"':
            try:
                return str(json.loads(token))
            except json.JSONDecodeError:
                self.fail(f"the quoted text {token} has an escape that means nothing")
        return re.sub(r"\\(.)", r"\1", token[1:-1])

    def items(self, end: str, depth: int) -> tuple[Any, ...]:
        found = []
        while self.peek() != end:
            found.append(self.value(depth + 1))
            if self.peek() != end:
                self.take(",")
        self.take(end)
        return tuple(found)

    def table(self, depth: int) -> Table:
        pairs: list[tuple[str, Any]] = []
        while self.peek() != "}":
            kind, token = self.take()
            if kind != "string":
                self.fail(f"'{token}' stands where a quoted name should")
            self.take(":")
            pairs.append((self.string(token), self.value(depth + 1)))
            if self.peek() != "}":
                self.take(",")
        self.take("}")
        return Table(tuple(pairs))

    def call(self, name: str, depth: int) -> Call:
        if self.peek() != "(":
            return Call(name)
        self.take("(")
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        while self.peek() != ")":
            following = self.tokens[self.at + 1][1] if self.at + 1 < len(self.tokens) else ""
            if following == "=":
                key = self.take()[1]
                self.take("=")
                if key in keywords:
                    self.fail(f"'{key}' is given twice")
                keywords[key] = self.value(depth + 1)
            elif keywords:
                self.fail("a value without a key stands after one with a key")
            else:
                arguments.append(self.value(depth + 1))
            if self.peek() != ")":
                self.take(",")
        self.take(")")
        return Call(name, tuple(arguments), tuple(keywords.items()))
