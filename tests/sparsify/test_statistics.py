"""Statistics over data, each against its definition computed another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import example
from torch import Tensor, nn
from training import fresh

from secateur import SecateurError
from secateur.sparsify.statistics import collect, mean_loss
from secateur.structure import find_weights
from secateur.structure.weights import PrunableWeight

Batches = list[tuple[Tensor, Tensor]]


def batches_for(name: str, sizes: tuple[int, ...] = (3, 2)) -> Batches:
    found = []
    for place, size in enumerate(sizes):
        (inputs,) = example(name, batch=size, seed=place)
        found.append((inputs, torch.arange(size) % 10))
    return found


def statistics(
    model: nn.Module, need: str, data: Any, loss: Any = None
) -> tuple[tuple[PrunableWeight, ...], dict[str, Tensor]]:
    weights = find_weights(model).weights
    return weights, collect(model, weights, {need}, data, loss)[need]


VARIED = ["small_cnn", "mlp", "grouped_cnn", "conv1d_net", "conv3d_net", "transformer",
          "embedding_net"]  # fmt: skip


@pytest.mark.parametrize("name", VARIED)
def test_the_gradient_is_the_mean_over_batches(name: str) -> None:
    model, data = fresh(name), batches_for(name)
    weights, found = statistics(model, "gradient", data)
    model.eval()
    parameters = dict(model.named_parameters())
    total = sum(F.cross_entropy(model(x), y) for x, y in data) / len(data)
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for weight in weights:
        expected = gradients[list(parameters).index(weight.parameter)]
        torch.testing.assert_close(found[weight.name], weight.view(expected))


@pytest.mark.parametrize("name", ["small_cnn", "grouped_cnn", "embedding_net", "transformer"])
def test_fisher_is_the_mean_squared_gradient_of_single_examples(name: str) -> None:
    model, data = fresh(name), batches_for(name)
    weights, found = statistics(model, "fisher", data)
    model.eval()
    parameters = dict(model.named_parameters())
    expected = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for x, y in data:
        for place in range(len(x)):
            model.zero_grad()
            F.cross_entropy(model(x[place : place + 1]), y[place : place + 1]).backward()
            for n, p in parameters.items():
                expected[n] += p.grad.square() / 5
    for weight in weights:
        torch.testing.assert_close(found[weight.name], weight.view(expected[weight.parameter]))


def test_the_hessian_of_a_diagonal_quadratic_is_exact() -> None:
    layer = nn.Linear(4, 3, bias=False)
    curvature = torch.arange(12.0).reshape(3, 4)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (curvature * model.weight.square()).sum() / 2

    _, found = statistics(layer, "hessian", [0, 0], loss)
    torch.testing.assert_close(found["weight"][0], curvature)


def test_the_hessian_comes_near_the_true_diagonal() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    _, found = statistics(model, "hessian", [(x, y)] * 40)
    for place in (0, 2):
        name = f"{place}.weight"
        shape = model[place].weight.shape

        def of_weight(flat: Tensor, name: str = name, shape: Any = shape) -> Tensor:
            outputs = torch.func.functional_call(model, {name: flat.view(shape)}, (x,))
            return F.cross_entropy(outputs, y)

        full = torch.autograd.functional.hessian(of_weight, model[place].weight.detach().flatten())
        estimate = found[name].flatten()
        exact = full.diagonal()
        assert float((estimate - exact).norm() / exact.norm()) < 0.6
        assert float(torch.corrcoef(torch.stack([estimate, exact]))[0, 1]) > 0.8


def test_the_hessian_is_the_same_twice() -> None:
    model, data = fresh("mlp"), batches_for("mlp")
    first, second = (statistics(model, "hessian", data)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def output_changes(model: nn.Module, layer: nn.Module, data: Batches, channel: int) -> Tensor:
    """Return mean over examples of |sum over positions of a dL/da| by hooks [outputs]."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = layer.register_forward_hook(keep)
    total, count = torch.zeros(()), 0
    for x, y in data:
        for place in range(len(x)):
            kept.clear()
            F.cross_entropy(model(x[place : place + 1]), y[place : place + 1]).backward()
            product = kept[0].detach() * kept[0].grad
            dims = [dim for dim in range(product.dim()) if dim != channel % product.dim()]
            total = total + product.sum(dims).abs()
            count += 1
    handle.remove()
    return total / count


