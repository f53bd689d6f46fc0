"""Trained scores: every step against the published formula written out, and what is around it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from networks import example
from torch import Tensor, nn
from training import batch, fresh, zeros_match

from secateur import SecateurError, Sparsifier
from secateur.technique.criteria import CRITERIA

RATE, DECAY, STEPS = 0.3, 0.05, 10


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def top(scores: Tensor) -> Tensor:
    """Keep the upper half; of equal scores the one that comes first goes first."""
    mask = torch.ones(scores.numel())
    mask[scores.detach().flatten().argsort(stable=True)[: scores.numel() // 2]] = 0
    return mask.view_as(scores)


class Follow:
    """A training under a technique, with the numbers that it learns."""

    def __init__(self, text: str, **more: object) -> None:
        self.network = model()
        self.sparsifier = Sparsifier(self.network, text, sparsity=0.5, **more)  # type: ignore[arg-type]
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=RATE)
        self.first = {name: s.clone() for name, s in self.learned.items()}

    @property
    def learned(self) -> dict[str, Tensor]:
        return self.sparsifier._memory.learned

    def step(self, number: int) -> float:
        inputs, targets = data(number)
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(inputs), targets)
        loss = loss + self.sparsifier.objective_loss()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


Used = Callable[[Tensor, Tensor, int], Tensor]
Penalty = Callable[[Tensor, Tensor, int], Tensor]


def by_hand(
    first: dict[str, Tensor], used: Used, penalty: Penalty | None = None, trained: bool = True
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """Train the same network with the formula in its forward pass and autograd throughout."""
    network = model()
    weights = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
    scores = {name: score.clone().requires_grad_() for name, score in first.items()}
    losses = []
    for step in range(STEPS):
        inputs, targets = data(step)
        shown = {
            name: used(weight, scores[name], step) if name in scores else weight
            for name, weight in weights.items()
        }
        loss = F.cross_entropy(torch.func.functional_call(network, shown, (inputs,)), targets)
        for name, score in scores.items() if penalty else ():
            assert penalty is not None
            loss = loss + DECAY * penalty(weights[name], score, step)
        leaves = [*weights.values(), *scores.values()]
        gradients = torch.autograd.grad(loss, leaves)
        with torch.no_grad():
            for leaf, gradient in zip(leaves, gradients, strict=True):
                if trained or leaf not in set(weights.values()):
                    leaf.sub_(RATE * gradient)
        losses.append(float(loss.detach()))
    return weights, scores, losses


def compare(text: str, used: Used, penalty: Penalty | None = None, trained: bool = True) -> Follow:
    follow = Follow(text)
    follow.sparsifier.attach(follow.optimizer, 2 * STEPS)
    expected = by_hand(follow.first, used, penalty, trained)
    losses = [follow.step(step) for step in range(STEPS)]
    for name, score in expected[1].items():
        torch.testing.assert_close(follow.learned[name].view_as(score), score.detach())
    dense = follow.sparsifier._memory.dense
    for name, weight in expected[0].items():
        own = dense.get(name, follow.network.get_parameter(name).detach())
        torch.testing.assert_close(own, weight.detach())
    torch.testing.assert_close(losses, expected[2])
    return follow


def through(mask: Tensor, score: Tensor) -> Tensor:
    return mask + score - score.detach()


def test_movement_collects_minus_gradient_times_weight() -> None:
    """S <- S - eta g w with the gradient at the masked weight; masked weights stay (eq. 5)."""
    follow = Follow(
        "weight | local | learned | constant(every=1, mask=reselected) | keep(removed=held)"
    )
    follow.sparsifier.attach(follow.optimizer, 2 * STEPS)
    weights = {n: p.detach().clone() for n, p in model().named_parameters()}
    scores = {n: torch.zeros_like(w) for n, w in weights.items() if w.ndim > 1}
    masks = {n: torch.ones_like(s) for n, s in scores.items()}
    for step in range(STEPS):
        follow.step(step)
        used = {n: (w * masks.get(n, 1)).requires_grad_() for n, w in weights.items()}
        inputs, targets = data(step)
        loss = F.cross_entropy(torch.func.functional_call(model(), used, (inputs,)), targets)
        gradients = torch.autograd.grad(loss, list(used.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if name in scores:
                scores[name] -= RATE * gradient * weight
            weight.sub_(RATE * gradient * masks.get(name, 1))
        masks = {name: top(score) for name, score in scores.items()}
        for name, score in scores.items():
            torch.testing.assert_close(follow.learned[name].view_as(score), score)
            assert torch.equal(follow.sparsifier.masks[name], masks[name].bool())
    assert zeros_match(follow.network, follow.sparsifier)
    held = follow.sparsifier._memory.dense["0.weight"]
    assert bool((held[~follow.sparsifier.masks["0.weight"]] != 0).any())


def test_a_block_collects_for_all_its_weights() -> None:
    follow = Follow(
        "(o 2) (i 3) | local | learned | constant(every=1, mask=reselected) | keep(removed=held)",
        include="0",
    )
    follow.sparsifier.attach(follow.optimizer, 2 * STEPS)
    before = follow.network[0].weight.detach().clone()
    follow.step(0)
    network = model()
    loss = F.cross_entropy(network(data(0)[0]), data(0)[1])
    (product,) = torch.autograd.grad(loss, [network[0].weight])
    blocks = (product * before).reshape(4, 2, 2, 3).sum((1, 3))
    torch.testing.assert_close(follow.learned["0.weight"], -RATE * blocks.flatten())


def test_edge_popup_trains_the_scores_alone() -> None:
    """Of the published code: the mask of the top |S|, whose gradient goes to |S| as it is."""
    follow = compare(
        "weight | local | popup | constant(every=1, mask=reselected) | fixed(removed=held)",
        lambda weight, score, _: weight * through(top(score.abs()), score.abs()).view_as(weight),
        trained=False,
    )
    bound = 1 / math.sqrt(6)
    first = follow.first["0.weight"]
    assert bool((first.abs() <= bound).all()) and float(first.std()) > bound / 3
    for name, value in model().named_parameters():
        kept = follow.sparsifier.masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(follow.network.get_parameter(name)[kept], value.detach()[kept])


def test_a_soft_threshold_per_layer() -> None:
    """sign(w) relu(|w| - sigmoid(s)), with weight decay on s (Kusupati et al., eq. 3 and 5)."""
    compare(
        f"weight | global | soft_threshold(start=-2) | one_shot(start=1) | keep "
        f"| gates(weight={DECAY})",
        lambda weight, s, _: weight.sign() * F.relu(weight.abs() - s.sigmoid()),
        lambda _, s, __: s.square().sum() / 2,
    )


def test_annealed_gates() -> None:
    """sigmoid(b s) w, b from 1 to 200 exponentially, and the gates' sum as a penalty."""

    def steep(step: int) -> float:
        return float(200 ** (step / (2 * STEPS)))

    compare(
        f"weight | global | annealed_gate(start=0.1) | one_shot(start=1) | keep "
        f"| gates(weight={DECAY})",
        lambda weight, s, step: weight * torch.sigmoid(steep(step) * s.view_as(weight)),
        lambda _, s, step: torch.sigmoid(steep(step) * s).sum(),
    )


