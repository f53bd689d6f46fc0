"""ResNet-56 on CIFAR-10 at 2.1 and 2.5 times fewer MACs, beside Torch-Pruning 1.6.1.

    python -m benchmarks.studies.resnet56 --out runs/studies/resnet56

From the root of the repository, with CIFAR-10 under runs/data/cifar10 and the weights of ResNet-56
under runs/data/weights, and Torch-Pruning installed. Both libraries start from the same weights and
score a channel by the sum of squares of all parameters that carry it. Two rules, each by both:

- *local*: the same share of every layer goes at once,
- *global*: what is lowest in the network goes at once, scores divided by their layer's mean.

Beside them stands *local, filters alone*, by secateur: as local, by the norms of the filters that
make a channel, without the norms behind them and the weights that read it.

Pruning draws nothing, so that all seeds fine-tune the same pruned networks. They are fine-tuned by
the same loop on the same images in the same order, in bfloat16 where the processor has it. Where
both libraries leave the same network, bit for bit, it is fine-tuned once. Accuracy is counted on
2,500 of the test images; also before fine-tuning, with the statistics of the batch norms taken anew
over 500 images. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import Sparsifier, shrink
from secateur.structure import observe
from secateur.study.cells import code_digest
from secateur.train.data import ImageDataset, load_data
from secateur.train.job import hardware, versions
from secateur.train.models import load_weights

RATIOS, SEEDS = (2.1, 2.5), range(3)
TRAIN, TEST, EPOCHS, BATCH, RATE = 3000, 2500, 1, 64, 1e-2
EXAMPLE = torch.zeros(1, 3, 32, 32)
WHOLE = 125_485_696  # multiply-accumulates of the published network
Prune = Callable[[nn.Module, float], nn.Module]


class Shortcut(nn.Module):
    """A block of the network whose shortcut is a 1x1 convolution, at first with zeros and ones.

    The original pads channels with zeros where the width grows, which Torch-Pruning 1.6.1 cannot
    prune through (IndexError). This computes the same.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut: nn.Module = nn.Identity()
        outputs, inputs = block.conv1.out_channels, block.conv1.in_channels
        if outputs != inputs:
            self.shortcut = conv = nn.Conv2d(inputs, outputs, 1, block.conv1.stride, bias=False)
            with torch.no_grad():
                weight = conv.weight.zero_()
                weight[(outputs - inputs) // 2 :][:inputs, :, 0, 0] = torch.eye(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's outputs."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        made: Tensor = functional.relu(y + self.shortcut(x))
        return made


def resnet56(original: bool = False) -> nn.Module:
    """The trained network, 93.39 % on the test images."""
    model: Any = importlib.import_module("tests.networks").resnet_cifar(56)
    load_weights(model, "runs/data/weights/resnet56_cifar10.safetensors")
    if not original:
        for stage in (model.layer1, model.layer2, model.layer3):
            for place, block in enumerate(stage):
                stage[place] = Shortcut(block)
    trained: nn.Module = model.eval()
    return trained


def macs_of(model: nn.Module) -> int:
    """Count the multiply-accumulates of one image, the same way for both."""
    return observe(model.eval(), lambda: model(EXAMPLE)).macs


def by_secateur(technique: str) -> Prune:
    """Prune to a share of the MACs under a technique."""

    def prune(model: nn.Module, ratio: float) -> nn.Module:
        sparsifier = Sparsifier(model, technique, macs=WHOLE / ratio / macs_of(model),
                                example_inputs=EXAMPLE)  # fmt: skip
        sparsifier.step(1.0)
        shrink(model, sparsifier, EXAMPLE)
        return model

    return prune


def torch_pruner(model: nn.Module, share: float, whole: bool) -> Any:
    """Make a pruner of Torch-Pruning that takes a share of the channels, globally if ``whole``."""
    import torch_pruning as tp

    return tp.pruner.BasePruner(
        model, EXAMPLE, importance=tp.importance.GroupMagnitudeImportance(p=2, bias=True),
        global_pruning=whole, pruning_ratio=share, iterative_steps=1,
        ignored_layers=[model.get_submodule("linear")],
    )  # fmt: skip


def by_torch_pruning(whole: bool) -> Prune:
    """Prune at once with Torch-Pruning, by the smallest share of channels that is enough."""

    def prune(model: nn.Module, ratio: float) -> nn.Module:
        low, high, best = 0.0, 1.0, model
        for _ in range(10):
            share = (low + high) / 2
            tried = copy.deepcopy(model)
            torch_pruner(tried, share, whole).step()
            if macs_of(tried) <= WHOLE / ratio:
                high, best = share, tried
            else:
                low = share
        return best

    return prune


WAYS: dict[str, Prune] = {
    "secateur, local": by_secateur("filter | local | group_magnitude | one_shot"),
    "Torch-Pruning, local": by_torch_pruning(whole=False),
    "secateur, global": by_secateur("filter | global | group_magnitude(normalize=mean) | one_shot"),
    "Torch-Pruning, global": by_torch_pruning(whole=True),
    "secateur, local, filters alone": by_secateur(
        "filter | local | magnitude(reduce=l2) | one_shot"
    ),
}


def norms_of(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return the batch norms by name."""
    return {n: each for n, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}


def channels_of(model: nn.Module, whole: nn.Module) -> set[tuple[str, int]]:
    """Return which channels of the whole network are left, known by their norms' statistics."""
    left = set()
    mine = norms_of(model)
    for name, norm in norms_of(whole).items():
        first, second = norm.running_mean, mine[name].running_mean
        assert first is not None and second is not None
        left |= {(name, int(place)) for place in torch.isin(first, second).nonzero()}
    return left


def same(model: nn.Module, other: nn.Module, whole: nn.Module) -> float:
    """Return the share of the channels left in either network that are left in both."""
    first, second = channels_of(model, whole), channels_of(other, whole)
    return len(first & second) / len(first | second)


def equal(model: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are the same, bit for bit."""
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(each, second[name]) for name, each in first.items()
    )


def settled(model: nn.Module, data: ImageDataset) -> nn.Module:
    """Return a copy whose batch norms have the statistics of 500 images."""
    model = copy.deepcopy(model)
    for norm in norms_of(model).values():
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    with torch.no_grad():
        for rows in torch.arange(500).split(100):
            model(data.__getitems__(rows.tolist())[0])
    return model


def fine_tune(model: nn.Module, data: ImageDataset, seed: int) -> None:
    """Train for the stated epochs: SGD with momentum, the rate falling along a half cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    per_epoch = len(data) // BATCH
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * per_epoch)
    model.train()
    for epoch in range(EPOCHS):
        data.set_epoch(epoch)
        order = torch.randperm(len(data), generator=generator)
        for rows in order[: per_epoch * BATCH].split(BATCH):
            images, labels = data.__getitems__(rows.tolist())
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()


def accuracy(model: nn.Module, data: ImageDataset) -> float:
    """Return the accuracy on all images, in float32."""
    model.eval()
    hits: list[Tensor] = []
    with torch.no_grad():
        for rows in torch.arange(len(data)).split(250):
            images, labels = data.__getitems__(rows.tolist())
            hits.append((model(images).argmax(1) == labels).float())
    return float(torch.cat(hits).mean())


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/resnet56"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = {(each["way"], each["ratio"], each["seed"]): each["accuracy"]
             for each in map(json.loads, lines)}  # fmt: skip
    network, dense = resnet56(), resnet56(original=True)
    assert macs_of(dense) == WHOLE
    params = sum(each.numel() for each in dense.parameters())
    before: float | None = None
    about = {
        "versions": {**versions(), "code": code_digest(),
                     "torch-pruning": metadata.version("torch-pruning")},
        "hardware": hardware(), "train": TRAIN, "test": TEST, "epochs": EPOCHS,
        "batch": BATCH, "rate": RATE,
    }  # fmt: skip
    pruned: dict[tuple[str, float], nn.Module] = {}
    early: dict[tuple[str, float], float] = {}
    test = load_data("cifar10:runs/data/cifar10", seed=0, limit=TEST).valid
    for seed in SEEDS:
        train = load_data("cifar10:runs/data/cifar10", seed=seed, limit=TRAIN).train
        for (name, prune), ratio in itertools.product(WAYS.items(), RATIOS):
            begun, key = time.monotonic(), (name, ratio)
            peer = (name.replace("Torch-Pruning", "secateur"), ratio)
            if key not in pruned:
                pruned[key] = prune(copy.deepcopy(network), ratio)
            mine, other = (*key, seed), (*peer, seed)
            if mine in found:
                continue
            before = accuracy(dense, test) if before is None else before
            twin = key != peer and equal(pruned[key], pruned[peer])
            if key not in early:
                early[key] = early[peer] if twin and peer in early else accuracy(
                    settled(pruned[key], train), test)  # fmt: skip
            model = copy.deepcopy(pruned[key])
            if twin and other in found:
                found[mine] = found[other]
            else:
                fine_tune(model, train, seed)
                found[mine] = accuracy(model, test)
            record = {
                "way": name, "ratio": ratio, "seed": seed,
                "achieved": WHOLE / macs_of(model),
                "params": sum(each.numel() for each in model.parameters()) / params,
                "same_channels": same(pruned[key], pruned[peer], network),
                "same_network": twin, "accuracy_early": early[key],
                "accuracy": found[mine], "accuracy_dense": before,
                "seconds": round(time.monotonic() - begun, 1), **about,
            }  # fmt: skip
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(json.dumps({k: v for k, v in record.items() if k not in about}), flush=True)


if __name__ == "__main__":
    main()
