"""Induced feature selection against other ways to choose inputs, at equal size and equal training.

    python benchmarks/studies/features.py --out runs/studies/features

From the root of the repository, with Fashion-MNIST in torchvision's layout under
runs/data/fashion_mnist and CIFAR-10 under runs/data/cifar10; goes on where it was stopped. On every
data set and at every budget, all networks with chosen inputs have the same layers, and all see the
same number of training steps:

- induced: inputs and hidden widths are pruned together by the magnitude of the weights that read
  them, over the first part of the training; what is freed is removed, and the rest is retraining;
- random, variance, logistic: that many inputs, chosen at random, by their variance, or by a
  logistic regression with an L1 penalty; the network of the same size is trained on them;
- weights only: all inputs stay, and hidden units are pruned to the same number of parameters;
- dense: nothing is removed.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import Sparsifier, select_inputs, select_patches, shrink
from secateur.errors import SecateurError
from secateur.structure import PatchSelector, SelectedInputs
from secateur.study.cells import code_digest
from secateur.train.data import load_data
from secateur.train.job import hardware, versions

METHODS = ("dense", "induced", "random", "variance", "logistic", "weights only")
SEEDS = range(5)
BATCH, RETRAINING = 64, 0.4
TECHNIQUE = "shared_kernel | local | magnitude | one_cycle"


@dataclass(frozen=True)
class Task:
    """A data set, a network for it, and how its input features lie.

    ``features`` gives images as a table [N, features]: what variance and regression look at.
    """

    name: str
    data: Callable[[int], tuple[Tensor, ...]]
    build: Callable[[], nn.Module]
    features: Callable[[Tensor], Tensor]
    budgets: tuple[float, ...]
    epochs: int
    rate: float


class Tokens(nn.Module):
    """Patches of an image, embedded, mixed by a layer of attention, averaged."""

    def __init__(self, channels: int, patch: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.norm = nn.BatchNorm1d(width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images."""
        tokens = functional.relu(self.norm(self.embed(images).flatten(2)).transpose(1, 2))
        scores: Tensor = self.head(self.down(functional.relu(self.up(tokens))).mean(1))
        return scores


def perceptron(features: int, classes: int, width: int = 64) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        nn.Linear(width, classes),
    )  # fmt: skip


def convolutions(channels: int, classes: int) -> nn.Module:
    """Three convolutions with batch norms."""
    layers: list[nn.Module] = []
    for width in (16, 24, 32):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes))


def _images(spec: str, limit: int, seed: int, size: int | None = None) -> tuple[Tensor, ...]:
    data = load_data(spec, limit=limit, seed=seed, size=size)
    mean = torch.tensor(data.mean)[:, None, None]
    std = torch.tensor(data.std)[:, None, None]
    return tuple(
        part
        for split in (data.train, data.valid)
        for part in ((_pixels(split.images) / 255 - mean) / std, split.labels)
    )


def _pixels(images: Any) -> Tensor:
    every: Tensor = images[torch.arange(len(images))].float()
    return every


def fashion(limit: int) -> Callable[[int], Any]:
    """Fashion-MNIST, 28x28 grey."""
    return lambda seed: _images("fashion-mnist:runs/data/fashion_mnist", limit, seed)


CHANNELS = ("red", "green", "blue", "grey", "saturation", "value", "edges across", "edges down",
            "noise 1", "noise 2", "another image's red", "another image's grey")  # fmt: skip


def views(seed: int) -> tuple[Tensor, ...]:
    """CIFAR-10 at 16x16 in twelve channels, four of which say nothing of the class."""
    parts = _images("cifar10:runs/data/cifar10", 1500, seed, 16)
    generator = torch.Generator().manual_seed(seed)
    return _views(parts[0], generator), parts[1], _views(parts[2], generator), parts[3]


def _views(images: Tensor, generator: torch.Generator) -> Tensor:
    grey = images.mean(1, keepdim=True)
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    across = functional.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = functional.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    noise = torch.randn(len(images), 2, *images.shape[2:], generator=generator)
    other = torch.randperm(len(images), generator=generator)
    stacked = torch.cat(
        [images, grey, value - low, value, across, down, noise, images[other, :1], grey[other]], 1
    )
    return stacked / stacked.std((0, 2, 3), keepdim=True)


