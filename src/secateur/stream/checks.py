"""What cannot be carried out with one block of a model at a time, refused with both parts."""

from __future__ import annotations

from secateur.errors import SecateurError
from secateur.technique import Technique

_OF_THE_LOSS = {
    "gradient",
    "fisher",
    "hessian",
    "hessian_gradient",
    "output_taylor",
    "synaptic_flow",
    "fisher_surgeon",
    "fisher_blocks",
    "network_elimination",
    "network_curvature",
    "learned",
}


def refuse_unstreamed(technique: Technique) -> None:
    """Raise SecateurError where a technique needs the whole model at once, its loss or training."""
    context, update = technique.context, technique.update
    if context.pool not in ("local", "row") or context.allocation != "uniform":
        raise SecateurError(
            f"the context '{context}' compares layers of the whole model, and streaming holds one "
            "block at a time: write local or row"
        )
    if technique.granularity.order != "given":
        raise SecateurError(
            f"'{technique.granularity}' reorders what several blocks of the model share, and "
            "streaming holds one at a time: write order=given"
        )
    needs = {*technique.criteria.needs}
    if update.compensation is not None:
        needs |= {*update.compensation.needs}
    if needs & _OF_THE_LOSS:
        raise SecateurError(
            f"'{technique.criteria} | ... | {update}' needs the loss or training, and a block "
            "alone has none: choose a criterion of weights or their inputs, such as wanda or obs"
        )
    if update.survivors not in ("keep", "compensate") or technique.objective.name != "none":
        raise SecateurError(
            f"'{update}' and '{technique.objective}' are about training, and a model that streams "
            "is not trained: write keep or compensate, and no objective"
        )
    if technique.schedule.at(1.0) == 0:
        raise SecateurError(f"the schedule '{technique.schedule}' ends with nothing removed")