def test_a_factor_per_unit() -> None:
    follow = Follow(
        f"filter | global | skeleton | one_shot(start=1) | keep | gates(weight={DECAY})"
    )
    follow.sparsifier.attach(follow.optimizer, 2 * STEPS)
    follow.step(0)
    network = model()
    loss = F.cross_entropy(network(data(0)[0]), data(0)[1])
    weight, bias = torch.autograd.grad(loss, [network[0].weight, network[0].bias])
    said = (weight * network[0].weight).sum(1) + bias * network[0].bias  # the bias goes along
    torch.testing.assert_close(follow.learned["0.weight"], 1 - RATE * (said + DECAY).detach())


def test_the_chance_of_an_open_gate() -> None:
    """The penalty counts the weights whose gates are drawn above zero, in the mean."""
    gate = CRITERIA.get("hard_concrete").gate
    assert gate is not None
    options = dict(CRITERIA.get("hard_concrete").parameters)
    generator = torch.Generator().manual_seed(0)
    for alpha in (-2.0, 0.0, 1.5):
        noise = torch.rand(200_000, generator=generator).clamp(1e-6, 1 - 1e-6)
        ones = torch.ones_like(noise)
        drawn = gate.used(ones, alpha * ones, ones, noise, 0.0, **options)
        assert bool((drawn == 0).any()) and bool((drawn == 1).any())
        expected = float(gate.penalty(ones[:1], alpha * ones[:1], 0.0, **options))
        assert float((drawn > 0).float().mean()) == pytest.approx(expected, abs=0.005)


