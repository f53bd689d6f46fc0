"""Shrinking: what masks have freed goes for good, and nothing else changes."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, example
from testers import Chosen, RemovalTester, choose_axes
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier, shrink, trace
from secateur.structure import shrink as shrink_function
from secateur.structure import verify
from secateur.structure.rules import Call, Dims, rule

HERE = Path(__file__).name


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def hidden_masks(kept: int = 5, width: int = 8, inputs: int = 6) -> dict[str, Tensor]:
    """Masks that free the last hidden units of the perceptron."""
    stays = torch.arange(width) < kept
    return {"0.weight": stays[:, None].expand(width, inputs), "0.bias": stays}


def in_double(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in example(name))
    return model.eval(), inputs


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """Return all that must be as it was: objects, values, gradients, attributes, state."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    held = {
        name: (id(each), each.detach().clone(), each.data_ptr(), each.requires_grad,
               None if each.grad is None else (id(each.grad), each.grad.clone()))
        for name, each in tensors.items()
    }  # fmt: skip
    attributes = {
        path: (type(module), module.training,
               {name: value for name, value in vars(module).items()
                if isinstance(value, (int, str, tuple, float))})
        for path, module in model.named_modules()
    }  # fmt: skip
    state: dict[int, Any] = {}
    for parameter, own in optimizer.state.items() if optimizer is not None else ():
        state[id(parameter)] = {
            name: (id(each), each.clone()) if isinstance(each, Tensor) else each
            for name, each in own.items()
        }
    return held, attributes, state


def same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal, tensors bit by bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


class TestEveryToyNetwork:
    @pytest.mark.parametrize("share", [0.3, 0.6])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_computes_what_the_masked_one_does(self, name: str, share: float) -> None:
        model, inputs = in_double(name)
        chosen = choose_axes(model, inputs, seed=len(name), share=share)
        more = tuple(torch.cat([each, each[:1]]) for each in inputs)
        RemovalTester().check(model, inputs, chosen, [more])

    @pytest.mark.parametrize("name", ["small_cnn", "dense_block_net", "transformer"])
    def test_a_second_removal(self, name: str) -> None:
        model, inputs = in_double(name)
        for seed in (1, 2):
            RemovalTester().check(model, inputs, choose_axes(model, inputs, seed, share=0.3))

    @pytest.mark.parametrize("name", NETWORKS)
    def test_filters_that_a_sparsifier_has_masked(self, name: str) -> None:
        model, inputs = in_double(name)
        sparsifier = Sparsifier(model, "filter | local | magnitude | one_shot", sparsity=0.5)
        sparsifier.step(1.0)
        masked = copy.deepcopy(model)
        keys = list(model.state_dict())
        try:
            result = shrink(model, sparsifier, inputs)
        except SecateurError as error:
            pytest.skip(str(error))
        assert result.after.params == sum(each.numel() for each in model.parameters())
        assert list(model.state_dict()) == keys
        if result.exact:
            RemovalTester().check_same(masked, model, inputs)


