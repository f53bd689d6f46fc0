"""The catalogue: published techniques as records of the axes, one YAML file each."""

from secateur.technique.catalogue.entry import CatalogueEntry, Citation, catalogue, find_technique

__all__ = ["CatalogueEntry", "Citation", "catalogue", "find_technique"]
