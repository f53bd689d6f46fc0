"""Evaluation of a folder, with a stand-in for the look at a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as oracle

from unmask import evaluate
from unmask.errors import MediaError, UnmaskError
from unmask.report import FileFacts, Frame, ModelFacts, Report
from unmask.verdict import Person, Sighting

LIMITS = {"swap": {"low": 0.4, "high": 0.6}, "generated": {"low": 0.4, "high": 0.6}}


def report(path: Path, scores: list[float]) -> Report:
    """A report on a clip with these scores, one frame each."""
    seen = tuple(
        Sighting(number, float(number), (0.0, 0.0, 90.0, 90.0), score, 0.0)
        for number, score in enumerate(scores)
    )
    score = float(np.mean(scores)) if scores else 0.0
    verdict = "signs of manipulation" if score >= 0.6 else "no sign found"
    if not scores or 0.4 <= score < 0.6:
        verdict = "cannot say"
    persons = (Person(1, verdict, score, 0.0, (), seen),) if scores else ()  # type: ignore[arg-type]
    return Report(
        FileFacts(path.name, "", "image", 100, 100), ModelFacts("x", "1", LIMITS),
        verdict, (), persons, tuple(Frame(0.0, 1) for _ in scores), {}, {},
    )  # type: ignore[arg-type]  # fmt: skip


def write(folder: Path, lines: list[str]) -> Path:
    labels = folder / "labels.csv"
    labels.write_text("\n".join(lines) + "\n", "utf-8")
    return labels


@pytest.fixture
def scored(tmp_path: Path) -> tuple[Path, Path, dict[str, list[float]]]:
    random = np.random.default_rng(0)
    lines, scores = ["path,label,group,person"], {}
    for number in range(60):
        fake = number % 2
        name = f"{number}.png"
        lines.append(f"{name},{('real', 'fake')[fake]},{'ab'[number % 3 == 0]},p{number // 4}")
        scores[name] = np.clip(random.normal(0.35 + 0.3 * fake, 0.2, 3), 0, 1).tolist()
    return tmp_path, write(tmp_path, lines), scores


def test_figures_are_those_of_the_scores(
    scored: tuple[Path, Path, dict[str, list[float]]],
) -> None:
    folder, labels, scores = scored
    found = evaluate.evaluate(
        folder, labels, "x", inspect=lambda path: report(path, scores[path.name]), rounds=50
    )
    y = [number % 2 for number in range(60)]
    means = [np.mean(scores[f"{number}.png"]) for number in range(60)]
    frames = [score for number in range(60) for score in scores[f"{number}.png"]]
    overall = found["overall"]
    assert (overall["n_real"], overall["n_fake"]) == (30, 30)
    assert overall["video_auc"][0] == pytest.approx(oracle.roc_auc_score(y, means), abs=1e-5)
    expected = oracle.roc_auc_score(np.repeat(y, 3), frames)
    assert overall["frame_auc"][0] == pytest.approx(expected, abs=1e-5)
    assert overall["brier"][0] == pytest.approx(oracle.brier_score_loss(y, means), abs=1e-5)
    grey = np.mean([0.4 <= mean < 0.6 for mean in means])
    assert overall["undecided"][0] == pytest.approx(grey, abs=1e-5)
    assert set(found["groups"]) == {"a", "b"}
    for figures in (overall, *found["groups"].values()):
        assert set(figures) == {"n_real", "n_fake", *evaluate.METRICS}
        for name in evaluate.METRICS:
            value, low, high = figures[name]
            assert low <= value <= high or name in ("ece", "brier", "eer")
    json.dumps(found, allow_nan=False)


def test_a_file_without_a_face_is_undecided_and_scores_a_half(tmp_path: Path) -> None:
    labels = write(tmp_path, ["path,label", "a.png,real", "b.png,fake"])
    scores = {"a.png": [0.2], "b.png": []}
    found = evaluate.evaluate(
        tmp_path, labels, "x", inspect=lambda path: report(path, scores[path.name]), rounds=5
    )
    assert found["overall"]["undecided"][0] == 0.5
    assert found["overall"]["brier"][0] == pytest.approx((0.04 + 0.25) / 2)
    assert found["groups"] == {}


def test_what_cannot_be_analysed_is_listed_and_not_counted(tmp_path: Path) -> None:
    labels = write(tmp_path, ["path,label", "a.png,real", "b.png,fake"])

    def look(path: Path) -> Report:
        if path.name == "b.png":
            raise MediaError("corrupt", "the file is damaged")
        return report(path, [0.1])

    found = evaluate.evaluate(tmp_path, labels, "x", inspect=look, rounds=5)
    assert found["failed"] == [{"path": "b.png", "why": "the file is damaged"}]
    assert found["overall"]["n_fake"] == 0
    assert found["overall"]["frame_auc"] == [None, None, None]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("lines", "why"), [
    (["path,kind", "a.png,real"], "lack the column label"),
    (["path,label", "a.png,true"], "neither real nor fake"),
    (["path,label", "../a.png,real"], "does not lie in the folder"),
    (["path,label", "/a.png,real"], "does not lie in the folder"),
    (["path,label", ",real"], "does not lie in the folder"),
    (["path,label", "a.png,real", "./a.png,fake"], "twice"),
    (["path,label"], "name no file"),
    (["path,label", "a.png"], "neither real nor fake"),
    (["path,label", "a\0.png,real"], "line 2 .* no path"),
    (["path,label", "b.png,real", "a.png,real", "x/../a.png,fake"], "twice: 'a.png'"),
    (["path;label", "a.png;real"], "names 'path;label'"),
    (["path,label", '"a.png,real', "b.png,fake"], "cannot be read"),
])  # fmt: skip
def test_wrong_labels_are_refused(tmp_path: Path, lines: list[str], why: str) -> None:
    with pytest.raises(UnmaskError, match=why):
        evaluate.read_labels(tmp_path, write(tmp_path, lines))


def test_labels_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    text = "\ufeffPath, Label ,PERSON\r\n a.png ,REAL,p\r\n\r\nb.png,Fake,\r\n"
    labels = tmp_path / "labels.csv"
    labels.write_text(text, "utf-8", newline="")
    one, other = evaluate.read_labels(tmp_path, labels)
    assert (one.path.name, one.label, one.person) == ("a.png", 0, "p")
    assert (other.path.name, other.label, other.person) == ("b.png", 1, "b.png")


def test_a_missing_file_of_labels_is_an_error_in_plain_words(tmp_path: Path) -> None:
    with pytest.raises(UnmaskError, match="cannot be read"):
        evaluate.read_labels(tmp_path, tmp_path / "none.csv")
