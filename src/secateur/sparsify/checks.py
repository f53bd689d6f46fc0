"""Checks of a request that need no look at the model: budget, data, and what cannot be coupled."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from secateur.errors import SecateurError
from secateur.sparsify.allocation import SINGLE
from secateur.sparsify.budget import Budget
from secateur.sparsify.coupling import couples
from secateur.technique import Technique
from secateur.technique.context import SEARCHED
from secateur.technique.criteria.evidence import FROM_DATA, NEEDS


def check_data(technique: Technique, data: Iterable[Any] | None) -> None:
    """Refuse what looks at data where there is none."""
    lacking = [need for need in technique.criteria.needs if need in FROM_DATA]
    if lacking and data is None:
        raise SecateurError(
            f"the criterion '{technique.criteria}' needs {NEEDS[lacking[0]]}: pass data= (batches)"
        )
    if technique.context.allocation == "owl" and data is None:
        raise SecateurError(
            f"the context '{technique.context}' looks at the inputs of every layer: pass data= "
            "(batches)"
        )
    if technique.context.allocation in ("sensitivity", *SEARCHED) and data is None:
        raise SecateurError(
            f"the context '{technique.context}' measures the loss layer by layer: pass data= "
            "(batches)"
        )


def check_budget(
    technique: Technique, budget: Budget | None, example_inputs: tuple[Any, ...] | None
) -> Budget | None:
    """Return the budget, or what the technique itself implies; refuse one that has no meaning."""
    granularity = technique.granularity
    if budget is None and granularity.block is not None and granularity.kept is not None:
        return Budget("sparsity", 1 - granularity.kept / granularity.block)
    if technique.context.allocation == "threshold":
        if budget is not None:
            raise SecateurError(
                f"'{technique.context}' removes whatever scores below zero, and {budget.currency}="
                f"{budget.value:g} asks for so much: leave the budget out, or choose another "
                "allocation"
            )
        return None
    if budget is None and technique.context.allocation != "given":
        raise SecateurError(
            "no budget: pass sparsity= (share that goes), or params=, macs= or bytes= (share that "
            "stays)"
        )
    if budget is not None and budget.currency == "macs" and example_inputs is None:
        raise SecateurError("a budget in macs needs example_inputs= to count them")
    if (
        budget is not None
        and budget.currency == "latency"
        and (example_inputs is None or not couples(granularity))
    ):
        raise SecateurError(
            "a budget in latency is for whole channels (filter, shared_kernel, head), with "
            "example_inputs= to time: masks alone make nothing faster"
        )
    return budget


def check_coupled(technique: Technique, round_to: int) -> None:
    """Refuse what has no meaning for whole channels."""
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise SecateurError(f"round_to={round_to!r}: expected a whole number of at least 1")
    if round_to > 1 and not technique.granularity.named:
        raise SecateurError(f"round_to={round_to} has no meaning for whole layers: leave it out")
    if technique.context.allocation in SINGLE:
        raise SecateurError(
            f"'{technique.context}' divides a budget among single weight matrices, and "
            f"'{technique.granularity}' with example_inputs= couples them: leave example_inputs "
            "out, or choose another allocation"
        )
    dynamics = technique.schedule.mask
    if dynamics.kind == "regrown" and dynamics.by in ("gradient", "momentum"):
        raise SecateurError(
            f"'{technique}' regrows by {dynamics.by}, and a channel that is zero in every layer "
            "has none; write regrown(by=magnitude) or regrown(by=random)"
        )
