"""Compensation: how survivors are changed to make up for what was removed, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.errors import SecateurError, suggestion
from secateur.technique.syntax import Call, count, format_value


@dataclass(frozen=True)
class Method:
    """A way to compensate: a sentence, its source, its settings, and what it must be told.

    ``chooses`` says that the method chooses what goes while it compensates, layer by layer.
    """

    summary: str
    source: str
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ("gram",)
    chooses: bool = False


METHODS: dict[str, Method] = {
    "exact": Method(
        "the least squares solution, for each output over its own survivors",
        "Hassibi and Stork 1993; Dong et al. 2017; Frantar and Alistarh 2022",
        {"damping": 0.01},
    ),
    "scale": Method(
        "each surviving input times one number, by least squares over all outputs",
        "Luo et al. 2017 (ThiNet)",
        {"damping": 0.0001},
    ),
    "columns": Method(
        "inputs are gone through in blocks, and those to come make up for what goes",
        "Frantar and Alistarh 2023, with the choice made beforehand",
        {"damping": 0.01, "block": 128},
    ),
    "sparsegpt": Method(
        "inputs are gone through in blocks; each block chooses by its weights as corrected so far",
        "Frantar and Alistarh 2023",
        {"damping": 0.01, "block": 128},
        chooses=True,
    ),
    "admm": Method(
        "the choice and the survivors are solved for together, then the survivors refined",
        "Meng et al. 2024 (ALPS)",
        {"damping": 0.01, "steps": 100},
        chooses=True,
    ),
    "swaps": Method(
        "kept and removed weights of an output change places while its mean error falls",
        "Zhang et al. 2024 (DSnoT)",
        {"steps": 50, "threshold": 0.1},
        ("input_mean", "input_spread"),
        chooses=True,
    ),
    "bias": Method(
        "the bias takes over the mean of the inputs removed",
        "An et al. 2024 (FLAP)",
        {},
        ("input_mean",),
    ),
    "fisher": Method(
        "the step to the minimum of the loss's quadratic model, by blocks of the Fisher matrix",
        "Singh and Alistarh 2020; Kurtic et al. 2022",
        {"damping": 1e-4, "block": 50},
        ("fisher_blocks",),
    ),
    "network": Method(
        "the step to the minimum of the loss's quadratic model over all layers' weights together",
        "Hassibi and Stork 1992",
        {"damping": 1e-4},
        ("network_curvature",),
    ),
}
"""Method to what it does."""


@dataclass(frozen=True)
class Compensation:
    """A method with its settings: ``sparsegpt``, ``exact(damping=0.1)``.

    ``damping`` is added to the diagonal of the second derivatives, as a share of its mean;
    ``block`` is the number of inputs gone through at once (for ``fisher``, of weights in a block);
    ``steps`` is the number of rounds, and ``threshold`` the error at which swaps end.

    >>> Compensation("sparsegpt", block=64).keywords
    {'block': 64}
    """

    method: str = "exact"
    damping: float | None = None
    block: int | None = None
    steps: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SecateurError(
                f"unknown compensation '{self.method}': {suggestion(self.method, METHODS)}"
            )
        settings = METHODS[self.method].settings
        for key in ("damping", "block", "steps", "threshold"):
            value = getattr(self, key)
            if value is None:
                object.__setattr__(self, key, settings.get(key))
            elif key not in settings:
                accepted = ", ".join(settings) or "nothing"
                raise SecateurError(f"compensation '{self.method}' has no '{key}': it takes "
                                    f"{accepted}")  # fmt: skip
            elif key in ("block", "steps"):
                count(value, f"compensation {self.method}: {key}")
            else:
                _at_least_zero(value, f"compensation {self.method}: {key}")

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be measured on data."""
        return METHODS[self.method].needs

    @property
    def chooses(self) -> bool:
        """Whether the method chooses what goes itself."""
        return METHODS[self.method].chooses

    @property
    def keywords(self) -> dict[str, Any]:
        """The settings that differ from the method's own."""
        settings = METHODS[self.method].settings
        found = {key: getattr(self, key) for key in settings}
        return {key: value for key, value in found.items() if value != settings[key]}

    def words(self) -> str:
        """Say in words how survivors are changed."""
        return METHODS[self.method].summary


def compensation_of(call: Call, keywords: Mapping[str, Any]) -> Compensation:
    """Build a compensation from the first value and the own keywords of ``compensate(...)``."""
    named = [value for value in call.arguments[:1] if isinstance(value, Call)]
    if len(call.arguments) != len(named) or any(each.arguments for each in named):
        raise SecateurError(
            f"compensate takes the name of a method first: {', '.join(METHODS)}; the rest is "
            "written key=value"
        )
    if any(each.keywords for each in named):
        raise SecateurError(f"write compensate({named[0].name}, key=value)")
    for key in keywords:
        if key not in ("damping", "block", "steps", "threshold"):
            known = ["damping", "block", "steps", "threshold", "removed", "optimizer"]
            raise SecateurError(f"update 'compensate' has no '{key}': {suggestion(key, known)}")
    if any(value is None for value in keywords.values()):
        raise SecateurError("compensate: none is not a number")
    method = named[0].name if named else "exact"
    return Compensation(method, **dict(keywords))


def _at_least_zero(value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise SecateurError(f"{what}={format_value(value)} is not a number >= 0")
