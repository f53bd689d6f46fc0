"""Step 3: prune the dense network while it trains, shrink it, and tune what is left.

python -m train.compress --dense FOLDER --cache FOLDER --out FOLDER --prune 1500 --tune 1800

An interrupted run goes on with the same command. ``--technique`` and ``--no-teacher`` make the
variants that the results compare.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import secateur
import torch
from secateur.compress import binary_distillation_loss
from torch import Tensor, nn

from train import say
from train.batches import Batch, Batches, one_thread, stream
from train.data import DATA, Cache
from train.train import LIMIT, WEIGHTS, average, load_dense, losses, optimiser_for, validate
from train.validation import Validation, build
from unmask.crops import SIZE

TECHNIQUE = "filter | local | magnitude | one_cycle"
TEMPERATURE = 2.0
FIRST = 1_000_000  # batches that the dense training has not seen


@dataclass(frozen=True)
class Plan:
    """A compression: steps of pruning, then of tuning; ``macs`` is the share that stays."""

    prune: int
    tune: int
    technique: str = TECHNIQUE
    macs: float = 0.15
    branches: tuple[str, ...] = ("stage1.0",)
    """Residual branches that go whole: at full resolution they cost more time than MACs say."""
    teacher: bool = True
    round_to: int = 4
    rate: float = 1.5e-3
    decay: float = 0.01
    pairs: int = 20
    generated: int = 3
    seed: int = 1


Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Faces to logits and maps."""


