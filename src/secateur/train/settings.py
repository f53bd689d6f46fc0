"""The settings of one compression run, checked before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.errors import SecateurError
from secateur.sparsify import Budget, lacks, refuse_untrained
from secateur.technique import Technique
from secateur.technique.catalogue import find_technique

DEFAULT_TECHNIQUE = "weight | global | magnitude | one_cycle"
DEFAULT_SPARSITY = 0.9
_CURRENCIES = ("sparsity", "params", "macs", "bytes", "latency")


@dataclass(frozen=True)
class Settings:
    """What ``secateur compress`` is asked to do; every field has a sensible default.

    ``technique`` is a technique's text or a name of the catalogue; at most one of ``sparsity``
    (share that goes), ``params``, ``macs``, ``bytes`` and ``latency`` (shares that stay) is
    given. ``weights`` is a safetensors file to start from; with it, or ``pretrained``, the network
    is fine-tuned and compared with what it was; without, with the same network trained dense.
    ``epochs`` 0 prunes such a network and trains nothing.
    ``round_to`` keeps the widths of what is shrunk at multiples of a number.
    """

    model: str = "cnn"
    data: str = "digits"
    technique: str = DEFAULT_TECHNIQUE
    sparsity: float | None = None
    params: float | None = None
    macs: float | None = None
    bytes: float | None = None
    latency: float | None = None
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float | None = None
    seed: int = 0
    size: int | None = None
    limit: int | None = None
    weights: str | None = None
    pretrained: bool = False
    baseline: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.epochs < 1 and not (self.epochs == 0 and self.tunes):
            raise SecateurError(
                f"epochs is {self.epochs}: expected at least 1, or 0 for a network with trained "
                "weights (--weights, --pretrained)"
            )
        if self.batch_size < 2:
            raise SecateurError(f"batch size is {self.batch_size}: expected at least 2, as batch "
                                "norms cannot train on one image")  # fmt: skip
        if not 0 <= self.seed < 2**32:
            raise SecateurError(f"seed is {self.seed}: expected 0 to {2**32 - 1}")
        if self.learning_rate is not None and not 0 < self.learning_rate <= 10:
            raise SecateurError(f"learning rate is {self.learning_rate}: expected 0 < rate <= 10")
        if self.round_to < 1:
            raise SecateurError(f"round to is {self.round_to}: expected at least 1")
        if self.weights and self.pretrained:
            raise SecateurError("give weights or pretrained, not both")
        technique = find_technique(self.technique)
        missing = lacks(technique)
        if missing:
            raise SecateurError(f"'{self.technique}' cannot run yet: it needs {'; '.join(missing)}")
        if self.epochs == 0:
            refuse_untrained(technique)
        if self.distils and not (self.tunes or self.baseline):
            raise SecateurError(
                f"'{self.technique}' learns from a teacher, and there is none without a baseline: "
                "start from weights (--weights, --pretrained) or leave out --no-baseline"
            )
        Budget.of(**self._given())

    def _given(self) -> dict[str, float | None]:
        return {name: getattr(self, name) for name in _CURRENCIES}

    @property
    def found_technique(self) -> Technique:
        """The technique that the text names."""
        return find_technique(self.technique)

    @property
    def distils(self) -> bool:
        """Whether the dense network is the pruned one's teacher."""
        return self.found_technique.objective.name == "distillation"

    @property
    def tunes(self) -> bool:
        """Whether the run starts from trained weights."""
        return bool(self.weights) or self.pretrained

    @property
    def rate(self) -> float:
        """The highest learning rate: as given, else 2e-3 from scratch and 5e-4 for fine-tuning."""
        return self.learning_rate or (5e-4 if self.tunes else 2e-3)

    def budget(self) -> dict[str, float]:
        """Return the budget as the Sparsifier's keyword, sparsity 0.9 where none is asked."""
        given = {name: value for name, value in self._given().items() if value is not None}
        technique = self.found_technique
        implied = technique.granularity.block is not None or technique.context.given
        return given if given or implied else {"sparsity": DEFAULT_SPARSITY}

    def fingerprint(self, digest: str) -> dict[str, Any]:
        """Return what must be equal for a run to be continued; ``digest`` stands for the data."""
        settings: dict[str, Any] = asdict(self)
        settings["technique"] = str(self.found_technique)
        settings["data"] = digest
        settings["weights"] = Path(self.weights).name if self.weights else None
        return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
