"""What the engine cannot run yet, though it can be described."""

from __future__ import annotations

from secateur.technique import MaskDynamics, Schedule, Technique


def lacks(technique: Technique) -> tuple[str, ...]:
    """Name the capabilities that a technique asks for and the engine does not have.

    >>> lacks(Technique("weight", update="compensate"))
    ()
    """
    missing = []
    pace = Schedule.parse(technique.objective.schedule)
    if pace.every is not None or pace.epochs is not None or pace.mask != MaskDynamics():
        missing.append(f"{pace}: an objective's weight that moves otherwise than at every step")
    return tuple(missing)