def test_a_hard_concrete_step() -> None:
    """One step against the paper's formulas, with the noise that was drawn."""
    text = f"weight | global | hard_concrete(start=0.5) | one_shot(start=1) | keep " \
        f"| gates(weight={DECAY})"  # fmt: skip
    follow = Follow(text)
    follow.sparsifier.attach(follow.optimizer, 2 * STEPS)
    noise = {name: drawn.clone() for name, drawn in follow.sparsifier._memory.noise.items()}

    def used(weight: Tensor, alpha: Tensor, name: str) -> Tensor:
        u = noise[name]
        s = torch.sigmoid((u.log() - (1 - u).log() + alpha) / (2 / 3))
        return weight * (s * 1.2 - 0.1).clamp(0, 1).view_as(weight)

    network = model()
    weights = dict(network.named_parameters())
    alphas = {name: a.clone().requires_grad_() for name, a in follow.first.items()}
    shown = {n: used(w, alphas[n], n) if n in alphas else w for n, w in weights.items()}
    loss = F.cross_entropy(torch.func.functional_call(network, shown, (data(0)[0],)), data(0)[1])
    opened = sum(torch.sigmoid(a - 2 / 3 * math.log(0.1 / 1.1)).sum() for a in alphas.values())
    (loss + DECAY * opened).backward()
    assert follow.step(0) == pytest.approx(float((loss + DECAY * opened).detach()), rel=1e-5)
    for name, alpha in alphas.items():
        assert alpha.grad is not None
        torch.testing.assert_close(follow.learned[name], alpha.detach() - RATE * alpha.grad)


def test_the_divergence_of_variational_dropout() -> None:
    """Their approximation against -E log|e| + log(alpha) / 2 by integration, up to its constant."""
    gate = CRITERIA.get("noise_ratio").gate
    assert gate is not None
    grid = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = (-grid.square() / 2).exp() / math.sqrt(2 * math.pi)

    def exact(ratio: float) -> float:
        values = (1 + math.exp(ratio / 2) * grid).abs().clamp(min=1e-12).log()
        mean = float(torch.trapezoid(values * density, grid))
        return mean - ratio / 2

    def approximate(ratio: float) -> float:
        return float(gate.penalty(torch.ones(1), torch.tensor([ratio]), 0.0))  # type: ignore[union-attr]

    offset = exact(8.0) - approximate(8.0)
    for ratio in (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0):
        assert approximate(ratio) == pytest.approx(exact(ratio) - offset, abs=0.02)


def test_the_noise_of_a_weight() -> None:
    text = "weight | global | noise_ratio(start=-2) | one_shot(start=1)"
    follow = Follow(text)
    follow.sparsifier.attach(follow.optimizer, 2 * STEPS)
    memory = follow.sparsifier._memory
    added = follow.network[0].weight.detach() - memory.dense["0.weight"]
    expected = math.exp(-1) * torch.special.ndtri(memory.noise["0.weight"]).view_as(added)
    torch.testing.assert_close(added, expected)
    assert float(expected.std()) > 0.1


def test_gates_sit_on_the_last_norm() -> None:
    """A norm would undo a factor before it, so that it is its scale and shift that are gated."""
    network = fresh("small_cnn")
    sparsifier = Sparsifier(
        network, "filter | global | skeleton(start=0.5) | one_shot(start=1)", sparsity=0.5
    )
    before = copy.deepcopy(network).eval()
    sparsifier.attach(torch.optim.SGD(network.parameters(), lr=0.1), 4)
    inputs = batch(0)[0]
    for place in (1, 4):
        torch.testing.assert_close(network[place].weight, before[place].weight / 2)
        torch.testing.assert_close(network[place].bias, before[place].bias / 2)
    torch.testing.assert_close(network[0].weight, before[0].weight)
    halves = 0.5 * before[1](before[0](inputs))
    torch.testing.assert_close(network.eval()[1](network[0](inputs)), halves)


def test_a_head_gate_multiplies_what_the_head_says() -> None:
    """Against attention written out, with the gate behind each head's answer."""
    network = fresh("transformer").eval()
    (tokens,) = example("transformer")
    sparsifier = Sparsifier(
        network, "head | global | skeleton | one_shot(start=1)", sparsity=0.5,
        example_inputs=tokens,
    )  # fmt: skip
    gates = torch.tensor([0.5, 2.0, 0.0, 1.0])
    (name,) = sparsifier._memory.learned
    sparsifier._memory.learned[name] = gates.clone()
    before = copy.deepcopy(network)
    sparsifier.attach(torch.optim.SGD(network.parameters(), lr=0.1), 4)

    def attend(attention: nn.MultiheadAttention, x: Tensor, by_head: Tensor) -> Tensor:
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        heads = [part.unflatten(-1, (4, 4)).transpose(1, 2) for part in (q, k, v)]
        answers = F.scaled_dot_product_attention(*heads) * by_head[:, None, None]
        return attention.out_proj(answers.transpose(1, 2).flatten(2))

    expected = attend(before.attention, tokens, gates)
    found = network.attention(tokens, tokens, tokens, need_weights=False)[0]
    torch.testing.assert_close(found, expected)


