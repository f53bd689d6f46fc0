"""The whole network's second derivatives, against autograd, the textbook's loop and brute force."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional

from secateur import SecateurError, Sparsifier
from secateur.sparsify.curvature import MOST_WEIGHTS, network_elimination, network_refit

SINGLES = {size: torch.arange(size)[:, None] for size in (7, 12, 300)}
OBS = "weight | global | network_obs | one_shot | compensate(network)"


def positive(size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size + 5, generator=generator, dtype=torch.float64)
    return matrix @ matrix.T / size


def values(size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(weights: Tensor, matrix: Tensor, count: int) -> Tensor:
    """Hassibi and Stork's loop, with the inverse taken anew from what is left each time."""
    found, left = weights.clone(), list(range(len(weights)))
    for _ in range(count):
        backwards = torch.linalg.inv(matrix[left][:, left])
        costs = found[left] ** 2 / (2 * backwards.diagonal())
        place = int(costs.argmin())
        found[left] -= found[left[place]] / backwards[place, place] * backwards[:, place]
        found[left[place]] = 0
        del left[place]
    return found


@pytest.mark.parametrize("count", [1, 5, 11])
def test_ranking_and_refitting_is_the_textbooks_loop(count: int) -> None:
    weights, matrix = values(12), positive(12)
    places = network_elimination(weights, matrix, [SINGLES[len(weights)]])[0]
    kept = torch.ones(12, dtype=torch.bool)
    kept[places < count] = False
    expected = textbook(weights, matrix, count)
    assert torch.equal(expected != 0, kept)
    torch.testing.assert_close(network_refit(weights, kept, matrix), expected)


def test_many_weights_are_eliminated_as_few_are() -> None:
    """The matrix is made smaller on the way; what has gone already stays gone."""
    weights, matrix = values(300), positive(300)
    expected = textbook(weights, matrix, 200) != 0
    places = network_elimination(weights, matrix, [SINGLES[len(weights)]])[0]
    assert torch.equal(places >= 200, expected)
    assert sorted(places.tolist()) == list(range(300))


def test_the_first_to_go_is_the_one_that_brute_force_finds() -> None:
    weights, matrix = values(7), positive(7)

    def loss(found: Tensor) -> float:
        return float((found - weights) @ matrix @ (found - weights)) / 2

    rises = []
    for place in range(7):
        kept = torch.arange(7) != place
        rises.append(loss(network_refit(weights, kept, matrix)))
    assert int(
        network_elimination(weights, matrix, [SINGLES[len(weights)]])[0].argmin()
    ) == rises.index(min(rises))


@pytest.mark.parametrize("sizes", [(3, 3), (1, 4), (6, 2)])
def test_units_of_several_weights_go_as_brute_force_says(sizes: tuple[int, int]) -> None:
    """Two layers of two units each; every step is the removal with the least rise of the error."""
    total = 2 * sum(sizes)
    weights, matrix = values(total), positive(total)
    units = [torch.arange(2 * sizes[0]).reshape(2, -1),
             torch.arange(2 * sizes[0], total).reshape(2, -1)]  # fmt: skip
    places = torch.cat(network_elimination(weights, matrix, units)).tolist()
    every = [unit for layer in units for unit in layer]
    kept, order = torch.ones(total, dtype=torch.bool), []
    while len(order) < 4:
        rises = {}
        for number in set(range(4)) - set(order):
            trial = kept.clone()
            trial[every[number]] = False
            apart = network_refit(weights, trial, matrix) - weights
            rises[number] = float(apart @ matrix @ apart)
        order.append(min(rises, key=rises.__getitem__))
        kept[every[order[-1]]] = False
    assert [places.index(step) for step in range(4)] == order


