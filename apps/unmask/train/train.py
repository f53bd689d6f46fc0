"""Step 2: train the dense network; stop it at any time, the same command goes on.

python -m train.train --cache FOLDER --out FIRST --steps 14000
python -m train.train --cache FOLDER --out DENSE --start FIRST/last.pt --steps 22000 \\
    --rate 2e-3 --ramp 0 --whole 0.75 --seed 2

The second line is another rise and fall of the learning rate, from where the first one ended.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from train import say
from train.batches import Batch, Batches, one_thread, stream
from train.data import DATA, Cache
from train.network import Detector
from train.validation import Crops, Validation, build
from unmask.metrics import auc

LIMIT = 600  # validation pairs watched while training


@dataclass(frozen=True)
class Settings:
    """What a run is made of; kept beside its checkpoint."""

    steps: int
    widths: tuple[int, ...] = (32, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 1, 1, 1)
    pairs: int = 20
    generated: int = 3
    rate: float = 3e-3
    decay: float = 0.02
    warm: float = 0.08
    """Share of the steps in which the learning rate rises."""
    ramp: float = 0.3
    """Share of the steps in which the degradations grow to their full share."""
    side: int = 96
    """Pixels of the part of each picture that is trained on until ``whole``: half the time."""
    whole: float = 0.8
    """Share of the steps after which whole pictures are trained on."""
    average: float = 0.998
    seed: int = 0


def losses(logits: Tensor, maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Swap (real against twin), generated (against real only) and the two maps, each a mean."""
    count, extra = len(batch.real), len(batch.generated)
    bce = functional.binary_cross_entropy_with_logits
    swap = torch.cat([torch.zeros(count), torch.ones(count)])
    answers = torch.cat([logits[:count, 1], logits[2 * count :, 1]])
    made = torch.cat([torch.zeros(count), torch.ones(extra)])
    balance = torch.cat([torch.ones(count), torch.full((extra,), count / max(extra, 1))])
    truth = torch.cat([torch.zeros_like(batch.maps), batch.maps])
    return {
        "swap": bce(logits[: 2 * count, 0], swap),
        "generated": bce(answers, made, balance, reduction="sum") / (2 * count),
        "maps": bce(maps[: 2 * count], truth),
    }


WEIGHTS = {"swap": 1.0, "generated": 0.3, "maps": 3.0}