class TestResult:
    def test_what_it_says(self) -> None:
        model = perceptron()
        result = shrink(model, hidden_masks(5), torch.zeros(2, 6))
        assert result.removed == {"0": [5, 6, 7]}
        assert result.before.params == 6 * 8 + 8 + 8 * 3 + 3
        assert result.after.params == 6 * 5 + 5 + 5 * 3 + 3
        assert (result.before.macs, result.after.macs) == (2 * (48 + 24), 2 * (30 + 15))
        assert result.after.bytes == 4 * result.after.params
        assert result.exact
        assert not result.left and not result.grafts and not result.notes
        assert result.attributes == {
            "0": {"in_features": 6, "out_features": 5},
            "2": {"in_features": 5, "out_features": 3},
        }
        assert (model[0].out_features, model[2].in_features) == (5, 5)

    def test_the_order_of_what_stays(self) -> None:
        model = perceptron()
        stays = torch.tensor([True, False, True, True, False, True, True, False])
        before = copy.deepcopy(model)
        masks = {"0.weight": stays[:, None].expand(8, 6), "0.bias": stays}
        shrink(model, masks, torch.zeros(2, 6))
        assert torch.equal(model[0].weight, before[0].weight[stays])
        assert torch.equal(model[0].bias, before[0].bias[stays])
        assert torch.equal(model[2].weight, before[2].weight[:, stays])

    @pytest.mark.parametrize(("kept", "round_to", "left"), [
        (5, 4, 8), (4, 4, 4), (3, 4, 4), (1, 2, 2), (5, 1, 5), (5, 3, 6), (2, 8, 8),
    ])  # fmt: skip
    def test_round_to(self, kept: int, round_to: int, left: int) -> None:
        model = perceptron()
        masks = hidden_masks(kept)
        if left == 8:
            with pytest.raises(SecateurError, match="nothing can be removed"):
                shrink(model, masks, torch.zeros(2, 6), round_to=round_to)
        else:
            shrink(model, masks, torch.zeros(2, 6), round_to=round_to)
        assert model[0].weight.shape == (left, 6)

    def test_an_axis_is_never_empty(self) -> None:
        model = perceptron()
        result = shrink(model, hidden_masks(0), torch.zeros(2, 6))
        assert model[0].weight.shape == (1, 6)
        assert result.removed == {"0": list(range(7))}
        assert "an axis cannot be empty" in result.left["0"]
        assert torch.equal(model(torch.randn(4, 6)), model[2].bias.expand(4, 3))

    def test_half_masked_channels_stay(self) -> None:
        model = perceptron()
        mask = torch.ones(8, 6, dtype=torch.bool)
        mask[0, :5] = False
        mask[1:3] = False
        stays = ~(torch.arange(8) == 1)
        result = shrink(model, {"0.weight": mask, "0.bias": stays}, torch.zeros(2, 6))
        assert result.removed == {"0": [1]}

    def test_a_bias_that_stays_keeps_its_channel(self) -> None:
        """Weights alone are masked: the bias lets a constant through, so nothing may change."""
        model = perceptron()
        masks = {"0.weight": hidden_masks(5)["0.weight"]}
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(SecateurError, match=r"nothing can be removed: 0: .*"):
            shrink(model, masks, torch.zeros(2, 6))
        assert same(dict(model.state_dict()), dict(before))
        with torch.no_grad():
            model[0].bias.zero_()
        assert shrink(model, masks, torch.zeros(2, 6)).removed == {"0": [5, 6, 7]}

    def test_zeros_that_no_mask_made_stay(self) -> None:
        model = perceptron()
        with torch.no_grad():
            for each in (model[0].weight, model[0].bias):
                each[0] = 0
        result = shrink(model, hidden_masks(6), torch.zeros(2, 6))
        assert set(result.removed["0"]) >= {6, 7}
        model = perceptron()
        with torch.no_grad():
            for each in (model[0].weight, model[0].bias):
                each[0] = 0
        everything_kept = {"2.weight": torch.ones(3, 8, dtype=torch.bool)}
        with pytest.raises(SecateurError, match="nothing can be removed"):
            shrink(model, everything_kept, torch.zeros(2, 6))


