"""Defects found in other pruning toolboxes that spoiled training, one test each.

The numbers are those of the list of defects, here the ones about schedules, rewinding and saving;
D-22, about start and end, is the last, and the other ones stand in test_defects_masks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training import equal, fresh, masked, shift, state_of, train, zero_share

from secateur import Sparsifier, Technique


@pytest.mark.parametrize("granularity", ["weight", "filter"])
def test_d02_a_falling_schedule_is_followed_down(granularity: str) -> None:
    """Removed weights tied at score 0, and every second update of a falling mask kept all."""
    model = fresh("small_cnn")
    sparsifier = Sparsifier(
        model, f"{granularity} | local | magnitude | dsd", sparsity=0.5, include=["0", "3"]
    )
    for step in range(41):
        result = sparsifier.step(step / 40)
        assert result.achieved["sparsity"] == pytest.approx(result.target, abs=0.07)
        assert zero_share(model, sparsifier) >= result.achieved["sparsity"] - 1e-9
    assert result.achieved["sparsity"] == 0


def test_d03_the_reported_sparsity_is_the_real_one() -> None:
    """The last batch saw (N - 1) / N of the schedule, yet 100 % of it was printed."""
    model = fresh("small_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, "weight | global | magnitude | linear", sparsity=0.5)
    sparsifier.attach(optimizer, 20)
    train(model, optimizer, range(20))
    assert sparsifier.history[-1]["target"] == 0.5
    assert zero_share(model, sparsifier) == pytest.approx(0.5, abs=1e-9)
    assert sparsifier.history[-1]["achieved"] == zero_share(model, sparsifier)
    assert sparsifier.report().achieved["sparsity"] == zero_share(model, sparsifier)


class _Varied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.slope = nn.PReLU()
        self.norm = nn.LayerNorm(6, bias=False)
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.norm(self.slope(self.embedding(words).mean(1))))


def test_d10_rewinding_needs_no_bias() -> None:
    """Modules with a weight but no bias (PReLU, Embedding) crashed the lottery."""
    model = _Varied()
    before = state_of(model)
    sparsifier = Sparsifier(model, "weight | global | magnitude | linear | rewind", sparsity=0.8)
    shift(model)
    sparsifier.step(0.5)
    assert equal(state_of(model), masked(before, sparsifier.masks))


def test_d11_norms_and_the_optimiser_are_rewound_to_what_was_saved() -> None:
    """Norms went back to (1, 0) whatever was saved; the optimiser and its rate never went back."""
    model = fresh("small_cnn")
    for parameter in model[1].parameters():
        parameter.data.normal_()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(
        model, "weight | global | magnitude | one_shot(start=0.6) | "
        "rewind(step=2, optimizer=rewind)", sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 10)
    train(model, optimizer, range(2))
    saved = state_of(model)
    optimizer.param_groups[0]["lr"] = 0.002
    train(model, optimizer, range(2, 6))
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(model.state_dict()[name], saved[name])
    assert not torch.equal(saved["1.weight"], torch.ones(8))
    assert optimizer.param_groups[0]["lr"] == 0.01
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}


def test_d13_the_lottery_runs_under_one_cycle() -> None:
    """The documented example (one_cycle, rewind to epoch 2) raised an AssertionError."""
    model = fresh("small_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, "weight | local | magnitude | one_cycle | rewind(step=2)", sparsity=0.5
    )
    sparsifier.attach(optimizer, 8)
    train(model, optimizer, range(8))
    assert zero_share(model, sparsifier) == pytest.approx(0.5, abs=0.01)


def test_d20_saved_weights_are_copies_that_can_be_written(tmp_path: Path) -> None:
    """Saving the winning tickets was a NameError."""
    model = fresh("mlp")
    sparsifier = Sparsifier(model, "weight | global | magnitude | linear | rewind", sparsity=0.5)
    original = model[1].weight.detach().clone()
    model[1].weight.data += 1
    torch.save(sparsifier.state_dict(), tmp_path / "ticket.pt")
    saved = torch.load(tmp_path / "ticket.pt", weights_only=True)
    assert torch.equal(saved["memory"]["rewind"]["1.weight"], original)


def test_d21_schedules_share_nothing() -> None:
    """Two runs that shared a schedule corrupted each other, and an interrupted one left traces."""
    technique = Technique.parse("weight | global | magnitude | cosine")
    models = [fresh("mlp") for _ in range(3)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    runs = [Sparsifier(model, technique, sparsity=0.5) for model in models]
    for run, optimizer, steps in zip(runs, optimizers, (10, 4, 10), strict=True):
        run.attach(optimizer, steps)
    for step in range(10):  # the first and the second take turns, the second ends long before
        train(models[0], optimizers[0], [step])
        train(models[1], optimizers[1], [step])
    for step in range(10):
        train(models[2], optimizers[2], [step])
    assert runs[0].history == runs[2].history
    for name, mask in runs[0].masks.items():
        assert torch.equal(mask, runs[2].masks[name])
    interrupted = fresh("mlp")
    optimizer = torch.optim.SGD(interrupted.parameters(), lr=0.1)
    sparsifier = Sparsifier(interrupted, technique, sparsity=0.5)
    sparsifier.attach(optimizer, 10)
    with pytest.raises(RuntimeError):
        interrupted(torch.randn(2, 3))
    sparsifier.detach()
    again = Sparsifier(fresh("mlp"), technique, sparsity=0.5)
    assert again.history == []
    assert technique == Technique.parse(str(technique))


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [("one_shot(start=0.5)", 5, 5), ("agp(start=0.2)", 3, 10), ("linear(start=0.3, end=0.6)", 4, 6),
     ("cosine(end=0.5)", 1, 5), ("one_cycle(start=0.4, end=0.8, exact=true)", 5, 8)],
)  # fmt: skip
def test_d22_start_and_end_are_honoured(schedule: str, first: int, last: int) -> None:
    """The start was ignored: a one-shot at half time pruned at the first step."""
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, f"weight | global | magnitude | {schedule}", sparsity=0.5)
    sparsifier.attach(optimizer, 10)
    shares = []
    for step in range(10):
        train(model, optimizer, [step])
        shares.append(zero_share(model, sparsifier))
    assert all(share == 0 for share in shares[: first - 1])
    assert shares[first - 1] > 0
    assert all(share == pytest.approx(0.5, abs=1e-3) for share in shares[last - 1 :])
    if last > first:
        assert shares[last - 2] < 0.499
