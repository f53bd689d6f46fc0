"""What surrounds a model: wrappers, optimisers, empty examples, scripted code, random numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier, shrink, trace

KEPT = torch.arange(12) < 5
MASKS = {"0.weight": KEPT[:, None].expand(12, 8), "0.bias": KEPT}
INPUT = torch.linspace(-1, 1, 80).view(2, 5, 8)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.mark.parametrize("wrapped", [torch.compile, nn.DataParallel])
def test_a_wrapped_model_is_unwrapped(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    model = perceptron()
    shrink(wrapped(model), MASKS, INPUT)
    assert model[0].out_features == 5


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(SecateurError, match=r"scripted.*original module"):
        trace(torch.jit.script(perceptron()), INPUT)


def test_a_spectral_norm_is_traced_and_cut() -> None:
    model = perceptron().eval()
    torch.nn.utils.parametrizations.spectral_norm(model[0])
    masks = {"0.parametrizations.weight.original": MASKS["0.weight"], "0.bias": KEPT}
    assert shrink(model, masks, INPUT).exact
    assert model[0].weight.shape == (5, 8)


@pytest.mark.parametrize("function", [trace, lambda model, x: shrink(model, MASKS, x)])
def test_an_empty_batch_is_refused(function: Callable[[nn.Module, Tensor], object]) -> None:
    with pytest.raises(SecateurError, match="example inputs are empty"):
        function(perceptron(), torch.zeros(0, 8))


def test_another_models_optimiser_is_refused() -> None:
    model = perceptron()
    with pytest.raises(SecateurError, match="none of the model's parameters"):
        shrink(model, MASKS, INPUT, torch.optim.Adam(perceptron().parameters()))
    assert model[0].out_features == 12


def test_an_attached_optimiser_is_cut_unasked() -> None:
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters())
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, example_inputs=INPUT
    )
    sparsifier.attach(optimizer, 2)
    for step in range(3):
        optimizer.zero_grad()
        model(INPUT).sum().backward()
        optimizer.step()
        if step == 1:
            shrink(model, sparsifier, INPUT)
    assert optimizer.state[model[0].weight]["exp_avg"].shape == (6, 8)


def test_a_live_bias_is_named() -> None:
    with pytest.raises(SecateurError, match=r"0\.bias lets a constant through"):
        shrink(perceptron(), {"0.weight": MASKS["0.weight"]}, INPUT)


def test_a_live_shift_of_a_norm_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    nn.init.ones_(model[1].bias)
    with pytest.raises(SecateurError, match=r"1\.weight and 1\.bias let a constant through"):
        shrink(model, MASKS, torch.zeros(2, 8))


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.layers[:2](x), 0.5, training=True)
        result: Tensor = self.layers[2](hidden)
        return result


def test_random_numbers_are_named_as_the_reason() -> None:
    model = Random()
    masks = {f"layers.{name}": mask for name, mask in MASKS.items()}
    with pytest.raises(SecateurError, match="draws random numbers"):
        shrink(model, masks, INPUT)
    assert model.layers[0].out_features == 12


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.lstm(x)[0])
        return result


class Factories(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)[:, None]
        result: Tensor = self.layers(x * steps) + torch.zeros(len(x), 1, 1, device=x.device)
        return result


@pytest.mark.parametrize("made", [Recurrent, Factories])
def test_a_graph_makes_its_tensors_where_its_inputs_are(made: type[nn.Module]) -> None:
    model = made().eval()
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.5, example_inputs=INPUT
    )
    sparsifier.step(1.0)
    graph = shrink(model, sparsifier, INPUT, as_graph=True).graph
    assert graph is not None
    other = torch.rand(3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph(other), model(other))
    assert graph.to("meta")(other.to("meta")).is_meta


def test_a_graft_compiles_in_one_graph() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3))
    sparsifier = Sparsifier(
        model, "filter | local | magnitude | one_shot", sparsity=0.4, example_inputs=INPUT
    )
    sparsifier.step(1.0)
    assert shrink(model.eval(), sparsifier, INPUT).grafts
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(INPUT), model(INPUT))
