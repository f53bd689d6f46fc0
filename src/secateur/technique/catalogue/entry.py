"""One record of the catalogue, and how records are found."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from secateur.errors import SecateurError, suggestion
from secateur.technique.catalogue.missing import MISSING
from secateur.technique.technique import Technique

_PARTS = ("granularity", "context", "criteria", "schedule", "update", "objective")


@dataclass(frozen=True)
class Citation:
    """Who published a technique, where and when."""

    authors: str
    title: str
    venue: str
    year: int
    arxiv: str | None = None

    def __str__(self) -> str:
        number = f", arXiv {self.arxiv}" if self.arxiv else ""
        return f"{self.authors}: {self.title}. {self.venue} {self.year}{number}"


@dataclass(frozen=True)
class CatalogueEntry:
    """A published technique: its record on the axes, its citation, and one paragraph.

    ``missing`` names what the technique asks for beyond its record, by the names of ``MISSING``;
    such an entry describes its technique and does not run.
    """

    name: str
    title: str
    technique: Technique
    citation: Citation
    summary: str
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.missing:
            if name not in MISSING:
                known = suggestion(name, MISSING)
                raise SecateurError(f"'{self.name}' lacks '{name}', which has no name: {known}")

    @property
    def lacks(self) -> tuple[str, ...]:
        """What is missing beyond the record, as ``name: sentence``."""
        return tuple(f"{name}: {MISSING[name]}" for name in self.missing)

    def fields(self) -> dict[str, Any]:
        """Return the entry as the plain values that its file holds."""
        parts = {key: str(getattr(self.technique, key)) for key in _PARTS}
        found: dict[str, Any] = {"title": self.title, "record": parts}
        if self.missing:
            found["missing"] = list(self.missing)
        citation = {key: value for key, value in vars(self.citation).items() if value is not None}
        return {**found, "citation": citation, "summary": self.summary}

    @classmethod
    def from_fields(cls, name: str, fields: Mapping[str, Any]) -> CatalogueEntry:
        """Build an entry from the plain values of its file."""
        return cls(
            name,
            fields["title"],
            Technique(**fields["record"]),
            Citation(**fields["citation"]),
            fields["summary"],
            tuple(fields.get("missing", ())),
        )


@functools.cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """Return all records, sorted by name.

    >>> [entry.name for entry in catalogue()][:2]
    ['ac_dc', 'admm']
    """
    folder = resources.files(__package__)
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return tuple(
        CatalogueEntry.from_fields(
            file.name.removesuffix(".yaml"), yaml.safe_load(file.read_text(encoding="utf-8"))
        )
        for file in sorted(files, key=lambda file: file.name)
    )


def find_entry(text: str) -> CatalogueEntry | None:
    """Return the record that a text names, None where it names none."""
    return next((entry for entry in catalogue() if entry.name == text.strip()), None)


def find_technique(text: str, described: bool = False) -> Technique:
    """Return the technique that a text describes: a record's name, or parts separated by ``|``.

    Raises SecateurError for an unknown name, and for a record that lacks something its parts
    cannot say; with ``described`` such a record is returned all the same.

    >>> str(find_technique("one_cycle"))
    'weight | local | magnitude | one_cycle'
    """
    if "|" in text:
        return Technique.parse(text)
    entry = find_entry(text)
    if entry is None:
        names = [entry.name for entry in catalogue()]
        close = suggestion(text, names).partition("Accepted:")[0]
        raise SecateurError(
            f"no technique is named '{text}': {close}`secateur list techniques` names all "
            f"{len(names)}; or write 'granularity | context | criteria | schedule'"
        )
    if entry.missing and not described:
        raise SecateurError(
            f"'{entry.name}' cannot run yet: it needs {'; '.join(entry.lacks)}; what of it can be "
            f"written is '{entry.technique}'"
        )
    return entry.technique
