"""What an inspection found, as plain values."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unmask.media import Kind
from unmask.verdict import Person, Sighting, Verdict

STEPS = ("decode", "detect", "classify", "total")


@dataclass(frozen=True)
class FileFacts:
    """The file: width and height as it is shown, in pixels; of a video the seconds analysed."""

    name: str
    sha256: str
    kind: Kind
    width: int
    height: int
    seconds: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """The network that looked, and the ends of its grey bands."""

    name: str
    version: str
    thresholds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Frame:
    """A sampled frame: its time in seconds, and how many faces were found in it."""

    time: float
    faces: int


@dataclass(frozen=True)
class Report:
    """The verdict on a file with all that it rests on.

    ``pictures`` holds a thumbnail of every sampled frame (``frame-0``, JPEG) and, for every person,
    where the network saw a seam in the sighting with the highest score (``map-1``, PNG).
    ``seconds`` says how long each step took.
    """

    file: FileFacts
    model: ModelFacts
    verdict: Verdict
    reasons: tuple[str, ...]
    persons: tuple[Person, ...]
    frames: tuple[Frame, ...]
    seconds: Mapping[str, float]
    limits: Mapping[str, float]
    pictures: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def to_dict(self, pictures: bool = False) -> dict[str, Any]:
        """Return plain JSON values; with ``pictures`` their bytes too, in base 64."""
        found: dict[str, Any] = {
            "file": {
                "name": self.file.name,
                "sha256": self.file.sha256,
                "kind": self.file.kind,
                "width": self.file.width,
                "height": self.file.height,
                "seconds": _round(self.file.seconds),
            },
            "model": {
                "name": self.model.name,
                "version": self.model.version,
                "thresholds": {c: dict(ends) for c, ends in self.model.thresholds.items()},
            },
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "persons": [_person(person) for person in self.persons],
            "frames": [{"time": _round(f.time), "faces": f.faces} for f in self.frames],
            "seconds": {step: _round(self.seconds.get(step, 0.0)) for step in STEPS},
            "limits": {name: _round(value) for name, value in self.limits.items()},
        }
        if pictures:
            found["pictures"] = {
                name: base64.b64encode(data).decode() for name, data in self.pictures.items()
            }
        return found


def _person(person: Person) -> dict[str, Any]:
    return {
        "id": person.id,
        "verdict": person.verdict,
        "score": _round(person.score),
        "swap": _round(person.swap),
        "generated": _round(person.generated),
        "reasons": list(person.reasons),
        "frames": [_sighting(sighting) for sighting in person.sightings],
    }


def _sighting(sighting: Sighting) -> dict[str, Any]:
    return {
        "time": _round(sighting.time),
        "box": [round(edge, 1) for edge in sighting.box],
        "swap": _round(sighting.swap),
        "generated": _round(sighting.generated),
        "score": _round(sighting.score),
        "usable": sighting.usable,
        "reason": sighting.reason,
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