def linear_chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def gauss_newton(model: nn.Module, inputs: Tensor, of_answers: object) -> Tensor:
    """J^T L J of the weights by torch.func, averaged over examples."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    weights = {name: value for name, value in parameters.items() if name.endswith("weight")}

    def answer(flat: Tensor, x: Tensor) -> Tensor:
        parts = flat.split([each.numel() for each in weights.values()])
        own = {n: p.reshape(v.shape) for (n, v), p in zip(weights.items(), parts, strict=True)}
        return functional_call(model, {**parameters, **own}, (x[None],))[0]

    flat = torch.cat([value.reshape(-1) for value in weights.values()])
    found = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for x in inputs:
        jacobian = torch.func.jacrev(answer)(flat, x)
        found += jacobian.T @ of_answers(answer(flat, x)) @ jacobian  # type: ignore[operator]
    return found / len(inputs)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_the_matrix_is_that_of_the_answers_and_their_loss(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.sparsify import second_order

    model, inputs = linear_chain(), values(30).reshape(6, 5)
    target = torch.arange(6) % 3
    numbers = values(18, 2).reshape(6, 3)
    seen: list[Tensor] = []
    real = second_order.curvature
    monkeypatch.setattr(
        second_order, "curvature", lambda *given: seen.append(real(*given)) or seen[0]
    )
    data = [(inputs, target if kind == "classes" else numbers)]
    Sparsifier(model, OBS, sparsity=0.3, data=data).step(1.0)

    def of_answers(answer: Tensor) -> Tensor:
        if kind == "classes":
            return hessian(lambda z: functional.cross_entropy(z, target[0]))(answer)
        return hessian(lambda z: functional.mse_loss(z, numbers[0]))(answer)

    expected = gauss_newton(linear_chain(), inputs, of_answers)
    expected += 1e-4 * expected.diagonal().mean() * torch.eye(len(expected)).double()
    torch.testing.assert_close(seen[0], expected)


def test_survivors_of_all_layers_make_up_for_what_goes() -> None:
    model, inputs = linear_chain(), values(200).reshape(40, 5)
    with torch.no_grad():
        targets = model(inputs)
    obs, plain = copy.deepcopy(model), copy.deepcopy(model)
    Sparsifier(obs, OBS, sparsity=0.25, data=[(inputs, targets)]).step(1.0)
    Sparsifier(plain, "weight | global | magnitude | one_shot", sparsity=0.25).step(1.0)
    moved = [(one.weight != other.weight) & (one.weight != 0)
             for one, other in zip(obs[::2], model[::2], strict=True)]  # fmt: skip
    assert all(bool(each.any()) for each in moved)
    with torch.no_grad():
        errors = [float((each(inputs) - targets).square().mean()) for each in (obs, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_what_is_gone_stays_gone() -> None:
    model, inputs = linear_chain(), values(200).reshape(40, 5)
    data = [(inputs, torch.arange(40) % 3)]
    technique = OBS.replace("one_shot", "iterative(n=4)")
    sparsifier = Sparsifier(model, technique, sparsity=0.6, data=data)
    before: set[int] = set()
    for progress in (0.25, 0.5, 0.75, 1.0):
        sparsifier.step(progress)
        flat = torch.cat([layer.weight.reshape(-1) for layer in model[::2]])
        gone = set((flat == 0).nonzero()[:, 0].tolist())
        assert before <= gone
        before = gone
    assert len(before) == round(0.6 * 32)


REFUSED = {
    "size": ("network_obs", nn.Linear(65, 65), None, str(MOST_WEIGHTS)),
    "loss": ("network_obs", nn.Linear(4, 4), lambda model, batch: model(batch[0]).sum(), "loss="),
    "size of what is refitted": ("magnitude", nn.Linear(65, 65), None, "leave layers out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused_before_anything_runs(name: str) -> None:
    criterion, layer, loss, complaint = REFUSED[name]
    data = [(torch.ones(2, layer.in_features), torch.ones(2, layer.out_features))]
    with pytest.raises(SecateurError, match=complaint):
        Sparsifier(
            nn.Sequential(layer), f"weight | local | {criterion} | one_shot | compensate(network)",
            sparsity=0.5, data=data, loss=loss,
        )  # fmt: skip


def test_units_of_several_sizes_are_refused() -> None:
    data = [(torch.ones(2, 4), torch.ones(2, 4))]
    technique = "(o 3) i | local | network_obs | one_shot"
    sparsifier = Sparsifier(nn.Sequential(nn.Linear(4, 4)), technique, sparsity=0.5, data=data)
    with pytest.raises(SecateurError, match="does not divide"):
        sparsifier.step(1.0)


def test_a_batch_that_names_its_parts_is_refused() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    sparsifier = Sparsifier(Named(), OBS, sparsity=0.5, data=[{"x": torch.ones(2, 3)}])
    with pytest.raises(SecateurError, match="mappings"):
        sparsifier.step(1.0)


def test_half_precision_is_solved_in_double() -> None:
    model = linear_chain().to(torch.bfloat16)
    data = [(values(30).reshape(6, 5).bfloat16(), torch.arange(6) % 3)]
    Sparsifier(model, OBS, sparsity=0.5, data=data).step(1.0)
    assert all(layer.weight.dtype == torch.bfloat16 for layer in model[::2])
    assert sum(int((layer.weight == 0).sum()) for layer in model[::2]) == 16