@torch.no_grad()
def average(mean: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the running mean of the weights towards the model's (faster in the beginning)."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for old, new in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, share)
        else:
            old.copy_(new)


@torch.no_grad()
def answers(model: nn.Module, crops: Crops, batch: int = 50) -> np.ndarray:
    """Logits (N x 2) of crops (uint8 N x S x S x 3)."""
    model.eval()
    out = []
    for first in range(0, len(crops), batch):
        faces = torch.from_numpy(crops[first : first + batch]).permute(0, 3, 1, 2).float() / 255
        out.append(model(faces.contiguous())[0].numpy())
    return np.concatenate(out)


def validate(model: nn.Module, held: Validation) -> dict[str, float]:
    """Frame AUC of both answers on the held-out crops."""
    real, fake, made = (answers(model, c) for c in (held.real, held.fake, held.generated))
    pairs = np.repeat([0, 1], [len(real), len(fake)])
    others = np.repeat([0, 1], [len(real), len(made)])
    return {
        "swap_auc": auc(pairs, np.concatenate([real, fake])[:, 0]),
        "generated_auc": auc(others, np.concatenate([real, made])[:, 1]),
        "twins_in_order": float(np.mean(fake[:, 0] > real[:, 0])),
    }


def optimiser_for(model: nn.Module, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW whose decay spares norms and biases."""
    heavy = [p for p in model.parameters() if p.ndim > 1]
    light = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))


def rate_at(step: int, settings: Settings) -> float:
    """One rise and a cosine fall to zero, as a share of the highest rate."""
    place = step / settings.steps
    if place < settings.warm:
        return place / settings.warm
    return float(0.5 * (1 + np.cos(np.pi * (place - settings.warm) / (1 - settings.warm))))


def train(
    settings: Settings, cache: Cache, held: Validation, out: Path,
    start: Path | None = None, compiled: bool = False,
) -> None:  # fmt: skip
    """Train to the end, from the last checkpoint in ``out`` if there is one, else from ``start``.

    ``compiled`` fuses the operators between the convolutions: four fifths of the time.
    """
    torch.manual_seed(settings.seed)
    model = Detector(settings.widths, settings.blocks).to(memory_format=torch.channels_last)
    if start is not None:
        model.load_state_dict(load_dense(start).state_dict())
    mean = copy.deepcopy(model)
    forward = torch.compile(model) if compiled else model
    optimiser = optimiser_for(model, settings.rate, settings.decay)
    first, kept = 0, out / "last.pt"
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        model.load_state_dict(state["model"])
        mean.load_state_dict(state["mean"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    batches = Batches(
        cache, settings.pairs, settings.generated,
        int(settings.ramp * settings.steps), settings.seed,
    )  # fmt: skip
    log = (out / "log.jsonl").open("a")
    started, sums = time.monotonic(), dict.fromkeys(WEIGHTS, 0.0)
    for step, batch in enumerate(stream(batches, first, settings.steps), first):
        model.train()
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * rate_at(step + 1, settings)
        if step < settings.whole * settings.steps:
            batch = batch.part(settings.side, step)  # noqa: PLW2901
        with torch.autocast("cpu", torch.bfloat16):  # half the time of 32 bits
            logits, maps = forward(batch.faces)
        parts = losses(logits.float(), maps.float(), batch)
        optimiser.zero_grad()
        sum((WEIGHTS[name] * part for name, part in parts.items()), torch.zeros(())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        average(mean, model, step, settings.average)
        for name, part in parts.items():
            sums[name] += float(part.detach()) / 50
        done = step + 1
        if done % 50 == 0:
            row: dict[str, float] = {"step": done, **sums, "seconds": time.monotonic() - started}
            say(json.dumps({k: round(v, 4) for k, v in row.items()}))
            sums = dict.fromkeys(WEIGHTS, 0.0)
        if done % batches.per_epoch == 0 or done == settings.steps:
            row = {"step": done, "epoch": done / batches.per_epoch, **validate(mean, held)}
            say(json.dumps({k: round(v, 4) for k, v in row.items()}))
            log.write(json.dumps(row) + "\n")
            log.flush()
        if done % 100 == 0 or done == settings.steps:
            save(kept, model, mean, optimiser, done, settings)


def save(
    path: Path, model: nn.Module, mean: nn.Module, optimiser: torch.optim.Optimizer,
    step: int, settings: Settings,
) -> None:  # fmt: skip
    """Write a checkpoint, whole or not at all."""
    state = {
        "model": model.state_dict(), "mean": mean.state_dict(),
        "optimiser": optimiser.state_dict(), "step": step, "settings": asdict(settings),
    }  # fmt: skip
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_dense(path: Path) -> Detector:
    """The averaged network of a checkpoint."""
    state = torch.load(path, weights_only=True)
    settings = state["settings"]
    model = Detector(settings["widths"], settings["blocks"])
    model.load_state_dict(state["mean"])
    return model.eval()


def main() -> None:
    """Run the step as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, required=True, help="what train.prepare wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--start", type=Path, help="checkpoint whose weights to start from")
    for name in ("rate", "ramp", "whole"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Settings, name))
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    arguments = parser.parse_args()
    one_thread()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        arguments.steps, rate=arguments.rate, ramp=arguments.ramp, whole=arguments.whole,
        seed=arguments.seed,
    )  # fmt: skip
    held = build(arguments.data, limit=LIMIT)
    cache = Cache.open(arguments.cache)
    train(settings, cache, held, arguments.out, arguments.start, arguments.compile)


if __name__ == "__main__":
    main()
