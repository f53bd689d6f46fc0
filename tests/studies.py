"""Records of a study without training: what the tests of its pages and results start from."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from secateur.study import Cell, Study
from secateur.study.cells import FORMAT
from secateur.study.processes import Outcome

VERSIONS = {"secateur": "0.1.0", "torch": "2.6.0", "code": "0" * 16}
GRID = """
title: Schedules
question: Which schedule?
techniques:
  cycle: weight | local | magnitude | one_cycle
  gradual: weight | local | magnitude | agp
  filters: filter | local | magnitude | one_cycle
budgets: {sparsity: [0.5, 0.8, 0.9, 0.95]}
seeds: 4
"""


def record(cell: Cell, accuracy: float | None = None, **changes: Any) -> dict[str, Any]:
    """A record such as a run would leave: the more is gone, the lower the accuracy."""
    settings = cell.settings
    left = 1.0 if cell.role == "dense" else 1 - (cell.budget or 0.5)
    chance = random.Random(cell.name)
    found = 0.98 - 0.05 * (1 - left) + chance.gauss(0, 0.004) if accuracy is None else accuracy
    shares = {"params_left": left, "macs_left": left, "bytes_left": left, "latency_left": 1.0}
    return {
        "format": FORMAT, "cell": cell.name, "role": cell.role, "technique": cell.technique,
        "technique_text": str(settings.found_technique), "model": cell.model, "data": cell.data,
        "data_spec": settings.data, "currency": cell.currency, "budget": cell.budget,
        "seed": settings.seed, "epochs": settings.epochs, "batch_size": settings.batch_size,
        "learning_rate": settings.rate, "dense_epochs": 0, "limit": None, "size": None,
        "accuracy": found, "loss": 0.1, **shares, "shortfall": 0.0, "augmentation": "none",
        "achieved": {"sparsity": 1 - left, "params": left, "macs": left, "bytes": left},
        "data_digest": "d", "versions": dict(VERSIONS), "hardware": {"cpu": "c", "threads": 1},
        "wall_seconds": 2.0, "resumed": False, "notes": ["a", "b"], **changes,
    }  # fmt: skip


def records(study: Study, change: Callable[[Cell], dict[str, Any]] | None = None) -> Any:
    return [record(cell, **(change(cell) if change else {})) for cell in study.cells]


class Backend:
    """Carries cells out at once; a cell's fate may be given by its place among those asked for."""

    def __init__(self, **fates: Any) -> None:
        self.fates = {int(place.removeprefix("at_")): fate for place, fate in fates.items()}
        self.ran: list[str] = []

    def __call__(
        self, cells: Sequence[Cell], folder: Path, jobs: int, lock: int, keep: bool
    ) -> Iterator[Outcome]:
        for place, cell in enumerate(cells):
            fate = self.fates.get(place)
            if isinstance(fate, BaseException):
                raise fate
            self.ran.append(cell.name)
            yield fate(cell) if fate else Outcome(cell, record(cell))
