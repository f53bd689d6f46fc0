"""Similar in what? Filter variety by weights, by weights behind their norm, and by activations.

    python -m benchmarks.studies.variety --out runs/studies/variety

From the root of the repository, with Fashion-MNIST under runs/data/fashion_mnist. A VGG shape is
trained, the same share of every layer is removed at once, and three things are counted:

- *tuned*: accuracy after a quarter of the training's steps;
- *ticket*: accuracy of what remains, put back to its first weights and trained like the dense
  network (the lottery ticket procedure);
- *alike*: the mean, over the filters that stay, of the largest similarity to another one that
  stays, by weights and by activations.

The modifier is called as it is in a technique; what it compares differs: weights, weights times the
norm's scale over its deviation, activations. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur import shrink
from secateur.study.cells import code_digest
from secateur.technique.criteria.modifiers import variety
from secateur.train.data import Data, load_data
from secateur.train.job import hardware, versions

BUDGETS, SEEDS = (0.7, 0.5, 0.3, 0.15), range(3)
LIMIT, STEPS, BATCH, RATE = 1600, 100, 64, 1e-2
# A norm's scale changes no angle, so that scaled weights are compared by their distance.
KINDS = {"weights": "cosine", "scaled weights": "distance", "activations": "cosine"}
CRITERIA = ("magnitude", "movement", "taylor")


def batches(data: Data, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the same batches to everyone."""
    generator, done = torch.Generator().manual_seed(seed), 0
    while True:
        data.train.set_epoch(done)
        for rows in torch.randperm(len(data.train), generator=generator).split(BATCH):
            if done == steps:
                return
            yield data.train.__getitems__(rows.tolist())
            done += 1


