"""Named records: how a criterion, a schedule or a reducer is found by its name."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from secateur.errors import SecateurError, suggestion


class Named(Protocol):
    """Anything that carries its own name and aliases."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def aliases(self) -> tuple[str, ...]: ...  # noqa: D102


Record = TypeVar("Record", bound=Named)


class Registry(Generic[Record]):
    """Records of one kind, filled while modules are imported and only read afterwards."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._records: dict[str, Record] = {}
        self._names: dict[str, str] = {}

    def add(self, record: Record) -> None:
        """Add a record; a name or alias that is taken is refused."""
        for name in (record.name, *record.aliases):
            if not name.isidentifier():
                raise SecateurError(f"{self.kind} name '{name}' is not a plain word")
            if name in self._names:
                raise SecateurError(f"{self.kind} '{name}' exists already; choose another name")
        self._records[record.name] = record
        for name in (record.name, *record.aliases):
            self._names[name] = record.name

    def get(self, name: str) -> Record:
        """Return the record of a name or alias, or say which names exist."""
        if name not in self._names:
            raise SecateurError(f"unknown {self.kind} '{name}': {suggestion(name, self._names)}")
        return self._records[self._names[name]]

    def match(self, pattern: str = "*") -> list[Record]:
        """Return the records whose name or alias matches a glob pattern, sorted by name."""
        found = {self._names[name] for name in self._names if fnmatch.fnmatch(name, pattern)}
        return [self._records[name] for name in sorted(found)]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[Record]:
        return iter(self.match())