class TestBadInput:
    """Every mistake is an error with a reason, and the model is left as it was."""

    @pytest.fixture
    def model(self) -> nn.Sequential:
        return perceptron()

    def refused(self, model: nn.Module, masks: Any, inputs: Any, match: str, **options: Any) -> str:
        before = everything(model)
        with pytest.raises(SecateurError, match=match) as caught:
            shrink(model, masks, inputs, **options)
        assert "\n" not in str(caught.value)
        assert same(before, everything(model))
        assert not hasattr(model, "_secateur_history")
        return str(caught.value)

    def test_an_input_of_the_wrong_shape(self, model: nn.Sequential) -> None:
        said = self.refused(model, hidden_masks(), torch.zeros(2, 7), "cannot run on the example")
        assert "7" in said

    @pytest.mark.parametrize(
        "given", ["six numbers", torch.zeros(2, 6).long(), [torch.zeros(2, 6)]]
    )
    def test_an_input_of_the_wrong_type(self, model: nn.Sequential, given: Any) -> None:
        self.refused(model, hidden_masks(), given, "cannot run on the example inputs")

    def test_an_input_that_a_sparsifier_was_not_made_for(self, model: nn.Sequential) -> None:
        sparsifier = Sparsifier(
            model, "filter | local | magnitude | one_shot", sparsity=0.5,
            example_inputs=torch.zeros(2, 6),
        )  # fmt: skip
        sparsifier.step(1.0)
        self.refused(model, sparsifier, torch.zeros(2, 7), "cannot run on the example inputs")

    def test_no_input_at_all(self, model: nn.Sequential) -> None:
        self.refused(model, hidden_masks(), (), "cannot run on the example inputs")

    def test_a_model_that_raises_says_where(self) -> None:
        class Broken(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = perceptron()

            def forward(self, x: Tensor) -> Tensor:
                return self.inner(x).reshape(7, 7)

        model = Broken()
        masks = {f"inner.{name}": mask for name, mask in hidden_masks().items()}
        said = self.refused(model, masks, torch.zeros(2, 6), "cannot run on the example inputs")
        line = Broken.forward.__code__.co_firstlineno + 1
        assert f"{HERE}:{line}" in said

    @pytest.mark.parametrize("masks", [None, [], 3, "masks", torch.ones(8)])
    def test_what_is_no_mapping(self, model: nn.Sequential, masks: Any) -> None:
        self.refused(model, masks, torch.zeros(2, 6), type(masks).__name__)

    def test_an_unknown_name(self, model: nn.Sequential) -> None:
        masks = {"5.weight": torch.ones(2, 2, dtype=torch.bool)}
        self.refused(model, masks, torch.zeros(2, 6), re.escape("'5.weight'"))

    def test_a_mask_of_another_model(self, model: nn.Sequential) -> None:
        masks = {"0.weight": torch.zeros(9, 6, dtype=torch.bool)}
        said = self.refused(model, masks, torch.zeros(2, 6), "belongs to another model")
        assert "(9, 6)" in said and "(8, 6)" in said

    def test_a_sparsifier_of_another_model(self, model: nn.Sequential) -> None:
        other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3))
        sparsifier = Sparsifier(other, "filter | local | magnitude | one_shot", sparsity=0.5)
        self.refused(model, sparsifier, torch.zeros(2, 6), "belongs to another model")

    @pytest.mark.parametrize("mask", [None, [[True]], "mask", 1.0])
    def test_what_is_no_tensor(self, model: nn.Sequential, mask: Any) -> None:
        self.refused(model, {"0.weight": mask}, torch.zeros(2, 6), type(mask).__name__)

    @pytest.mark.parametrize("kind", [torch.float32, torch.int64, torch.float64])
    def test_masks_that_are_not_boolean(self, model: nn.Sequential, kind: torch.dtype) -> None:
        masks = {name: mask.to(kind) * 0.5 for name, mask in hidden_masks().items()}
        self.refused(model, masks, torch.zeros(2, 6), "bool")

    @pytest.mark.parametrize("round_to", [0, -4, 2.5, "8", True, None])
    def test_a_wrong_multiple(self, model: nn.Sequential, round_to: Any) -> None:
        self.refused(model, hidden_masks(), torch.zeros(2, 6), "round_to", round_to=round_to)

    def test_what_is_no_model(self) -> None:
        with pytest.raises(SecateurError, match=r"nn\.Module"):
            shrink(lambda x: x, {}, torch.zeros(2, 6))  # type: ignore[arg-type]

    def test_an_optimizer_that_is_none(self, model: nn.Sequential) -> None:
        self.refused(model, hidden_masks(), torch.zeros(2, 6), "optimi", optimizer="adam")

    def test_nothing_is_masked(self, model: nn.Sequential) -> None:
        for masks in ({}, {"0.weight": torch.ones(8, 6, dtype=torch.bool)}):
            said = self.refused(model, masks, torch.zeros(2, 6), "nothing can be removed")
            assert "the masks free no whole channel" in said

    def test_single_weights_free_no_channel(self, model: nn.Sequential) -> None:
        mask = torch.rand(8, 6) < 0.5
        mask[:, 0] = True
        self.refused(model, {"0.weight": mask}, torch.zeros(2, 6), "free no whole channel")

    def test_nothing_can_be_removed_and_why(self) -> None:
        model = nn.Linear(6, 3)
        masks = {"weight": torch.zeros(3, 6, dtype=torch.bool)}
        said = self.refused(model, masks, torch.zeros(2, 6), "nothing can be removed")
        assert "the model's output" in said or "the model's input" in said

    def test_control_flow_that_looks_at_data(self) -> None:
        class Fickle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

            def forward(self, x: Tensor) -> Tensor:
                layer = self.one if x.sum() > 0 else self.two
                return self.out(F.relu(layer(x)))

        torch.manual_seed(0)
        model = Fickle().double()
        masks = {
            f"{name}.{kind}": mask
            for name in ("one", "two")
            for kind, mask in (("weight", hidden_masks()["0.weight"]),
                               ("bias", hidden_masks()["0.bias"]))
        }  # fmt: skip
        x = torch.ones(2, 6, dtype=torch.float64)
        said = self.refused(model, masks, x, "does not use two.weight, two.bias")
        assert HERE in said


