"""Parts of a technique that clash once it is carried out, refused with the names of both."""

from __future__ import annotations

from typing import Any

from secateur.errors import SecateurError
from secateur.technique import Technique

_FROM_TRAINING = frozenset({"saved", "previous", "learned"})


def refuse_untrained(technique: Technique) -> None:
    """Raise SecateurError where a technique has no meaning for a network that is not trained.

    >>> refuse_untrained(Technique("weight", "local", "magnitude", "one_cycle"))
    >>> refuse_untrained(Technique("weight", "local", "movement"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    secateur.errors.SecateurError: 'movement' looks at what training changes, and there is no ...
    """
    update, schedule = technique.update, technique.schedule
    clash = None
    if _FROM_TRAINING & set(technique.criteria.needs):
        clash = f"'{technique.criteria}' looks at what training changes"
    elif technique.objective.name != "none":
        clash = f"'{technique.objective}' is added to the loss of a training"
    elif update.survivors not in ("keep", "compensate") or update.step is not None or update.drop:
        clash = f"'{update}' is for a training"
    elif schedule.mask.kind != "permanent" or schedule.at(1.0) < 1:
        clash = f"'{schedule}' moves the mask while the network trains"
    if clash is not None:
        raise SecateurError(
            f"{clash}, and there is no training (epochs 0): train, or choose another part"
        )


def refuse_compensation(technique: Technique, data: Any) -> None:
    """Raise SecateurError where an update that compensates clashes with another part."""
    how, update = technique.update.compensation, technique.update
    if how is None:
        return
    if data is None:
        raise SecateurError(
            f"the update '{update}' makes up for what goes by what the layers read, and there is "
            "no data: pass data= (batches), or choose another update"
        )
    if not how.chooses:
        return
    granularity, pool = technique.granularity, technique.context.pool
    single = granularity.named >= {"o", "i", "h", "w"} and all(
        granularity.tile(letter) == 1 for letter in "oihw"
    )
    if not single or (granularity.block is not None and granularity.along != "i"):
        raise SecateurError(
            f"'{update}' chooses among single weights and inputs, and '{granularity}' makes other "
            "units: write weight or n:m, or compensate(exact)"
        )
    if pool not in ("local", "row"):
        raise SecateurError(
            f"'{update}' chooses layer by layer, and in the context '{technique.context}' layers "
            "compete: write local or row, or compensate(columns)"
        )
    if technique.schedule.mask.kind != "permanent":
        raise SecateurError(
            f"'{update}' changes survivors for good, and under '{technique.schedule}' what was "
            "removed returns: write a permanent mask"
        )
