"""The training loop on Accelerate: one phase, resumable after any optimiser step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import accelerate
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from secateur.sparsify import Sparsifier, check_length
from secateur.train.checkpoint import random_state, restore_random_state
from secateur.train.data import Data, collate
from secateur.train.settings import Settings
from secateur.train.watch import Watcher

_WARM_UP = 0.25
_WEIGHT_DECAY = 0.01


@dataclass
class Progress:
    """How far a phase has come: the step within the run, the open epoch's sums, the curves."""

    step: int = 0
    loss_sum: float = 0.0
    term_sum: float = 0.0
    curves: list[dict[str, float]] = field(default_factory=list)


def rate_at(step: int, total: int) -> float:
    """Return the share of the highest learning rate at a step: a linear rise, then a half cosine.

    >>> [round(rate_at(step, 8), 2) for step in (0, 1, 2, 5, 8)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    rise = max(1, round(_WARM_UP * total))
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise)))) / 2


class Phase:
    """Trains one network for the epochs of the settings, with or without a sparsifier.

    ``watched`` evaluates after every epoch.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        data: Data,
        model: nn.Module,
        accelerator: Any,
        make_sparsifier: Callable[[nn.Module], Sparsifier] | None = None,
        watched: bool = True,
    ) -> None:
        accelerate.utils.set_seed(settings.seed)
        self.name = name
        self.watched = watched
        self.settings = settings
        self.data = data
        self.accelerator = accelerator
        train = DataLoader(
            data.train,
            settings.batch_size,
            shuffle=True,
            collate_fn=collate,
            # A last batch of one image is more than batch norms can bear.
            drop_last=len(data.train) % settings.batch_size == 1,
        )
        # With random numbers of its own, so that training is the same however often it is watched.
        valid = DataLoader(
            data.valid, 4 * settings.batch_size, collate_fn=collate, generator=torch.Generator()
        )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.rate, weight_decay=_WEIGHT_DECAY
        )
        self.model, self.optimizer, self.train, self.valid = accelerator.prepare(
            model, optimizer, train, valid
        )
        self.network: nn.Module = accelerator.unwrap_model(self.model)
        self.total = settings.epochs * len(self.train)
        total = self.total
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer.optimizer, lambda step: rate_at(step, total)
        )
        self.sparsifier = make_sparsifier(self.network) if make_sparsifier else None
        if self.sparsifier is not None and self.total:
            check_length(self.sparsifier.technique, self.total)
        self.progress = Progress()
        self._random: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on after the last optimiser step."""
        return {
            "name": self.name,
            "model": {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()},
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sparsifier": self.sparsifier.state_dict() if self.sparsifier else None,
            "step": self.progress.step,
            "loss_sum": self.progress.loss_sum,
            "term_sum": self.progress.term_sum,
            "curves": copy.deepcopy(self.progress.curves),
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state; training goes on with the same batches and random numbers."""
        self.network.load_state_dict(state["model"])
        self.optimizer.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.sparsifier is not None:
            self.sparsifier.load_state_dict(state["sparsifier"])
        sums = state["loss_sum"], state.get("term_sum", 0.0)
        self.progress = Progress(state["step"], *sums, list(state["curves"]))
        self._random = state["random"]

    def run(self, watcher: Watcher) -> Iterator[int]:
        """Train to the end, yielding the number of steps done after each step and each epoch.

        At a yield the state is whole, so that it can be saved and the training left. Without
        epochs the network is pruned at once.
        """
        per_epoch = len(self.train)
        if self.sparsifier is not None and not self.total:
            self.network.eval()
            self.sparsifier.step(1.0)
            return
        if self.sparsifier is not None:
            self.sparsifier.attach(
                self.optimizer, self.total, steps_per_epoch=per_epoch, scheduler=self.scheduler
            )
        watcher.begin(self.name, self.total, self.progress.step)
        while self.progress.step < self.total:
            for images, labels in self._rest_of_epoch(per_epoch):
                loss, term = self._step(images, labels)
                self.progress.loss_sum += loss
                self.progress.term_sum += term
                self.progress.step += 1
                watcher.step(self.name, loss, self._achieved())
                if self.progress.step % per_epoch == 0:
                    self._close_epoch(per_epoch, watcher)
                yield self.progress.step
        if self.sparsifier is not None:
            if self.sparsifier.steps < self.total:
                # Steps that a gradient scaler skipped left the schedule short of its end.
                self.sparsifier.step(1.0)
            self.sparsifier.detach()
        watcher.end(self.name)

    def evaluate(self) -> tuple[float, float]:
        """Return accuracy (a fraction) and mean loss on the validation images."""
        self.model.eval()
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        with torch.no_grad():
            for images, labels in self.valid:
                outputs = self.model(images).float()
                loss = functional.cross_entropy(outputs, labels, reduction="none")
                hit = (outputs.argmax(1) == labels).float()
                loss, hit = self.accelerator.gather_for_metrics((loss, hit))
                losses.append(loss)
                hits.append(hit)
        return float(torch.cat(hits).mean()), float(torch.cat(losses).mean())

    def _rest_of_epoch(self, per_epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the batches of the open epoch that have not been trained on."""
        epoch, done = divmod(self.progress.step, per_epoch)
        self.data.train.set_epoch(epoch)
        loader = accelerate.skip_first_batches(self.train, done) if done else self.train
        for each in (self.train, loader):
            each.set_epoch(epoch)
            # Accelerate counts epochs by itself; a resumed run has to be told.
            each.iteration = epoch
        for batch in loader:
            if self._random is not None:
                restore_random_state(self._random)
                self._random = None
            yield batch

    def _step(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Take one optimiser step; return the loss, and what the objective added to it."""
        self.model.train()
        self.optimizer.zero_grad()
        with self.accelerator.autocast():
            outputs = self.model(images)
            loss = functional.cross_entropy(outputs, labels)
            term = self._term(outputs, images)
        self.accelerator.backward(loss if term is None else loss + term)
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach()), 0.0 if term is None else float(term.detach())

    def _term(self, outputs: Tensor, images: Tensor) -> Tensor | None:
        if self.sparsifier is None or not self._adds:
            return None
        return self.sparsifier.objective_loss(outputs, images)

    @property
    def _adds(self) -> bool:
        """Whether the technique adds a term to the loss."""
        return self.sparsifier is not None and self.sparsifier.technique.objective.name != "none"

    def _achieved(self) -> float | None:
        if self.sparsifier is None:
            return None
        history = self.sparsifier.history
        return history[-1]["achieved"] if history else 0.0

    def _close_epoch(self, per_epoch: int, watcher: Watcher) -> None:
        row = {
            "epoch": float(self.progress.step // per_epoch),
            "train_loss": self.progress.loss_sum / per_epoch,
        }
        if self.watched:
            row["valid_accuracy"], row["valid_loss"] = self.evaluate()
        if self._adds:
            row["train_objective"] = self.progress.term_sum / per_epoch
        self.progress.loss_sum = self.progress.term_sum = 0.0
        self.progress.curves.append(row)
        watcher.epoch(self.name, row)
