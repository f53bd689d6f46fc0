"""Step 4: ONNX, int8, calibration, thresholds and figures: the folder that ships.

python -m train.export --dense FOLDER --student FOLDER --cache FOLDER --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import secateur
import torch
from secateur.export import quantize_onnx, to_onnx
from torch import nn

from train import say
from train.batches import Batches, one_thread
from train.data import DATA, Cache
from train.fit import ask, calibrate, figures, thresholds, verdicts
from train.network import Detector, Shipped
from train.train import load_dense
from train.validation import Crops, Validation, kept
from unmask.crops import SIZE
from unmask.models import Model, ModelInfo

TITLES = {
    "dense": "Dense, 32-bit",
    "pruned": "Pruned and distilled, 32-bit",
    "int8": "Pruned and distilled, 8-bit",
}
VERSION = "2"


def example(count: int = 2) -> torch.Tensor:
    """Random faces, always the same."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def cost(model: nn.Module) -> tuple[int, int]:
    """Parameters and multiply-accumulates of one face, as shipped."""
    found = secateur.trace(Shipped(model).eval(), example(1))
    return found.params, found.macs


def write_onnx(model: nn.Module, path: Path) -> None:
    """Write a network as it ships, and compare it with PyTorch."""
    names = ["logits", "boundary"]
    to_onnx(Shipped(model).eval(), example(), path, input_names=["faces"], output_names=names)


def calibration_batches(cache: Cache, count: int = 8) -> list[torch.Tensor]:
    """Training batches, degraded as in training: what sets the ranges of int8."""
    batches = Batches(cache, 20, 3, 0, 1)
    return [batches[number].faces.contiguous() for number in range(count)]


def milliseconds(models: dict[str, Model], crops: Crops, rounds: int = 60) -> dict[str, float]:
    """Median time of one face by model, taken in turns on one thread."""
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 10):
        face = crops[number % len(crops)][None]
        for name, model in models.items():
            start = time.perf_counter()
            model.logits(face)
            if number >= 10:
                taken[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def plain_info(name: str, path: Path, size: tuple[int, int]) -> ModelInfo:
    """A model's row before anything is fitted."""
    unset = {answer: {"low": 0.5, "high": 0.5} for answer in ("swap", "generated")}
    return ModelInfo(
        name, TITLES[name], VERSION, path, SIZE, *size, path.stat().st_size, 0.0,
        {"swap": (1.0, 0.0), "generated": (1.0, 0.0)}, unset, {},
    )  # fmt: skip


def row(info: ModelInfo, held: Validation, rounds: int) -> dict[str, Any]:
    """Fit one network on the validation split and describe it."""
    answers = ask(Model(info), held)
    calibration = calibrate(answers)
    limits = thresholds(answers, calibration)
    measured = {**figures(answers, rounds), **verdicts(answers, calibration, limits, rounds)}
    return {
        "name": info.name, "file": info.path.name, "title": info.title,
        "params": info.params, "macs": info.macs, "bytes": info.bytes, "ms": info.ms,
        "calibration": {key: [round(v, 6) for v in pair] for key, pair in calibration.items()},
        "thresholds": limits, "figures": measured,
    }  # fmt: skip


def export(
    dense: Detector, student: nn.Module, shape: dict[str, Any], cache: Cache, held: Validation,
    out: Path, rounds: int = 300, tell: Callable[[str], None] = say,
) -> None:  # fmt: skip
    """Write the folder anew: files first, the list last."""
    out.mkdir(parents=True, exist_ok=True)
    for name, model in (("dense", dense), ("pruned", student)):
        write_onnx(model, out / f"{name}.onnx")
        shutil.rmtree(out / name, ignore_errors=True)
        secateur.save(model, out / name)
        (out / name / "model.safetensors").chmod(0o644)
        (out / name / "network.json").write_text(json.dumps(shape))
    small = quantize_onnx(
        out / "pruned.onnx", calibration_batches(cache), out / "int8.onnx", method="percentile"
    )
    tell(f"int8: layers kept in floats {small.kept}, others {small.others}")
    sizes = {"dense": cost(dense), "pruned": cost(student)}
    sizes["int8"] = sizes["pruned"]
    infos = {name: plain_info(name, out / f"{name}.onnx", size) for name, size in sizes.items()}
    times = milliseconds({name: Model(info) for name, info in infos.items()}, held.plain)
    rows = []
    for name, info in infos.items():
        rows.append(row(replace(info, ms=times[name]), held, rounds))
        short = {key: rows[-1]["figures"][key] for key in ("swap_auc", "generated_auc")}
        tell(json.dumps({"name": name, "bytes": info.bytes, "ms": times[name], **short}))
    listed = {"version": VERSION, "size": SIZE, "default": "int8", "models": rows}
    part = out / "models.json.part"
    part.write_text(json.dumps(listed, indent=1) + "\n")
    part.replace(out / "models.json")


def load_student(folder: Path) -> nn.Module:
    """The shrunk network that train.compress saved."""
    how = json.loads((folder / "network.json").read_text())
    build = Detector(how["widths"], how["blocks"])
    return secateur.load(folder / "model", lambda: build).eval()


def main() -> None:
    """Run the step as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, required=True, help="what train.prepare wrote")
    parser.add_argument("--dense", type=Path, required=True, help="folder of train.train")
    parser.add_argument("--student", type=Path, required=True, help="folder of train.compress")
    parser.add_argument("--work", type=Path, required=True, help="private folder for val crops")
    default = Path(__file__).resolve().parents[1] / "src" / "unmask" / "weights"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=300, help="rounds of the bootstrap")
    given = parser.parse_args()
    one_thread()
    np.seterr(all="raise", under="ignore")
    given.work.mkdir(parents=True, exist_ok=True)
    held = kept(given.data, given.work)
    how = json.loads((given.student / "network.json").read_text())
    export(
        load_dense(given.dense / "last.pt"), load_student(given.student),
        {name: how[name] for name in ("widths", "blocks")},
        Cache.open(given.cache), held, given.out, given.rounds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
