"""A technique as one value: four axes, an update rule and an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from secateur.errors import SecateurError, suggestion
from secateur.technique.context import Context
from secateur.technique.criteria import Criterion
from secateur.technique.granularity import Granularity
from secateur.technique.objective import Objective
from secateur.technique.schedule import Schedule
from secateur.technique.syntax import split_parts
from secateur.technique.update import Update

_LARGEST_YAML = 64_000
_EXAMPLE = "filter | global | magnitude | one_cycle"


@dataclass(frozen=True)
class Technique:
    """What is pruned, where, why, when, and what becomes of the rest; immutable and hashable.

    Each part is a value of its axis or the text of one; ``context`` may also be a mapping from
    layer patterns to shares removed. Raises SecateurError, quoting the text, where a part is
    unknown.

    >>> technique = Technique("filter", "global", "magnitude", "one_cycle")
    >>> str(technique)
    'filter | global | magnitude | one_cycle'
    >>> Technique.parse(str(technique)) == technique
    True
    """

    granularity: Granularity
    context: Context
    criteria: Criterion
    schedule: Schedule
    update: Update
    objective: Objective

    def __init__(
        self,
        granularity: Granularity | str = "weight",
        context: Context | str | Mapping[str, float] = "global",
        criteria: Criterion | str = "magnitude",
        schedule: Schedule | str = "one_cycle",
        update: Update | str = "keep",
        objective: Objective | str = "none",
    ) -> None:
        given = {
            "granularity": granularity,
            "context": context,
            "criteria": criteria,
            "schedule": schedule,
            "update": update,
            "objective": objective,
        }
        for name, value in given.items():
            object.__setattr__(self, name, _part(name, value))
        self._check_together()

    def _check_together(self) -> None:
        names_one_output = "o" in self.granularity.named and not self.granularity.tile("o") > 1
        if self.context.pool == "row" and not (names_one_output and self.granularity.named > {"o"}):
            raise SecateurError(
                f"'{self.granularity} | {self.context}': the units of one output compete, so a "
                "unit must be a part of one output; use weight, kernel, row, column or n:m"
            )

    @classmethod
    def parse(cls, text: str) -> Technique:
        """Read ``granularity | context | criteria | schedule [| update [| objective]]``."""
        parts = split_parts(text)
        if not 4 <= len(parts) <= 6 or not all(parts):
            raise SecateurError(
                f"cannot read the technique '{text}': expected four to six parts separated by "
                f"'|', such as '{_EXAMPLE}'"
            )
        return cls(*parts)

    @classmethod
    def from_yaml(cls, source: str | Path) -> Technique:
        """Read a technique from YAML text or a YAML file: one key per part.

        Missing parts take their defaults; raises SecateurError for unknown keys.
        """
        text = _read_file(source) if isinstance(source, Path) else source
        if len(text) > _LARGEST_YAML:
            raise SecateurError(f"a technique in YAML of {len(text)} characters is too long")
        try:
            # BaseLoader builds nothing but texts, so that 2:4 stays 2:4 and no tag runs code.
            found = yaml.load(text, Loader=yaml.BaseLoader)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise SecateurError(f"the technique is not YAML: {first}") from error
        if isinstance(found, str):
            return cls.parse(found)
        if not isinstance(found, dict):
            raise SecateurError(f"a technique in YAML is a mapping with the keys {_part_names()}")
        for key, value in found.items():
            if key not in _part_names():
                raise SecateurError(
                    f"a technique has no part '{key}': {suggestion(key, _part_names())}"
                )
            if not value or not isinstance(value, (str, dict if key == "context" else str)):
                raise SecateurError(f"the part '{key}' of a technique is a text; leave it out or "
                                    "write one")  # fmt: skip
        if isinstance(found.get("context"), dict):
            found["context"] = {name: _number(v) for name, v in found["context"].items()}
        return cls(**found)

    def to_yaml(self) -> str:
        """Write YAML that ``from_yaml`` reads back as an equal technique."""
        parts = {name: str(getattr(self, name)) for name in _part_names()}
        return yaml.safe_dump(parts, sort_keys=False, allow_unicode=False, width=1000)

    def words(self) -> list[str]:
        """Say in words what the technique does, one sentence per part."""
        return [
            f"Unit: {self.granularity.words()}.",
            f"Competition: {self.context.words()}.",
            f"Score: {self.criteria.words()}; the lowest go first.",
            f"Time: {self.schedule.words()}.",
            f"Afterwards: {self.update.words()}.",
            f"Loss: {self.objective.words()}.",
        ]

    def __str__(self) -> str:
        parts = [str(getattr(self, name)) for name in _part_names()]
        while len(parts) > 4 and parts[-1] == ("keep", "none")[len(parts) - 5]:
            parts.pop()
        return " | ".join(parts)


def _part_names() -> list[str]:
    return [field.name for field in fields(Technique)]


def _read_file(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_YAML:
            raise SecateurError(f"{path} is too large to be a technique")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(f"{path} cannot be read as a technique: {error}") from error


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _part(name: str, value: Any) -> Any:
    kinds: dict[str, Any] = {
        "granularity": Granularity,
        "context": Context,
        "criteria": Criterion,
        "schedule": Schedule,
        "update": Update,
        "objective": Objective,
    }
    kind = kinds[name]
    if isinstance(value, kind):
        return value
    if isinstance(value, str) or (name == "context" and isinstance(value, Mapping)):
        return kind.parse(value)
    raise SecateurError(f"{name} is a {type(value).__name__}: expected a text or a {kind.__name__}")