class TestRollback:
    """A failure at any point leaves every tensor, gradient, attribute and state as it was."""

    def prepared(self, name: str) -> tuple[nn.Module, tuple[Tensor, ...], torch.optim.Adam, Chosen]:
        model, inputs = in_double(name)
        chosen = choose_axes(model, inputs, seed=3)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model(*inputs).square().mean().backward()
        optimizer.step()
        return model, inputs, optimizer, chosen

    @pytest.mark.parametrize("name", NETWORKS)
    def test_the_networks_differ(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, inputs, optimizer, chosen = self.prepared(name)
        masks = chosen.masks(model)
        model.train()
        before, output = everything(model, optimizer), model.eval()(*inputs)
        model.train()
        monkeypatch.setattr(verify, "difference", lambda one, other: 0.5)
        with pytest.raises(SecateurError, match=r"differs from the masked one by 0\.5"):
            shrink(model, masks, inputs, optimizer)
        assert same(before, everything(model, optimizer))
        monkeypatch.undo()
        assert torch.equal(model.eval()(*inputs), output)
        assert shrink(model, masks, inputs, optimizer).exact

    @pytest.mark.parametrize("failing", ["run", "difference", "tolerance"])
    def test_any_error_on_the_way(self, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model, inputs, optimizer, chosen = self.prepared("transformer")
        masks = chosen.masks(model)
        before = everything(model, optimizer)

        def fail(*args: Any, **options: Any) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(verify, failing, fail)
        with pytest.raises(KeyboardInterrupt):
            shrink(model, masks, inputs, optimizer)
        assert same(before, everything(model, optimizer))

    def test_an_optimizer_that_cannot_be_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, inputs, optimizer, chosen = self.prepared("small_cnn")
        before = everything(model, optimizer)
        module = __import__("sys").modules["secateur.structure.shrink"]

        def fail(*args: Any) -> Any:
            raise RuntimeError("no")

        monkeypatch.setattr(module, "cut_optimizer", fail)
        with pytest.raises(RuntimeError, match="no"):
            shrink(model, chosen.masks(model), inputs, optimizer)
        assert same(before, everything(model, optimizer))


class TestOptimizers:
    """The optimiser goes on as that of the masked network does."""

    MADE: tuple[Callable[[Any], torch.optim.Optimizer], ...] = (
        lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True),
        lambda parameters: torch.optim.Adam(parameters, 1e-2, amsgrad=True),
        lambda parameters: torch.optim.AdamW(parameters, 1e-2, foreach=True),
        lambda parameters: torch.optim.RMSprop(parameters, 1e-2, momentum=0.5, centered=True),
        lambda parameters: torch.optim.Adagrad(parameters, 1e-2),
        torch.optim.Adadelta,
        lambda parameters: torch.optim.NAdam(parameters, 1e-2),
        lambda parameters: torch.optim.Rprop(parameters, 1e-2),
        lambda parameters: torch.optim.ASGD(parameters, 1e-2),
        lambda parameters: torch.optim.Adamax(parameters, 1e-2),
    )

    @pytest.mark.parametrize(
        "make", MADE, ids=lambda make: type(make([nn.Parameter(torch.zeros(1))])).__name__
    )
    def test_goes_on_where_the_masked_one_does(self, make: Any) -> None:
        model, inputs = in_double("small_cnn")
        chosen = choose_axes(model, inputs, seed=5)
        optimizer = make(model.parameters())
        for _ in range(3):
            self.step(model, optimizer, inputs)
        masks = chosen.masks(model)
        masked, other = copy.deepcopy((model, optimizer))
        self.clear(masked, masks)
        shrink(model, masks, inputs, optimizer)
        for _ in range(3):
            self.step(model, optimizer, inputs)
            self.step(masked, other, inputs)
            self.clear(masked, masks)
        for name, parameter in masked.named_parameters():
            found = model.get_parameter(name).detach()
            assert torch.allclose(found, chosen.cut(name, parameter.detach()), atol=1e-10), name
        for parameter, state in optimizer.state.items():
            for value in state.values():
                if isinstance(value, Tensor) and value.dim():
                    assert value.shape == parameter.shape

    @staticmethod
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Any) -> None:
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()

    @staticmethod
    def clear(model: nn.Module, masks: dict[str, Tensor]) -> None:
        for name, mask in masks.items():
            model.get_parameter(name).data *= mask

    def test_a_factored_state(self) -> None:
        """Adafactor keeps rows and columns, of which a removal takes a part each."""
        model, inputs = in_double("mlp")
        optimizer = torch.optim.Adafactor(model.parameters(), 1e-2)
        for _ in range(2):
            self.step(model, optimizer, inputs)
        chosen = choose_axes(model, inputs, seed=5)
        wanted = {
            name: {key: chosen.cut(name, each) if each.dim() and each.shape[0] > 1 else each
                   for key, each in optimizer.state[model.get_parameter(name)].items()
                   if key == "row_var"}
            for name, _ in model.named_parameters()
        }  # fmt: skip
        shrink(model, chosen.masks(model), inputs, optimizer)
        for name, own in wanted.items():
            found = optimizer.state[model.get_parameter(name)]
            for key, each in own.items():
                rows = each.shape[0]
                assert found[key].shape[0] == rows == model.get_parameter(name).shape[0]
        self.step(model, optimizer, inputs)
        assert model(*inputs).isfinite().all()

    def test_a_state_that_does_not_lie_along_its_parameter(self) -> None:
        model = perceptron()
        optimizer = torch.optim.LBFGS(model.parameters(), 1e-2)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(torch.ones(2, 6)).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        before = everything(model, optimizer)
        with pytest.raises(SecateurError, match=r"cannot be cut .* clear its state first"):
            shrink(model, hidden_masks(), torch.zeros(2, 6), optimizer)
        assert same(before, everything(model, optimizer))
        optimizer.state.clear()
        shrink(model, hidden_masks(), torch.zeros(2, 6), optimizer)

    def test_a_loss_from_before_is_still_alive(self) -> None:
        model, inputs = in_double("small_cnn")
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        kept = [model(*inputs).square().mean() for _ in range(2)]
        kept[0].backward()
        optimizer.step()
        shrink(model, choose_axes(model, inputs).masks(model), inputs, optimizer)
        before = copy.deepcopy(model.state_dict())
        for _ in range(2):
            self.step(model, optimizer, inputs)
        for name, parameter in model.named_parameters():
            assert not torch.equal(parameter, before[name]), name
        assert len(kept) == 2

    def test_without_the_optimizer_the_gradients_fit(self) -> None:
        model, inputs = in_double("small_cnn")
        model(*inputs).square().mean().backward()
        shrink(model, choose_axes(model, inputs).masks(model), inputs)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.shape == parameter.shape, name
        torch.optim.SGD(model.parameters(), 0.05).step()

    def test_parameters_stay_the_objects_they_are(self) -> None:
        model, inputs = in_double("preactivation_resnet")
        before = {name: id(parameter) for name, parameter in model.named_parameters()}
        shrink(model, choose_axes(model, inputs).masks(model), inputs)
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


