"""A training loop with a sparsifier attached to its optimiser."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training import batch, equal, fresh, removed, total, train, zeros_match

from secateur import SecateurError, Sparsifier

TECHNIQUE = "weight | global | magnitude | linear"


OPTIMIZERS: dict[str, Any] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
}


@pytest.mark.parametrize("granularity", ["weight", "filter"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_zero_after_every_step(optimizer: str, granularity: str) -> None:
    model = fresh()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    sparsifier = Sparsifier(model, f"{granularity} | global | magnitude | linear", sparsity=0.8)
    sparsifier.attach(stepping, 10)
    before = 0
    for step in range(15):
        train(model, stepping, range(step, step + 1))
        assert zeros_match(model, sparsifier)
        assert removed(sparsifier) >= before
        before = removed(sparsifier)
    assert sparsifier.report().achieved["sparsity"] == pytest.approx(0.8, abs=0.03)
    survivors = sparsifier.masks["3.weight"]
    assert bool((model[3].weight[survivors] != fresh()[3].weight[survivors]).any())


def test_the_share_follows_the_schedule_step_by_step() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.8)
    sparsifier.attach(optimizer, 10)
    for step in range(10):
        train(model, optimizer, range(step, step + 1))
        assert removed(sparsifier) == round(0.8 * (step + 1) / 10 * total(sparsifier))
    assert [row["step"] for row in sparsifier.history] == list(range(1, 11))


def test_gradient_accumulation_counts_optimiser_steps() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.8)
    sparsifier.attach(optimizer, 5)
    for micro in range(20):
        inputs, targets = batch(micro)
        (F.cross_entropy(model(inputs), targets) / 4).backward()
        if micro % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    assert len(sparsifier.history) == 5
    assert removed(sparsifier) == round(0.8 * total(sparsifier))


def test_autocast() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, "filter | global | magnitude | linear", sparsity=0.5)
    sparsifier.attach(optimizer, 6)
    for step in range(6):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        assert zeros_match(model, sparsifier)
    assert removed(sparsifier) > 0
    assert all(mask.dtype == torch.bool for mask in sparsifier.masks.values())


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "random"])
def test_a_compiled_model_trains_like_a_plain_one(criterion: str) -> None:
    technique = f"weight | global | {criterion} | linear"
    masks, graphs = [], 0

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    for compiled in (False, True):
        model = fresh()
        used = torch.compile(model, backend=count) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier = Sparsifier(used, technique, sparsity=0.8)
        sparsifier.attach(optimizer, 8)
        train(used, optimizer, range(8))
        masks.append(sparsifier.masks)
        assert zeros_match(model, sparsifier)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    assert graphs <= 2  # a mask update compiles nothing anew


def test_a_scheduler_of_the_learning_rate_works_beside_it() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10)
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.8)
    sparsifier.attach(optimizer, 10, scheduler=scheduler)
    for step in range(10):
        train(model, optimizer, range(step, step + 1))
        if step < 9:
            scheduler.step()
    assert removed(sparsifier) == round(0.8 * total(sparsifier))
    assert zeros_match(model, sparsifier)


def test_training_beyond_the_last_step_keeps_the_masks() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.8)
    sparsifier.attach(optimizer, 5)
    train(model, optimizer, range(5))
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    updates = len(sparsifier.history)
    train(model, optimizer, range(5, 9))
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    assert zeros_match(model, sparsifier)
    assert len(sparsifier.history) == updates


def steps_of_updates(schedule: str, total_steps: int, **more: Any) -> list[int]:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, f"weight | global | magnitude | {schedule}", sparsity=0.8)
    sparsifier.attach(optimizer, total_steps, **more)
    train(model, optimizer, range(total_steps))
    return [int(row["step"]) for row in sparsifier.history]


@pytest.mark.parametrize(
    ("schedule", "total_steps", "expected"),
    [
        ("linear(every=4)", 12, [4, 8, 12]),
        ("linear(every=5)", 12, [5, 10, 12]),
        ("linear(every=3, start=0.25, end=0.75)", 12, [3, 6, 9]),
        ("one_shot", 6, [0]),
        ("one_shot(start=0.5)", 6, [3]),
        ("one_shot(start=1)", 6, [6]),
        ("iterative(n=3, every=1)", 6, [1, 3, 5]),
        ("agp(start=0.5, every=2)", 8, [4, 6, 8]),
        ("linear", 4, [1, 2, 3, 4]),
        ("constant(every=2, mask=reselected)", 6, [0, 2, 4, 6]),
    ],
)
def test_triggers(schedule: str, total_steps: int, expected: list[int]) -> None:
    found = steps_of_updates(schedule, total_steps)
    if "mask" in schedule:
        assert set(expected) <= set(found)
    else:
        updates = [step for step in found if step in expected or step > 0]
        assert updates == expected


def test_epochs_count_steps_per_epoch() -> None:
    assert steps_of_updates("linear(epochs=2)", 12, steps_per_epoch=3) == [6, 12]


def test_epochs_without_their_length_are_refused() -> None:
    with pytest.raises(SecateurError, match="steps_per_epoch"):
        steps_of_updates("linear(epochs=2)", 12)


@pytest.mark.parametrize("length", [0, -1])
def test_epochs_without_steps_are_refused(length: int) -> None:
    with pytest.raises(SecateurError, match="steps_per_epoch"):
        steps_of_updates("linear(epochs=2)", 12, steps_per_epoch=length)


def test_without_a_trigger_updates_come_with_half_a_percent() -> None:
    found = steps_of_updates("linear", 300)
    assert found[-1] == 300
    assert 90 <= len(found) <= 201
    moved = steps_of_updates("constant(mask=reselected)", 200)
    assert 100 <= len(moved) <= 102


@pytest.mark.parametrize("steps", [0, -3, 2.5, "10", True, None])
def test_a_number_of_steps_that_means_nothing_is_refused(steps: Any) -> None:
    model = fresh("mlp")
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SecateurError, match="total_steps"):
        sparsifier.attach(optimizer, steps)
    sparsifier.attach(optimizer, 3)


def test_an_optimiser_of_another_model_is_refused() -> None:
    sparsifier = Sparsifier(fresh("mlp"), TECHNIQUE, sparsity=0.5)
    stranger = torch.optim.SGD(fresh("mlp").parameters(), lr=0.1)
    with pytest.raises(SecateurError, match="optimiser holds none"):
        sparsifier.attach(stranger, 3)
    assert not stranger._optimizer_step_post_hooks


def test_attaching_twice_is_refused() -> None:
    model = fresh("mlp")
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer, 3)
    with pytest.raises(SecateurError, match="detach"):
        sparsifier.attach(optimizer, 3)
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_a_failed_attachment_leaves_nothing_behind() -> None:
    """A run of another length is refused; the right one can still be attached."""
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = Sparsifier(model, TECHNIQUE, sparsity=0.5)
    first.attach(optimizer, 10)
    train(model, optimizer, range(3))
    first.detach()
    second = Sparsifier(model, TECHNIQUE, sparsity=0.5)
    second.load_state_dict(first.state_dict())
    with pytest.raises(SecateurError, match="10 steps"):
        second.attach(optimizer, 20)
    assert not optimizer._optimizer_step_post_hooks
    second.attach(optimizer, 10)


def test_an_attachment_that_fails_on_bad_weights_leaves_nothing_behind() -> None:
    model = fresh("mlp")
    model[1].weight.data[0, 0] = float("nan")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, "weight | global | magnitude | one_shot", sparsity=0.5)
    with pytest.raises(SecateurError, match="NaN"):
        sparsifier.attach(optimizer, 10)
    assert not optimizer._optimizer_step_post_hooks
    model[1].weight.data[0, 0] = 0.5
    sparsifier.attach(optimizer, 10)
    assert removed(sparsifier) == round(0.5 * total(sparsifier))


def test_detaching_takes_the_hook_away_and_keeps_the_masks() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.5)
    sparsifier.attach(optimizer, 4)
    train(model, optimizer, range(2))
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    sparsifier.detach()
    sparsifier.detach()
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, range(2, 4))
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())
    assert not zeros_match(model, sparsifier)
    sparsifier.apply()
    assert zeros_match(model, sparsifier)


def test_the_optimiser_can_be_copied_and_pickled_while_attached() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.Adam(model.parameters())
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.5)
    sparsifier.attach(optimizer, 4)
    train(model, optimizer, range(2))
    copied = copy.deepcopy(optimizer.state_dict())
    for state in (copied, pickle.loads(pickle.dumps(optimizer)).state_dict()):
        assert state["param_groups"] == optimizer.state_dict()["param_groups"]
        for place, averages in optimizer.state_dict()["state"].items():
            assert equal(state["state"][place], averages)
    train(model, optimizer, range(2, 4))
    assert removed(sparsifier) == round(0.5 * total(sparsifier))
    assert float(copied["state"][0]["step"]) == 2


def test_gradients_come_from_the_training_where_there_is_no_data() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, "weight | global | snip | one_shot", sparsity=0.5)
    sparsifier.attach(optimizer, 3)
    assert removed(sparsifier) == 0
    inputs, targets = batch(0)
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    everything = {name: model.get_parameter(name) for name in sparsifier.masks}
    assert removed(sparsifier) == round(0.5 * total(sparsifier))
    lowest = min(
        float((p.grad * p).detach()[sparsifier.masks[name]].abs().min())
        for name, p in everything.items()
    )
    assert lowest >= 0
    assert len(sparsifier.history) == 1


def test_gradients_that_nobody_computed_are_asked_for() -> None:
    sparsifier = Sparsifier(fresh("mlp"), "weight | global | taylor | one_shot", sparsity=0.5)
    with pytest.raises(SecateurError, match="pass data="):
        sparsifier.step(1.0)


def test_removed_weights_may_learn_on_between_updates() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sparsifier = Sparsifier(
        model,
        "weight | global | magnitude | constant(every=2, mask=reselected) | keep(removed=learning)",
        sparsity=0.5,
    )
    sparsifier.attach(optimizer, 6)
    assert zeros_match(model, sparsifier)
    train(model, optimizer, range(1))
    assert not zeros_match(model, sparsifier)
    train(model, optimizer, range(1, 2))
    assert zeros_match(model, sparsifier)
    train(model, optimizer, range(2, 3))
    assert not zeros_match(model, sparsifier)
    train(model, optimizer, range(3, 8))
    assert zeros_match(model, sparsifier)


@pytest.mark.parametrize("schedule", ["linear(end=0.5)", "one_shot"])
def test_what_learned_on_does_not_vanish_at_the_last_step(schedule: str) -> None:
    """After its last update a schedule leaves a sparse network, not a dense one cut at the end."""
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, f"weight | global | magnitude | {schedule} | keep(removed=learning)", sparsity=0.5
    )
    sparsifier.attach(optimizer, 10)
    train(model, optimizer, range(9))
    assert zeros_match(model, sparsifier)


@pytest.mark.parametrize("granularity", ["weight", "filter"])
@pytest.mark.parametrize("name", ["small_cnn", "mlp"])
def test_what_comes_back_learns_again(name: str, granularity: str) -> None:
    """A unit that a falling schedule gives back starts at zero and must get gradients."""
    model = fresh(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curve = "piecewise(points=[[0.15, 0], [0.2, 1], [0.4, 1], [0.5, 0], [1, 0]])"
    sparsifier = Sparsifier(model, f"{granularity} | local | magnitude | {curve}", sparsity=0.5)
    sparsifier.attach(optimizer, 20)
    train(model, optimizer, range(7))
    gone = {name: ~mask for name, mask in sparsifier.masks.items()}
    assert all(bool(mask.any()) for mask in gone.values())
    train(model, optimizer, range(7, 20))
    assert removed(sparsifier) == 0
    for parameter, mask in gone.items():
        if model.get_parameter(parameter).dim() > 1:
            alive = model.get_parameter(parameter)[mask] != 0
            assert bool(alive.any()), f"everything that came back to {parameter} is dead"


def test_a_pruned_model_is_fine_tuned_with_its_masks_held() -> None:
    model = fresh("mlp")
    sparsifier = Sparsifier(model, "weight | global | magnitude | one_cycle", sparsity=0.8)
    sparsifier.step(1.0)
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for length in (4, 7):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer, length)
        train(model, optimizer, range(length))
        sparsifier.detach()
        assert zeros_match(model, sparsifier)
        assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_a_rewind_that_can_never_happen_is_refused() -> None:
    model = fresh("mlp")
    text = "weight | global | magnitude | iterative | rewind(step=50)"
    sparsifier = Sparsifier(model, text, sparsity=0.5)
    with pytest.raises(SecateurError, match="only 50 steps"):
        sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1), 50)
    with pytest.raises(SecateurError, match="attach"):
        sparsifier.step(1.0)
