"""Objectives that run: what they add to the loss, that they lower it, and that they resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import example
from torch import Tensor, nn
from training import batch, fresh, state_of

from secateur import SecateurError, Sparsifier, shrink
from secateur.compress import distillation_loss
from secateur.sparsify import lacks
from secateur.technique import Technique
from secateur.technique.objective import OBJECTIVES

STEPS = 12
TEXT = "filter | local | magnitude | {} | keep | {}"


class Run:
    """A training with an objective, that can be saved after any step."""

    def __init__(
        self, objective: str, seed: int = 0, schedule: str = "one_shot(start=0.5)", **more: Any
    ) -> None:
        self.model = fresh(seed=seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        technique = TEXT.format(schedule, objective)
        self.sparsifier = Sparsifier(self.model, technique, **{"sparsity": 0.5} | more)

    def train(self, first: int, last: int, total: int = STEPS) -> list[float]:
        self.sparsifier.attach(self.optimizer, total)
        terms = []
        for step in range(first, last):
            inputs, targets = batch(step)
            outputs = self.model(inputs)
            term = self.sparsifier.objective_loss(outputs, inputs)
            self.optimizer.zero_grad()
            (F.cross_entropy(outputs, targets) + term).backward()
            self.optimizer.step()
            terms.append(float(term.detach()))
        self.sparsifier.detach()
        return terms

    def save(self, path: Path) -> None:
        parts = (self.model, self.optimizer, self.sparsifier)
        torch.save([part.state_dict() for part in parts], path)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=True)
        for part, state in zip((self.model, self.optimizer, self.sparsifier), saved, strict=True):
            part.load_state_dict(state)


RUNNING = [
    "distillation(weight=2, temperature=3)",
    "distillation(answers=sigmoid)",
    "distillation(answers=values, schedule=linear)",
    "group_lasso(weight=0.01)",
    "group_lasso(weight=0.01, sized=true, schedule=agp)",
    "l1_scale(weight=0.01)",
    "growing_l2(weight=5)",
    "admm(weight=0.5, every=2)",
]


def test_every_objective_runs() -> None:
    elsewhere = {"none", "gates"}  # gates: test_gates.py
    assert {text.partition("(")[0] for text in RUNNING} == set(OBJECTIVES) - elsewhere
    assert not any(lacks(Technique.parse(TEXT.format("agp", text))) for text in RUNNING)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("objective", RUNNING)
@pytest.mark.parametrize("stop", [2, 8])
def test_a_resumed_run_ends_like_one_without_a_break(
    tmp_path: Path, objective: str, coupled: bool, stop: int
) -> None:
    more = {"example_inputs": example("small_cnn")} if coupled else {}
    straight = Run(objective, **more)
    terms = straight.train(0, STEPS)
    broken = Run(objective, **more)
    first = broken.train(0, stop)
    broken.save(tmp_path / "state.pt")
    resumed = Run(objective, seed=99, **more)
    resumed.load(tmp_path / "state.pt")
    assert first + resumed.train(stop, STEPS) == terms
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert straight.sparsifier.history == resumed.sparsifier.history
    assert any(term > 0 for term in terms)


def test_the_teacher_is_the_model_as_it_was() -> None:
    run = Run("distillation(weight=2, temperature=3)")
    before = copy.deepcopy(run.model).eval()
    inputs, _ = batch(50)
    run.train(0, STEPS)
    outputs = run.model(inputs)
    found = run.sparsifier.objective_loss(outputs, inputs)
    with torch.no_grad():
        expected = 2 * distillation_loss(outputs, before(inputs), 3.0)
    torch.testing.assert_close(found.detach(), expected)
    found.backward()
    assert any(parameter.grad is not None for parameter in run.model.parameters())


def test_the_model_does_not_hold_its_teacher() -> None:
    run = Run("distillation")
    assert state_of(run.model).keys() == state_of(fresh()).keys()
    assert len(list(run.model.modules())) == len(list(fresh().modules()))


def test_a_given_teacher_is_asked_and_left_as_it_is(tmp_path: Path) -> None:
    teacher = fresh(seed=7).train()
    before = state_of(teacher)
    run = Run("distillation", teacher=teacher)
    run.train(0, 4)
    inputs, _ = batch(50)
    outputs = run.model(inputs)
    with torch.no_grad():
        expected = distillation_loss(outputs, copy.deepcopy(teacher).eval()(inputs))
    torch.testing.assert_close(run.sparsifier.objective_loss(outputs, inputs).detach(), expected)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    run.save(tmp_path / "state.pt")
    with pytest.raises(SecateurError, match="pass teacher= again"):
        Run("distillation").load(tmp_path / "state.pt")
    Run("distillation", teacher=teacher).load(tmp_path / "state.pt")


def test_distillation_brings_the_answers_nearer() -> None:
    teacher = fresh(seed=7)
    teacher[-1].weight.data *= 30  # an untrained network is sure of nothing
    distances = {}
    inputs = torch.cat([batch(step)[0] for step in range(STEPS)])
    for weight in (0, 5):
        run = Run(f"distillation(weight={weight})", teacher=teacher)
        run.train(0, STEPS)
        with torch.no_grad():
            outputs = run.model.eval()(inputs)
            distances[weight] = float(distillation_loss(outputs, teacher.eval()(inputs)))
    assert distances[5] < 0.7 * distances[0]


def test_a_student_goes_on_learning_after_it_was_shrunk() -> None:
    run = Run("distillation", example_inputs=example("small_cnn"))
    run.train(0, STEPS)
    shrink(run.model, run.sparsifier, example("small_cnn"))
    inputs, _ = batch(0)
    with torch.no_grad():
        assert float(run.sparsifier.objective_loss(run.model(inputs), inputs)) > 0


def test_a_loop_that_leaves_the_term_out_is_told() -> None:
    run = Run("distillation")
    run.sparsifier.attach(run.optimizer, STEPS)
    inputs, targets = batch(0)
    F.cross_entropy(run.model(inputs), targets).backward()
    with pytest.raises(SecateurError, match=r"loss \+ sparsifier.objective_loss") as error:
        run.optimizer.step()
    assert "\n" not in str(error.value)


def test_without_an_objective_nothing_is_added() -> None:
    run = Run("none")
    assert float(run.sparsifier.objective_loss()) == 0
    assert run.train(0, 3) == [0, 0, 0]


@pytest.mark.parametrize(
    ("more", "objective", "message"),
    [
        ({"teacher": nn.Linear(2, 2)}, "none", "teacher= is for"),
        ({"teacher": 3}, "distillation", "expected a model"),
        ({}, "distillation(schedule=linear(every=3))", "cannot run yet"),
        ({"include": "8"}, "l1_scale", "norms with a scale"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_told(
    more: dict[str, Any], objective: str, message: str
) -> None:
    with pytest.raises(SecateurError, match=message) as error:
        Run(objective, **more)
    assert "\n" not in str(error.value)


def test_a_comparison_needs_something_to_compare() -> None:
    sparsifier = Run("distillation").sparsifier
    with pytest.raises(SecateurError, match=r"objective_loss\(outputs, inputs\)"):
        sparsifier.objective_loss()
    with pytest.raises(SecateurError, match="shape"):
        sparsifier.objective_loss(torch.zeros(8, 3), batch(0)[0])


@pytest.mark.parametrize("objective", ["distillation", "growing_l2"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(objective: str) -> None:
    run = Run(objective)
    run.train(0, 8)
    state = run.sparsifier.state_dict()
    other = Run(objective)
    before = {name: mask.clone() for name, mask in other.sparsifier.masks.items()}
    (key,) = state["objective"]
    for damaged in (None, {}, {key: {}}, {key: {"x": torch.zeros(1)}}, 3):
        with pytest.raises(SecateurError, match="state") as error:
            other.sparsifier.load_state_dict({**state, "objective": damaged})
        assert "\n" not in str(error.value)
    assert all(torch.equal(mask, before[name]) for name, mask in other.sparsifier.masks.items())


class Residual(nn.Module):
    """Two convolutions whose outputs are added, and one that reads the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.relu(x + self.norm(self.second(x)))
        return self.head(F.relu(self.third(x)).mean((2, 3)))


