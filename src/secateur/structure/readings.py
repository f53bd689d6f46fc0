"""Which attributes hold which sizes: a search led by how far the code comes.

A module's attributes may take several new values each. One change after the other is tried; one
with which the code gets further is kept, and where none does, two at a time are tried, then three.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.structure.attributes import Changes, readings

MOST_TRIALS = 128
"""How many sets of changes are tried on one module without getting further."""

Assigned = dict[str, int]
"""The place of the value that is in use, by attribute; attributes that stay are left out."""

Progress = tuple[int, int]
"""How far the code has come: the recording and the operator at which it departs."""


@dataclass
class Reading:
    """How the attributes of one module are read.

    ``followers`` are later modules of the same build, which are read alike until they are at fault
    themselves.
    """

    path: str
    fixed: Changes
    options: dict[str, list[Any]]
    assigned: Assigned = field(default_factory=dict)
    followers: list[Reading] = field(default_factory=list)
    search: Generator[Assigned, Progress, None] | None = None

    @property
    def changes(self) -> Changes:
        """The new values of the attributes."""
        chosen = {(self.path, name): self.options[name][place]
                  for name, place in self.assigned.items()}  # fmt: skip
        return {**self.fixed, **chosen}


class Readings:
    """The readings of a model's modules, and whose turn it is."""

    def __init__(
        self,
        model: nn.Module,
        sizes: Mapping[str, Mapping[int, set[int]]],
        groups: Mapping[str, int],
    ) -> None:
        self.by_path: dict[str, Reading] = {}
        self._builds: dict[tuple[object, ...], list[Reading]] = {}
        self._turn: Reading | None = None
        for path, module in model.named_modules():
            if path not in sizes:
                continue
            found = Reading(path, *readings(module, path, sizes[path], groups.get(path)))
            self.by_path[path] = found
            shape = tuple((name, len(values)) for name, values in found.options.items())
            self._builds.setdefault((type(module), shape), []).append(found)

    def changes(self, without: Mapping[str, Any]) -> Changes:
        """Return the new values of all attributes, but for some modules."""
        return {key: value for path, reading in self.by_path.items() if path not in without
                for key, value in reading.changes.items()}  # fmt: skip

    def advance(self, paths: Sequence[str], progress: Progress) -> bool:
        """Try something else: on the module whose turn it is, else on one of ``paths``.

        Returns False where nothing is left to try.
        """
        if self._turn is not None:
            if not self._next(self._turn, progress):
                # What went wrong last need not be what is wrong with the best found.
                self._turn = None
            return True
        for path in paths:
            reading = self.by_path.get(path)
            if reading is not None and reading.search is None and self._begin(reading, progress):
                self._turn = reading
                return True
        return False

    def _begin(self, reading: Reading, progress: Progress) -> bool:
        alike = next(each for each in self._builds.values() if reading in each)
        later = alike[alike.index(reading) + 1 :]
        reading.followers = [
            each for each in later if each.search is None and each.assigned == reading.assigned
        ]
        reading.search = _search(reading, progress)
        return self._assign(reading, next(reading.search, None))

    def _next(self, reading: Reading, progress: Progress) -> bool:
        assert reading.search is not None
        try:
            return self._assign(reading, reading.search.send(progress))
        except StopIteration:
            return False

    @staticmethod
    def _assign(reading: Reading, assigned: Assigned | None) -> bool:
        if assigned is None:
            return False
        for each in (reading, *reading.followers):
            each.assigned = dict(assigned)
        return True


def _search(reading: Reading, best: Progress) -> Generator[Assigned, Progress, None]:
    """Give assignments to try, and be told how far each of them came; end on the best one."""
    current = dict(reading.assigned)
    tried = [current]
    further = True
    while further:
        further = False
        for trial in itertools.islice(_variations(reading.options, current), MOST_TRIALS):
            if trial in tried:
                continue
            tried.append(trial)
            progress = yield trial
            if progress > best:
                current, best, further = trial, progress, True
                break
    for each in (reading, *reading.followers):
        each.assigned = dict(current)


def _variations(options: Mapping[str, Sequence[Any]], current: Assigned) -> Iterator[Assigned]:
    """Give assignments that differ from the current one, in few attributes first."""
    for count in range(1, len(options) + 1):
        for names in itertools.combinations(options, count):
            places = [[place for place in (*range(len(options[name])), None)
                       if place != current.get(name)] for name in names]  # fmt: skip
            for chosen in itertools.product(*places):
                made = {**current, **dict(zip(names, chosen, strict=True))}
                yield {name: place for name, place in made.items() if place is not None}
