"""Compensation against oracles: closed forms, brute force, the published algorithm as it reads."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier
from secateur.sparsify.quadratic import damped, error, inverse, inverse_factor, refit, rescale
from secateur.structure import find_weights


def mixed(inputs: int, rows: int = 256, seed: int = 0) -> Tensor:
    """Inputs that have much in common, so that some can make up for others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    values = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    return values @ (mixing + torch.eye(inputs, dtype=torch.float64))


def linear(inputs: int, outputs: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, outputs)).double()


def run(model: nn.Module, technique: str, data: Tensor, **options: object) -> nn.Module:
    """Prune a copy at once, by half unless told otherwise."""
    pruned = copy.deepcopy(model)
    options = {"sparsity": 0.5} | options
    sparsifier = Sparsifier(pruned, technique, data=[(data, data)], **options)  # type: ignore[arg-type]
    result = sparsifier.step(1.0)
    assert result.shortfall == 0
    for name, mask in sparsifier.masks.items():
        assert bool((pruned.get_parameter(name)[~mask] == 0).all())
    return pruned


def loss(model: nn.Module, pruned: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        return float((model(data) - pruned(data)).square().sum())


def plain_obs(weight: Tensor, hessian: Tensor, count: int) -> tuple[Tensor, set[int]]:
    """Hassibi and Stork 1993 by the book: the least w^2 / 2 H^-1[q, q] goes, one after another."""
    weight, gone = weight.clone(), set[int]()
    for _ in range(count):
        left = [place for place in range(len(weight)) if place not in gone]
        backwards = torch.zeros_like(hessian)
        index = torch.tensor(left)
        backwards[index[:, None], index] = torch.linalg.inv(hessian[index[:, None], index])
        cost = {q: float(weight[q] ** 2 / (2 * backwards[q, q])) for q in left}
        best = min(left, key=lambda q: cost[q])
        weight -= weight[best] / backwards[best, best] * backwards[:, best]
        gone.add(best)
        weight[list(gone)] = 0
    return weight, gone


def plain_sparsegpt(weight: Tensor, hessian: Tensor, sparsity: float, block: int,
                    pattern: tuple[int, int] | None = None) -> Tensor:  # fmt: skip
    """Frantar and Alistarh 2023, as its pseudocode and code read; Hessian damped already."""
    weight, columns = weight.clone(), weight.shape[1]
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        own, diagonal = weight[:, first:last].clone(), torch.diag(factor)[first:last]
        errors, kept = torch.zeros_like(own), torch.ones_like(own, dtype=torch.bool)
        if pattern is None:
            scores = own**2 / diagonal**2
            order = scores.flatten().argsort(stable=True)[: round(scores.numel() * sparsity)]
            kept.view(-1)[order] = False
        for place in range(last - first):
            if pattern is not None and place % pattern[1] == 0:
                span = slice(place, place + pattern[1])
                scores = own[:, span] ** 2 / diagonal[span] ** 2
                lowest = scores.argsort(1)[:, : pattern[1] - pattern[0]]
                kept[:, span] = kept[:, span].scatter(1, lowest, False)
            column = own[:, place].clone()
            error = column * ~kept[:, place] / diagonal[place]
            own[:, place:] -= error[:, None] * factor[first + place, first + place : last]
            errors[:, place] = error
        weight[:, first:last] = own * kept
        weight[:, last:] -= errors @ factor[first:last, last:]
    return weight


def hessian_of(data: Tensor, damping: float) -> Tensor:
    matrix = data.T @ data / len(data)
    return matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix)).double()