def added(model: nn.Module, granularity: str, objective: str, **more: Any) -> Tensor:
    technique = f"{granularity} | global | magnitude | one_shot(start=0.5) | keep | {objective}"
    sparsifier = Sparsifier(model, technique, **{"sparsity": 0.5} | more)
    return sparsifier.objective_loss()


UNITS = {
    "weight": lambda w: w.abs().sum(),
    "filter": lambda w: w.flatten(1).norm(dim=1).sum(),
    "kernel": lambda w: w.flatten(2).norm(dim=2).sum(),
    "shared_kernel": lambda w: w.transpose(0, 1).flatten(1).norm(dim=1).sum(),
    "(o 4)": lambda w: w.flatten(1).unflatten(0, (-1, 4)).flatten(1).norm(dim=1).sum(),
}


@pytest.mark.parametrize("granularity", UNITS)
def test_group_lasso_adds_the_norms_of_the_units(granularity: str) -> None:
    model = fresh()
    found = added(model, granularity, "group_lasso(weight=0.5)", include=["0", "3"])
    by_hand = sum(UNITS[granularity](model[place].weight) for place in (0, 3))
    torch.testing.assert_close(found, 0.5 * by_hand)
    ours, theirs = (torch.autograd.grad(each, model[3].weight)[0] for each in (found, by_hand))
    torch.testing.assert_close(ours, 0.5 * theirs)


