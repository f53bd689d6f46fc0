"""Listings of everything that has a name: the source of ``secateur list`` and of the docs."""

from __future__ import annotations

from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.sparsify import lacks
from secateur.technique.catalogue import catalogue
from secateur.technique.context import ALLOCATIONS, POOLS
from secateur.technique.criteria import CRITERIA, MODIFIERS, NORMALIZERS, REDUCERS
from secateur.technique.granularity import NAMES, Granularity
from secateur.technique.objective import OBJECTIVES, PARAMETERS
from secateur.technique.schedule import CURVES, MASKS

KINDS = ("granularities", "contexts", "criteria", "schedules", "objectives", "techniques")


def listing(kind: str) -> list[dict[str, Any]]:
    """Return one row per name of a kind, as plain values; raise SecateurError for no such kind.

    >>> [row["name"] for row in listing("schedules")][:2]
    ['agp', 'alternating']
    """
    if kind not in KINDS:
        raise SecateurError(f"nothing to list under '{kind}': {suggestion(kind, KINDS)}")
    rows: dict[str, list[dict[str, Any]]] = {
        "granularities": _granularities(),
        "contexts": _contexts(),
        "criteria": _criteria(),
        "schedules": _schedules(),
        "objectives": _objectives(),
        "techniques": _techniques(),
    }
    return rows[kind]


def _granularities() -> list[dict[str, Any]]:
    rows = [
        {"name": name, "axes": " ".join(a for a in "oidhw" if a in axes) or "-",
         "summary": Granularity.parse(name).words()}
        for name, axes in NAMES.items()
    ]  # fmt: skip
    return [
        *rows,
        {"name": "(o 4) (i 4)", "axes": "o i", "summary": "tiles of any length along any axes"},
        {"name": "2:4", "axes": "o i d h w", "summary": "n of every m kept, along any axis"},
        {"name": "head", "axes": "o", "summary": "an attention head (needs example inputs)"},
    ]


def _contexts() -> list[dict[str, Any]]:
    pools = [{"name": name, "role": "pool", "summary": text} for name, text in POOLS.items()]
    allocations = [
        {"name": f"local({name})" if name != "given" else '{"layer1.*": 0.5}',
         "role": "allocation", "summary": text}
        for name, text in ALLOCATIONS.items()
    ]  # fmt: skip
    return pools + allocations


def _criteria() -> list[dict[str, Any]]:
    rows = [
        {"name": record.name, "role": "criterion", "summary": record.summary,
         "needs": list(record.needs), "aliases": list(record.aliases), "source": record.source,
         "parameters": dict(record.parameters)}
        for record in CRITERIA
    ]  # fmt: skip
    others = (("modifier", MODIFIERS), ("reducer", REDUCERS), ("normalizer", NORMALIZERS))
    for role, registry in others:
        rows += [
            {"name": record.name, "role": role, "summary": record.summary, "needs": [],
             "aliases": list(record.aliases), "source": record.source,
             "parameters": dict(record.parameters)}
            for record in registry
        ]  # fmt: skip
    return rows


def _schedules() -> list[dict[str, Any]]:
    curves = [
        {"name": record.name, "role": "curve", "summary": record.summary,
         "aliases": list(record.aliases), "source": record.source,
         "parameters": dict(record.parameters)}
        for record in CURVES
    ]  # fmt: skip
    masks = [
        {"name": f"mask={name}", "role": "mask", "summary": text, "aliases": [], "source": "",
         "parameters": {}}
        for name, text in MASKS.items()
    ]  # fmt: skip
    return curves + masks


def _objectives() -> list[dict[str, Any]]:
    return [
        {"name": name, "summary": text, "parameters": PARAMETERS.get(name, {})}
        for name, text in OBJECTIVES.items()
    ]


def _techniques() -> list[dict[str, Any]]:
    return [
        {"name": entry.name, "title": entry.title, "record": str(entry.technique),
         "runs": not (lacks(entry.technique) or entry.missing),
         "lacks": [*lacks(entry.technique), *entry.lacks],
         "citation": str(entry.citation), "summary": entry.summary}
        for entry in catalogue()
    ]  # fmt: skip