@pytest.mark.parametrize(
    ("name", "layer", "channel"),
    [
        ("small_cnn", "0", 1), ("small_cnn", "3", 1), ("small_cnn", "8", 1),
        ("grouped_cnn", "2", 1), ("grouped_cnn", "5", 1), ("conv1d_net", "3", 1),
        ("transformer", "up", -1), ("embedding_net", "embedding", -1),
    ],
)  # fmt: skip
def test_output_taylor_agrees_with_hooks_on_the_activations(
    name: str, layer: str, channel: int
) -> None:
    model, data = fresh(name), batches_for(name)
    weights, found = statistics(model, "output_taylor", data)
    model.eval()
    (weight,) = (each for each in weights if each.module == layer)
    expected = output_changes(model, model.get_submodule(layer), data, channel)
    assert found[weight.name].shape == (*weight.shape[:2], *[1] * (len(weight.shape) - 2))
    torch.testing.assert_close(found[weight.name].flatten(), expected, rtol=1e-4, atol=1e-6)


def test_output_taylor_of_a_transposed_convolution_with_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)
    )
    data = [(torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 2]))]
    _, found = statistics(model, "output_taylor", data)
    expected = output_changes(model, model[0], data, 1)
    torch.testing.assert_close(found["0.weight"].flatten(), expected, rtol=1e-4, atol=1e-6)


def channels_last(x: Tensor) -> Tensor:
    return x.flatten(0, -2).square().sum(0).sqrt()


def channels_second(x: Tensor) -> Tensor:
    return x.transpose(0, 1).flatten(1).square().sum(1).sqrt()


