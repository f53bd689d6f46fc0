"""What is fitted on the validation split alone: calibration, thresholds; and the figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from train.validation import Validation
from unmask import metrics
from unmask.models import ANSWERS, Floats, Model, probability

# False alarms among untouched faces at the upper and the lower end of the grey band.
ALARMS = {"swap": (0.02, 0.08), "generated": (0.005, 0.02)}
Calibration = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Answers:
    """Logits (N x 2) of the parts of the validation split, and the persons they show."""

    plain: Floats
    real: Floats
    fake: Floats
    generated: Floats
    groups: npt.NDArray[np.str_]
    generated_groups: npt.NDArray[np.str_]

    def swap(self) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.str_]]:
        """Labels, swap logits and groups of the pairs."""
        labels = np.repeat([0, 1], [len(self.real), len(self.fake)])
        logits = np.concatenate([self.real, self.fake])[:, 0]
        return labels, logits, np.concatenate([self.groups, self.groups])

    def made(self) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.str_]]:
        """Labels, generated logits and groups of untouched and wholly generated faces."""
        labels = np.repeat([0, 1], [len(self.plain), len(self.generated)])
        logits = np.concatenate([self.plain, self.generated])[:, 1]
        return labels, logits, np.concatenate([self.groups, self.generated_groups])

    def task(self, answer: str) -> tuple[npt.NDArray[np.int64], Floats, npt.NDArray[np.str_]]:
        """The one or the other, by name."""
        return self.swap() if answer == "swap" else self.made()


def ask(model: Model, held: Validation) -> Answers:
    """The answers of a network to the whole validation split."""
    plain, real, fake, generated = (
        model.logits(crops)[0] for crops in (held.plain, held.real, held.fake, held.generated)
    )
    return Answers(
        plain, real, fake, generated,
        np.array([face.group for face in held.faces]),
        np.array([face.group for face in held.generated_faces]),
    )  # fmt: skip


def calibrate(answers: Answers) -> Calibration:
    """Platt's scale and shift of both answers."""
    return {answer: metrics.platt(*answers.task(answer)[:2]) for answer in ANSWERS}


def thresholds(answers: Answers, calibration: Calibration) -> dict[str, dict[str, float]]:
    """Ends of the grey bands, as probabilities, at the false alarms of `ALARMS`."""
    found = {}
    for place, answer in enumerate(ANSWERS):
        honest = np.concatenate([answers.plain, answers.real])[:, place]
        chances = np.sort(probability(honest, calibration[answer]).astype(np.float64))
        ends = [float(np.quantile(chances, 1 - share)) for share in ALARMS[answer]]
        # Rounding up never adds an alarm.
        high, low = (min(np.ceil(end * 1e4) / 1e4, 1.0) for end in ends)
        found[answer] = {"low": float(low), "high": float(high)}
    return found


def crossed(answers: Answers, answer: str, folds: int = 5) -> tuple[Any, Any, Any]:
    """Labels, probabilities and groups, each probability calibrated on other persons' faces."""
    labels, logits, groups = answers.task(answer)
    _, place = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(place.max() + 1)[place] % folds
    chances = np.zeros(len(labels))
    for number in range(folds):
        inside = fold == number
        fitted = metrics.platt(labels[~inside], logits[~inside])
        chances[inside] = probability(logits[inside], fitted)
    return labels, chances, groups


def even_brier(labels: metrics.Labels, scores: metrics.Numbers) -> float:
    """The Brier score of an even mixture."""
    return metrics.brier(labels, scores, even=True)


def even_ece(labels: metrics.Labels, scores: metrics.Numbers) -> float:
    """The calibration error of an even mixture."""
    return metrics.ece(labels, scores, even=True)


def figures(answers: Answers, rounds: int = 300) -> dict[str, list[float]]:
    """Every figure as [value, low, high], the 95 % interval over groups of the split.

    Brier and ECE are those of an even mixture. After calibration they are those of a calibration
    on other persons (five folds), so that nobody's own face has set the chance that is judged.
    """
    found: dict[str, list[float]] = {}
    for answer in ANSWERS:
        labels, logits, groups = answers.task(answer)
        raw = probability(logits, (1.0, 0.0))
        measures: dict[str, metrics.Measure] = {
            "auc": metrics.auc, "eer": metrics.eer, "ap": metrics.average_precision,
            "recall_at_1": lambda y, s: metrics.recall_at(y, s, 0.01),
            "recall_at_5": lambda y, s: metrics.recall_at(y, s, 0.05),
        }  # fmt: skip
        for name, measure in measures.items():
            found[f"{answer}_{name}"] = metrics.interval(measure, labels, logits, groups, rounds)
        truth, chances, persons = crossed(answers, answer)
        for name, measure in {"brier": even_brier, "ece": even_ece}.items():
            before = metrics.interval(measure, labels, raw, groups, rounds)
            found[f"{answer}_{name}_uncalibrated"] = before
            found[f"{answer}_{name}"] = metrics.interval(measure, truth, chances, persons, rounds)
    return {name: [round(v, 4) for v in values] for name, values in found.items()}


def flagged(
    logits: Floats, calibration: Calibration, limits: dict[str, dict[str, float]], end: str
) -> npt.NDArray[np.bool_]:
    """Which faces reach that end of the grey band in either answer."""
    over = [
        probability(logits[:, place], calibration[answer]) >= limits[answer][end]
        for place, answer in enumerate(ANSWERS)
    ]
    return np.asarray(over[0] | over[1])


def verdicts(
    answers: Answers, calibration: Calibration, limits: dict[str, dict[str, float]],
    rounds: int = 300,
) -> dict[str, list[float]]:  # fmt: skip
    """Share of untouched faces flagged and undecided, and of fakes flagged, with intervals."""
    rows = {
        "false_alarm_rate": (answers.plain, answers.groups, "signs"),
        "undecided": (answers.plain, answers.groups, "grey"),
        "swap_found": (answers.fake, answers.groups, "signs"),
        "generated_found": (answers.generated, answers.generated_groups, "signs"),
    }
    found = {}
    for name, (logits, groups, what) in rows.items():
        high = flagged(logits, calibration, limits, "high")
        hit = high if what == "signs" else flagged(logits, calibration, limits, "low") & ~high
        labels = np.zeros(len(hit), np.int64)
        share = metrics.interval(lambda _, s: float(s.mean()), labels, hit * 1.0, groups, rounds)
        found[name] = [round(v, 4) for v in share]
    return found