def total_loss(
    model: Forward, teacher: Forward | None, batch: Batch, narrow: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The task's own losses, halved, and the distance from the teacher where there is one.

    A ``narrow`` network gets the channels first: with eight channels last, oneDNN's kernels crash.
    """
    faces = batch.faces
    with torch.autocast("cpu", torch.bfloat16, enabled=not narrow):
        logits, maps = model(faces.contiguous() if narrow else faces)
    logits, maps = logits.float(), maps.float()
    parts = losses(logits, maps, batch)
    own = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
    if teacher is None:
        return own, parts
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wise_logits, wise_maps = teacher(faces)
    parts["answers"] = binary_distillation_loss(logits, wise_logits.float(), TEMPERATURE)
    parts["seams"] = binary_distillation_loss(maps, wise_maps.float(), 1.0)
    return 0.5 * own + parts["answers"] + 3.0 * parts["seams"], parts


def rate_at(place: float) -> float:
    """Full rate through the pruning and a straight fall to zero over the second half."""
    return min(place / 0.02, 1.0) if place < 0.5 else 2 * (1 - place)


class Run:
    """One compression in a folder, with its checkpoint."""

    def __init__(
        self, plan: Plan, dense: Path, cache: Cache, held: Validation, out: Path, compiled: bool
    ) -> None:
        self.plan, self.held, self.out, self.compiled = plan, held, out, compiled
        self.model = load_dense(dense).to(memory_format=torch.channels_last)
        self.teacher: Forward | None = None
        if plan.teacher:
            self.teacher = self.forward(copy.deepcopy(self.model).requires_grad_(False))
        self.settings = torch.load(dense, weights_only=True)["settings"]
        self.batches = Batches(cache, plan.pairs, plan.generated, 0, plan.seed)
        self.example = torch.zeros(2, 3, SIZE, SIZE)
        out.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()

    def forward(self, model: nn.Module) -> Forward:
        """Return what computes the answers of a model."""
        return torch.compile(model) if self.compiled else model

    def optimiser(self) -> torch.optim.AdamW:
        """Return an optimiser of the model as it is now."""
        return optimiser_for(self.model, self.plan.rate, self.plan.decay)

    def note(self, **row: Any) -> None:
        """Say a line; what was validated is also kept in the log."""
        row = {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
        say(json.dumps({**row, "seconds": round(time.monotonic() - self.started)}))
        if "swap_auc" in row:
            with (self.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")

    def prune(self) -> None:
        """One-cycle pruning to the share of MACs that stays; ends with a shrunk network."""
        plan, kept = self.plan, self.out / "prune.pt"
        whole = secateur.trace(self.model, self.example).macs
        drop_branches(self.model, plan.branches, self.example)
        left = secateur.trace(self.model, self.example).macs
        sparsifier = secateur.Sparsifier(
            self.model, plan.technique, macs=plan.macs * whole / left, example_inputs=self.example,
            round_to=plan.round_to, seed=plan.seed,
        )  # fmt: skip
        optimiser = self.optimiser()
        state = load(kept)
        if state:
            self.model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            sparsifier.load_state_dict(state["sparsifier"])
        sparsifier.attach(optimiser, total_steps=plan.prune)

        def keep(step: int) -> None:
            store(kept, step=step, model=self.model.state_dict(),
                  optimiser=optimiser.state_dict(), sparsifier=sparsifier.state_dict())  # fmt: skip

        self.loop(self.model, optimiser, 0, plan.prune, state.get("step", 0), keep)
        sparsifier.detach()
        result = secateur.shrink(self.model, sparsifier, self.example, round_to=plan.round_to)
        self.model.to(memory_format=torch.contiguous_format)
        self.note(
            technique=plan.technique, exact=result.exact, params=result.after.params,
            macs=result.after.macs / whole, **validate(self.model, self.held),
        )  # fmt: skip

    def tune(self) -> None:
        """Train the shrunk network on; the running mean of its weights is the result."""
        plan, kept = self.plan, self.out / "tune.pt"
        optimiser, mean = self.optimiser(), copy.deepcopy(self.model)
        state = load(kept)
        if state:
            self.model.load_state_dict(state["model"])
            mean.load_state_dict(state["mean"])
            optimiser.load_state_dict(state["optimiser"])

        def keep(step: int) -> None:
            store(kept, step=step, model=self.model.state_dict(), mean=mean.state_dict(),
                  optimiser=optimiser.state_dict())  # fmt: skip

        last, first = plan.prune + plan.tune, state.get("step", plan.prune)
        self.loop(self.model, optimiser, plan.prune, last, first, keep, mean)
        self.note(technique=plan.technique, teacher=plan.teacher, **validate(mean, self.held))
        secateur.save(mean.eval(), self.out / "model")
        how = {name: self.settings[name] for name in ("widths", "blocks")}
        (self.out / "network.json").write_text(json.dumps({**how, "plan": asdict(plan)}, indent=1))

    def loop(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, begin: int, end: int,
        first: int, keep: Callable[[int], None], mean: nn.Module | None = None,
    ) -> None:  # fmt: skip
        """Steps ``first`` to ``end`` of the plan, kept every 200."""
        whole = self.plan.prune + self.plan.tune
        forward = self.forward(model)
        numbered = enumerate(stream(self.batches, FIRST + first, FIRST + end), first)
        for step, batch in numbered:
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = self.plan.rate * rate_at((step + 1) / whole)
            loss, parts = total_loss(forward, self.teacher, batch, narrow=mean is not None)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            if mean is not None:
                average(mean, model, step - begin, 0.995)
            if (step + 1) % 100 == 0:
                self.note(step=step + 1, **{k: float(v.detach()) for k, v in parts.items()})
            if (step + 1) % 200 == 0 or step + 1 == end:
                keep(step + 1)


def drop_branches(model: nn.Module, blocks: tuple[str, ...], example: Tensor) -> None:
    """Take the residual branches of these blocks out, in place."""
    masks = {}
    for block in blocks:
        for part in ("weight", "bias"):
            name = f"{block}.norm2.{part}"
            masks[name] = torch.zeros_like(model.get_parameter(name), dtype=torch.bool)
    if masks:
        secateur.shrink(model, masks, example)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint, empty where there is none."""
    return dict(torch.load(path, weights_only=True)) if path.exists() else {}


def store(path: Path, **state: Any) -> None:
    """Write a checkpoint, whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def main() -> None:
    """Run the step as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, required=True, help="what train.prepare wrote")
    parser.add_argument("--dense", type=Path, required=True, help="folder of train.train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prune", type=int, required=True, help="steps of pruning")
    parser.add_argument("--tune", type=int, required=True, help="steps after shrinking")
    parser.add_argument("--macs", type=float, default=Plan.macs)
    parser.add_argument("--branches", nargs="*", default=list(Plan.branches))
    parser.add_argument("--technique", default=TECHNIQUE)
    parser.add_argument("--no-teacher", action="store_true")
    parser.add_argument("--compile", action="store_true", help="faster; needs a C++ compiler")
    given = parser.parse_args()
    one_thread()
    plan = Plan(
        given.prune, given.tune, given.technique, given.macs, tuple(given.branches),
        not given.no_teacher,
    )  # fmt: skip
    held = build(given.data, limit=LIMIT)
    cache = Cache.open(given.cache)
    run = Run(plan, given.dense / "last.pt", cache, held, given.out, given.compile)
    run.prune()
    run.tune()


if __name__ == "__main__":
    main()
