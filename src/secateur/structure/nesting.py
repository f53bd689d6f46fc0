"""Nested arguments: lists, tuples and mappings, gone through without a general library's cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """Turn containers of the user's own classes into plain ones, which can be gone through."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        return kind(plain(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    return value


def each_of(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to whatever nested lists, tuples and mappings hold."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind([each_of(function, each) for each in value])
    if kind is dict:
        return {key: each_of(function, each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*[each_of(function, each) for each in value])
    return function(value)


def flat(value: Any) -> Iterator[Any]:
    """Give what nested lists, tuples and mappings hold, in order."""
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from flat(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from flat(each)
    else:
        yield value
