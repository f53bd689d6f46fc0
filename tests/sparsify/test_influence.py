"""What layers and norms do to what passes through, against plain loops and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import batch, fresh

from secateur import SecateurError, Sparsifier
from secateur.sparsify.hiding import masked


class Block(nn.Module):
    """Adds two branches to a stream of tokens, one after the other."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        for module in (self.first, self.second):
            module.weight.data.mul_(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x).tanh()
        return x + self.second(x).tanh()


def stream() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), *[Block(s) for s in (2.0, 0.1, 1.0)], nn.Linear(6, 3))


def tokens(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 5, 6, generator=generator), torch.randn(4, 5, 3, generator=generator)


DATA = [tokens(1), tokens(2)]


def influence_by_hand(network: nn.Sequential) -> list[float]:
    """Return 1 - E[cos] over tokens of what enters and leaves each block (Men et al., eq. 1)."""
    found = []
    for place in (1, 2, 3):
        cosines = []
        for inputs, _ in DATA:
            for sample in inputs:
                for token in sample:
                    before = network[:place](token)
                    after = network[place](before)
                    cosines.append(float(before @ after / (before.norm() * after.norm())))
        found.append(1 - sum(cosines) / len(cosines))
    return found


def test_layers_of_least_influence_go() -> None:
    network = stream()
    with torch.no_grad():
        by_hand = influence_by_hand(network)
    sparsifier = Sparsifier(
        network, "layer | global | block_influence | one_shot", sparsity=1 / 3, data=DATA,
        example_inputs=DATA[0][0],
    )  # fmt: skip
    statistics = sparsifier._engine._statistics(sparsifier.masks)["block_influence"]
    for place, expected in zip((1, 2, 3), by_hand, strict=True):
        for branch in ("first", "second"):
            found = statistics[f"{place}.{branch}.weight"]
            assert float(found) == pytest.approx(expected, abs=1e-5)
    sparsifier.step(1.0)
    least = min((1, 2, 3), key=lambda place: by_hand[place - 1])
    gone = {name for name, mask in sparsifier.masks.items() if not mask.any()}
    assert gone == {f"{least}.{b}.{p}" for b in ("first", "second") for p in ("weight", "bias")}


def test_a_layer_that_changes_the_shape_has_all_the_influence() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))
    sparsifier = Sparsifier(
        network,
        "layer | local | block_influence | one_shot",
        sparsity=0.5,
        data=DATA,
        include="*",
    )
    found = sparsifier._engine._statistics(sparsifier.masks)["block_influence"]
    assert float(found["1.weight"]) == 1.0 and float(found["0.weight"]) != 1.0


def test_the_layer_that_is_missed_least_goes_first() -> None:
    """Each time the loss without each branch that is left, by brute force (Song et al., alg. 1)."""
    network = stream()
    sparsifier = Sparsifier(
        network, "layer | global | removal_loss | iterative(n=3)", sparsity=0.5, data=DATA,
        example_inputs=DATA[0][0],
    )  # fmt: skip
    names = [f"{place}.{branch}" for place in (1, 2, 3) for branch in ("first", "second")]
    gone: list[str] = []

    def loss_without(dropped: list[str]) -> float:
        copied = stream()
        for name in dropped:
            for parameter in copied.get_submodule(name).parameters():
                parameter.data.zero_()
        with torch.no_grad():
            return sum(float(F.mse_loss(copied(x), y)) for x, y in DATA)

    for progress in (1 / 3, 2 / 3, 1.0):
        left = [name for name in names if name not in gone]
        gone.append(min(left, key=lambda name: loss_without([*gone, name])))
        sparsifier.step(progress)
        found = {n.rpartition(".")[0] for n, m in sparsifier.masks.items() if not m.any()}
        assert found == set(gone)


def test_the_taylor_expansion_of_scales() -> None:
    """The mean over batches of |gamma dL/dgamma|, by autograd."""
    network = fresh("small_cnn").eval()
    for place in (1, 4):
        nn.init.uniform_(network[place].weight)
    data = [batch(1), batch(2), batch(3)]
    expected = {}
    for place, name in ((1, "0.weight"), (4, "3.weight")):
        scale = network[place].weight
        each = [
            (scale * torch.autograd.grad(F.cross_entropy(network(x), y), [scale])[0]).abs()
            for x, y in data
        ]
        expected[name] = torch.stack(each).mean(0).detach()
    sparsifier = Sparsifier(
        network, "filter | global | gate_taylor | one_shot", sparsity=0.5, data=data
    )
    found = sparsifier._engine._statistics(sparsifier.masks)["scale_taylor"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].flatten(), value)


