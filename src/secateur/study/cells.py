"""A cell: one run of the training job, known by a hash of everything that decides its result."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.report.text import clean
from secateur.train import Settings, Watcher, compress
from secateur.train.data import Data

FORMAT = 1
ROLES = ("technique", "random", "dense")
_CURRENCIES = ("sparsity", "params", "macs", "bytes", "latency")


@dataclass(frozen=True)
class Cell:
    """One run: the labels it has on the page, its part in the comparison, and its settings.

    ``role`` is ``technique``, ``random`` (the baseline with random scores) or ``dense``;
    ``weights`` is the SHA-256 of the file of weights it starts from, empty where there is none.

    >>> cell = Cell("all", "cnn", "digits", "technique", Settings(sparsity=0.9))
    >>> cell.name == Cell("another label", "cnn", "digits", "random", Settings(sparsity=0.9)).name
    True
    >>> cell.currency, cell.budget, len(cell.name)
    ('sparsity', 0.9, 16)
    """

    technique: str
    model: str
    data: str
    role: str
    settings: Settings
    weights: str = ""

    @property
    def name(self) -> str:
        """The first 16 digits of a SHA-256 of what decides the result; labels do not."""
        decides = {
            "format": FORMAT,
            **asdict(self.settings),
            "technique": str(self.settings.found_technique),
            "weights": self.weights,
        }
        text = json.dumps(decides, sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def currency(self) -> str:
        """The currency of the budget, empty where the technique brings its own."""
        return next((name for name in _CURRENCIES if getattr(self.settings, name) is not None), "")

    @property
    def budget(self) -> float | None:
        """The budget asked for, None where the technique brings its own."""
        value: float | None = getattr(self.settings, self.currency) if self.currency else None
        return value

    def words(self) -> str:
        """Say in one line which cell this is."""
        budget = "" if self.budget is None or self.role == "dense" else (
            f", {self.currency} {self.budget:g}")  # fmt: skip
        return f"{self.technique}{budget}, {self.model} on {self.data}, seed {self.settings.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that ``from_dict`` reads back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Cell:
        """Read what ``to_dict`` wrote."""
        settings = {key: found["settings"][key] for key in (f.name for f in fields(Settings))}
        for key in ("include", "exclude"):
            settings[key] = tuple(settings[key])
        return cls(**{**found, "settings": Settings(**settings)})


def carry_out(
    cell: Cell,
    folder: str | Path,
    *,
    keep: bool = False,
    data: Data | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Carry a cell out with the training job and return its record.

    ``folder`` holds the job's files while it runs and is removed afterwards, unless ``keep``. What
    a killed run left there is gone on with, bit for bit, from its last checkpoint. ``data`` is
    what ``load_settings_data`` gave for the cell's settings; else it is loaded here.
    """
    folder = Path(folder)
    begun, started = time.monotonic(), datetime.now(timezone.utc)
    how = {"watcher": watcher, "data": data, "brief": not keep}
    metrics, resumed = _compress(cell, folder, how)
    record = {
        **_description(cell),
        **_measured(metrics),
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - begun, 3),
        "resumed": resumed,
    }
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    # JSON knows no NaN, which the loss of a run that went astray may be.
    cleaned: dict[str, Any] = clean(record)
    return cleaned


def _compress(cell: Cell, folder: Path, how: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    if (folder / "checkpoint.pt").is_file():
        try:
            return compress(cell.settings, folder, resume=True, **how), True
        except SecateurError as error:
            if isinstance(error.__cause__, OSError):
                raise
            # A checkpoint that cannot be used (damaged, of other data): the cell starts anew.
    return compress(cell.settings, folder, overwrite=True, **how), False


def _description(cell: Cell) -> dict[str, Any]:
    settings = cell.settings
    return {
        "format": FORMAT,
        "cell": cell.name,
        "role": cell.role,
        "technique": cell.technique,
        "technique_text": str(settings.found_technique),
        "model": cell.model,
        "model_spec": settings.model,
        "data": cell.data,
        "data_spec": settings.data.partition(":")[0],
        "currency": cell.currency,
        "budget": cell.budget,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
        "learning_rate": settings.rate,
        "limit": settings.limit,
        "size": settings.size,
        "fine_tuned": settings.tunes,
        "weights_digest": cell.weights,
        # A technique that learns from a dense network trains that first: its budget is larger.
        "dense_epochs": settings.epochs if settings.baseline and not settings.tunes else 0,
    }


def _measured(metrics: Mapping[str, Any]) -> dict[str, Any]:
    before, after = metrics["before"], metrics["after"]
    old, new = before["latency"], after["latency"]
    return {
        "accuracy": after["accuracy"],
        "loss": after["loss"],
        "accuracy_before": before.get("accuracy"),
        "sparsity": metrics["achieved"]["sparsity"],
        "params": after["params"],
        "macs": after["macs"],
        "bytes": after["bytes_packed"],
        "params_dense": before["params"],
        "macs_dense": before["macs"],
        "bytes_dense": before["bytes_packed"],
        "params_left": after["params"] / before["params"],
        "macs_left": after["macs"] / before["macs"] if before["macs"] else None,
        "bytes_left": after["bytes_packed"] / before["bytes_packed"],
        # Both networks were timed in turns, so that their ratio stands a busy machine.
        "latency_left": new["p50_ms"] / old["p50_ms"],
        "latency_ms": new["p50_ms"],
        "latency_dense_ms": old["p50_ms"],
        "achieved": {**metrics["achieved"], "latency": new["p50_ms"] / old["p50_ms"]},
        "shortfall": metrics["shortfall"],
        "shrunk": metrics["shrunk"],
        "notes": metrics["notes"],
        "data_digest": metrics["data_digest"],
        "augmentation": metrics["augmentation"],
        "versions": {**metrics["versions"], "code": code_digest()},
        "hardware": metrics["hardware"],
    }


@functools.cache
def code_digest() -> str:
    """Return the first 16 digits of a SHA-256 of the package's own Python files.

    Read once a process, as the code is.

    >>> len(code_digest())
    16
    """
    root = Path(__file__).parents[1]
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha.update(f"{path.relative_to(root).as_posix()}\0".encode())
        sha.update(path.read_bytes() + b"\0")
    return sha.hexdigest()[:16]
