"""What a step did: how much was removed, what was achieved, what could not be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from secateur.technique import Technique


@dataclass(frozen=True)
class StepResult:
    """The outcome of one mask update.

    ``removed`` counts the units that are removed now, in all; ``changed`` those whose state this
    step changed. ``achieved`` gives the sparsity (share of prunable weights removed) and, for
    ``params``, ``macs`` and ``bytes``, the share of the model that is left. ``target`` and
    ``shortfall`` are in the currency that was asked for: what the schedule wanted at this moment,
    and by how much the step missed it because nothing more could be removed (0 where rounding to
    whole units is all that stands between). ``emptied`` names layers without a single weight left;
    where whole channels go, those of which only the one that must stay is left.
    """

    progress: float
    removed: int
    changed: int
    currency: str
    target: float
    achieved: Mapping[str, float]
    shortfall: float = 0.0
    reason: str | None = None
    emptied: tuple[str, ...] = ()
    layers: Mapping[str, float] = field(default_factory=dict)


def why_short(
    technique: Technique, currency: str, target: float, achieved: Mapping[str, float]
) -> str:
    """Say why a claim could not be met."""
    granularity, context = technique.granularity, technique.context
    causes = []
    if granularity.kept is not None:
        causes.append(f"{granularity} lets no more go")
    if context.keep:
        causes.append(f"every layer keeps {context.keep:g} of its units")
    if context.allocation in ("uniform_plus", "given"):
        causes.append(f"the allocation {context.allocation} spares some layers")
    if context.pool == "groups":
        causes.append("layers outside the groups stay dense")
    return f"asked for {currency} {target:.4g}, reached {achieved[currency]:.4g}: " + (
        " and ".join(causes) or "the prunable layers hold no more"
    )
