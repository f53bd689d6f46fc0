"""Studies: techniques compared fairly over budgets, seeds, data and models."""

from secateur.study.cells import Cell
from secateur.study.cluster import OnRay
from secateur.study.grid import Study
from secateur.study.page import findings
from secateur.study.processes import run_processes
from secateur.study.run import StudyResult, StudyWatcher, run_study
from secateur.study.statistics import Interval, Paired, holm, interval, paired
from secateur.study.summary import Summary, summarise

__all__ = [
    "Cell",
    "Interval",
    "OnRay",
    "Paired",
    "Study",
    "StudyResult",
    "StudyWatcher",
    "Summary",
    "findings",
    "holm",
    "interval",
    "paired",
    "run_processes",
    "run_study",
    "summarise",
]