INPUTS: dict[str, tuple[nn.Module, Tensor, Callable[[Tensor], Tensor]]] = {
    "linear": (nn.Linear(5, 3), torch.randn(7, 5), channels_last),
    "tokens": (nn.Linear(5, 3), torch.randn(2, 7, 5), channels_last),
    "tokens_no_bias": (nn.Linear(5, 3, bias=False), torch.randn(2, 7, 5), channels_last),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5), channels_second),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5), channels_second),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), torch.randn(2, 4, 5, 5), channels_second),
    "conv1d": (nn.Conv1d(4, 6, 3), torch.randn(2, 4, 9), channels_second),
    "conv3d": (nn.Conv3d(4, 6, 3), torch.randn(2, 4, 4, 4, 4), channels_second),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), torch.randn(2, 4, 5, 5), channels_second),
    "grouped_transposed": (
        nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5), channels_second,
    ),
    "embedding": (
        nn.Embedding(9, 3), torch.randint(9, (4, 5)),
        lambda x: torch.bincount(x.flatten(), minlength=9).float().sqrt(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_the_input_norm_of_a_layer(name: str) -> None:
    layer, x, norm = INPUTS[name]
    half = len(x) // 2
    (weight,), found = statistics(layer, "input_norm", [(x[:half], 0), (x[half:], 0)])
    groups, _, inputs, *kernel = weight.shape
    assert found["weight"].shape == (groups, 1, inputs, *[1] * len(kernel))
    torch.testing.assert_close(found["weight"].flatten(), norm(x))


def test_the_input_norms_of_an_attention() -> None:
    model, (tokens,) = fresh("transformer"), example("transformer", batch=3)
    weights, found = statistics(model, "input_norm", [(tokens, torch.zeros(3))])
    model.eval()
    with torch.no_grad():
        x = model.norm1(tokens)
        for part in "qkv":
            norms = found[f"attention.in_proj_weight[{part}]"].flatten()
            torch.testing.assert_close(norms, channels_last(x))
        attention = model.attention
        q, k, v = (
            projected.unflatten(-1, (4, 4)).transpose(1, 2)
            for projected in F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(
                3, -1
            )
        )
        joined = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert len(weights) == 7
    torch.testing.assert_close(
        found["attention.out_proj.weight"].flatten(), channels_last(joined), rtol=1e-4, atol=1e-5
    )


def test_the_parts_of_a_cross_attention_read_their_own_inputs() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x[:, :2], x[:, 2:], x[:, 2:], need_weights=False)[0]

    x = torch.randn(3, 6, 8)
    _, found = statistics(Cross(), "input_norm", [(x, 0)])
    norms = {part: found[f"attention.in_proj_weight[{part}]"].flatten() for part in "qkv"}
    torch.testing.assert_close(norms["q"], channels_last(x[:, :2]))
    torch.testing.assert_close(norms["k"], channels_last(x[:, 2:]))
    torch.testing.assert_close(norms["v"], channels_last(x[:, 2:]))


@pytest.mark.parametrize("need", ["gradient", "fisher", "hessian", "output_taylor", "input_norm"])
@pytest.mark.parametrize("name", ["small_cnn", "transformer"])
def test_collecting_leaves_the_model_as_it_was(name: str, need: str) -> None:
    model, data = fresh(name), batches_for(name, (2,))
    model.train()
    next(model.children()).eval()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    modes = [module.training for module in model.modules()]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random_state = torch.random.get_rng_state()
    statistics(model, need, data)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(bool((p.grad == 0.5).all()) for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_a_generator_of_batches_can_be_read_more_than_once() -> None:
    model, data = fresh("mlp"), batches_for("mlp")
    weights = find_weights(model).weights
    found = collect(model, weights, {"gradient", "input_norm", "fisher"}, iter(data))
    again = collect(model, weights, {"gradient", "input_norm", "fisher"}, data)
    for need, values in again.items():
        assert all(torch.equal(found[need][name], value) for name, value in values.items())


def test_batches_may_be_mappings_with_the_models_own_loss() -> None:
    class Output:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> Output:
            return Output(F.cross_entropy(self.layer(x), labels))

    model = Own()
    x, y = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    for need in ("gradient", "fisher", "input_norm"):
        mapped = statistics(model, need, [{"x": x, "labels": y}])[1]["layer.weight"]
        paired = statistics(model.layer, need, [(x, y)])[1]["weight"]
        torch.testing.assert_close(mapped, paired)


def test_a_frozen_weight_has_no_gradient() -> None:
    model = fresh("mlp")
    model[1].weight.requires_grad_(False)
    with pytest.raises(SecateurError, match=r"1\.weight.*requires_grad"):
        statistics(model, "gradient", batches_for("mlp"))


def test_a_layer_that_the_data_never_reaches_is_named() -> None:
    model = fresh("mlp")
    model.unused = nn.Linear(3, 3)
    model.forward = lambda x: nn.Sequential.forward(model[:6], x)  # type: ignore[method-assign]
    with pytest.raises(SecateurError, match=r"unused\.weight"):
        statistics(model, "input_norm", batches_for("mlp"))


@pytest.mark.parametrize("data", [[], iter(())])
def test_no_batch_is_an_error(data: Any) -> None:
    with pytest.raises(SecateurError, match="no batch"):
        statistics(fresh("mlp"), "gradient", data)


@pytest.mark.parametrize("batch", [torch.randn(2, 1, 8, 8), (1, 2, 3), "text"])
def test_a_batch_that_means_nothing_is_an_error(batch: Any) -> None:
    with pytest.raises(SecateurError, match="loss=") as error:
        statistics(fresh("mlp"), "gradient", [batch])
    assert "\n" not in str(error.value)


def test_the_mean_loss_is_in_eval_mode() -> None:
    model, data = fresh("small_cnn").train(), batches_for("small_cnn")
    found = mean_loss(model, data)
    assert model.training
    model.eval()
    expected = sum(F.cross_entropy(model(x), y).item() for x, y in data) / len(data)
    assert found == pytest.approx(expected, rel=1e-5)