def tumours(seed: int) -> tuple[Tensor, ...]:
    """Scikit-learn's breast cancer data: 30 measures of 569 tumours, divided 70 to 30."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    found = load_breast_cancer()
    train, valid, one, other = train_test_split(
        found.data, found.target, test_size=0.3, stratify=found.target, random_state=seed
    )
    mean, std = train.mean(0), train.std(0)
    return (
        torch.from_numpy((train - mean) / std).float(), torch.from_numpy(one),
        torch.from_numpy((valid - mean) / std).float(), torch.from_numpy(other),
    )  # fmt: skip


def _patches(images: Tensor) -> Tensor:
    return functional.unfold(images, 7, stride=7).transpose(1, 2).flatten(0, 1)


TASKS = {
    task.name: task
    for task in (
        Task("pixels", fashion(4000), lambda: perceptron(784, 10),
             lambda x: x.flatten(1), (0.5, 0.75, 0.9, 0.96), 8, 3e-3),
        Task("patch entries", fashion(1500), lambda: Tokens(1, 7, 32, 10),
             _patches, (0.5, 0.75, 0.88, 0.94), 8, 1e-2),
        Task("channels", views, lambda: convolutions(12, 10),
             lambda x: x.mean((2, 3)), (0.1, 0.2, 0.3, 0.4), 5, 1e-2),
        Task("tabular", tumours, lambda: perceptron(30, 2, 16),
             lambda x: x, (0.5, 0.75, 0.85, 0.93), 30, 1e-2),
    )
}  # fmt: skip


def selected(task: Task) -> nn.Module:
    """The task's network with a selector of its inputs."""
    model = task.build()
    if task.name == "patch entries":
        select_patches(model, "embed")
        return model
    features = {"pixels": 784, "channels": 12, "tabular": 30}[task.name]
    return select_inputs(model, features, flatten=task.name == "pixels")


def selector_of(model: nn.Module) -> Any:
    """Where a network keeps the positions of its inputs."""
    return model.select if isinstance(model, SelectedInputs) else next(
        module for module in model.modules() if isinstance(module, PatchSelector)
    )  # fmt: skip


class Trainer:
    """One training of a network: AdamW, a linear rise and a half cosine, the same steps for all."""

    def __init__(self, task: Task, parts: tuple[Tensor, ...], seed: int) -> None:
        self.task, self.parts, self.seed = task, parts, seed
        self.per_epoch = max(1, len(parts[0]) // BATCH)
        self.total = task.epochs * self.per_epoch

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the same batches to every method of a seed."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.task.epochs):
            order = torch.randperm(len(self.parts[0]), generator=generator)
            for rows in order[: self.per_epoch * BATCH].split(BATCH):
                yield self.parts[0][rows], self.parts[1][rows]

    def train(self, model: nn.Module, sparsifier: Sparsifier | None = None) -> None:
        """Train; where there is a sparsifier, prune, remove what is freed, and retrain."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.task.rate, weight_decay=0.01)
        ends = self.total - round(RETRAINING * self.total)
        if sparsifier is not None:
            sparsifier.attach(optimizer, total_steps=ends)
        for step, (images, labels) in enumerate(self.batches()):
            if step == ends and sparsifier is not None:
                shrink(model, sparsifier, images[:2], optimizer=optimizer)
                model.train()
            for group in optimizer.param_groups:
                group["lr"] = self.task.rate * rate_at(step, self.total)
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    def accuracy(self, model: nn.Module) -> float:
        """Return the accuracy on the validation part."""
        model.eval()
        with torch.no_grad():
            hits = [
                (model(images).argmax(1) == labels).float()
                for images, labels in zip(
                    self.parts[2].split(500), self.parts[3].split(500), strict=True
                )
            ]
        return float(torch.cat(hits).mean())


def rate_at(step: int, total: int) -> float:
    """Return the share of the highest learning rate at a step."""
    rise = max(1, round(0.25 * total))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2


def cut_to(task: Task, shape: nn.Module, chosen: Tensor, example: Tensor, seed: int) -> nn.Module:
    """Return a fresh network that reads the chosen inputs, with the layers of another."""
    torch.manual_seed(seed)
    model = selected(task)
    widths = {name: tensor.shape for name, tensor in shape.named_parameters()}
    masks: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        mask = torch.ones(parameter.shape, dtype=torch.bool)
        for dim, (now, wanted) in enumerate(zip(parameter.shape, widths[name], strict=True)):
            reads = dim == 1 and now == selector_of(model).features and name == first_of(model)
            keep = chosen if reads else torch.arange(now) < wanted
            mask &= keep.reshape([-1 if each == dim else 1 for each in range(mask.dim())])
        masks[name] = mask
    shrink(model, masks, example)
    for name, parameter in model.named_parameters():
        assert parameter.shape == widths[name], (name, parameter.shape, widths[name])
    # Start values as a network of this size gets them, not those of a larger one.
    for module in model.modules():
        reset: Any = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return model.train()


def params_of(model: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(each.numel() for each in model.parameters())


def first_of(model: nn.Module) -> str:
    """Name the weight that reads the inputs."""
    return next(name for name, each in model.named_parameters() if each.dim() > 1)


def scores_of(task: Task, parts: tuple[Tensor, ...], seed: int) -> dict[str, Tensor]:
    """Return what each baseline thinks of the features; the highest are read."""
    table = task.features(parts[0]).double()
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        "random": torch.rand(table.shape[1], generator=generator),
        "variance": _relative_variance() if task.name == "tabular" else table.var(0),
        "logistic": logistic(task, parts),
    }


def _relative_variance() -> Tensor:
    """Standardised columns all have variance one: squared variation of the raw ones instead."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer().data
    return torch.from_numpy(data.var(0) / data.mean(0) ** 2)


def highest(scores: Tensor, count: int) -> Tensor:
    """Return booleans, True for the highest scores."""
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.topk(count).indices] = True
    return chosen