class TestWhatSurvives:
    def test_hooks(self) -> None:
        model = perceptron()
        seen: list[str] = []
        for place, layer in enumerate(model):
            layer.register_forward_hook(lambda *_, place=place: seen.append(f"out {place}"))
            layer.register_forward_pre_hook(lambda *_, place=place: seen.append(f"in {place}"))
            layer.register_full_backward_hook(lambda *_, place=place: seen.append(f"back {place}"))
        model[0].weight.register_hook(lambda gradient: seen.append("weight"))
        shrink(model, hidden_masks(), torch.zeros(2, 6))
        seen.clear()
        model(torch.randn(3, 6, requires_grad=True)).sum().backward()
        for what in ("out 0", "in 1", "out 2", "back 0", "back 2", "weight"):
            assert what in seen

    def test_hooks_do_not_run_more_often_than_they_must(self) -> None:
        """A hook that fails on tensors without data would be seen here."""
        model = perceptron()
        shapes: list[tuple[int, ...]] = []
        model[0].register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
        shrink(model, hidden_masks(), torch.zeros(2, 6))
        assert set(shapes) <= {(2, 8), (2, 5), (2, 6), (2, 7)}

    def test_frozen_parameters(self) -> None:
        model = perceptron()
        model[0].requires_grad_(False)
        shrink(model, hidden_masks(), torch.zeros(2, 6))
        assert [each.requires_grad for each in model.parameters()] == [False, False, True, True]
        model(torch.randn(2, 6)).sum().backward()
        assert model[0].weight.grad is None and model[2].weight.grad is not None

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_of_every_module(self, training: bool) -> None:
        model, inputs = in_double("small_cnn")
        model.train(training)
        model[1].train(not training)
        before = [module.training for module in model.modules()]
        statistics = {name: each.clone() for name, each in model.named_buffers()}
        shrink(model, choose_axes(model, inputs, seed=2).masks(model), inputs)
        assert [module.training for module in model.modules()] == before
        assert int(model[1].num_batches_tracked) == int(statistics["1.num_batches_tracked"])

    @pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    def test_the_precision(self, kind: torch.dtype) -> None:
        model, inputs = in_double("small_cnn")
        model.to(kind)
        chosen = choose_axes(model, inputs[0].to(kind))
        wanted = {name: chosen.cut(name, each.detach()) for name, each in
                  (*model.named_parameters(), *model.named_buffers())}  # fmt: skip
        result = shrink(model, chosen.masks(model), inputs[0].to(kind))
        assert result.exact
        assert result.after.bytes < result.before.bytes
        for name, each in model.state_dict().items():
            assert each.dtype in (kind, torch.int64)
            assert torch.equal(each, wanted[name])
        assert torch.get_default_dtype() is torch.float32

    def test_mixed_precision(self) -> None:
        model = perceptron()
        model[0].to(torch.float64)
        model[1] = Cast()
        shrink(model, hidden_masks(), torch.zeros(2, 6, dtype=torch.float64))
        dtypes = [each.dtype for each in model.parameters()]
        assert dtypes == [*[torch.float64] * 2, *[torch.float32] * 2]
        assert model(torch.zeros(2, 6, dtype=torch.float64)).dtype is torch.float32

    def test_tied_weights_stay_tied(self) -> None:
        model = Tied().double()
        words = torch.randint(20, (2, 5))
        chosen = choose_axes(model, words, share=0.5)
        RemovalTester().check(model, (words,), chosen)
        assert model.head.weight is model.table.weight
        assert model.table.embedding_dim == model.head.in_features == model.table.weight.shape[1]
        assert model.head.weight.shape[1] < 8

    def test_a_mask_by_the_second_name_of_a_tied_weight(self) -> None:
        model = Tied().double()
        words = torch.randint(20, (2, 5))
        chosen = choose_axes(model, words, share=0.5)
        masks = chosen.masks(model)
        masks["head.weight"] = masks.pop("table.weight")
        assert shrink(model, masks, words).removed == chosen.gone

    def test_other_attributes_of_the_same_value(self) -> None:
        """Numbers that happen to equal a width are no widths."""
        model = Counting()
        shrink(model, {"one.weight": hidden_masks()["0.weight"],
                       "one.bias": hidden_masks()["0.bias"]}, torch.zeros(2, 6))  # fmt: skip
        assert (model.seed, model.layers, model.classes) == (8, 8, 3)
        assert model.width == 5
        assert model(torch.zeros(2, 6)).shape == (2, 3)

    @pytest.mark.xfail(
        strict=True, raises=SecateurError,
        reason="of two attributes with one value, the wrong one may be made smaller",
    )  # fmt: skip
    def test_two_attributes_of_one_value(self) -> None:
        """Shapes do not tell the two ways apart; what comes out does."""
        torch.manual_seed(0)
        model = Padding().double()
        inputs = (torch.randn(2, 4, dtype=torch.float64),)
        structure = trace(model, inputs)
        _, second = (axis.name for axis in structure.removable if axis.size == 3)
        result = RemovalTester().check(model, inputs, Chosen(structure, {second: [1]}))
        assert result.exact

    def test_the_wrong_one_of_two_attributes_is_noticed(self) -> None:
        """It is refused by what comes out, and the model is as it was."""
        torch.manual_seed(0)
        model = Padding().double()
        inputs = (torch.randn(2, 4, dtype=torch.float64),)
        before = model(*inputs)
        structure = trace(model, inputs)
        first, second = (axis.name for axis in structure.removable if axis.size == 3)
        with pytest.raises(SecateurError, match="left as it was"):
            shrink(model, Chosen(structure, {second: [1]}).masks(model), inputs)
        assert (model.before, model.after) == (3, 3) and torch.equal(model(*inputs), before)
        assert RemovalTester().check(model, inputs, Chosen(structure, {first: [1]})).exact

    def test_it_pickles_and_copies_as_before(self) -> None:
        model, inputs = in_double("transformer")
        shrink(model, choose_axes(model, inputs, seed=1).masks(model), inputs)
        stored = io.BytesIO()
        torch.save(model, stored)
        stored.seek(0)
        again = torch.load(stored, weights_only=False)
        assert torch.equal(again(*inputs), model(*inputs))
        assert torch.equal(copy.deepcopy(model)(*inputs), model(*inputs))

    def test_a_sparsifier_lets_go_of_the_model(self) -> None:
        model, inputs = in_double("small_cnn")
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        sparsifier = Sparsifier(model, "filter | local | magnitude | one_shot", sparsity=0.5)
        sparsifier.attach(optimizer, total_steps=4)
        sparsifier.step(1.0)
        shrink(model, sparsifier, inputs, optimizer)
        model(*inputs).sum().backward()
        optimizer.step()
        assert model(*inputs).isfinite().all()


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).float()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(self.table(words))))


