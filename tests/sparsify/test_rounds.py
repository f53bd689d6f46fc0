"""Rounds at one moment, and the criteria that prune before training, against plain readings."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier
from secateur.sparsify.statistics import collect
from secateur.structure import find_weights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second, third = (nn.Linear(*size, bias=False) for size in ((6, 8), (8, 5), (5, 3)))
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), third)


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 6), torch.randint(0, 3, (8,))) for _ in range(2)]


def plain_synflow(model: nn.Sequential, sparsity: float, rounds: int) -> dict[str, Tensor]:
    """Tanaka et al.'s algorithm, read off the paper: keep rho^(k/n) in round k."""
    model = copy.deepcopy(model).double()
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    for number in range(1, rounds + 1):
        absolute = {n: p.detach().abs() for n, p in model.named_parameters()}
        for name, mask in masks.items():
            absolute[name] = (absolute[name] * mask).requires_grad_()
        ones = torch.ones(1, 6, dtype=torch.float64)
        torch.func.functional_call(model, absolute, (ones,)).sum().backward()
        scores = {name: absolute[name] * absolute[name].grad for name in weights}
        kept = total - round(total * (1 - (1 - sparsity) ** (number / rounds)))
        threshold = torch.cat([s.flatten() for s in scores.values()]).sort(descending=True)
        masks = {name: s >= threshold.values[kept - 1] for name, s in scores.items()}
    return masks


def test_synflow_as_published() -> None:
    model = network()
    expected = plain_synflow(model, 0.8, 10)
    text = "weight | global | synflow | one_shot(rounds=10)"
    sparsifier = Sparsifier(model, text, sparsity=0.8, data=batches())
    result = sparsifier.step(0.0)
    for name, mask in expected.items():
        assert torch.equal(sparsifier.masks[name], mask)
    assert result.changed == result.removed == 82  # 80 % of 103


def test_rounds_differ_from_one_shot_and_keep_every_layer() -> None:
    def kept(rounds: int) -> list[int]:
        model = network()
        text = f"weight | global | synflow | one_shot(rounds={rounds})"
        sparsifier = Sparsifier(model, text, sparsity=0.95, data=batches())
        sparsifier.step(0.0)
        assert sum(int(m.sum()) for m in sparsifier.masks.values()) == 103 - round(0.95 * 103)
        return [int(mask.sum()) for mask in sparsifier.masks.values()]

    assert min(kept(100)) > 0
    assert kept(1) != kept(100)


def test_rounds_shrink_what_is_kept_by_one_factor() -> None:
    sparsifier = Sparsifier(
        network(), "weight | global | magnitude | iterative(n=2, rounds=4)", sparsity=0.8
    )
    shares = sparsifier._engine.rounds(sparsifier._memory, 0.5)
    left = [1.0, *(1 - 0.8 * share for share in shares)]
    factors = {round(after / before, 9) for before, after in itertools.pairwise(left)}
    assert factors == {round(0.6**0.25, 9)}
    sparsifier.step(0.5)
    shares = sparsifier._engine.rounds(sparsifier._memory, 1.0)
    assert shares[-1] == 1.0 and shares == sorted(shares) and shares[0] > 0.5
    assert sparsifier._engine.rounds(sparsifier._memory, 0.5) == [0.5]


def test_grasp_is_the_hessian_of_autograd_times_the_gradient() -> None:
    model, data = network(), batches()
    weights = find_weights(model).weights
    found = collect(model, weights, {"hessian_gradient"}, data)["hessian_gradient"]
    names = [weight.parameter for weight in weights]
    sizes = [model.get_parameter(name).shape for name in names]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in sizes])
        given = {
            name: part.view(shape) for name, part, shape in zip(names, parts, sizes, strict=True)
        }
        losses = [
            nn.functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)
            for x, y in data
        ]
        return torch.stack(losses).mean()

    flat = torch.cat([model.get_parameter(name).detach().flatten() for name in names])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    product = torch.autograd.functional.hessian(loss, flat) @ gradient
    expected = product.split([shape.numel() for shape in sizes])
    for weight, part in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[weight.name].flatten(), part, rtol=1e-4, atol=1e-7)


def test_synflow_says_what_it_cannot_send() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3))
    data = [(torch.zeros(2, 2, dtype=torch.long), torch.tensor([0, 1]))]
    sparsifier = Sparsifier(
        model, "weight | global | synflow | one_shot", sparsity=0.5, include="2", data=data
    )
    with pytest.raises(SecateurError, match="not one tensor of numbers"):
        sparsifier.step(1.0)
