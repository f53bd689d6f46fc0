"""The catalogue: published techniques as records of the axes, one YAML file each."""

from secateur.technique.catalogue.entry import (
    CatalogueEntry,
    Citation,
    catalogue,
    find_entry,
    find_technique,
)
from secateur.technique.catalogue.missing import MISSING

__all__ = [
    "MISSING",
    "CatalogueEntry",
    "Citation",
    "catalogue",
    "find_entry",
    "find_technique",
]