def train(model: nn.Module, data: Data, steps: int, seed: int) -> float:
    """Train, and return the accuracy on the validation images."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    model.train()
    for step, (images, labels) in enumerate(batches(data, steps, seed)):
        rise = max(1, steps // 4)
        share = (step + 1) / rise if step < rise else (
            1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = RATE * share
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        images, labels = data.valid.__getitems__(list(range(len(data.valid))))
        return float((model(images).argmax(1) == labels).float().mean())


def layers(model: nn.Module) -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    """Name every convolution, with the norm behind it."""
    modules = list(model.named_modules())
    return [
        (name, each, behind)
        for (name, each), (_, behind) in itertools.pairwise(modules)
        if isinstance(each, nn.Conv2d) and isinstance(behind, nn.BatchNorm2d)
    ]


def rows_of(model: nn.Module, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """Return what stands for each filter: its weights, the same scaled, and what it answers."""
    found: dict[str, dict[str, Tensor]] = {}
    handles = []
    for name, conv, norm in layers(model):
        weights = conv.weight.detach().flatten(1)
        assert norm.running_var is not None
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        own = found[name] = {"weights": weights, "scaled weights": weights * scale[:, None]}

        def keep(_: Any, __: Any, out: Tensor, own: dict[str, Tensor] = own) -> None:
            maps = functional.relu(out.detach())
            own["activations"] = maps.transpose(0, 1).flatten(1)

        handles.append(norm.register_forward_hook(keep))
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return found


def scores_of(model: nn.Module, first: nn.Module, data: Data, seed: int) -> dict[str, Any]:
    """Return for each criterion the score of every filter, by layer."""
    model.zero_grad()
    for images, labels in batches(data, 4, seed):
        functional.cross_entropy(model.eval()(images), labels).backward()
    start = {name: conv.weight for name, conv, _ in layers(first)}
    found: dict[str, dict[str, Tensor]] = {name: {} for name in CRITERIA}
    for name, conv, _ in layers(model):
        weight, gradient = conv.weight.detach(), conv.weight.grad
        assert gradient is not None
        found["magnitude"][name] = weight.abs().flatten(1).mean(1)
        found["movement"][name] = (weight - start[name].detach()).abs().flatten(1).mean(1)
        found["taylor"][name] = (weight * gradient).flatten(1).sum(1) ** 2
    model.zero_grad()
    return found


def cut(model: nn.Module, kept: dict[str, Tensor], example: Tensor) -> nn.Module:
    """Return a copy without the filters that are not kept."""
    small = copy.deepcopy(model)
    masks: dict[str, Tensor] = {}
    names = {id(module): name for name, module in small.named_modules()}
    for name, conv, norm in layers(small):
        shape = conv.weight.shape
        masks[f"{name}.weight"] = kept[name][:, None, None, None].expand(shape)
        for part in ("weight", "bias"):
            masks[f"{names[id(norm)]}.{part}"] = kept[name]
    shrink(small, masks, example)
    return small


def alike(rows: dict[str, dict[str, Tensor]], kept: dict[str, Tensor]) -> dict[str, float]:
    """Return the mean of the largest similarities among the filters that stay."""
    found = {}
    for kind in ("weights", "activations"):
        every = []
        for name, mask in kept.items():
            unit = functional.normalize(rows[name][kind][mask], dim=1)
            if len(unit) > 1:
                every.append((unit @ unit.T).abs().fill_diagonal_(0).amax(1))
        found[kind] = float(torch.cat(every).mean())
    return found


def ways(
    scores: dict[str, Any], rows: dict[str, dict[str, Tensor]], share: float, seed: int
) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Give criterion, what the modifier compares (or nothing), and the filters that stay."""

    def stay(ranked: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {}
        for name, values in ranked.items():
            count = max(1, round(share * len(values)))
            kept[name] = torch.zeros(len(values), dtype=torch.bool)
            kept[name][values.topk(count).indices] = True
        return kept

    generator = torch.Generator().manual_seed(100 + seed)
    yield "random", "", stay({n: torch.rand(len(r["weights"]), generator=generator)
                              for n, r in rows.items()})  # fmt: skip
    yield (
        "geometric median",
        "",
        stay(
            {
                name: torch.cdist(each["weights"], each["weights"]).sum(1)
                for name, each in rows.items()
            }
        ),
    )
    for criterion in CRITERIA:
        yield criterion, "", stay(scores[criterion])
        for kind, similarity in KINDS.items():
            if kind != "weights" and criterion != "magnitude":
                continue
            ranked = {}
            for name, values in scores[criterion].items():
                going = len(values) - max(1, round(share * len(values)))
                ranked[name] = variety(values, rows[name][kind], going, similarity=similarity)
            yield criterion, kind, stay(ranked)


def run(seed: int) -> Iterator[dict[str, Any]]:
    """Give the records of a seed."""
    data = load_data("fashion-mnist:runs/data/fashion_mnist", size=14, limit=LIMIT, seed=seed)
    torch.manual_seed(seed)
    first: nn.Module = importlib.import_module("benchmarks.studies.networks").vgg(10, 1)
    dense = copy.deepcopy(first)
    whole = train(dense, data, STEPS, seed)
    yield {"criterion": "dense", "seed": seed, "accuracy": whole}
    images = data.train.__getitems__(list(range(128)))[0]
    rows, scores = rows_of(dense, images), scores_of(dense, first, data, seed)
    for share in BUDGETS:
        for criterion, kind, kept in ways(scores, rows, share, seed):
            tuned = cut(dense, kept, images[:2])
            ticket = cut(first, kept, images[:2])
            yield {
                "criterion": criterion, "variety": kind, "kept": share, "seed": seed,
                "params": sum(each.numel() for each in tuned.parameters()),
                "alike": alike(rows, kept),
                "tuned": train(tuned, data, STEPS // 4, seed + 50),
                "ticket": train(ticket, data, STEPS, seed),
            }  # fmt: skip


def main() -> None:
    """Run the seeds that have no record yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies/variety"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    done = {json.loads(line)["seed"] for line in lines}
    about = {"versions": {**versions(), "code": code_digest()}, "hardware": hardware(),
             "images": LIMIT, "steps": STEPS, "rate": RATE}  # fmt: skip
    for seed in SEEDS:
        if seed not in done:
            records = list(run(seed))
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({**each, **about}) + "\n" for each in records)
            print(f"seed {seed}: {len(records)} records", flush=True)


if __name__ == "__main__":
    main()