def test_obs_of_a_quadratic_in_closed_form() -> None:
    """Two weights, H = [[2, 1], [1, 1]]: without the second, the first moves by w2 H12 / H11."""
    hessian = torch.tensor([[[2.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    rows = torch.tensor([[[3.0, 4.0]]], dtype=torch.float64)
    kept = torch.tensor([[[True, False]]])
    solved = refit(hessian, rows, kept)
    assert solved.tolist() == [[[5.0, 0.0]]]
    backwards = torch.linalg.inv(hessian)
    assert float(error(hessian, rows, solved)) == pytest.approx(16 / float(backwards[0, 1, 1]))


@pytest.mark.parametrize("seed", range(4))
def test_refit_is_the_least_of_all(seed: int) -> None:
    """No move within the survivors lowers the error: its gradient is zero there."""
    hessian = hessian_of(mixed(9, seed=seed), 0.01)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, 12, 9, generator=generator, dtype=torch.float64)
    kept = torch.rand(1, 12, 9, generator=generator) < 0.2 + 0.2 * seed
    solved = refit(hessian[None], rows, kept)
    gradient = (solved - rows) @ hessian
    assert float((gradient * kept).abs().max()) < 1e-9
    assert bool((solved[~kept] == 0).all())
    alike = refit(hessian[None], rows, kept[:, :1].expand_as(kept))
    assert float((((alike - rows) @ hessian) * kept[:, :1]).abs().max()) < 1e-9


def test_obs_one_by_one_ends_where_the_joint_solution_lies() -> None:
    hessian = hessian_of(mixed(8), 0.01)
    weight = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stepped, gone = plain_obs(weight, hessian, 4)
    kept = torch.tensor([place not in gone for place in range(8)])
    solved = refit(hessian[None], weight[None, None], kept[None, None])[0, 0]
    torch.testing.assert_close(solved, stepped, rtol=1e-9, atol=1e-9)


def test_obc_goes_in_the_order_of_obs() -> None:
    """One output: the exact elimination removes what OBS removes, and its weights are OBS's."""
    model, data = linear(10, 1), mixed(10)
    for count in (1, 3, 7):
        pruned = run(model, "weight | local | obc | one_shot | compensate(exact)", data,
                     sparsity=count / 10)  # fmt: skip
        stepped, gone = plain_obs(model[0].weight.detach()[0], hessian_of(data, 0.01), count)
        assert set((pruned[0].weight[0] == 0).nonzero().flatten().tolist()) == gone
        torch.testing.assert_close(pruned[0].weight.detach()[0], stepped, rtol=1e-8, atol=1e-8)


def test_obc_takes_the_cheapest_next_step_of_all_outputs() -> None:
    model, data = linear(6, 4), mixed(6)
    hessian = hessian_of(data, 0.01)
    pruned = run(model, "weight | local | obc | one_shot | compensate(exact)", data)
    weight = model[0].weight.detach()
    steps = [0] * 4
    costs = []
    for row in weight:
        paths = [plain_obs(row, hessian, count)[0] for count in range(7)]
        totals = [float((path - row) @ hessian @ (path - row)) for path in paths]
        costs.append([after - before for before, after in itertools.pairwise(totals)])
    for _ in range(12):
        row = min((r for r in range(4) if steps[r] < 6), key=lambda r: costs[r][steps[r]])
        steps[row] += 1
    assert (pruned[0].weight == 0).sum(1).tolist() == steps


def test_obc_beside_the_best_of_all_masks() -> None:
    """Brute force over all masks of a row: none is better than the best, and magnitude is worse."""
    model, data = linear(8, 1, seed=3), mixed(8, seed=3)
    hessian, weight = hessian_of(data, 0.01), model[0].weight.detach()
    best = float("inf")
    for kept_places in itertools.combinations(range(8), 4):
        kept = torch.zeros(1, 1, 8, dtype=torch.bool)
        kept[0, 0, list(kept_places)] = True
        solved = refit(hessian[None], weight[None], kept)
        best = min(best, float(error(hessian[None], weight[None], solved)))
    found = {}
    for criterion in ("obc", "obs", "magnitude"):
        pruned = run(model, f"weight | local | {criterion} | one_shot | compensate(exact)", data)
        found[criterion] = float(
            error(hessian[None], weight[None], pruned[0].weight.detach()[None])
        )
    assert best - 1e-9 <= found["obc"] < min(found["obs"], found["magnitude"])


def test_the_factor_of_the_inverse() -> None:
    matrix = torch.stack([hessian_of(mixed(7, seed=seed), 0.1) for seed in (0, 1)])
    upper = inverse_factor(matrix)
    torch.testing.assert_close(upper.transpose(1, 2) @ upper, inverse(matrix))
    assert bool((upper.tril(-1) == 0).all())
    for place in range(7):
        rest = torch.linalg.inv(matrix[:, place:, place:])[:, 0, 0]
        torch.testing.assert_close(upper[:, place, place].square(), rest)


@pytest.mark.parametrize(("inputs", "block"), [(48, 16), (50, 16), (40, 128), (33, 7)])
def test_sparsegpt_is_the_published_one(inputs: int, block: int) -> None:
    model, data = linear(inputs, 20), mixed(inputs)
    pruned = run(
        model, f"weight | local | obs | one_shot | compensate(sparsegpt, block={block})", data
    )
    hessian = hessian_of(data, 0.01)
    expected = plain_sparsegpt(model[0].weight.detach(), hessian, 0.5, block)
    torch.testing.assert_close(pruned[0].weight.detach(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (4, 8)])
def test_sparsegpt_of_n_to_m_is_the_published_one(pattern: tuple[int, int]) -> None:
    model, data = linear(48, 20), mixed(48)
    kept, block = pattern
    technique = f"{kept}:{block} | local | obs | one_shot | compensate(sparsegpt, block=16)"
    pruned = run(model, technique, data, sparsity=None)
    expected = plain_sparsegpt(model[0].weight.detach(), hessian_of(data, 0.01), 0.5, 16, pattern)
    torch.testing.assert_close(pruned[0].weight.detach(), expected, rtol=1e-7, atol=1e-9)


def test_sparsegpt_of_a_row_removes_the_same_from_every_output() -> None:
    model, data = linear(30, 8), mixed(30)
    pruned = run(model, "weight | row | obs | one_shot | compensate(sparsegpt, block=10)", data)
    assert (pruned[0].weight == 0).sum(1).tolist() == [15] * 8


def test_columns_with_the_mask_of_obs_in_order_is_obs() -> None:
    """Removing from the left, each with full correction of what is right of it, is OBS's order."""
    model, data = linear(12, 1), mixed(12)
    with torch.no_grad():
        model[0].weight[0, :5] *= 1e-3  # the mask is the first five columns
    technique = "weight | local | magnitude | one_shot | compensate({})"
    passed = run(model, technique.format("columns, block=3"), data, sparsity=5 / 12)
    exact = run(model, technique.format("exact"), data, sparsity=5 / 12)
    assert bool((passed[0].weight[0, :5] == 0).all())
    torch.testing.assert_close(passed[0].weight, exact[0].weight, rtol=1e-8, atol=1e-9)


CNN = nn.Sequential(
    nn.Conv2d(4, 8, 3, padding=1),
    nn.Conv2d(8, 8, (3, 1), groups=2, stride=2),
    nn.Conv2d(8, 8, 3, groups=8),
).double()
CHOICES = {
    "weight | local | magnitude | one_shot": ("exact", "columns"),
    "weight | row | wanda | one_shot": ("exact", "columns"),
    "weight | global | magnitude | one_shot": ("exact", "fisher"),
    "2:4(remainder=keep) | local | magnitude | one_shot": ("exact", "columns"),
    "shared_kernel | local | magnitude | one_shot": ("exact", "scale"),
    "kernel | local | magnitude | one_shot": ("exact",),
}


@pytest.mark.parametrize(
    ("technique", "method"), [(t, method) for t, own in CHOICES.items() for method in own]
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_error_is_no_greater_than_without(technique: str, method: str, place: int) -> None:
    """Each layer of a CNN alone: plain, grouped with strides, depthwise."""
    torch.manual_seed(place)
    layer = nn.Sequential(copy.deepcopy(CNN[place]))
    data = torch.randn(6, layer[0].in_channels, 9, 9).double()
    data = data + data.roll(1, 1) + data.roll(1, 2)
    budget = {"sparsity": None if "2:4" in technique else 0.5}

    def pruned(update: str) -> nn.Module:
        found = copy.deepcopy(layer)
        targets = layer(data).detach() * 0.9
        Sparsifier(found, f"{technique} | {update}", data=[(data, targets)], include="0",
                   **budget).step(1.0)  # type: ignore[arg-type]  # fmt: skip
        return found

    without, with_ = pruned("keep"), pruned(f"compensate({method})")
    assert torch.equal(without[0].weight == 0, with_[0].weight == 0)
    if method != "fisher":  # which lowers the loss, and this is not its model's minimum
        assert loss(layer, with_, data) <= loss(layer, without, data) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("method", "criterion"), [("sparsegpt, block=8", "obs"), ("admm", "magnitude")]
)
@pytest.mark.parametrize("technique", ["weight | local", "weight | row", "2:4 | local"])
def test_what_chooses_too_beats_magnitude(method: str, criterion: str, technique: str) -> None:
    model, data = linear(64, 24), mixed(64)
    sparsity = None if ":" in technique else 0.5
    plain = run(model, f"{technique} | magnitude | one_shot", data, sparsity=sparsity)
    technique += f" | {criterion} | one_shot | compensate({method})"
    pruned = run(model, technique, data, sparsity=sparsity)
    assert int((pruned[0].weight == 0).sum()) == 64 * 24 // 2
    assert loss(model, pruned, data) < 0.7 * loss(model, plain, data)


def test_the_scale_of_channels_is_thinets() -> None:
    """Against least squares over the channels' contributions, as numbers."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(50, 4, 3, generator=generator, dtype=torch.float64)
    rows = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    contributions = torch.einsum("nck,ock->noc", data, rows).reshape(-1, 4)
    kept = [0, 2]
    target = contributions.sum(1)
    numbers = torch.linalg.lstsq(contributions[:, kept], target[:, None]).solution[:, 0]
    flat = data.flatten(1)
    gram = (flat.T @ flat / len(flat))[None]
    marks = torch.zeros(1, 5, 12, dtype=torch.bool)
    for channel in kept:
        marks[:, :, 3 * channel : 3 * channel + 3] = True
    found = rescale(gram, rows.flatten(1)[None], marks, 3, 0.0)
    for channel, number in zip(kept, numbers.tolist(), strict=True):
        own = found[0].unflatten(1, (4, 3))[:, channel]
        torch.testing.assert_close(own, rows[:, channel] * number)


def test_the_bias_takes_over_the_mean() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).double()
    data = torch.randn(8, 4, 6, 6).double() + torch.arange(4.0).double().reshape(4, 1, 1)
    technique = "shared_kernel | local | fluctuation | one_shot | compensate(bias)"
    pruned = copy.deepcopy(model)
    Sparsifier(pruned, technique, sparsity=0.5, data=[data], include="0").step(1.0)
    with torch.no_grad():
        means = [network(data).mean((0, 2, 3)) for network in (model, pruned)]
    torch.testing.assert_close(means[0], means[1])
    assert not torch.equal(model[0].bias, pruned[0].bias)


def test_swaps_bring_the_mean_error_down_and_keep_the_counts() -> None:
    model, data = linear(32, 16), mixed(32) + 1.0
    before = run(model, "weight | row | wanda | one_shot", data)
    after = run(model, "weight | row | wanda | one_shot | compensate(swaps, threshold=0)", data)
    mean = data.mean(0)
    weight = model[0].weight.detach()
    missed = [((weight - each[0].weight.detach()) @ mean).abs() for each in (before, after)]
    assert bool((missed[1] <= missed[0] + 1e-12).all()) and bool((missed[1] < missed[0]).any())
    assert (after[0].weight == 0).sum(1).tolist() == [16] * 16
    stays = after[0].weight != 0
    assert torch.equal(after[0].weight[stays], weight[stays])


def test_fisher_of_one_block_is_the_closed_form() -> None:
    """A linear layer, squared error: with one block the step is OBS's over the empirical Fisher."""
    model = nn.Sequential(nn.Linear(6, 1, bias=False)).double()
    data = mixed(6, rows=40)
    targets = data @ torch.ones(6, 1).double()
    gradients = torch.stack([
        torch.autograd.grad(nn.functional.mse_loss(model(x[None]), y[None]), model[0].weight)[0][0]
        for x, y in zip(data, targets, strict=True)
    ])  # fmt: skip
    fisher = gradients.T @ gradients / len(gradients)
    fisher += 1e-4 * fisher.diagonal().mean() * torch.eye(6).double()
    weight = model[0].weight.detach()[0]
    backwards = torch.linalg.inv(fisher)
    scores = weight**2 / (2 * backwards.diagonal())
    pruned = copy.deepcopy(model)
    Sparsifier(pruned, "weight | local | woodfisher | one_shot | compensate(fisher)",
               sparsity=1 / 6, data=[(data, targets)], include="0").step(1.0)  # fmt: skip
    gone = int(scores.argmin())
    expected = weight - weight[gone] / backwards[gone, gone] * backwards[:, gone]
    assert int((pruned[0].weight == 0).nonzero()[0, 1]) == gone
    torch.testing.assert_close(pruned[0].weight.detach()[0], expected, rtol=1e-6, atol=1e-8)


def test_nothing_changes_where_nothing_goes() -> None:
    model, data = linear(16, 8), mixed(16)
    for method in ("exact", "columns", "sparsegpt", "admm", "bias", "scale", "swaps", "fisher"):
        pruned = copy.deepcopy(model)
        Sparsifier(pruned, f"weight | local | obs | one_shot | compensate({method})", sparsity=0.0,
                   data=[(data, model(data).detach())]).step(1.0)  # fmt: skip
        for one, other in zip(model.parameters(), pruned.parameters(), strict=True):
            assert torch.equal(one, other), method


def test_weights_that_read_the_same_share_one_matrix() -> None:
    from secateur.sparsify.inputs import read_inputs

    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    weights = find_weights(layer).weights
    batches = [torch.randn(2, 5, 16) for _ in range(3)]
    grams = read_inputs(layer, weights, batches)["gram"]
    names = [weight.name for weight in weights]
    assert [names.index(next(n for n in names if grams[n] is grams[name])) for name in names] == [
        0, 0, 0, 3, 4, 5]  # fmt: skip
    rows = torch.cat([batch.reshape(-1, 16) for batch in batches])
    torch.testing.assert_close(grams[names[0]][0], rows.T @ rows / len(rows))


@pytest.mark.parametrize(
    ("technique", "data", "named"),
    [
        ("weight | local | magnitude | one_shot | compensate(exact)", False,
         ["compensate(exact)", "pass data="]),
        ("filter | local | magnitude | one_shot | compensate(sparsegpt)", True,
         ["compensate(sparsegpt)", "'filter'", "o"]),
        ("weight | global | obs | one_shot | compensate(sparsegpt)", True,
         ["compensate(sparsegpt)", "'global'", "compensate(columns)"]),
        ("weight | local | obs | constant(every=1, mask=reselected) | compensate(sparsegpt)", True,
         ["compensate(sparsegpt)", "mask=reselected"]),
    ],
)  # fmt: skip
def test_clashes_name_both_parts(technique: str, data: bool, named: list[str]) -> None:
    model, inputs = linear(16, 8), mixed(16)
    with pytest.raises(SecateurError) as caught:
        Sparsifier(model, technique, sparsity=0.5, data=[inputs] if data else None)
    assert all(word in str(caught.value) for word in named)


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(4, 6, 3), nn.Embedding(12, 6)])
def test_layers_without_plain_inputs_are_refused(layer: nn.Module) -> None:
    inputs = torch.randn(2, 4, 5, 5) if isinstance(layer, nn.ConvTranspose2d) else torch.arange(6)
    sparsifier = Sparsifier(
        nn.Sequential(layer), "weight | local | magnitude | one_shot | compensate(exact)",
        sparsity=0.5, data=[inputs],
    )  # fmt: skip
    with pytest.raises(SecateurError, match="exclude it"):
        sparsifier.step(1.0)


def test_inputs_that_are_never_seen_do_no_harm() -> None:
    model, data = linear(16, 8), mixed(16)
    data[:, 3:7] = 0
    for method in ("exact", "sparsegpt", "admm"):
        pruned = run(model, f"weight | local | obs | one_shot | compensate({method})", data)
        assert bool(torch.isfinite(pruned[0].weight).all())


def test_damped_leaves_its_argument_alone() -> None:
    matrix = torch.eye(3)
    assert torch.equal(damped(matrix, 1.0), 2 * torch.eye(3)) and torch.equal(matrix, torch.eye(3))


def test_a_schedule_corrects_at_every_step_of_it() -> None:
    """Shares are reached exactly, what is gone stays gone, and OWL divides as without."""
    model, data = linear(32, 16), mixed(32)
    sparsifier = Sparsifier(
        model, "weight | local(owl) | obs | agp | compensate(sparsegpt, block=8)", sparsity=0.5,
        data=[data],
    )  # fmt: skip
    gone = torch.zeros_like(model[0].weight, dtype=torch.bool)
    for progress in (0.2, 0.5, 1.0):
        result = sparsifier.step(progress)
        removed = ~sparsifier.masks["0.weight"]
        assert bool(removed[gone].all())
        assert int(removed.sum()) == round(result.target * removed.numel())
        gone = removed
    assert result.achieved["sparsity"] == 0.5
