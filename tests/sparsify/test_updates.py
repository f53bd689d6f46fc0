"""What becomes of survivors and of the optimiser: rewind, re-initialise, reset."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import batch, equal, fresh, masked, removed, shift, state_of, train

from secateur import SecateurError, Sparsifier


@pytest.mark.parametrize("back_to", [0, 2])
def test_rewinding_brings_back_every_tensor_but_the_removed(back_to: int) -> None:
    model = fresh()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(
        model, f"weight | global | magnitude | one_shot(start=0.5) | rewind(step={back_to})",
        sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 10)
    train(model, optimizer, range(back_to))
    saved = state_of(model)
    train(model, optimizer, range(back_to, 5))
    assert equal(state_of(model), masked(saved, sparsifier.masks))
    assert removed(sparsifier) > 0


@pytest.mark.parametrize("kind", ["adam", "momentum"])
@pytest.mark.parametrize("back_to", [0, 2])
def test_a_rewound_run_goes_on_as_if_it_had_begun_there_with_the_mask(
    back_to: int, kind: str
) -> None:
    """Weights, optimiser state and learning rate return together to one and the same step."""

    def make() -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = fresh()
        optimizer: torch.optim.Optimizer
        if kind == "adam":
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return model, optimizer, scheduler

    model, optimizer, scheduler = make()
    sparsifier = Sparsifier(
        model, f"weight | global | magnitude | one_shot(start=0.5) | "
        f"rewind(step={back_to}, optimizer=rewind)", sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 10, scheduler=scheduler)
    train(model, optimizer, range(8), scheduler)

    other, other_optimizer, other_scheduler = make()
    train(other, other_optimizer, range(back_to), other_scheduler)
    names = dict(other.named_parameters())
    for step in range(5, 8):
        for name, mask in sparsifier.masks.items():
            names[name].data.mul_(mask)
        train(other, other_optimizer, [step], other_scheduler)
    for name, mask in sparsifier.masks.items():
        names[name].data.mul_(mask)
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)


def test_the_movement_is_measured_from_where_the_weights_rewind_to() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, "weight | global | movement | one_shot(start=0.5) | rewind(step=2)", sparsity=0.5
    )
    sparsifier.attach(optimizer, 8)
    for step in range(4):
        if step == 2:
            saved = state_of(model)
        if step == 3:
            inputs, targets = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            moved = {
                n: (p.detach() - 0.1 * p.grad - saved[n]).abs() for n, p in model.named_parameters()
            }
            optimizer.step()
        else:
            train(model, optimizer, [step])
    kept = torch.cat([moved[name][mask] for name, mask in sparsifier.masks.items()])
    gone = torch.cat([moved[name][~mask] for name, mask in sparsifier.masks.items()])
    assert float(gone.max()) <= float(kept.min()) + 1e-6


def test_a_removal_before_the_step_to_rewind_to_leaves_the_weights() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, "weight | global | magnitude | iterative(n=2, every=1) | rewind(step=4)",
        sparsity=0.5,
    )  # fmt: skip
    before = state_of(model)
    sparsifier.attach(optimizer, 10)
    train(model, optimizer, [0])
    mask = sparsifier.masks["1.weight"]
    assert bool((~mask).any())
    assert bool((model[1].weight[mask] != before["1.weight"][mask]).any())


def test_the_last_removal_does_not_undo_the_training() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, "weight | global | magnitude | linear | rewind", sparsity=0.5)
    before = state_of(model)
    sparsifier.attach(optimizer, 3)
    train(model, optimizer, range(3))
    mask = sparsifier.masks["1.weight"]
    assert bool((model[1].weight[mask] != before["1.weight"][mask]).any())


def test_rewinding_works_by_hand_too() -> None:
    model = fresh("mlp")
    before = state_of(model)
    sparsifier = Sparsifier(model, "weight | global | magnitude | linear | rewind", sparsity=0.5)
    shift(model)
    sparsifier.step(0.5)
    assert equal(state_of(model), masked(before, sparsifier.masks))


def test_a_one_shot_by_hand_rewinds_as_well() -> None:
    model = fresh("mlp")
    before = state_of(model)
    sparsifier = Sparsifier(model, "weight | global | magnitude | one_shot | rewind", sparsity=0.5)
    shift(model)
    sparsifier.step(1.0)
    mask = sparsifier.masks["1.weight"]
    assert torch.equal(model[1].weight, before["1.weight"] * mask)


def test_fresh_values_depend_on_the_runs_seed() -> None:
    drawn = []
    for seed in (0, 1):
        model = fresh("mlp")
        sparsifier = Sparsifier(
            model, "weight | global | magnitude | linear | reinitialise", sparsity=0.5, seed=seed
        )
        sparsifier.step(0.5)
        drawn.append(model[1].bias.detach().clone())
    assert not torch.equal(drawn[0], drawn[1])


def test_resetting_empties_the_optimiser_at_each_removal() -> None:
    model = fresh("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(
        model, "weight | global | magnitude | one_shot(start=0.5) | keep(optimizer=reset)",
        sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 8)
    train(model, optimizer, range(3))
    assert optimizer.state
    train(model, optimizer, [3])
    assert not optimizer.state
    train(model, optimizer, [4])
    assert all(float(state["step"]) == 1 for state in optimizer.state.values())


@pytest.mark.parametrize("name", ["small_cnn", "transformer", "embedding_net"])
def test_survivors_can_be_initialised_afresh(name: str) -> None:
    model = fresh(name)
    before = state_of(model)
    random_state = torch.random.get_rng_state()
    sparsifier = Sparsifier(
        model, "weight | global | magnitude | linear | reinitialise", sparsity=0.5
    )
    sparsifier.step(0.5)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    for parameter, mask in sparsifier.masks.items():
        value = model.get_parameter(parameter)
        assert bool((value[~mask] == 0).all())
        assert bool((value[mask] != before[parameter][mask]).all())


def test_a_module_that_cannot_be_initialised_is_named() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale

    model = Bare()
    technique = "weight | global | magnitude | linear | reinitialise"
    with pytest.raises(SecateurError, match="Bare"):
        Sparsifier(model, technique, sparsity=0.5)  # before anything is pruned


class _WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.extra = state


def test_modules_with_extra_state_can_be_rewound() -> None:
    model = nn.Sequential(_WithExtraState(6, 5), nn.ReLU(), nn.Linear(5, 2))
    weight = model[0].weight.detach().clone()
    sparsifier = Sparsifier(model, "weight | global | magnitude | linear | rewind", sparsity=0.5)
    model[0].weight.data += 1
    sparsifier.step(0.5)
    assert torch.equal(model[0].weight, weight * sparsifier.masks["0.weight"])


def rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("back_to", [0, 2])
def test_the_learning_rate_alone_returns(back_to: int) -> None:
    """A removal at step 5 lets the next steps run at the rates of those from `back_to` on."""
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    sparsifier = Sparsifier(
        model, "weight | global | magnitude | one_shot(start=0.5) | "
        f"keep(step={back_to}, optimizer=rewind_rate)", sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 10, scheduler=scheduler)
    used = []
    optimizer.register_step_post_hook(lambda *_: used.append(rate(optimizer)))
    train(model, optimizer, range(4), scheduler)
    before = state_of(model)
    train(model, optimizer, range(4, 5), scheduler)
    moved = {n: p for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {"0.weight", "3.weight", "8.weight"} <= set(moved)  # survivors do not return
    assert any(state["momentum_buffer"].any() for state in optimizer.state.values())
    train(model, optimizer, range(5, 8), scheduler)
    plain = [0.1 / (1 + step) for step in range(5)]
    assert used == pytest.approx(plain + [0.1 / (1 + back_to + step) for step in range(3)])


def test_the_learning_rate_returns_without_a_scheduler() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, "weight | global | magnitude | one_shot(start=0.5) | keep(optimizer=rewind_rate)",
        sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 6)
    train(model, optimizer, range(2))
    optimizer.param_groups[0]["lr"] = 0.01
    train(model, optimizer, range(2, 3))
    assert rate(optimizer) == 0.01
    train(model, optimizer, range(3, 4))
    assert rate(optimizer) == 0.1


def test_constants_with_the_first_signs() -> None:
    """sign(w0) times the layer's standard deviation at the start, masked, and never trained."""
    model = fresh("mlp")
    first = state_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(
        model, "weight | local | large_init_large_final | one_shot(start=0.5) | sign",
        sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 8)
    train(model, optimizer, range(4))
    expected = {}
    for name, value in first.items():
        mask = sparsifier.masks.get(name)
        if mask is None:
            expected[name] = value
        else:
            spread = (value - value.mean()).square().mean().sqrt()
            expected[name] = value.sign() * spread * mask
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    train(model, optimizer, range(4, 8))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_what_is_fixed_is_not_trained() -> None:
    model = fresh()
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, "weight | local | snip | linear(every=2, mask=reselected) | fixed(removed=held)",
        sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 8)
    train(model, optimizer, range(6))
    assert removed(sparsifier) > 0
    for name, value in model.named_parameters():
        mask = sparsifier.masks.get(name)
        assert torch.equal(value, first[name] if mask is None else first[name] * mask)


