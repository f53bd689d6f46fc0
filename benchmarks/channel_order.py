"""n:m of trained ResNets with channels where they are and reordered, without training afterwards.

    python benchmarks/channel_order.py --json docs/results/channel_order.json

From the root of the repository, with CIFAR-10 under runs/data/cifar10 and the weights of ResNet-20
and ResNet-56 under runs/data/weights. Every pair is pruned at once by the same criterion on the
same 200 training images. Accuracy is counted on the same 2,500 test images; the difference comes
with a 95 % interval over images (bootstrap). Nothing is drawn but the bootstrap.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from secateur import Sparsifier
from secateur.train.data import ImageDataset, load_data
from secateur.train.models import load_weights

DEPTHS, PATTERNS, CRITERIA = (20, 56), ("2:4", "1:4"), ("magnitude", "wanda", "ria")
CALIBRATION, TEST, ROUNDS = 200, 2500, 2000
EXAMPLE = torch.zeros(1, 3, 32, 32)


def trained(depth: int) -> nn.Module:
    """Return the reference network with its weights."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    model: nn.Module = importlib.import_module("networks").resnet_cifar(depth)
    load_weights(model, f"runs/data/weights/resnet{depth}_cifar10.safetensors")
    return model.eval()


def first(images: ImageDataset, count: int) -> tuple[Tensor, Tensor]:
    """Return the first images of a split, and their classes."""
    images.augment = None
    pairs = [images[place] for place in range(count)]
    return torch.stack([image for image, _ in pairs]), torch.tensor([kind for _, kind in pairs])


@torch.no_grad()
def hits(model: nn.Module, images: Tensor, kinds: Tensor) -> np.ndarray[Any, Any]:
    """Return which images are classified right."""
    answers = torch.cat([model(part).argmax(1) for part in images.split(250)])
    return (answers == kinds).numpy()


def left(model: nn.Module, before: dict[str, Tensor]) -> float:
    """Return the share of the weights' absolute sum that is left of all convolutions and layers."""
    names = [name for name, each in model.named_parameters() if each.ndim > 1]
    after = dict(model.named_parameters())
    total = sum(float(before[name].abs().sum()) for name in names)
    return sum(float(after[name].detach().abs().sum()) for name in names) / total


def difference(given: Any, assigned: Any) -> list[float]:
    """Return the gain in accuracy with its 95 % interval over images."""
    gains = assigned.astype(float) - given.astype(float)
    random = np.random.default_rng(0)
    drawn = gains[random.integers(0, len(gains), (ROUNDS, len(gains)))].mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return [float(gains.mean()), float(low), float(high)]


def main() -> None:
    """Prune, count, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    loaded = load_data("cifar10:runs/data/cifar10", seed=0, limit=3000)
    calibration = [first(loaded.train, CALIBRATION)]
    images, kinds = first(loaded.valid, TEST)
    rows: list[dict[str, Any]] = []
    for depth in DEPTHS:
        dense = float(hits(trained(depth), images, kinds).mean())
        for pattern in PATTERNS:
            for criterion in CRITERIA:
                right, kept = {}, {}
                for order in ("given", "assigned"):
                    model = trained(depth)
                    before = {n: each.detach().clone() for n, each in model.named_parameters()}
                    Sparsifier(
                        model, f"{pattern}(remainder=keep, order={order}) | local | {criterion} | "
                        "one_shot", data=calibration, example_inputs=EXAMPLE,
                    ).step(1.0)  # fmt: skip
                    right[order], kept[order] = hits(model, images, kinds), left(model, before)
                rows.append({
                    "depth": depth, "pattern": pattern, "criterion": criterion, "dense": dense,
                    "given": float(right["given"].mean()),
                    "assigned": float(right["assigned"].mean()),
                    "gain": difference(right["given"], right["assigned"]),
                    "left_given": kept["given"], "left_assigned": kept["assigned"],
                })  # fmt: skip
    table = Table("ResNet", "pattern", "criterion", "dense", "given", "assigned", "gain",
                  "weights left", title="Order of channels before n:m")  # fmt: skip
    for row in rows:
        gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
        table.add_row(
            str(row["depth"]), row["pattern"], row["criterion"], f"{row['dense']:.3f}",
            f"{row['given']:.3f}", f"{row['assigned']:.3f}", gain,
            f"{row['left_given']:.3f} to {row['left_assigned']:.3f}",
        )  # fmt: skip
    Console().print(table)
    setting = {"calibration": CALIBRATION, "test": TEST, "bootstrap": ROUNDS}
    write(options.json, {"title": "Order of channels before n:m", "setting": setting, "rows": rows})


if __name__ == "__main__":
    main()
