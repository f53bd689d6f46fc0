"""Which attributes hold which sizes: a search led by how far the code comes.

A module's attributes may take several new values each. One change after the other is tried; one
with which the code gets further is kept, and where none does, two at a time are tried, then three.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from secateur.structure.attributes import Changes, readings
from secateur.structure.surgery import Undo, set_attributes

MOST_TRIALS = 128
"""How many sets of changes are tried on one module without getting further."""

Assigned = dict[str, int]
"""The place of the value that is in use, by attribute; attributes that stay are left out."""


@dataclass
class Reading:
    """How the attributes of one module are read."""

    path: str
    fixed: Changes
    options: dict[str, list[Any]]
    original: dict[str, Any]
    assigned: Assigned = field(default_factory=dict)
    searched: bool = False

    @property
    def changes(self) -> Changes:
        """The new values of the attributes that get one."""
        chosen = {(self.path, name): self.options[name][place]
                  for name, place in self.assigned.items()}  # fmt: skip
        return {**self.fixed, **chosen}

    def values(self, assigned: Assigned) -> Changes:
        """Return the values of all attributes that may change, under an assignment."""
        return {
            (self.path, name): made[assigned[name]] if name in assigned else self.original[name]
            for name, made in self.options.items()
        }


class Readings:
    """The readings of a model's modules."""

    def __init__(
        self,
        model: nn.Module,
        sizes: Mapping[str, Mapping[int, set[int]]],
        groups: Mapping[str, int],
    ) -> None:
        self.model = model
        self.by_path: dict[str, Reading] = {}
        self._builds: dict[tuple[object, ...], list[Reading]] = {}
        for path, module in model.named_modules():
            fixed, options = readings(module, path, sizes.get(path, {}), groups.get(path))
            if path not in sizes:  # not called, and yet other code may use what it holds
                fixed = {key: value for key, value in fixed.items()
                         if getattr(module, key[1]) != value}  # fmt: skip
            if path not in sizes and not fixed:
                continue
            found = Reading(path, fixed, options, {name: getattr(module, name) for name in options})
            self.by_path[path] = found
            shape = tuple((name, len(values)) for name, values in found.options.items())
            self._builds.setdefault((type(module), shape), []).append(found)

    def changes(self, without: Mapping[str, Any]) -> Changes:
        """Return the new values of all attributes, but for some modules."""
        return {key: value for path, reading in self.by_path.items() if path not in without
                for key, value in reading.changes.items()}  # fmt: skip

    def read_by(self, path: str, names: Set[str]) -> list[str]:
        """Return the modules inside of one that have an attribute of such a name to be read."""
        inside = path + "." if path else ""
        return [
            each
            for each, reading in self.by_path.items()
            if each != path and each.startswith(inside) and names & reading.options.keys()
        ]

    def improve(self, paths: Iterable[str], progress: Callable[[str], float]) -> bool:
        """Read the first of some modules differently with which the code gets further.

        ``progress`` tells how far the code of a module comes as the model now is. Later modules of
        the same build are read alike until they are at fault themselves. Returns False where no
        other reading helps.
        """
        for path in paths:
            reading = self.by_path.get(path)
            if reading is None or reading.searched or not reading.options:
                continue
            reading.searched = True
            before, found = reading.assigned, self._search(reading, progress)
            if found != before:
                alike = next(each for each in self._builds.values() if reading in each)
                for later in alike[alike.index(reading) :]:
                    if later.assigned == before and (later is reading or not later.searched):
                        later.assigned = dict(found)
                return True
        return False

    def _search(self, reading: Reading, progress: Callable[[str], float]) -> Assigned:
        """Return the assignment with which a module's code comes furthest."""
        current, best = dict(reading.assigned), progress(reading.path)
        tried = [current]
        further = best < float("inf")
        while further:
            further = False
            for trial in itertools.islice(_variations(reading.options, current), MOST_TRIALS):
                if trial in tried:
                    continue
                tried.append(trial)
                undo = Undo()
                set_attributes(self.model, reading.values(trial), undo)
                reached = progress(reading.path)
                undo.run()
                if reached > best:
                    current, best, further = trial, reached, reached < float("inf")
                    break
        return current


def _variations(options: Mapping[str, Sequence[Any]], current: Assigned) -> Iterator[Assigned]:
    """Give assignments that differ from the current one, in few attributes first."""
    for count in range(1, len(options) + 1):
        for names in itertools.combinations(options, count):
            places = [[place for place in (*range(len(options[name])), None)
                       if place != current.get(name)] for name in names]  # fmt: skip
            for chosen in itertools.product(*places):
                made = {**current, **dict(zip(names, chosen, strict=True))}
                yield {name: place for name, place in made.items() if place is not None}
