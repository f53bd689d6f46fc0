"""One record of the catalogue, and how records are found."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from secateur.errors import SecateurError, suggestion
from secateur.technique.technique import Technique


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
    """A published technique: its record on the axes, its citation, and one paragraph."""

    name: str
    title: str
    technique: Technique
    citation: Citation
    summary: str


@functools.cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """Return all records, sorted by name.

    >>> [entry.name for entry in catalogue()][:2]
    ['dense_sparse_dense', 'filter_variety']
    """
    folder = resources.files(__package__)
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return tuple(
        _read(file.name.removesuffix(".yaml"), yaml.safe_load(file.read_text(encoding="utf-8")))
        for file in sorted(files, key=lambda file: file.name)
    )


def find_technique(text: str) -> Technique:
    """Return the technique that a text describes: a record's name, or parts separated by ``|``.

    >>> str(find_technique("one_cycle"))
    'weight | local | magnitude | one_cycle'
    """
    if "|" in text:
        return Technique.parse(text)
    names = {entry.name: entry.technique for entry in catalogue()}
    if text.strip() not in names:
        raise SecateurError(
            f"no technique is named '{text}': {suggestion(text, names)}; or write "
            "'granularity | context | criteria | schedule'"
        )
    return names[text.strip()]


def _read(name: str, fields: dict[str, Any]) -> CatalogueEntry:
    return CatalogueEntry(
        name,
        fields["title"],
        Technique(**fields["record"]),
        Citation(**fields["citation"]),
        fields["summary"],
    )
