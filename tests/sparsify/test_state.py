"""Saving and resuming bit for bit, and refusing states that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import example
from torch import Tensor, nn
from training import batch, fresh, train

from secateur import SecateurError, Sparsifier

STEPS = 12


class Run:
    """A training run that can be saved after any step."""

    def __init__(self, technique: str, seed: int = 0, budget: float = 0.6, **more: Any) -> None:
        self.model = fresh(seed=seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: 1 / (1 + s))
        self.sparsifier = Sparsifier(self.model, technique, sparsity=budget, **more)

    def train(self, first: int, last: int, total: int = STEPS) -> Run:
        self.sparsifier.attach(self.optimizer, total, scheduler=self.scheduler)
        train(self.model, self.optimizer, range(first, last), self.scheduler)
        return self

    def parts(self) -> dict[str, Any]:
        return {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler,
            "sparsifier": self.sparsifier,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])


def same(one: Run, other: Run) -> None:
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), name
    for name, mask in one.sparsifier.masks.items():
        assert torch.equal(mask, other.sparsifier.masks[name]), name
    assert one.sparsifier.history == other.sparsifier.history
    assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]


TECHNIQUES = [
    "weight | global | random | agp",
    "weight | global | magnitude | constant(mask=regrown(by=random, share=0.3), every=2)",
    "weight | local | magnitude | constant(mask=regrown(by=gradient, share=0.3), every=2)",
    "weight | local | random | constant(mask=reselected)",
    "weight | global | movement | agp",
    "filter | local | updating_movement | agp(every=2)",
    "filter | global | taylor | linear",
    "weight | global | magnitude | dsd",
    "weight | global | magnitude | agp | rewind(step=3, optimizer=rewind)",
    "weight | global | large_init | linear(every=3) | rewind(step=0, optimizer=reset)",
    "weight | global | magnitude | linear(every=4) | reinitialise",
    "weight | local(lamp) | magnitude | one_cycle | keep(removed=learning)",
    "filter | local | magnitude | constant(every=2, mask=reselected) | keep(removed=learning)",
]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("stop", [1, 5])
def test_a_resumed_run_ends_like_one_without_a_break(
    tmp_path: Path, technique: str, stop: int
) -> None:
    straight = Run(technique).train(0, STEPS)
    Run(technique).train(0, stop).save(tmp_path / "state.pt")
    resumed = Run(technique, seed=99)
    resumed.load(tmp_path / "state.pt")
    resumed.train(stop, STEPS)
    same(straight, resumed)
    assert any(not bool(mask.all()) for mask in straight.sparsifier.masks.values()) or (
        "dsd" in technique
    )


COUPLED = [
    "filter | global | magnitude | agp",
    "filter | local | taylor | linear",
    "filter | local | magnitude | dsd",
    "filter | global | random | constant(mask=regrown(by=random, share=0.3), every=2)",
    "filter | local | magnitude | constant(mask=regrown(by=magnitude, share=0.3), every=2)",
    "filter | local | magnitude | constant(every=2, mask=reselected) | keep(removed=learning)",
    "filter | local | updating_movement | agp(every=2) | rewind(step=3, optimizer=rewind)",
]


@pytest.mark.parametrize("technique", COUPLED)
def test_a_run_over_coupled_layers_resumes_bit_for_bit(tmp_path: Path, technique: str) -> None:
    more = {"example_inputs": example("small_cnn"), "budget": 0.4}
    straight = Run(technique, **more).train(0, STEPS)
    Run(technique, **more).train(0, 5).save(tmp_path / "state.pt")
    resumed = Run(technique, seed=99, **more)
    resumed.load(tmp_path / "state.pt")
    resumed.train(5, STEPS)
    same(straight, resumed)
    gone = any(not bool(mask.all()) for mask in straight.sparsifier.masks.values())
    assert gone or "dsd" in technique


def test_a_run_whose_sensitivity_was_measured_resumes_without_measuring_again(
    tmp_path: Path,
) -> None:
    technique = "weight | local(sensitivity) | magnitude | agp"
    data = [batch(100)]
    straight = Run(technique, data=data).train(0, STEPS)
    Run(technique, data=data).train(0, 5).save(tmp_path / "state.pt")
    measured = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        measured.append(batch)
        return model(batch[0]).sum()

    resumed = Run(technique, seed=99, data=data, loss=loss)
    resumed.load(tmp_path / "state.pt")
    resumed.train(5, STEPS)
    same(straight, resumed)
    assert measured == []
    damage = resumed.sparsifier.state_dict()["memory"]["damage"]
    assert set(damage) == set(resumed.sparsifier.masks)
    assert damage == straight.sparsifier.state_dict()["memory"]["damage"]


def test_a_state_is_a_copy() -> None:
    run = Run("weight | global | movement | agp").train(0, 4)
    state = run.sparsifier.state_dict()
    kept = copy.deepcopy(state)
    run.sparsifier.detach()
    run.train(4, 8)
    for name, mask in kept["masks"].items():
        assert torch.equal(state["masks"][name], mask)
    assert state["memory"]["step"] == kept["memory"]["step"] == 4
    assert state["memory"]["history"] == kept["memory"]["history"]


def test_loading_takes_a_copy() -> None:
    run = Run("weight | global | magnitude | agp").train(0, 4)
    state = run.sparsifier.state_dict()
    other = Run("weight | global | magnitude | agp", seed=1)
    other.sparsifier.load_state_dict(state)
    state["masks"]["0.weight"].zero_()
    state["memory"]["history"].clear()
    assert bool(other.sparsifier.masks["0.weight"].any())
    assert other.sparsifier.history


TECHNIQUE = "weight | global | movement | agp"
Change = Callable[[dict[str, Any]], Any]


def change(path: str, value: Any) -> Change:
    def apply(state: dict[str, Any]) -> dict[str, Any]:
        at: Any = state
        *parents, last = path.split("/")
        for parent in parents:
            at = at[parent]
        at[last] = value
        return state

    return apply


def drop(path: str) -> Change:
    def apply(state: dict[str, Any]) -> dict[str, Any]:
        at: Any = state
        *parents, last = path.split("/")
        for parent in parents:
            at = at[parent]
        del at[last]
        return state

    return apply


WRONG: dict[str, Change] = {
    "nothing": lambda state: {},
    "none": lambda state: None,
    "a_list": lambda state: [1, 2],
    "a_text": lambda state: "state",
    "the_models_own": lambda state: fresh("small_cnn").state_dict(),
    "no_masks": drop("masks"),
    "no_memory": drop("memory"),
    "other_format": change("format", 99),
    "other_technique": change("technique", "filter | global | magnitude | agp"),
    "other_budget": change("budget", ["sparsity", 0.5]),
    "masks_of_nothing": change("masks", {}),
    "masks_none": change("masks", None),
    "mask_missing": drop("masks/3.weight"),
    "mask_of_another_shape": change("masks/3.weight", torch.ones(2, 2, dtype=torch.bool)),
    "mask_not_a_tensor": change("masks/3.weight", "mask"),
    "mask_of_floats": change("masks/3.weight", torch.full((16, 8, 3, 3), 0.5)),
    "memory_not_a_mapping": change("memory", 3),
    "memory_part_missing": drop("memory/step"),
    "memory_part_unknown": change("memory/else", 1),
    "step_not_a_count": change("memory/step", "three"),
    "generator_not_a_state": change("memory/generator", torch.zeros(3, dtype=torch.uint8)),
    "generator_none": change("memory/generator", None),
    "saved_missing": drop("memory/saved/3.weight"),
    "saved_of_another_shape": change("memory/saved/3.weight", torch.zeros(2)),
    "saved_none": change("memory/saved", None),
    "history_none": change("memory/history", None),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(wrong: str) -> None:
    state = Run(TECHNIQUE).train(0, 6).sparsifier.state_dict()
    run = Run(TECHNIQUE, seed=1).train(0, 3)
    before = copy.deepcopy(run.sparsifier.state_dict())
    with pytest.raises(SecateurError) as error:
        run.sparsifier.load_state_dict(WRONG[wrong](state))
    assert "\n" not in str(error.value)
    after = run.sparsifier.state_dict()
    assert all(torch.equal(mask, after["masks"][name]) for name, mask in before["masks"].items())
    for part in ("step", "total", "updates", "history", "claimed"):
        assert before["memory"][part] == after["memory"][part]
    run.sparsifier.detach()
    run.train(3, STEPS)


def test_a_rewind_state_of_another_model_is_refused() -> None:
    technique = "weight | global | magnitude | linear | rewind"
    state = Run(technique).train(0, 3).sparsifier.state_dict()
    state["memory"]["rewind"] = {"stranger": torch.zeros(3)}
    with pytest.raises(SecateurError):
        Run(technique, seed=1).sparsifier.load_state_dict(state)


def test_a_state_of_another_model_is_refused() -> None:
    state = Run(TECHNIQUE).train(0, 3).sparsifier.state_dict()
    other = Sparsifier(fresh("mlp"), TECHNIQUE, sparsity=0.6)
    with pytest.raises(SecateurError, match="another"):
        other.load_state_dict(state)


def test_a_run_of_another_length_is_refused() -> None:
    state = Run(TECHNIQUE).train(0, 3).sparsifier.state_dict()
    run = Run(TECHNIQUE)
    run.sparsifier.load_state_dict(state)
    with pytest.raises(SecateurError, match=f"{STEPS} steps"):
        run.train(3, 4, total=STEPS + 1)


def test_a_state_can_be_loaded_after_attaching() -> None:
    straight = Run(TECHNIQUE).train(0, STEPS)
    first = Run(TECHNIQUE).train(0, 5)
    second = Run(TECHNIQUE)
    second.sparsifier.attach(second.optimizer, STEPS, scheduler=second.scheduler)
    for name, part in second.parts().items():
        part.load_state_dict(copy.deepcopy(first.parts()[name].state_dict()))
    assert second.sparsifier.history == first.sparsifier.history != []
    second.sparsifier.detach()
    second.train(5, STEPS)
    same(straight, second)


def test_a_state_of_another_length_is_refused_after_attaching_too() -> None:
    state = Run(TECHNIQUE).train(0, 3).sparsifier.state_dict()
    run = Run(TECHNIQUE).train(0, 0, total=STEPS + 1)
    with pytest.raises(SecateurError, match="steps"):
        run.sparsifier.load_state_dict(state)


def test_the_state_by_hand_without_an_optimiser() -> None:
    model = fresh("dense_block_net")
    technique = "filter | global | random | linear"
    inputs = example("dense_block_net")
    one = Sparsifier(model, technique, sparsity=0.5, example_inputs=inputs)
    one.step(0.3)
    two = Sparsifier(model, technique, sparsity=0.5, example_inputs=inputs, seed=7)
    two.load_state_dict(one.state_dict())
    one.step(0.8), two.step(0.8)
    assert all(torch.equal(one.masks[name], two.masks[name]) for name in one.masks)


def test_a_state_fits_masks_of_vectors_too(tmp_path: Path) -> None:
    run = Run("filter | global | magnitude | agp").train(0, 4)
    assert "1.bias" in run.sparsifier.masks
    run.save(tmp_path / "state.pt")
    other = Run("filter | global | magnitude | agp", seed=2)
    other.load(tmp_path / "state.pt")
    other.sparsifier.apply()
    assert nn.utils.parameters_to_vector(run.model.parameters()).equal(
        nn.utils.parameters_to_vector(other.model.parameters())
    )
