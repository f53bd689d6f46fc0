"""Step 5: the figures of the shipped networks on the validation split, as JSON and as a page.

python -m train.report --work FOLDER [--student FOLDER ...] [--folder FILE.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train import say
from train.batches import one_thread
from train.blend import self_blend
from train.data import DATA, ROOT, Face, read_image
from train.export import milliseconds
from train.fit import Answers, ask, flagged
from train.pages import card, page
from train.validation import Validation, kept, surroundings
from unmask import metrics
from unmask.crops import crop
from unmask.models import Model, ModelInfo, available
from unmask.robustness import grid


def share(hits: npt.NDArray[np.bool_], groups: npt.NDArray[np.str_], rounds: int) -> list[float]:
    """A share with its 95 % interval over groups, and the number of faces."""
    labels = np.zeros(len(hits), np.int64)
    value = metrics.interval(lambda _, s: float(s.mean()), labels, hits * 1.0, groups, rounds)
    return [*(round(v, 4) for v in value), len(hits)]


def by(
    faces: Sequence[Face], key: Callable[[Face], str], measure: Callable[[Any], list[float]],
    least: int = 20,
) -> dict[str, list[float]]:  # fmt: skip
    """A measure over the faces of each value of ``key``, where there are enough."""
    values = np.array([key(face) for face in faces])
    rows = {value: values == value for value in sorted(set(values) - {""})}
    return {value: measure(inside) for value, inside in rows.items() if inside.sum() >= least}


def details(
    info: ModelInfo, answers: Answers, held: Validation, rounds: int
) -> dict[str, Any]:  # fmt: skip
    """False alarms by race, gender and age; AUC by source, strength of the blend; generators."""
    calibration = {key: (pair[0], pair[1]) for key, pair in info.calibration.items()}
    limits = {key: dict(ends) for key, ends in info.thresholds.items()}
    alarms = flagged(answers.plain, calibration, limits, "high")
    caught = flagged(answers.generated, calibration, limits, "high")
    real, fake = answers.real[:, 0], answers.fake[:, 0]

    def alarm(inside: npt.NDArray[np.bool_]) -> list[float]:
        return share(alarms[inside], answers.groups[inside], rounds)

    def auc(inside: npt.NDArray[np.bool_]) -> list[float]:
        y = np.repeat([0, 1], [inside.sum(), inside.sum()])
        s, groups = np.concatenate([real[inside], fake[inside]]), answers.groups[inside]
        value = metrics.interval(metrics.auc, y, s, np.concatenate([groups, groups]), rounds)
        return [*(round(v, 4) for v in value), int(inside.sum())]

    def found(inside: npt.NDArray[np.bool_]) -> list[float]:
        return share(caught[inside], answers.generated_groups[inside], rounds)

    ratios = {f"{ratio:g}": auc(held.ratios == ratio) for ratio in sorted(set(held.ratios))}
    return {
        "false_alarms": {
            "race": by(held.faces, lambda face: face.race, alarm),
            "gender": by(held.faces, lambda face: face.gender, alarm),
            "age": by(held.faces, lambda face: face.age, alarm),
            "source": by(held.faces, lambda face: face.source, alarm),
        },
        "swap_auc": {"source": by(held.faces, lambda face: face.source, auc), "ratio": ratios},
        "generated_found": by(held.generated_faces, lambda face: face.generator, found),
    }


def robustness(
    models: dict[str, Model], data: Path, held: Validation, pairs: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """AUC of both answers, and false alarms, on damaged pictures; by damage and model."""
    chosen = np.random.default_rng(3).permutation(len(held.faces))[:pairs]
    made_chosen = np.random.default_rng(4).permutation(len(held.generated_faces))[: pairs // 3]
    sets: list[tuple[list[Any], ...]] = []
    for number in chosen:
        face = held.faces[number]
        image, points, box = surroundings(read_image(data / "faces" / face.path), face)
        pair = self_blend(image, points, np.random.default_rng((0, int(number))))
        sets.append(([pair.real, pair.fake], [box]))
    made = [
        surroundings(read_image(data / "faces" / face.path), face)
        for face in (held.generated_faces[number] for number in made_chosen)
    ]
    groups = np.array([held.faces[number].group for number in chosen])
    found: dict[str, dict[str, Any]] = {}
    for name, damage in grid().items():
        real = np.stack([crop(damage(images[0]), box[0]) for images, box in sets])
        fake = np.stack([crop(damage(images[1]), box[0]) for images, box in sets])
        generated = np.stack([crop(damage(image), box) for image, _, box in made])
        found[name] = {}
        for title, model in models.items():
            a, b, c = (model.logits(crops)[0] for crops in (real, fake, generated))
            calibration = {key: (v[0], v[1]) for key, v in model.info.calibration.items()}
            limits = {key: dict(ends) for key, ends in model.info.thresholds.items()}
            y = np.repeat([0, 1], [len(a), len(b)])
            both = np.concatenate([groups, groups])
            auc = metrics.interval(metrics.auc, y, np.concatenate([a, b])[:, 0], both, rounds)
            made_y = np.repeat([0, 1], [len(a), len(c)])
            found[name][title] = {
                "swap_auc": [round(v, 4) for v in auc],
                "generated_auc": round(metrics.auc(made_y, np.concatenate([a, c])[:, 1]), 4),
                "false_alarms": round(float(flagged(a, calibration, limits, "high").mean()), 4),
            }
        say(f"{name}: {json.dumps(found[name])}")
    return found


def steps(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """What the log of each compression says of its last two stages."""
    found = []
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        plan = json.loads((folder / "network.json").read_text())["plan"]
        cut = next(row for row in rows if "macs" in row)
        found.append({
            "technique": plan["technique"], "teacher": plan["teacher"], "macs": cut["macs"],
            "params": cut["params"], "steps": [plan["prune"], plan["tune"]],
            "swap_auc_pruned": cut["swap_auc"], "swap_auc": rows[-1]["swap_auc"],
            "generated_auc": rows[-1]["generated_auc"],
        })  # fmt: skip
    return found


def batch_times(models: dict[str, Model], held: Validation, rounds: int = 12) -> dict[str, float]:
    """Median time a face in a batch of 16, by model."""
    import statistics
    import time

    taken: dict[str, list[float]] = {name: [] for name in models}
    crops = held.plain[:16]
    for number in range(rounds + 3):
        for name, model in models.items():
            start = time.perf_counter()
            model.logits(crops)
            if number >= 3:
                taken[name].append((time.perf_counter() - start) * 1e3 / len(crops))
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def main() -> None:
    """Run the step as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--work", type=Path, required=True, help="private folder for val crops")
    parser.add_argument("--student", type=Path, nargs="*", default=[], help="train.compress's")
    parser.add_argument("--dense", type=Path, help="folder of train.train, for its log")
    parser.add_argument("--folder", type=Path, help="JSON of unmask evaluate on train.folder's")
    parser.add_argument("--pairs", type=int, default=250, help="pairs of the robustness grid")
    parser.add_argument("--rounds", type=int, default=300, help="rounds of the bootstrap")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    given = parser.parse_args()
    one_thread()
    held = kept(given.data, given.work)
    infos = {info.name: info for info in available()}
    models = {name: Model(info) for name, info in infos.items()}
    result: dict[str, Any] = {
        "version": next(iter(infos.values())).version,
        "faces": {"real": len(held.faces), "generated": len(held.generated_faces)},
        "models": {
            name: {
                "title": info.title, "params": info.params, "macs": info.macs,
                "bytes": info.bytes, "calibration": info.calibration,
                "thresholds": info.thresholds, "figures": info.figures,
            }
            for name, info in infos.items()
        },
        "ms_single": milliseconds(models, held.plain, 200),
        "ms_batch_16": batch_times(models, held),
        "compression": steps(given.student),
        "training": [json.loads(line) for line in (given.dense / "log.jsonl").open()]
        if given.dense else [],
    }  # fmt: skip
    for name in ("dense", "int8"):
        answers = ask(models[name], held)
        result["models"][name]["details"] = details(infos[name], answers, held, given.rounds)
    chosen = {name: models[name] for name in ("dense", "int8")}
    result["robustness_pairs"] = given.pairs
    result["robustness"] = robustness(chosen, given.data, held, given.pairs, 100)
    if given.folder:
        result["folder"] = json.loads(given.folder.read_text())
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "unmask_detector.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.out / "unmask_detector.md").write_text(page(result))
    sheet = ROOT / "apps" / "unmask" / "MODEL_CARD.md"
    sheet.write_text(card(sheet.read_text("utf-8"), result), "utf-8")


if __name__ == "__main__":
    main()