def test_what_is_held_waits() -> None:
    """A removed weight has the value it had, whatever the gradient, and comes back with it."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
    sparsifier = Sparsifier(
        model, "weight | local | magnitude | piecewise(points=[[0, 1], [0.5, 1], [0.51, 0]], "
        "mask=reselected) | keep(removed=held)", sparsity=0.5,
    )  # fmt: skip
    sparsifier.attach(optimizer, 4)
    for _ in range(3):
        assert model.weight.detach().flatten()[:2].tolist() == [0.0, 0.0]
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    assert model.weight.detach().flatten().tolist() == [1.0, 2.0, 2.625, 3.625]


def test_units_that_are_left_out_by_chance() -> None:
    """Every step drops units anew; what is dropped is not trained, and all is there in the end."""
    model = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot(start=1) | keep(drop=0.5)", sparsity=0.25
    )
    sparsifier.attach(optimizer, 40)
    patterns, dropped, total = set(), 0, 0
    for step in range(39):
        weight = model.get_parameter("1.weight").detach()
        out = ~weight.any(1)
        assert not bool(model.get_parameter("1.bias").detach()[out].any())
        patterns.add(tuple(out.tolist()))
        dropped, total = dropped + int(out.sum()), total + len(out)
        held = sparsifier._memory.dense["1.weight"].clone()
        train(model, optimizer, [step])
        now = sparsifier._memory.dense["1.weight"]
        assert torch.equal(now[out], held[out]) and not torch.equal(now[~out], held[~out])
    assert len(patterns) > 30
    assert dropped / total == pytest.approx(0.5, abs=0.06)
    held = sparsifier._memory.dense["1.weight"].clone()
    train(model, optimizer, [39])
    assert int((~model.get_parameter("1.weight").detach().any(1)).sum()) == 8


def test_a_rewind_to_a_step_that_does_not_exist_is_refused() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for update in ("rewind(step=10)", "keep(step=10, optimizer=rewind_rate)"):
        sparsifier = Sparsifier(
            model, f"weight | global | magnitude | iterative | {update}", sparsity=0.5
        )
        with pytest.raises(SecateurError) as caught:
            sparsifier.attach(optimizer, 10)
        assert f"'{update}'" in str(caught.value) and "only 10 steps" in str(caught.value)
        with pytest.raises(SecateurError, match="attach the sparsifier"):
            sparsifier.step(1.0)


@pytest.mark.parametrize("schedule", ["one_shot", "one_shot(start=0.4)", "agp(end=0.5)"])
def test_a_rewind_that_no_removal_comes_after_is_refused(schedule: str) -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(
        model, f"weight | global | magnitude | {schedule} | rewind(step=5)", sparsity=0.5
    )
    with pytest.raises(SecateurError) as caught:
        sparsifier.attach(optimizer, 10)
    assert "'rewind(step=5)'" in str(caught.value) and f"'{schedule}'" in str(caught.value)