def test_gates_that_are_not_there_are_refused() -> None:
    with pytest.raises(SecateurError, match="'gate_taylor' needs a norm with a scale"):
        Sparsifier(
            fresh("mlp"), "filter | global | gate_taylor | one_shot", sparsity=0.5, data=[batch(1)]
        )


def test_importance_of_the_last_answers() -> None:
    """|W_3|^T 1 and |W_2|^T |W_3|^T 1, the recursion of Yu et al. (eq. 8)."""
    network = fresh("mlp")
    last, middle = network[5].weight.detach().abs(), network[3].weight.detach().abs()
    expected = {"3.weight": last.T @ torch.ones(10)}
    expected["1.weight"] = middle.T @ expected["3.weight"]
    sparsifier = Sparsifier(
        network, "filter | local | nisp | one_shot", sparsity=0.5, data=[batch(1)]
    )
    found = sparsifier._engine._statistics(sparsifier.masks)["propagated"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].flatten(), value)


def test_importance_through_a_convolution() -> None:
    """A channel's importance is that of all its positions: brute force, one after the other."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(8, 4)
    )
    network = network.double()
    images = (torch.randn(2, 1, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.long))
    sparsifier = Sparsifier(
        network, "filter | local | nisp | one_shot", sparsity=0.5, data=[images]
    )
    found = sparsifier._engine._statistics(sparsifier.masks)["propagated"]
    importance = network[4].weight.detach().abs().T @ torch.ones(4, dtype=torch.float64)
    torch.testing.assert_close(
        found["2.weight"].flatten().double(), importance.reshape(2, 4).sum(1), rtol=1e-5, atol=1e-6
    )
    total = torch.zeros(3, dtype=torch.float64)
    kernel = network[2].weight.detach().abs()
    for channel in range(3):
        for place in range(16):
            image = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
            image[0, channel].view(-1)[place] = 1
            total[channel] += F.conv2d(image, kernel).flatten() @ importance
    torch.testing.assert_close(found["0.weight"].flatten().double(), total, rtol=1e-5, atol=1e-6)


def test_saliency_of_the_pruned_network_by_hand() -> None:
    """FORCE: exponential rounds, |g w| with g where the network is pruned and w where it is not."""
    data = [tokens(3)]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    first = {name: p.detach().clone() for name, p in network.named_parameters()}
    names = ["0.weight", "2.weight"]
    total = sum(first[name].numel() for name in names)
    rounds, keep = 4, 0.2
    masks = {name: torch.ones_like(first[name]) for name in names}
    came_back = 0
    for number in range(1, rounds + 1):
        used = {n: (v * masks.get(n, 1)).requires_grad_() for n, v in first.items()}
        loss = F.mse_loss(torch.func.functional_call(network, used, (data[0][0],)), data[0][1])
        gradients = torch.autograd.grad(loss, [used[name] for name in names])
        scores = [(g * first[n]).abs().flatten() for n, g in zip(names, gradients, strict=True)]
        removing = round(total * (1 - keep ** (number / rounds)))
        order = torch.cat(scores).argsort(stable=True)[:removing]
        flat = torch.ones(total)
        flat[order] = 0
        parts = flat.split([first[name].numel() for name in names])
        new = {n: part.view_as(first[n]) for n, part in zip(names, parts, strict=True)}
        came_back += sum(int(((new[n] == 1) & (masks[n] == 0)).sum()) for n in names)
        masks = new
    text = f"weight | global | force | one_shot(end=0, rounds={rounds}, mask=reselected) | " \
        "keep(removed=held)"  # fmt: skip
    sparsifier = Sparsifier(network, text, sparsity=1 - keep, data=data)
    sparsifier.attach(torch.optim.SGD(network.parameters(), lr=0.1), 10)
    for name in names:
        assert torch.equal(sparsifier.masks[name], masks[name].bool())
        assert torch.equal(network.get_parameter(name), first[name] * masks[name])
    assert came_back > 0, "the example should let weights return"


def test_what_is_masked_for_a_while_comes_back_as_it_was() -> None:
    network = fresh("mlp")
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    mask = torch.rand(network[1].weight.shape) < 0.5
    with masked(network, {"1.weight": mask}):
        assert torch.equal(network[1].weight, before["1.weight"] * mask)
    assert all(torch.equal(p, before[n]) for n, p in network.named_parameters())
