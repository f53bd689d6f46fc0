"""Runs `secateur compress` on real data for several seeds and gathers what is published of it.

    python benchmarks/record_runs.py --data DIR --weights FILE --json docs/results/runs.json

DIR holds `fashion_mnist/` and `cifar10/` in torchvision's layout, FILE the reference ResNet-20 of
tests/networks.py as safetensors. Every number is given per seed, with a mean and a 95 % interval
(Student's t) over the seeds; accuracies are on the first images of the official test split.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

from secateur.train import Settings, compress

SEEDS = (0, 1, 2)
T_95 = 4.303  # Student's t for two degrees of freedom
KEPT = ("accuracy", "sparsity", "params", "macs", "bytes_packed")


def settings(data: Path, weights: Path) -> dict[str, Settings]:
    """Return the runs by name; ``seed`` is filled in later."""
    fashion, cifar = f"fashion-mnist:{data / 'fashion_mnist'}", f"cifar10:{data / 'cifar10'}"
    tuned: dict[str, Any] = {
        "model": "networks:resnet_cifar", "data": cifar, "weights": str(weights), "epochs": 2,
        "limit": 2000,
    }  # fmt: skip
    return {
        "cnn, Fashion-MNIST, weights, sparsity 0.9": Settings(
            data=fashion, sparsity=0.9, epochs=4, limit=10_000
        ),
        "ResNet-20, CIFAR-10, weights, sparsity 0.8": Settings(
            technique="weight | global | magnitude | one_cycle", sparsity=0.8, **tuned
        ),
        "ResNet-20, CIFAR-10, filters, macs 0.7": Settings(
            technique="filter | global(keep=0.2) | magnitude(normalize=mean) | one_cycle",
            macs=0.7, **tuned,
        ),
    }  # fmt: skip


def interval(values: list[float]) -> dict[str, float]:
    """Return the mean and the half width of its 95 % interval."""
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": statistics.mean(values), "half_width_95": T_95 * spread}


def with_seed(given: Settings, seed: int) -> Settings:
    """Return the same settings under another seed."""
    return Settings(**{**vars(given), "seed": seed})


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    rows: dict[str, Any] = {}
    for name, given in settings(options.data, options.weights).items():
        runs = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                metrics = compress(with_seed(given, seed), Path(folder) / "run")
            runs.append(
                {"seed": seed, "budget": metrics["budget"], "achieved": metrics["achieved"]}
                | {side: {k: metrics[side][k] for k in KEPT} for side in ("before", "after")}
            )
            print(name, seed, runs[-1]["before"]["accuracy"], runs[-1]["after"]["accuracy"])
        rows[name] = {
            "technique": metrics["technique"],
            "before_is": metrics["before_is"],
            "settings": {
                key: value
                for key, value in vars(given).items()
                if key not in ("data", "weights", "seed") and value not in (None, (), False)
            },
            "runs": runs,
            "accuracy": {
                side: interval([run[side]["accuracy"] for run in runs])
                for side in ("before", "after")
            },
        }
        common.write(options.json, {"title": "Recorded runs", "seeds": SEEDS, "rows": rows})


if __name__ == "__main__":
    main()