def logistic(task: Task, parts: tuple[Tensor, ...]) -> Tensor:
    """Return the summed absolute coefficients of a logistic regression with an L1 penalty."""
    from sklearn.linear_model import LogisticRegression

    table, labels = task.features(parts[0]), parts[1]
    labels = labels.repeat_interleave(len(table) // len(labels))
    rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))[:1500]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression(
            l1_ratio=1.0, solver="saga", C=0.05, max_iter=60, tol=1e-2, random_state=0
        ).fit(table[rows].numpy(), labels[rows].numpy())
    found = torch.from_numpy(np.abs(fitted.coef_)).sum(0)
    return found + 1e-9 * task.features(parts[0]).double().var(0)  # ties in favour of variance


def prune_weights_only(
    task: Task, trainer: Trainer, params: int, example: Tensor, seed: int
) -> nn.Module:
    """Prune hidden units alone, to a number of parameters."""
    torch.manual_seed(seed)
    model = task.build()
    whole = sum(each.numel() for each in model.parameters())
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_cycle", params=params / whole,
        example_inputs=example,
    )  # fmt: skip
    trainer.train(model, sparsifier)
    return model


def run(task: Task, seed: int) -> Iterator[dict[str, Any]]:
    """Give the records of all methods and budgets of one seed."""
    parts = task.data(seed)
    trainer = Trainer(task, parts, seed)
    example = parts[0][:2]

    def record(method: str, budget: float, model: nn.Module, chosen: Any, begun: float) -> Any:
        return {
            "task": task.name, "method": method, "budget": budget, "seed": seed,
            "accuracy": trainer.accuracy(model), "params": params_of(model),
            "inputs": None if chosen is None else int(chosen.sum()),
            "kept": None if chosen is None else chosen.nonzero().flatten().tolist(),
            "steps": trainer.total, "images": len(parts[0]),
            "seconds": round(time.monotonic() - begun, 2),
        }  # fmt: skip

    begun = time.monotonic()
    torch.manual_seed(seed)
    dense = task.build()
    trainer.train(dense)
    yield record("dense", 0.0, dense, None, begun)
    scores = scores_of(task, parts, seed)
    for budget in task.budgets:
        begun = time.monotonic()
        torch.manual_seed(seed)
        model = selected(task)
        sparsifier = Sparsifier(
            model, TECHNIQUE, sparsity=budget, example_inputs=example,
        )  # fmt: skip
        trainer.train(model, sparsifier)
        chosen = selector_of(model).mask
        yield record("induced", budget, model, chosen, begun)
        for method in scores:
            begun = time.monotonic()
            mask = highest(scores[method], int(chosen.sum()))
            other = cut_to(task, model, mask, example, seed)
            trainer.train(other)
            yield record(method, budget, other, mask, begun)
        begun = time.monotonic()
        try:
            other = prune_weights_only(task, trainer, params_of(model), example, seed)
        except SecateurError as error:
            print(f"{task.name}, weights only at {budget}: {error}", flush=True)
            continue
        yield record("weights only", budget, other, None, begun)


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/features"))
    parser.add_argument("--task", action="append", choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    found = _read(path)
    about = {"versions": {**versions(), "code": code_digest()}, "hardware": hardware(),
             "machine": platform.machine()}  # fmt: skip
    for seed in SEEDS[: arguments.seeds]:
        for name in arguments.task or TASKS:
            if (name, seed) in found:
                continue
            records = list(run(TASKS[name], seed))
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({**each, **about}) + "\n" for each in records)
            for each in records:
                print(json.dumps({k: v for k, v in each.items() if k != "kept"}), flush=True)


def _read(path: Path) -> Mapping[tuple[str, int], int]:
    if not path.is_file():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(each["task"], each["seed"]): 1 for each in lines}


if __name__ == "__main__":
    main()