LEARNED = [
    "weight | local | learned | agp(end=0.8, every=2, mask=reselected) | keep(removed=held)",
    "weight | global | popup | constant(every=2, mask=reselected) | fixed(removed=held)",
    "filter | global | hard_concrete | one_shot(start=0.7) | keep | gates(weight=0.01)",
    "weight | global | annealed_gate | one_shot(start=0.6) | rewind(step=2) | gates(weight=0.01)",
    "weight | global | soft_threshold(start=-3) | one_shot(start=1) | keep | gates(weight=0.01)",
    "weight | global | noise_ratio | agp(mask=reselected) | keep(removed=straight_through)",
    "channel | global | skeleton | one_shot(start=0.6) | keep | gates(weight=0.1)",
]


def run(text: str, first: int, last: int, state: Path | None, save: Path | None, seed: int = 0
        ) -> tuple[nn.Module, Sparsifier]:  # fmt: skip
    network = fresh("small_cnn", seed)
    sparsifier = Sparsifier(network, text, sparsity=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    parts = (network, optimizer, sparsifier)
    if state is not None:
        for part, saved in zip(parts, torch.load(state, weights_only=True), strict=True):
            part.load_state_dict(saved)
    sparsifier.attach(optimizer, 12)
    for step in range(first, last):
        inputs, targets = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), targets) + sparsifier.objective_loss()
        loss.backward()
        optimizer.step()
    if save is not None:
        torch.save([part.state_dict() for part in parts], save)
    return network, sparsifier


@pytest.mark.parametrize("stop", [3, 8])
@pytest.mark.parametrize("text", LEARNED)
def test_a_resumed_run_ends_like_one_without_a_break(text: str, stop: int, tmp_path: Path) -> None:
    whole, straight = run(text, 0, 12, None, None)
    run(text, 0, stop, None, tmp_path / "state.pt")
    parted, resumed = run(text, stop, 12, tmp_path / "state.pt", None, seed=7)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parted.state_dict()[name]), name
    assert straight.history == resumed.history
    assert zeros_match(whole, straight)
    assert straight.history[-1]["achieved"] == pytest.approx(0.5, abs=0.08)


def test_every_gate_is_among_them() -> None:
    named = {text.split(" | ")[2].partition("(")[0] for text in LEARNED}
    assert named == {record.name for record in CRITERIA if record.gate is not None}


@pytest.mark.parametrize("text", LEARNED)
def test_the_model_keeps_its_parameters(text: str) -> None:
    network, sparsifier = run(text, 0, 12, None, None)
    assert set(network.state_dict()) == set(fresh("small_cnn").state_dict())
    assert not sparsifier._memory.dense


def test_gates_that_stay_become_part_of_the_weights() -> None:
    """In the end the network computes what it did with its gates at their mean."""
    network = model()
    sparsifier = Sparsifier(
        network, "weight | global | hard_concrete(start=1, rate=0) | one_shot(start=1)",
        sparsity=0.5,
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    sparsifier.attach(optimizer, 1)
    F.cross_entropy(network(data(0)[0]), data(0)[1]).backward()
    optimizer.step()
    gate = 1 / (1 + math.exp(-1)) * 1.2 - 0.1
    for name, value in model().named_parameters():
        kept = sparsifier.masks.get(name)
        expected = value * (gate * kept if kept is not None else 1)
        torch.testing.assert_close(network.get_parameter(name), expected)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("weight | global | magnitude | agp | keep | gates", ("'gates'", "'magnitude'")),
        ("weight | global | learned | agp | keep(removed=learning)",
         ("'learned'", "'keep(removed=learning)'")),
        ("weight | global | learned | agp | keep(drop=0.5)", ("'learned'", "'keep(drop=0.5)'")),
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused(text: str, parts: tuple[str, str]) -> None:
    with pytest.raises(SecateurError) as caught:
        Sparsifier(fresh("small_cnn"), text, sparsity=0.5)
    assert all(part in str(caught.value) for part in parts)


@pytest.mark.parametrize(
    "text", ["learned(threshold=1.5)", "hard_concrete(low=0.1)", "hard_concrete(slope=0)"]
)
def test_impossible_numbers_are_refused(text: str) -> None:
    sparsifier = Sparsifier(model(), f"weight | global | {text} | one_shot", sparsity=0.5)
    with pytest.raises(SecateurError, match=r"expected|not between"):
        sparsifier.step(1.0)
