"""What the user's code reads at a place: attributes named in the function around a line."""

from __future__ import annotations

import ast
import functools
import linecache


def attributes_read_at(place: str) -> frozenset[str]:
    """Return the names of all attributes that the function around ``file:line`` mentions.

    Nothing where there is no source, as in a console.
    """
    file, _, line = place.rpartition(":")
    functions = _functions(file) if file and line.isdigit() else ()
    around = [found for found in functions if found[0] <= int(line) <= found[1]]
    return min(around, key=lambda found: found[1] - found[0])[2] if around else frozenset()


@functools.lru_cache(maxsize=64)
def _functions(file: str) -> tuple[tuple[int, int, frozenset[str]], ...]:
    """Return every function of a file: its first and last line, and the attributes it names."""
    try:
        parsed = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    return tuple(
        (node.lineno, node.end_lineno or node.lineno, _attributes(node))
        for node in ast.walk(parsed)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    )


def _attributes(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> frozenset[str]:
    body = function.body if isinstance(function.body, list) else [function.body]
    nodes = (node for part in body for node in ast.walk(part))
    return frozenset(node.attr for node in nodes if isinstance(node, ast.Attribute))
