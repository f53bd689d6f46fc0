"""Criteria: why a unit survives. Every module in this folder is read: a file adds a criterion."""

import importlib
import pkgutil

from secateur.technique.criteria.evidence import NEEDS, Evidence
from secateur.technique.criteria.record import (
    CRITERIA,
    MODIFIERS,
    NORMALIZERS,
    REDUCERS,
    criterion,
    modifier,
    normalizer,
    reducer,
)
from secateur.technique.criteria.value import Criterion

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CRITERIA",
    "MODIFIERS",
    "NEEDS",
    "NORMALIZERS",
    "REDUCERS",
    "Criterion",
    "Evidence",
    "criterion",
    "modifier",
    "normalizer",
    "reducer",
]
