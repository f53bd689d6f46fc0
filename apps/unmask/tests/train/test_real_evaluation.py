"""A short evaluation on the private faces, where they are: the shipped figures must be reached."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

pytest.importorskip("cv2")

from train.data import DATA
from train.validation import Validation, build
from unmask import metrics, models

pytestmark = pytest.mark.skipif(
    not (DATA / "faces" / "index.csv").exists(), reason="the face data is not here"
)
PAIRS = 200


@cache
def held() -> Validation:
    return build(DATA, limit=PAIRS)


@pytest.mark.parametrize("name", ["dense", "int8"])
def test_swaps_are_told_apart_as_well_as_the_figures_say(name: str) -> None:
    model = models.load(name)
    real, fake = (model.logits(crops)[0][:, 0] for crops in (held().real, held().fake))
    groups = [face.group for face in held().faces] * 2
    labels, scores = np.repeat([0, 1], PAIRS), np.concatenate([real, fake])
    _, low, high = metrics.interval(metrics.auc, labels, scores, groups, rounds=200)
    committed = model.info.figures["swap_auc"]
    assert high >= committed[1]
    assert low <= committed[2]


def test_generated_faces_are_told_apart_as_well_as_the_figures_say() -> None:
    model = models.load("int8")
    real, made = (model.logits(crops)[0][:, 1] for crops in (held().plain, held().generated))
    labels = np.repeat([0, 1], [len(real), len(made)])
    value = metrics.auc(labels, np.concatenate([real, made]))
    assert value >= model.info.figures["generated_auc"][1] - 0.02


def test_the_thresholds_keep_their_false_alarms() -> None:
    model = models.load("int8")
    scores, limits = model.scores(held().plain), model.info.thresholds
    flagged = (scores.swap >= limits["swap"]["high"]) | (
        scores.generated >= limits["generated"]["high"]
    )
    spread = 3 * np.sqrt(0.03 / PAIRS)
    assert flagged.mean() <= model.info.figures["false_alarm_rate"][0] + spread