class Counting(nn.Module):
    """Its seed and number of layers are 8 like its width; only the width is used as a size."""

    def __init__(self) -> None:
        super().__init__()
        self.seed, self.layers, self.width, self.classes = 8, 8, 8, 3
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.one(x)).view(-1, self.width)
        return self.two(hidden).view(-1, self.classes)


class Padding(nn.Module):
    """Adds three zeros before and three after; the sums of both are read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = 3, 3
        self.first, self.branch, self.out = nn.Linear(4, 6), nn.Linear(4, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.padded(x) + self.branch(x)))

    def padded(self, x: Tensor) -> Tensor:
        return F.pad(self.first(x), (self.before, self.after))


@torch.library.custom_op("secateurtest::double", mutates_args=())
def double_up(x: Tensor) -> Tensor:
    return 2 * x


@double_up.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


double_up.register_autograd(lambda context, gradient: 2 * gradient)


class TestCustomOperators:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.ops.secateurtest.double(self.one(x))
            return self.out(F.relu(self.two(x)))

    def test_without_a_rule_it_is_pinned_with_the_reason_and_the_place(self) -> None:
        model = self.Doubling()
        structure = trace(model, torch.zeros(2, 6))
        axes = {axis.name: axis for axis in structure.axes}
        assert structure.unknown and "double" in next(iter(structure.unknown))
        assert "double has no rule" in (axes["one"].pinned or "")
        line = self.Doubling.forward.__code__.co_firstlineno + 1
        assert axes["one"].place.endswith(f"{HERE}:{line}")
        assert axes["two"].pinned is None
        masks = {"one.weight": hidden_masks()["0.weight"], "one.bias": hidden_masks()["0.bias"]}
        with pytest.raises(SecateurError, match="double has no rule"):
            shrink(model, masks, torch.zeros(2, 6))

    def test_with_a_rule_of_a_few_lines_it_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from secateur.structure.rules import registry

        monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

        @rule("secateurtest::double", zero="all")
        def _double(call: Call) -> Dims:
            return call.need("x")

        torch.manual_seed(0)
        model = self.Doubling().double()
        inputs = (torch.randn(2, 6, dtype=torch.float64),)
        chosen = choose_axes(model, inputs, share=0.5)
        assert not chosen.structure.unknown
        assert {axis.name for axis in chosen.structure.removable} == {"one", "two"}
        RemovalTester().check(model, inputs, chosen)

    def test_a_name_that_has_a_rule_is_refused(self) -> None:
        with pytest.raises(SecateurError, match="'linear' has a rule already"):
            rule("linear")(lambda call: [])


class TestExport:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_torch_export(self, name: str) -> None:
        model, inputs = in_double(name)
        shrink(model, choose_axes(model, inputs, seed=4).masks(model), inputs)
        exported = torch.export.export(model, inputs, strict=False).module()
        RemovalTester().check_same(model, exported, inputs)

    @pytest.mark.parametrize("name", ["small_cnn", "grouped_cnn", "transformer"])
    def test_onnx(self, name: str, tmp_path: Path) -> None:
        pytest.importorskip("onnx", reason="onnx is not installed")
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        model, inputs = in_double(name)
        model, inputs = model.float(), tuple(each.float() for each in inputs)
        shrink(model, choose_axes(model, inputs, seed=4).masks(model), inputs)
        file = tmp_path / "model.onnx"
        torch.onnx.export(model, inputs, file, dynamo=True, verbose=False)
        session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        (found,) = session.run(
            None, dict(zip(names, (each.numpy() for each in inputs), strict=True))
        )
        wanted = model(*inputs).detach()
        assert torch.allclose(torch.from_numpy(found), wanted, rtol=1e-3, atol=1e-5)


def test_the_function_is_public() -> None:
    assert shrink_function is shrink
