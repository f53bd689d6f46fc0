"""Surgery on tensors: cut in place, seen by all who hold them, and put back."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import SecateurError
from secateur.structure.removal import Removal
from secateur.structure.surgery import (
    Holders,
    Undo,
    cut,
    cut_optimizer,
    keep,
    made_smaller,
    set_attributes,
    set_data,
)
from secateur.structure.terms import Term, product, total


def removal_of(leaf: Term, *gone: int) -> Removal:
    mask = torch.ones(leaf.size, dtype=torch.bool)
    mask[list(gone)] = False
    return Removal({leaf: mask})


class TestKeep:
    def test_a_leaf(self) -> None:
        rows = Term(4)
        tensor = torch.arange(8).view(4, 2)
        kept = keep(tensor, [rows, Term(2)], removal_of(rows, 1, 2))
        assert kept.tolist() == [[0, 1], [6, 7]]

    def test_a_product_drops_every_multiple(self) -> None:
        groups, inner = Term(2), Term(3)
        tensor = torch.arange(6)
        both = [product([groups, inner])]
        assert keep(tensor, both, removal_of(inner, 1)).tolist() == [0, 2, 3, 5]
        assert keep(tensor, both, removal_of(groups, 0)).tolist() == [3, 4, 5]

    def test_a_sum_drops_in_its_part(self) -> None:
        first, second = Term(2), Term(3)
        both = [total([first, second])]
        assert keep(torch.arange(5), both, removal_of(second, 0, 2)).tolist() == [0, 1, 3]

    def test_the_same_leaf_twice(self) -> None:
        width = Term(3)
        kept = keep(torch.arange(9).view(3, 3), [width, width], removal_of(width, 1))
        assert kept.tolist() == [[0, 2], [6, 8]]

    def test_it_owns_its_memory(self) -> None:
        rows = Term(4)
        tensor = torch.randn(4, 2)
        kept = keep(tensor, [rows, Term(2)], removal_of(rows, 3))
        kept.zero_()
        assert bool((tensor != 0).all())
        assert kept.is_contiguous()


class TestUndo:
    def test_the_last_change_is_put_back_first(self) -> None:
        said: list[int] = []
        undo = Undo()
        for number in range(3):
            undo.add(lambda number=number: said.append(number))  # type: ignore[misc]
        undo.run()
        undo.run()
        assert said == [2, 1, 0]


class TestSetData:
    @pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
    def test_another_shape_with_a_graph_still_alive(self, kind: torch.dtype) -> None:
        parameter = nn.Parameter(torch.randn(4, 3, dtype=kind))
        alive = (parameter * 2).sum()
        alive.backward(retain_graph=True)
        smaller = torch.randn(2, 3, dtype=kind)
        set_data(parameter, smaller, None)
        assert parameter.grad is None and torch.equal(parameter.detach(), smaller)
        (parameter * 3).sum().backward()
        assert torch.equal(parameter.grad, torch.full((2, 3), 3, dtype=kind))
        assert parameter.is_leaf and parameter.requires_grad and parameter.dtype is kind
        del alive

    def test_the_gradient_is_set_too(self) -> None:
        parameter = nn.Parameter(torch.randn(4))
        set_data(parameter, torch.ones(2), torch.full((2,), 7.0))
        assert parameter.grad is not None and parameter.grad.tolist() == [7, 7]


class Everything(nn.Module):
    """A tensor in a table, in another module, in a list, and as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(3, 4)
        self.two = nn.Linear(3, 4, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("table", torch.arange(4.0))
        self.other_name = self.table
        self.listed = [self.table, self.one.weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.two(x) * self.table


class TestHolders:
    def test_every_place_is_found_and_put_back(self) -> None:
        model, undo = Everything(), Undo()
        before = model.table
        smaller = torch.zeros(2)
        holders = Holders(model)
        holders.replace(before, smaller, undo)
        assert model.table is smaller and model.listed[0] is smaller
        even_smaller = torch.zeros(1)
        holders.replace(smaller, even_smaller, undo)
        assert model._buffers["table"] is even_smaller and model.listed[0] is even_smaller
        undo.run()
        assert model.table is before and model.listed[0] is before


class TestCut:
    def test_tied_parameters_are_cut_once(self) -> None:
        model, undo = Everything(), Undo()
        rows, columns = Term(4), Term(3)
        held = {"one.weight": [rows, columns], "two.weight": [rows, columns], "one.bias": [rows],
                "table": [rows]}  # fmt: skip
        wanted = model.one.weight.detach()[[0, 3]]
        done = cut(model, held, removal_of(rows, 1, 2), undo)
        assert model.two.weight is model.one.weight is model.listed[1]
        assert torch.equal(model.one.weight, wanted)
        assert model.table.tolist() == [0, 3]
        assert set(done) == {"one.weight", "one.bias", "table"}
        assert model(torch.randn(5, 3)).shape == (5, 2)
        undo.run()
        assert model(torch.randn(5, 3)).shape == (5, 4)
        assert model.table.tolist() == [0, 1, 2, 3]

    def test_gradients_are_cut_along_and_put_back(self) -> None:
        model, undo = Everything(), Undo()
        model(torch.randn(5, 3)).square().sum().backward()
        assert model.one.bias.grad is not None
        gradient = model.one.bias.grad
        rows = Term(4)
        cut(model, {"one.bias": [rows]}, removal_of(rows, 0), undo)
        assert torch.equal(model.one.bias.grad, gradient[1:])
        undo.run()
        assert model.one.bias.grad is gradient

    def test_what_has_no_removed_index_is_left_alone(self) -> None:
        model = Everything()
        rows, others = Term(4), Term(4)
        places = {name: each.data_ptr() for name, each in model.named_parameters()}
        done = cut(model, {"one.bias": [others]}, removal_of(rows, 1), Undo())
        assert not done
        assert {name: each.data_ptr() for name, each in model.named_parameters()} == places

    def test_flat_weights_of_recurrent_layers_follow(self) -> None:
        model, undo = nn.LSTM(3, 4, batch_first=True), Undo()
        inputs = Term(3)
        held = {name: [Term(each.shape[0]), inputs] for name, each in model.named_parameters()
                if name == "weight_ih_l0"}  # fmt: skip
        wanted = copy.deepcopy(model)
        with torch.no_grad():
            wanted.weight_ih_l0[:, 1] = 0
        x = torch.randn(2, 5, 3)
        cut(model, held, removal_of(inputs, 1), undo)
        model.input_size = 2
        assert torch.allclose(model(x[..., [0, 2]])[0], wanted(x)[0], atol=1e-6)


class TestAttributes:
    def test_set_and_put_back(self) -> None:
        model, undo = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), Undo()
        changes = {
            ("0", "out_features"): 2,
            ("1", "normalized_shape"): (2,),
            ("0", "in_features"): 3,
        }
        set_attributes(model, changes, undo)
        assert model[0].out_features == 2 and model[1].normalized_shape == (2,)
        assert len(undo.steps) == 2, "what has its value already needs no step"
        undo.run()
        assert model[0].out_features == 4 and model[1].normalized_shape == (4,)


class TestMadeSmaller:
    @pytest.mark.parametrize("data", [False, True])
    def test_for_as_long_as_it_lasts(self, data: bool) -> None:
        model, rows = Everything(), Term(4)
        objects = dict((*model.named_parameters(), *model.named_buffers()))
        values = copy.deepcopy(model.state_dict())
        held = {"one.weight": [rows, Term(3)], "one.bias": [rows], "table": [rows]}
        with pytest.raises(KeyError), made_smaller(model, held, removal_of(rows, 3), data):
            assert model.one.weight is model.two.weight
            assert model.one.weight.shape == (3, 3)
            assert isinstance(model.one.weight, nn.Parameter)
            assert all(each.is_meta is not data for each in model.parameters())
            if data:
                assert torch.equal(model.table, torch.arange(3.0))
            raise KeyError
        for name, each in (*model.named_parameters(), *model.named_buffers()):
            assert each is objects[name]
        assert all(torch.equal(each, values[name]) for name, each in model.state_dict().items())


class TestOptimizerState:
    def test_only_what_lies_along_a_parameter_is_cut(self) -> None:
        parameter, rows = nn.Parameter(torch.randn(4, 2)), Term(4)
        optimizer = torch.optim.Adam([parameter])
        F.mse_loss(parameter, torch.zeros(4, 2)).backward()
        optimizer.step()
        before = {name: each.clone() for name, each in optimizer.state[parameter].items()}
        undo = Undo()
        done = {"p": (parameter, [rows, Term(2)])}
        cut_optimizer(optimizer, done, removal_of(rows, 2), undo)
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], before["exp_avg"][[0, 1, 3]])
        assert torch.equal(state["exp_avg_sq"], before["exp_avg_sq"][[0, 1, 3]])
        assert torch.equal(state["step"], before["step"])
        undo.run()
        assert all(torch.equal(each, before[name]) for name, each in state.items())

    def test_factored_states(self) -> None:
        parameter, rows, columns = nn.Parameter(torch.randn(4, 3)), Term(4), Term(3)
        optimizer = torch.optim.SGD([parameter], 0.1)
        optimizer.state[parameter] = {"row": torch.arange(4.0)[:, None], "column": torch.ones(1, 3)}
        done = {"p": (parameter, [rows, columns])}
        cut_optimizer(optimizer, done, removal_of(rows, 0), Undo())
        assert optimizer.state[parameter]["row"].tolist() == [[1], [2], [3]]
        assert optimizer.state[parameter]["column"].shape == (1, 3)

    @pytest.mark.parametrize("shape", [(12,), (3, 4), (4, 4), (4, 3, 1)])
    def test_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        parameter, rows = nn.Parameter(torch.randn(4, 3)), Term(4)
        optimizer = torch.optim.SGD([parameter], 0.1)
        optimizer.state[parameter] = {"strange": torch.zeros(shape)}
        done = {"layer.weight": (parameter, [rows, Term(3)])}
        with pytest.raises(SecateurError, match=r"'strange' of 'layer\.weight'"):
            cut_optimizer(optimizer, done, removal_of(rows, 0), Undo())

    def test_a_parameter_that_has_no_state_gets_none(self) -> None:
        parameter, rows = nn.Parameter(torch.randn(4)), Term(4)
        optimizer = torch.optim.SGD([parameter], 0.1)
        cut_optimizer(optimizer, {"p": (parameter, [rows])}, removal_of(rows, 0), Undo())
        assert not optimizer.state