def test_group_lasso_by_size_is_that_of_yuan_and_lin() -> None:
    model = fresh()
    found = added(model, "filter", "group_lasso(sized=true)", include=["0", "3"])
    by_hand = sum(
        model[place].weight[0].numel() ** 0.5 * UNITS["filter"](model[place].weight)
        for place in (0, 3)
    )
    torch.testing.assert_close(found, by_hand)


def test_the_units_of_coupled_layers_are_their_channels() -> None:
    torch.manual_seed(0)
    model = Residual()
    more = {"example_inputs": (torch.randn(2, 1, 8, 8),)}
    shared = torch.cat([model.first.weight.flatten(1), model.second.weight.flatten(1)], 1)
    own = model.third.weight.flatten(1)
    torch.testing.assert_close(
        added(model, "filter", "group_lasso", **more),
        shared.norm(dim=1).sum() + own.norm(dim=1).sum(),
    )
    torch.testing.assert_close(
        added(model, "filter", "group_lasso(sized=true)", **more),
        63**0.5 * shared.norm(dim=1).sum() + 6**0.5 * own.norm(dim=1).sum(),
    )


def test_l1_scale_adds_the_scales_behind_the_pruned_layers() -> None:
    model = fresh()
    for norm in (model[1], model[4]):
        torch.nn.init.normal_(norm.weight)
    first, second = (norm.weight.abs().sum() for norm in (model[1], model[4]))
    for granularity in ("weight", "filter"):
        torch.testing.assert_close(added(model, granularity, "l1_scale"), first + second)
        torch.testing.assert_close(added(model, granularity, "l1_scale", include="3"), second)
    coupled = added(model, "filter", "l1_scale(weight=3)", example_inputs=example("small_cnn"))
    torch.testing.assert_close(coupled, 3 * (first + second))


@pytest.mark.parametrize("coupled", [False, True])
def test_growing_l2_condemns_what_goes_later(coupled: bool) -> None:
    more = {"example_inputs": example("small_cnn")} if coupled else {}
    run = Run("growing_l2(weight=4, schedule=linear)", **more)
    run.optimizer.param_groups[0]["lr"] = 0.0  # nothing moves, so the verdict stands
    before = state_of(run.model)
    terms = run.train(0, 6)
    gone = {name: ~mask for name, mask in run.sparsifier.masks.items()}
    assert sum(int(mask.sum()) for mask in gone.values()) > 0
    squares = sum(float(before[name][mask].square().sum()) for name, mask in gone.items())
    assert terms == pytest.approx([4 * step / STEPS * squares / 2 for step in range(6)], rel=1e-5)
    # What is removed is zero by now, and there is no more to come.
    assert run.train(6, STEPS) == [0.0] * 6


def test_scores_from_training_condemn_after_the_first_step() -> None:
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    technique = "filter | local | taylor | one_shot(start=0.9) | keep | growing_l2(weight=9)"
    sparsifier = Sparsifier(model, technique, sparsity=0.5)
    sparsifier.attach(optimizer, STEPS)
    terms = []
    for step in range(3):
        inputs, targets = batch(step)
        term = sparsifier.objective_loss()
        terms.append(float(term.detach()))
        optimizer.zero_grad()
        (F.cross_entropy(model(inputs), targets) + term).backward()
        optimizer.step()
    assert terms[0] == 0
    assert 0 < terms[1] < terms[2]


def test_without_a_verdict_there_is_no_term() -> None:
    sparsifier = Run("growing_l2(schedule=constant)").sparsifier
    with pytest.raises(SecateurError, match="attach"):
        sparsifier.objective_loss()
    sparsifier.step(0.0)
    assert float(sparsifier.objective_loss().detach()) > 0


