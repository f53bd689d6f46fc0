"""The catalogue as data: complete, pairwise different, and the same after a round trip."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml

from secateur import SecateurError, Technique
from secateur.sparsify import lacks
from secateur.technique.catalogue import (
    MISSING,
    CatalogueEntry,
    catalogue,
    find_entry,
    find_technique,
)

ENTRIES = catalogue()


def test_there_are_enough_of_them() -> None:
    assert len(ENTRIES) >= 100
    runs = [entry for entry in ENTRIES if not entry.missing and not lacks(entry.technique)]
    assert len(runs) >= 84
    assert len([entry for entry in ENTRIES if entry.citation.year >= 2024]) >= 20


def test_records_are_pairwise_different() -> None:
    for first, second in itertools.combinations(ENTRIES, 2):
        assert first.technique != second.technique, f"{first.name} and {second.name}"
        assert first.title != second.title
        assert first.summary != second.summary


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_records_are_complete(entry: CatalogueEntry) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.name)
    citation = entry.citation
    assert all((entry.title, citation.authors, citation.title, citation.venue))
    assert 1989 <= citation.year <= 2026
    assert citation.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", citation.arxiv)
    if citation.venue == "arXiv":
        assert citation.arxiv is not None
    if citation.arxiv is not None:  # nothing is published long before it is written
        assert 2000 + int(citation.arxiv[:2]) <= citation.year + 1
    assert len(entry.summary) >= 40 and entry.summary.endswith(".")
    assert len(entry.missing) == len(set(entry.missing))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_records_survive_a_round_trip(entry: CatalogueEntry) -> None:
    text = yaml.safe_dump(entry.fields(), sort_keys=False)
    assert CatalogueEntry.from_fields(entry.name, yaml.safe_load(text)) == entry
    assert Technique.parse(str(entry.technique)) == entry.technique
    assert Technique.from_yaml(entry.technique.to_yaml()) == entry.technique


def test_every_missing_capability_is_asked_for() -> None:
    asked = {name for entry in ENTRIES for name in entry.missing}
    assert asked == set(MISSING)
    assert len(set(MISSING.values())) == len(MISSING)


def test_a_missing_capability_without_a_name_is_refused() -> None:
    fields: dict[str, Any] = ENTRIES[0].fields() | {"missing": ["rotations"]}
    with pytest.raises(SecateurError, match=r"lacks 'rotations'.*rotation"):
        CatalogueEntry.from_fields("mine", fields)


def test_what_lacks_something_is_described_and_not_run() -> None:
    with pytest.raises(SecateurError, match="'slicegpt' cannot run yet: it needs rotation"):
        find_technique("slicegpt")
    entry = find_entry("slicegpt")
    assert entry is not None and find_technique("slicegpt", described=True) == entry.technique
    assert find_entry("weight | local | magnitude | one_shot") is None
    with pytest.raises(SecateurError, match=r"no technique is named 'edge_pop'.*edge_popup"):
        find_technique("edge_pop")
