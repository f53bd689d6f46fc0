"""Attributes follow what was cut, wherever the code reads them."""

from __future__ import annotations

import pytest
import torch
from testers import Chosen, RemovalTester, choose_axes
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import shrink, trace
from secateur.structure.places import attributes_read_at


class Cell(nn.Module):
    """A convolutional recurrent cell that makes its own first state."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def begin(self, batch: int, extent: torch.Size) -> tuple[Tensor, Tensor]:
        zeros = self.gates.weight.new_zeros(batch, self.hidden, *extent)
        return zeros, zeros

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        hidden, memory = state
        i, f, o, g = self.gates(torch.cat([x, hidden], 1)).chunk(4, 1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        return o.sigmoid() * memory.tanh(), memory


class ReadsItsChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = Cell(3, 8), nn.Conv2d(8, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        state = self.cell.begin(len(frames), frames.shape[-2:])
        for place in range(frames.shape[1]):
            state = self.cell(frames[:, place], state)
        made: Tensor = self.out(state[0])
        return made


class ReadsTorchsLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 9), nn.Linear(9, 2)

    def forward(self, steps: Tensor) -> Tensor:
        hidden = steps.new_zeros(len(steps), self.cell.hidden_size)
        for place in range(steps.shape[1]):
            hidden = self.cell(steps[:, place], hidden)
        made: Tensor = self.out(hidden)
        return made


class UsesOnlyTheWeights(nn.Module):
    """A layer that is never called, as where weights are masked in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(5, 12), nn.Linear(12, 2)
        self.register_buffer("mask", torch.rand(12, 5).gt(0.3).double())

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(F.linear(x, self.layer.weight * self.mask, self.layer.bias)))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 16), nn.Linear(8, 8)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, -1)
        return self.out(torch.cat([left, F.relu(self.second(right))], -1))


@pytest.mark.parametrize(
    ("model", "shape", "attribute", "parameter", "dim"),
    [
        (ReadsItsChild, (2, 3, 3, 6, 6), "cell.hidden", "out.weight", 1),
        (ReadsTorchsLayer, (2, 3, 4), "cell.hidden_size", "out.weight", 1),
        (UsesOnlyTheWeights, (2, 5), "layer.out_features", "layer.weight", 0),
    ],
)
def test_attributes_of_children(
    model: type[nn.Module], shape: tuple[int, ...], attribute: str, parameter: str, dim: int
) -> None:
    torch.manual_seed(0)
    network = model().double().eval()
    inputs = (torch.randn(shape, dtype=torch.float64),)
    chosen = choose_axes(network, inputs, seed=1)
    result = RemovalTester().check(network, inputs, chosen)
    assert not result.grafts
    path, _, name = attribute.rpartition(".")
    left = getattr(network.get_submodule(path), name)
    assert left == network.get_parameter(parameter).shape[dim]
    assert left < {"cell.hidden": 8, "cell.hidden_size": 9, "layer.out_features": 12}[attribute]


def test_an_embedding_bag_says_its_width() -> None:
    model = nn.Sequential(nn.EmbeddingBag(30, 12), nn.Linear(12, 2)).double()
    words = (torch.randint(0, 30, (4, 5)),)
    RemovalTester().check(model, words, choose_axes(model, words, seed=0))
    assert model[0].embedding_dim == model[0].weight.shape[1] < 12


def test_halves_of_an_axis_in_the_model_itself() -> None:
    """``chunk`` rounds: one channel less on the right side is luck, and two are none."""
    reasons = {axis.name: axis.pinned for axis in trace(Halves(), torch.zeros(2, 5)).axes}
    assert "cannot express another size" in str(reasons["first[0]"])
    assert "cannot express another size" in str(reasons["first[1]"])
    assert reasons["second"] is None


def test_halves_of_an_axis_in_a_module() -> None:
    model = nn.Sequential(Halves(), nn.Linear(3, 2)).double()
    inputs = (torch.randn(2, 5, dtype=torch.float64),)
    structure = trace(model, inputs)
    uneven = Chosen(structure, {"0.first[0]": [1, 2], "0.first[1]": [0, 3, 4, 5, 7]})
    assert RemovalTester().check(model, inputs, uneven).grafts


class HandsItsTableOn(Halves):
    """Calls a child on what it holds itself, before any operator has read that."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Linear(2, 3)
        self.register_buffer("table", torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        shift: Tensor = self.shift(self.table)
        return super().forward(x) + shift


def test_a_graft_hands_on_what_it_holds() -> None:
    model = nn.Sequential(HandsItsTableOn(), nn.Linear(3, 2)).double()
    inputs = (torch.randn(2, 5, dtype=torch.float64),)
    uneven = Chosen(trace(model, inputs), {"0.first[0]": [1, 2], "0.first[1]": [0, 3, 4, 5, 7]})
    assert RemovalTester().check(model, inputs, uneven).grafts


def test_names_that_a_function_reads() -> None:
    def reader(thing: nn.Linear) -> int:
        return thing.in_features

    code = reader.__code__
    assert attributes_read_at(f"{__file__}:{code.co_firstlineno + 1}") == {"in_features"}
    assert attributes_read_at("<stdin>:1") == frozenset()
    assert attributes_read_at("") == frozenset()


def test_a_second_pruning_after_a_layer_used_by_its_weights() -> None:
    torch.manual_seed(0)
    model = UsesOnlyTheWeights().double()
    inputs = (torch.randn(2, 5, dtype=torch.float64),)
    for seed in (0, 1):
        chosen = choose_axes(model, inputs, seed=seed)
        shrink(model, chosen.masks(model), inputs)
    assert model(*inputs).shape == (2, 2)


def test_an_lstm_stays_wider_than_its_projection() -> None:
    """PyTorch takes an LSTM for one without projection where both widths are the same."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.LSTM(4, 6, proj_size=3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.out(self.layer(x)[0])
            return made

    model = Last().double()
    inputs = (torch.randn(2, 5, 4, dtype=torch.float64),)
    structure = trace(model, inputs)
    hidden = next(name for name, leaf in structure.leaves.items() if leaf.size == 6)
    masks = Chosen(structure, {hidden: [0, 2, 3, 5]}).masks(model)
    result = shrink(model, masks, inputs)
    assert (model.layer.hidden_size, model.layer.proj_size) == (4, 3)
    assert "narrower" in result.left[hidden]
    assert result.exact
