"""Divisions that are searched for, against trying out by hand what they promise."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import batch, fresh

from secateur import SecateurError, Sparsifier, shrink
from secateur.sparsify.search import Division, by_momentum, greedy, recalibrated, sampled


def test_the_best_of_the_samples() -> None:
    tried = []

    def trial(divide: Division) -> float:
        tried.append(divide(20.0))
        return abs(tried[-1][0] - 0.3)

    found = sampled([10.0, 30.0], trial, torch.Generator().manual_seed(0))(20.0)
    assert tried[0] == [0.5, 0.5]
    for shares in tried:
        assert 10 * shares[0] + 30 * shares[1] == pytest.approx(20)
        assert all(0 <= share <= 1 for share in shares)
    assert abs(found[0] - 0.3) == min(abs(shares[0] - 0.3) for shares in tried)
    assert len({tuple(shares) for shares in tried}) > 10


def test_a_greedy_round_takes_from_one_layer() -> None:
    harm = [5.0, 1.0, 3.0]

    asked = 30.0

    def trial(divide: Division) -> float:
        now, shares = [0.1, 0.2, 0.0], divide(asked)
        grown = [place for place in range(3) if shares[place] > now[place] + 1e-9]
        assert len(grown) == 1
        return harm[grown[0]]

    found = greedy([100.0, 50.0, 20.0], [10.0, 10.0, 0.0], asked, trial)(asked)
    assert found == pytest.approx([0.1, 0.4, 0.0])
    # The second layer holds no more than 40, so that the third best, the first, gives.
    harm[2], asked = 9.0, 70.0
    found = greedy([100.0, 50.0, 20.0], [10.0, 10.0, 0.0], asked, trial)(asked)
    assert found == pytest.approx([0.6, 0.2, 0.0])
    # No layer alone holds 150 more.
    found = greedy([100.0, 50.0, 20.0], [10.0, 10.0, 0.0], 165.0, trial)(165.0)
    assert sum(s * c for s, c in zip(found, [100, 50, 20], strict=True)) == pytest.approx(165)


def test_a_greedy_step_is_the_best_of_all_that_were_possible() -> None:
    """Brute force over the layers of a network, each pruned by magnitude alone."""
    data = [batch(1), batch(2)]
    network = fresh("mlp").eval()
    sparsifier = Sparsifier(
        network, "weight | local(greedy) | magnitude | one_shot", sparsity=0.1, data=data
    )
    weights = {n: p for n, p in fresh("mlp").named_parameters() if p.ndim > 1}
    removing = round(0.1 * sum(weight.numel() for weight in weights.values()))
    losses = {}
    for name, weight in weights.items():
        if weight.numel() <= removing:
            continue
        copied = fresh("mlp").eval()
        flat = copied.get_parameter(name).data.view(-1)
        flat[flat.abs().argsort(stable=True)[:removing]] = 0
        with torch.no_grad():
            losses[name] = sum(float(F.cross_entropy(copied(x), y)) for x, y in data)
    assert len(losses) >= 2
    sparsifier.step(1.0)
    best = min(losses, key=lambda name: losses[name])
    assert {n: int((~m).sum()) for n, m in sparsifier.masks.items()} == {
        name: removing if name == best else 0 for name in weights
    }


@pytest.mark.parametrize("name", ["sampled", "ranking", "greedy"])
def test_what_is_found_is_no_worse_than_equal_shares(name: str) -> None:
    """The division that starts the search is the ranking without factors, or equal shares."""
    data = [batch(1)]

    def loss_of(context: str) -> tuple[float, float]:
        network = fresh("small_cnn")
        text = f"filter | {context} | squared_final(reduce=sum) | one_shot"
        sparsifier = Sparsifier(network, text, sparsity=0.4, data=data, seed=3)
        result = sparsifier.step(1.0)
        with recalibrated(network, data), torch.no_grad():
            return float(F.cross_entropy(network(data[0][0]), data[0][1])), result.achieved[
                "sparsity"
            ]

    found, reached = loss_of(f"local({name})")
    assert reached == pytest.approx(0.4, abs=0.06)
    plain, _ = loss_of("global" if name == "ranking" else "local")
    if name != "greedy":
        assert found <= plain + 1e-6


def test_a_search_leaves_the_model_as_it_was() -> None:
    network = fresh("small_cnn")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sparsifier = Sparsifier(
        network, "filter | local(sampled) | magnitude | one_shot", sparsity=0.4, data=[batch(1)]
    )
    sparsifier.step(1.0)
    assert network.training
    for name, value in network.state_dict().items():
        kept = sparsifier.masks.get(name)
        assert torch.equal(value, before[name] * (kept if kept is not None else 1)), name


def test_statistics_are_those_of_the_data() -> None:
    """Of a norm with no layer before it they are the mean and variance of all examples."""
    network = nn.Sequential(nn.BatchNorm2d(3))
    inputs = torch.randn(2, 8, 3, 5, 5) * 3 + 1
    data = [(part, torch.zeros(8)) for part in inputs]
    with recalibrated(network, data):
        torch.testing.assert_close(network[0].running_mean, inputs.mean((0, 1, 3, 4)))
        each = inputs.transpose(1, 2).flatten(2).var(2).mean(0)
        torch.testing.assert_close(network[0].running_var, each)
    assert torch.equal(network[0].running_mean, torch.zeros(3))
    assert network[0].momentum == 0.1 and network.training


def test_momentum_divides_what_is_freed() -> None:
    """Two layers of 100 with 40 survivors each drop a quarter; 20 come back, 3 to 1."""
    shares = by_momentum([100.0, 100.0], [60.0, 60.0], 120.0, 0.25, [3.0, 1.0])
    assert shares == pytest.approx([1 - 0.45, 1 - 0.35])
    # What a layer has no room for goes to the others.
    shares = by_momentum([50.0, 100.0], [10.0, 60.0], 70.0, 0.5, [100.0, 1.0])
    assert shares == pytest.approx([0.0, 0.7])


def test_a_sparse_momentum_step_by_hand() -> None:
    """Dettmers and Zettlemoyer, algorithm 1, on two matrices, after some steps of training."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 5))
    text = "weight | local(momentum) | magnitude | " \
        "constant(every=3, mask=regrown(by=momentum, share=0.5, decay=constant))"  # fmt: skip
    sparsifier = Sparsifier(network, text, sparsity=0.6)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9)
    sparsifier.attach(optimizer, 6)
    names = ["0.weight", "2.weight"]
    kept = {name: sparsifier.masks[name].clone() for name in names}
    assert [int(kept[name].sum()) for name in names] == [48, 24]  # equal shares at first

    def train() -> None:
        optimizer.zero_grad()
        inputs, targets = torch.randn(16, 10), torch.randint(5, (16,))
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()

    train()
    train()
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    step = sparsifier.step

    def look(progress: float) -> object:
        for name in names:
            weight = network.get_parameter(name)
            seen[name] = (
                weight.detach().clone() * kept[name],
                optimizer.state[weight]["momentum_buffer"].clone(),
            )
        return step(progress)

    sparsifier.step = look  # type: ignore[method-assign,assignment]
    train()
    means = {name: float(seen[name][1][kept[name]].abs().mean()) for name in names}
    freed = {name: int(kept[name].sum()) // 2 for name in names}
    for name in names:
        weight, momentum = seen[name]
        left = kept[name].clone().flatten()
        order = weight.abs().flatten().masked_fill(~left, torch.inf).argsort(stable=True)
        left[order[: freed[name]]] = False
        back = round(sum(freed.values()) * means[name] / sum(means.values()))
        grow = momentum.abs().flatten().masked_fill(left, -1).argsort(descending=True)
        left[grow[:back]] = True
        assert torch.equal(sparsifier.masks[name].flatten(), left), name
    total = sum(int(sparsifier.masks[name].sum()) for name in names)
    assert total == 72


def test_momentum_is_asked_for_where_there_is_none() -> None:
    network = nn.Linear(6, 6)
    text = "weight | local | magnitude | constant(every=1, mask=regrown(by=momentum))"
    sparsifier = Sparsifier(network, text, sparsity=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    sparsifier.attach(optimizer, 4)
    network(torch.randn(3, 6)).sum().backward()
    with pytest.raises(SecateurError, match=r"mask=regrown\(by=momentum.*SGD with momentum"):
        optimizer.step()


@pytest.mark.parametrize("name", ["sampled", "ranking", "greedy"])
def test_a_search_without_data_is_refused(name: str) -> None:
    with pytest.raises(SecateurError, match=rf"local\({name}\).*pass data="):
        Sparsifier(fresh("mlp"), f"weight | local({name}) | magnitude | one_shot", sparsity=0.5)


def test_a_threshold_and_a_budget_are_refused() -> None:
    text = "weight | local(threshold) | learned | constant(every=1, mask=reselected)"
    with pytest.raises(SecateurError, match=r"'local\(threshold\)'.*sparsity=0.5"):
        Sparsifier(fresh("mlp"), text, sparsity=0.5)


@pytest.mark.parametrize("name", ["sampled", "ranking", "greedy"])
def test_coupled_channels_are_searched_too(name: str) -> None:
    """The budget in MACs is met over the real structure, and what is masked can be removed."""
    network, (inputs, _) = fresh("small_cnn"), batch(0)
    sparsifier = Sparsifier(
        network, f"filter | local({name}) | magnitude | iterative(n=2)", macs=0.5,
        data=[batch(1)], example_inputs=inputs,
    )  # fmt: skip
    first, last = sparsifier.step(0.5), sparsifier.step(1.0)
    assert first.achieved["macs"] == pytest.approx(0.75, abs=0.06)
    assert last.achieved["macs"] == pytest.approx(0.5, abs=0.06)
    assert len(set(last.layers.values())) == 2
    result = shrink(network, sparsifier, inputs)
    assert result.after.macs / result.before.macs == pytest.approx(last.achieved["macs"])


@pytest.mark.parametrize("name", ["owl", "tail", "momentum", "threshold"])
def test_divisions_among_single_matrices_refuse_coupled_layers(name: str) -> None:
    sparsity = None if name == "threshold" else 0.5
    with pytest.raises(SecateurError, match="couples them"):
        Sparsifier(
            fresh("small_cnn"), f"filter | local({name}) | magnitude | one_shot",
            sparsity=sparsity, data=[batch(1)], example_inputs=batch(0)[0],
        )  # fmt: skip


def test_what_scores_below_zero_goes() -> None:
    """negate(magnitude) + a threshold at zero: all but exact zeros go."""
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        network[0].weight[:2] = 0
    sparsifier = Sparsifier(network, "weight | local(threshold) | small_final | one_shot")
    result = sparsifier.step(1.0)
    counts = [int((~sparsifier.masks[f"{place}.weight"]).sum()) for place in (0, 1)]
    assert counts == [8, 16]
    assert result.achieved["sparsity"] == result.target == pytest.approx(24 / 32)
    assert result.shortfall == 0


def test_the_share_of_a_search_adds_up() -> None:
    for name, claim in itertools.product(("sampled", "greedy"), (0.25, 0.5)):
        network = fresh("mlp")
        sparsifier = Sparsifier(
            network, f"weight | local({name}) | magnitude | one_shot", sparsity=claim,
            data=[batch(1)],
        )  # fmt: skip
        assert sparsifier.step(1.0).achieved["sparsity"] == pytest.approx(claim, abs=0.001)
