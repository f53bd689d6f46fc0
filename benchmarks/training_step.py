"""How much longer a training step takes with masks: ResNet-18, batch 64, 32 x 32 pixels.

Identical networks train side by side, their steps in turns: one under a mask that is re-applied
after every step, one under a one-cycle schedule whose updates are part of the time, and a second
dense one, whose ratio to the first shows what the machine's noise amounts to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import common
import torch
import torchvision
from torch import nn

from secateur import Sparsifier


def trainer(network: nn.Module, technique: str | None, total: int) -> Callable[[], float]:
    """Return a function that trains one step and says how long it took."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    if technique is not None:
        Sparsifier(network, technique, sparsity=0.9).attach(optimizer, total)
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(0, 10, (64,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    for _ in range(3):
        step()
    return lambda: common.timed(step)


def main() -> None:
    """Measure, print and write."""
    options = common.arguments(__doc__ or "")
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=10)
    rounds = max(options.rounds, 120)
    contenders = {
        "dense": trainer(copy.deepcopy(network), None, 1),
        "dense again": trainer(copy.deepcopy(network), None, 1),
        "masks re-applied": trainer(
            copy.deepcopy(network), "weight | global | magnitude | one_shot", rounds + 3
        ),
        "one cycle of 10,000 steps": trainer(
            copy.deepcopy(network), "weight | global | magnitude | one_cycle", 10_000
        ),
    }
    seconds = common.paired(contenders, rounds)
    rows = common.ratios(seconds, "dense")
    setting = {"network": "resnet18", "batch": 64, "pixels": 32, "sparsity": 0.9, "rounds": rounds}
    common.publish("Training step with masks / without", {"setting": setting, "seconds": seconds},
                   rows, options.json)  # fmt: skip


if __name__ == "__main__":
    main()
