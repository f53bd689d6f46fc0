"""The networks to choose from, as ``weights/models.json`` lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.web.problems import Problem

HIDDEN = {"file"}


@dataclass(frozen=True)
class Catalogue:
    """Every model with its size, measured time, thresholds and figures."""

    version: str
    default: str
    models: tuple[dict[str, Any], ...]

    @property
    def names(self) -> list[str]:
        """Return the models' names in the order of the file."""
        return [str(model["name"]) for model in self.models]

    def choose(self, name: str | None) -> str:
        """Return the name, the default for None or an empty one, or raise ``unknown_model``."""
        if not name:
            return self.default
        if name not in self.names:
            known = ", ".join(self.names)
            raise Problem(422, "unknown_model", f"There is no model {name[:40]!r}; choose {known}.")
        return name


def read(path: Path | None = None) -> Catalogue:
    """Read the list that ships with the package, or the one at ``path``."""
    source = path or Path(str(resources.files("unmask"))) / "weights" / "models.json"
    try:
        found = json.loads(source.read_text("utf-8"))
        models = tuple(
            {key: value for key, value in model.items() if key not in HIDDEN}
            for model in found["models"]
        )
        return Catalogue(str(found["version"]), str(found["default"]), models)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UnmaskError(
            f"the list of models cannot be read ({error}); install unmask anew"
        ) from error
