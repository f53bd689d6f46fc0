"""Every record of the catalogue that claims to run does, through the ordinary engine."""

from __future__ import annotations

import itertools

import pytest
import torch
from networks import example
from torch import nn
from training import batch, fresh, zeros_match

from secateur import SecateurError, Sparsifier
from secateur.sparsify import lacks
from secateur.sparsify.describe import describe_layers
from secateur.technique.catalogue import CatalogueEntry, catalogue

STEPS, EPOCH = 32, 8
RUNNING = [entry for entry in catalogue() if not entry.missing and not lacks(entry.technique)]
LACKING = [entry for entry in catalogue() if entry not in RUNNING]


class Residual(nn.Module):
    """Adds what a convolution makes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x).relu()


def deep() -> nn.Module:
    """Return a network of four residual blocks between two layers."""
    torch.manual_seed(0)
    blocks = [Residual() for _ in range(4)]
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    return nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, *last)


def carry_out(entry: CatalogueEntry) -> tuple[nn.Module, Sparsifier]:
    """Train a small network to the end under the record, at half of what can be pruned."""
    heads = entry.technique.granularity.head
    layers = not entry.technique.granularity.named
    network = deep() if layers else fresh("transformer" if heads else "small_cnn")
    if heads:
        inputs = example("transformer", batch=8)[0]
        batches = itertools.repeat((inputs, torch.arange(8)), STEPS)
    else:
        batches = map(batch, range(STEPS))
        inputs = batch(99)[0]
    ordered = entry.technique.granularity.order == "assigned"
    implied = entry.technique.granularity.block is not None or emerges(entry)
    sparsifier = Sparsifier(
        network, entry.technique, sparsity=None if implied else 0.5, data=[batch(99)] if not heads
        else [(inputs, torch.arange(8))],
        example_inputs=inputs[:1] if heads or layers or ordered else None,
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    sparsifier.attach(optimizer, STEPS, steps_per_epoch=EPOCH)
    for inputs, targets in batches:
        optimizer.zero_grad()
        answers = network(inputs)
        loss = nn.functional.cross_entropy(answers, targets)
        (loss + sparsifier.objective_loss(answers, inputs)).backward()
        optimizer.step()
    return network, sparsifier


def emerges(entry: CatalogueEntry) -> bool:
    """Whether the share that goes follows from the training."""
    return entry.technique.context.allocation == "threshold"


@pytest.mark.parametrize("entry", RUNNING, ids=lambda entry: entry.name)
def test_it_runs_to_what_was_asked_for(entry: CatalogueEntry) -> None:
    network, sparsifier = carry_out(entry)
    assert all(bool(torch.isfinite(value).all()) for value in network.parameters())
    assert zeros_match(network, sparsifier)
    reached = [row["achieved"] for row in sparsifier.history]
    if emerges(entry):
        assert 0 < reached[-1] < 1
        return
    single = entry.technique.granularity.named >= {"o", "i"}
    tolerance = 0.01 if single and entry.technique.granularity.block is None else 0.08
    if entry.technique.context.allocation == "uniform_plus":
        tolerance = 0.2  # a third of this network is its last layer
    assert max(reached) == pytest.approx(0.5, abs=tolerance)
    assert reached[-1] == pytest.approx(0.5 * entry.technique.schedule.at(1.0), abs=tolerance)


@pytest.mark.parametrize("entry", LACKING, ids=lambda entry: entry.name)
def test_it_is_refused_with_what_it_lacks(entry: CatalogueEntry) -> None:
    with pytest.raises(SecateurError, match="cannot run yet: it needs"):
        Sparsifier(fresh("mlp"), entry.name, sparsity=0.5)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("entry", RUNNING, ids=lambda entry: entry.name)
def test_it_is_described_for_a_model(entry: CatalogueEntry, coupled: bool) -> None:
    """Every part in a sentence of its own, and every layer of a model with what becomes of it."""
    granularity = entry.technique.granularity
    heads, layers = granularity.head, not granularity.named
    network = deep() if layers else fresh("transformer" if heads else "small_cnn")
    inputs = example("transformer") if heads else (batch(0)[0],)
    traced = coupled or heads or granularity.order == "assigned"
    words = entry.technique.words()
    assert len(words) == 6 and all(len(line) > 8 and line.endswith(".") for line in words)
    try:
        rows = describe_layers(network, entry.technique, inputs if traced else None)
    except SecateurError as error:
        assert coupled and "couples them" in str(error)
        return
    assert len(rows) >= 2 and all(row.words for row in rows)
    assert any(not row.words.startswith("spared") for row in rows)