def test_the_sensitivity_of_layers_is_measured_outside_of_the_training_step() -> None:
    technique = "weight | local(sensitivity) | magnitude | one_shot(start=0.5) | keep | growing_l2"
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, technique, sparsity=0.5, data=[batch(90)])
    sparsifier.attach(optimizer, STEPS)
    for step in range(STEPS):
        inputs, targets = batch(step)
        loss = F.cross_entropy(model(inputs), targets) + sparsifier.objective_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sparsifier.history[-1]["achieved"] == pytest.approx(0.5, abs=1e-3)


def measured(run: Run, objective: str) -> float:
    """Return what the objective speaks of, in the model as it is."""
    if objective == "growing_l2":
        gone = run.sparsifier._term.state()["condemned"]
        return sum(
            float(run.model.get_parameter(name).detach()[mask].square().sum())
            for name, mask in gone.items()
        )
    if objective == "l1_scale":
        return sum(float(run.model[place].weight.detach().abs().sum()) for place in (1, 4))
    return sum(float(UNITS["filter"](run.model[place].weight.detach())) for place in (0, 3))


@pytest.mark.parametrize("objective", ["group_lasso", "l1_scale", "growing_l2"])
def test_an_objective_lowers_what_it_says(objective: str) -> None:
    values = {}
    for weight in (0, 3):
        run = Run(f"{objective}(weight={weight})", schedule="one_shot(start=1, end=1)")
        run.train(0, STEPS - 1)
        values[weight] = measured(run, objective)
    assert values[3] < 0.95 * values[0]


def test_units_at_zero_stay_there_without_a_word() -> None:
    model = fresh()
    model[3].weight.data[:4] = 0
    for granularity, more in (("filter", {}), ("filter", {"example_inputs": example("small_cnn")})):
        term = added(model, granularity, "group_lasso", **more)
        (gradient,) = torch.autograd.grad(term, model[3].weight)
        assert gradient.isfinite().all()
        assert (gradient[:4] == 0).all()
        assert (gradient[4:] != 0).any()


def test_a_shrunk_model_has_no_penalty_left() -> None:
    run = Run("group_lasso", example_inputs=example("small_cnn"))
    run.train(0, STEPS)
    shrink(run.model, run.sparsifier, example("small_cnn"))
    with pytest.raises(SecateurError, match="make a new Sparsifier"):
        run.sparsifier.objective_loss()


def test_admm_by_hand() -> None:
    """W <- W - eta (g + rho (W - Z + U)), Z the nearest sparse to W + U, U <- U + W - Z."""
    rho, rate, every, total = 0.3, 0.1, 3, 20
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2))
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    names = ["0.weight", "2.weight"]

    def project(value: Tensor) -> Tensor:
        flat = value.clone().flatten()
        flat[flat.abs().argsort(stable=True)[: len(flat) // 2]] = 0
        return flat.view_as(value)

    split = {name: project(own[name]) for name in names}
    dual = {name: torch.zeros_like(own[name]) for name in names}
    sparsifier = Sparsifier(
        model, f"weight | local | magnitude | one_shot(start=1) | keep | "
        f"admm(weight={rho}, every={every})", sparsity=0.5,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    sparsifier.attach(optimizer, total)
    apart = []
    for step in range(total - 1):
        inputs, targets = torch.randn(8, 5), torch.randint(2, (8,))
        optimizer.zero_grad()
        term = sparsifier.objective_loss()
        (F.cross_entropy(model(inputs), targets) + term).backward()
        optimizer.step()
        expected = sum((own[n] - split[n] + dual[n]).square().sum() for n in names)
        torch.testing.assert_close(term.detach(), rho / 2 * expected)
        values = {name: value.clone().requires_grad_() for name, value in own.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, values, (inputs,)), targets)
        gradients = torch.autograd.grad(loss, list(values.values()))
        for (name, value), gradient in zip(own.items(), gradients, strict=True):
            pull = rho * (value - split[name] + dual[name]) if name in split else 0
            own[name] = value - rate * (gradient + pull)
            torch.testing.assert_close(model.get_parameter(name).detach(), own[name])
        if (step + 1) % every == 0:
            for name in names:
                dual[name] = dual[name] + own[name] - split[name]
                split[name] = project(own[name] + dual[name])
        apart.append(float(sum((own[n] - project(own[n])).square().sum() for n in names)))
    assert apart[-1] < apart[0] / 2, "the weights should come near to being sparse"
