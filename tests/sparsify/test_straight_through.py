"""Removed weights that learn through the mask, against the update written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import equal, fresh, state_of, train, zeros_match

from secateur import Sparsifier

TEXT = "weight | local | magnitude | constant(every=1, mask=reselected) | " \
    "keep(removed=straight_through)"  # fmt: skip


def data(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def top(weight: Tensor, removed: int) -> Tensor:
    order = weight.detach().abs().flatten().argsort()
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[:removed]] = False
    return mask.view_as(weight)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_as_the_estimator_says(momentum: float, decay: float) -> None:
    """w <- w - eta (dL/dw at w * m + decay (1 - m) w): Bengio et al. 2013, SR-STE with a decay."""
    network = model()
    text = TEXT + (f" | growing_l2(weight={decay}, schedule=constant)" if decay else "")
    sparsifier = Sparsifier(network, text, sparsity=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=momentum)
    sparsifier.attach(optimizer, 20)

    dense = {name: value.detach().clone() for name, value in model().named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in dense.items()}
    masks = {n: top(v, v.numel() // 2) for n, v in dense.items() if n.endswith("weight")}
    first = {name: mask.clone() for name, mask in masks.items()}
    for step in range(12):
        inputs, targets = data(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), targets)
        (loss + sparsifier.objective_loss()).backward()
        optimizer.step()

        used = {
            name: (value * masks[name] if name in masks else value).clone().requires_grad_()
            for name, value in dense.items()
        }
        plain = torch.func.functional_call(model(), used, (inputs,))
        gradients = torch.autograd.grad(F.cross_entropy(plain, targets), list(used.values()))
        for (name, value), gradient in zip(list(dense.items()), gradients, strict=True):
            if name in masks:
                speed[name] = momentum * speed[name] + gradient + decay * ~masks[name] * value
            else:
                speed[name] = momentum * speed[name] + gradient
            dense[name] = value - 0.3 * speed[name]
        masks = {name: top(dense[name], mask.numel() // 2) for name, mask in masks.items()}

        for name, mask in masks.items():
            assert torch.equal(sparsifier.masks[name], mask)
            torch.testing.assert_close(network.get_parameter(name), dense[name] * mask)
    assert any(not torch.equal(mask, first[name]) for name, mask in masks.items())


def test_the_network_is_sparse_whenever_it_runs_and_at_the_end_for_good() -> None:
    network = fresh()
    sparsifier = Sparsifier(network, TEXT, sparsity=0.8)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    sparsifier.attach(optimizer, 6)
    for step in range(6):
        assert zeros_match(network, sparsifier)
        assert bool(sparsifier._memory.shadow)
        train(network, optimizer, [step])
    assert zeros_match(network, sparsifier) and not sparsifier._memory.shadow
    masks = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    train(network, optimizer, range(6, 8))
    assert equal(masks, dict(sparsifier.masks)) and zeros_match(network, sparsifier)


def test_removed_filters_learn_and_return() -> None:
    text = TEXT.replace("weight", "filter", 1)
    network = fresh()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # a ReLU has no gradient at zero
            nn.init.constant_(module.bias, 0.1)
    sparsifier = Sparsifier(network, text, sparsity=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    sparsifier.attach(optimizer, 12)
    assert not any(name.endswith("bias") for name in sparsifier._memory.shadow)
    before = {name: held.clone() for name, held in sparsifier._memory.shadow.items()}
    first = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    train(network, optimizer, range(1))
    both = {name: ~first[name] & ~sparsifier.masks[name] for name in before}
    after = sparsifier._memory.shadow
    assert any(bool((after[name] != before[name])[both[name]].any()) for name in before)
    optimizer.param_groups[0]["lr"] = 0.5
    train(network, optimizer, range(1, 8))
    assert not equal(first, dict(sparsifier.masks))


def test_a_run_resumes_bit_for_bit() -> None:
    def start() -> tuple[nn.Module, Sparsifier, torch.optim.Optimizer]:
        network = fresh()
        sparsifier = Sparsifier(network, TEXT, sparsity=0.7)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        return network, sparsifier, optimizer

    network, sparsifier, optimizer = start()
    sparsifier.attach(optimizer, 10)
    train(network, optimizer, range(10))

    first, its, one = start()
    its.attach(one, 10)
    train(first, one, range(4))
    saved = copy.deepcopy((first.state_dict(), its.state_dict(), one.state_dict()))
    second, resumed, other = start()
    second.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    resumed.attach(other, 10)
    train(second, other, range(4, 10))
    assert equal(state_of(network), state_of(second))
    assert equal(dict(sparsifier.masks), dict(resumed.masks))


def test_a_step_by_hand_chooses_from_what_the_removed_weights_hold() -> None:
    network = model()
    whole = state_of(network)
    sparsifier = Sparsifier(network, TEXT.replace("constant(every=1, ", "linear("), sparsity=0.8)
    sparsifier.step(0.9)
    sparsifier.step(0.1)
    held = {
        name: value * sparsifier.masks.get(name, torch.ones(())) for name, value in whole.items()
    }
    assert equal(state_of(network), held)
