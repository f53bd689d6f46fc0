"""Grafts: modules whose own code cannot express a size go on as modules like any other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure.random_networks import Part, Plan, build, inputs_of
from structure.token_blocks import Attention
from testers import Chosen, RemovalTester, choose_axes
from torch import Tensor, nn

from secateur import SecateurError, ShrinkResult, save, shrink, trace
from secateur.structure.codecheck import check_code
from secateur.structure.graft import Graft, operator_of
from secateur.structure.reload import load

HEADS = 4


class Rigid(nn.Module):
    """Attention whose code computes a head's width from the input's, as most do."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.join = nn.Linear(width, width)
        self.dropout = dropout
        self.register_buffer(
            "slope", torch.linspace(1, 2, HEADS).view(HEADS, 1, 1), persistent=False
        )

    NUMBER = 7

    def count(self) -> int:
        return HEADS

    @property
    def doubled(self) -> int:
        return 2 * self.count()

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1) * self.slope).softmax(-1)
        scores = F.dropout(scores, self.dropout, self.training)
        return self.join((scores @ v).transpose(1, 2).reshape(b, n, -1))


class Model(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = Rigid(8, dropout)
        self.again = Rigid(8, dropout)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return self.head(x + self.again(x)).mean(1)


def heads(model: nn.Module, inputs: Any, gone: tuple[int, ...] = (1, 2)) -> Chosen:
    """Choose heads of every attention."""
    structure = trace(model, inputs)
    return Chosen(structure, {
        axis.name: list(gone) for axis in structure.removable
        if axis.size == HEADS and any(name.endswith("qkv.weight") for name, _ in axis.carriers)
    })  # fmt: skip


@pytest.fixture
def inputs() -> tuple[Tensor]:
    return (torch.randn(2, 5, 8, dtype=torch.float64),)


def shrunk(inputs: Any, dropout: float = 0.0) -> tuple[nn.Module, nn.Module, ShrinkResult]:
    """Return a model whose heads were removed, the masked one, and the result."""
    model = Model(dropout).double().eval()
    chosen = heads(model, inputs)
    assert len(chosen.gone) == 2
    masks = chosen.masks(model)
    masked = copy.deepcopy(model)
    for name, mask in masks.items():
        masked.get_parameter(name).data *= mask
    return model, masked, shrink(model, masks, inputs)


class TestAGraft:
    def test_all_that_a_removal_promises(self, inputs: Any) -> None:
        model = Model().double().eval()
        more = [(torch.randn(batch, length, 8, dtype=torch.float64),)
                for batch, length in ((1, 5), (3, 5), (2, 7))]  # fmt: skip
        result = RemovalTester().check(model, inputs, heads(model, inputs), more)
        assert set(result.grafts) == {"attention", "again"}
        assert "recorded operators" in " ".join(result.notes)

    def test_it_says_what_it_is(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs)
        assert isinstance(model.attention, Graft)
        assert repr(model.attention).startswith("Graft(\n  in place of Rigid, ")
        assert "(qkv): Linear(in_features=8, out_features=12" in repr(model.attention)

    def test_names_and_state_stay(self, inputs: Any) -> None:
        model, masked, _ = shrunk(inputs)
        assert list(model.state_dict()) == list(masked.state_dict())
        assert [name for name, _ in model.named_modules()] == [n for n, _ in masked.named_modules()]
        assert "attention.slope" not in model.state_dict()
        assert model.attention.slope.shape == (2, 1, 1)

    def test_it_copies(self, inputs: Any) -> None:
        model, masked, _ = shrunk(inputs)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(*inputs), model(*inputs))
        with torch.no_grad():
            twin.attention.qkv.weight.zero_()
        RemovalTester().check_same(masked, model, inputs)

    def test_it_trains(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        before = copy.deepcopy(model.state_dict())
        losses = []
        for _ in range(20):
            loss = (model.train()(*inputs) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.5 * losses[0]
        assert all(not torch.equal(each, before[name]) for name, each in model.named_parameters())

    def test_dropout_follows_the_mode(self, inputs: Any) -> None:
        model, masked, _ = shrunk(inputs, dropout=0.5)
        model.eval()
        assert torch.equal(model(*inputs), model(*inputs))
        RemovalTester().check_same(masked, model, inputs)
        model.train()
        assert not torch.equal(model(*inputs), model(*inputs))

    def test_dropout_that_never_rests(self, inputs: Any) -> None:
        """Code that drops in evaluation too goes on doing so."""
        model, _, _ = shrunk(inputs)
        loose = copy.deepcopy(model)
        for step in loose.attention.grafted_code["steps"]:
            if step.get("operator", "").startswith("aten.dropout"):
                step["args"] = [step["args"][0], 0.5, True]
        assert torch.equal(model(*inputs), model(*inputs))
        assert not torch.equal(loose(*inputs), loose(*inputs))

    @staticmethod
    def of_torch() -> tuple[nn.Module, Any]:
        """Return an encoder layer of torch, which drops weights of attention in training."""
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, HEADS, 16, dropout=0.5, batch_first=True)
        model = nn.Sequential(layer, nn.Linear(8, 3)).double()
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        return model, (torch.randn(2, 5, 8, dtype=torch.float64),)

    @staticmethod
    def first_head(model: nn.Module, inputs: Any) -> Chosen:
        structure = trace(model, inputs)
        weight = ("0.self_attn.in_proj_weight", 0)
        return Chosen(structure, {axis.name: [0] for axis in structure.removable
                                  if axis.size == HEADS and weight in axis.carriers})  # fmt: skip

    def test_a_layer_that_reaches_into_its_children(self) -> None:
        """Torch's own encoder layer reads the weights of its attention where it can."""
        model, inputs = self.of_torch()
        chosen = self.first_head(model.eval(), inputs)
        masks = chosen.masks(model)
        masked = copy.deepcopy(model)
        for name, mask in masks.items():
            masked.get_parameter(name).data *= mask
        result = shrink(model, masks, inputs)
        assert set(result.grafts) == {"0.self_attn"}
        more = (torch.randn(3, 7, 8, dtype=torch.float64),)
        for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            with context():
                for each in (inputs, more):
                    assert torch.allclose(model(*each), masked(*each), atol=1e-9)

    @pytest.mark.xfail(
        strict=True, raises=AssertionError,
        reason="what its own code does in training alone is lost",
    )  # fmt: skip
    def test_what_is_done_in_training_alone(self) -> None:
        model, inputs = self.of_torch()
        assert not torch.equal(model.train()(*inputs), model(*inputs))
        shrink(model.eval(), self.first_head(model, inputs).masks(model), inputs)
        assert not torch.equal(model.train()(*inputs), model(*inputs))

    def test_other_methods_and_constants_of_its_class(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs)
        assert model.attention.count() == HEADS
        assert model.attention.NUMBER == 7
        assert model.attention.doubled == 2 * HEADS
        with pytest.raises(AttributeError, match="nothing"):
            _ = model.attention.nothing

    def test_attributes_of_any_name(self, inputs: Any) -> None:
        """Names that a graft could use for itself are the user's."""
        model = Model().double().eval()
        names = ("code", "kind", "replaces", "steps", "inputs", "original")
        for name in names:
            setattr(model.attention, name, name)
        shrink(model, heads(model, inputs).masks(model), inputs)
        assert isinstance(model.attention, Graft)
        assert all(getattr(model.attention, name) == name for name in names)

    def test_hooks_of_the_module_go_on(self, inputs: Any) -> None:
        model = Model().double().eval()
        seen: list[str] = []
        model.attention.register_forward_hook(lambda *_: seen.append("after"))
        model.attention.register_forward_pre_hook(lambda *_: seen.append("before"))
        model.attention.qkv.register_forward_hook(lambda *_: seen.append("inside"))
        shrink(model, heads(model, inputs).masks(model), inputs)
        assert isinstance(model.attention, Graft)
        seen.clear()
        model(*inputs)
        assert seen == ["before", "inside", "after"]

    def test_its_own_attributes_stay(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs, dropout=0.25)
        assert model.attention.dropout == 0.25

    def test_moved_to_another_precision(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs)
        wanted = model(*inputs)
        found = model.float()(inputs[0].float())
        assert found.dtype is torch.float32
        assert torch.allclose(found.double(), wanted, atol=1e-5)

    def test_shrunk_again(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs)
        structure = trace(model, inputs)
        again = {axis.name: [0] for axis in structure.removable
                 if axis.size == HEADS - 2 and axis.inexact is None}  # fmt: skip
        assert again, "the heads that are left can still go"
        result = RemovalTester().check(
            model, inputs, Chosen(structure, again), [(torch.randn(3, 4, 8).double(),)]
        )
        assert result.after.params < result.before.params
        assert repr(model.attention).startswith("Graft(\n  in place of Rigid, ")

    def test_rolled_back(self, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from secateur.structure import verify

        model = Model().double().eval()
        modules = list(model.modules())
        monkeypatch.setattr(verify, "difference", lambda one, other: 1.0)
        with pytest.raises(SecateurError, match="differs"):
            shrink(model, heads(model, inputs).masks(model), inputs)
        assert all(one is other for one, other in zip(model.modules(), modules, strict=True))
        assert type(model.attention) is Rigid

    def test_saved_and_loaded(self, inputs: Any, tmp_path: Path) -> None:
        model, _, _ = shrunk(inputs)
        save(model, tmp_path)
        again = load(tmp_path, lambda: Model().double()).eval()
        assert isinstance(again.attention, Graft)
        assert torch.equal(again(*inputs), model(*inputs))
        more = torch.randn(3, 4, 8, dtype=torch.float64)
        assert torch.equal(again(more), model(more))

    def test_exported(self, inputs: Any) -> None:
        model, masked, _ = shrunk(inputs)
        exported = torch.export.export(model, inputs, strict=False).module()
        RemovalTester().check_same(masked, exported, inputs)

    def test_forbidden(self, inputs: Any) -> None:
        model = Model().double().eval()
        structure = trace(model, inputs, graft=False)
        assert not any(axis.size == HEADS for axis in structure.removable)
        pinned = [axis for axis in structure.axes if axis.size == HEADS]
        assert pinned and all("cannot express" in (axis.pinned or "") for axis in pinned)
        assert all(Path(__file__).name in axis.place for axis in pinned)
        masks = heads(model, inputs).masks(model)
        with pytest.raises(SecateurError, match="cannot express"):
            shrink(model, masks, inputs, graft=False)
        assert type(model.attention) is Rigid

    def test_the_wrong_number_of_tensors(self, inputs: Any) -> None:
        model, _, _ = shrunk(inputs)
        with pytest.raises(ValueError, match="Rigid was replaced for 1 tensors and got 2"):
            model.attention(inputs[0], inputs[0])


MADE = Attention, "made"


@pytest.mark.parametrize(
    "made", ["unbind", "chunk", "separate", "grouped query", "one key", "layer"]
)
@pytest.mark.parametrize("fused", [False, True])
def test_heads_of_every_making(made: str, fused: bool) -> None:
    """Every way in which heads are made loses heads; grafted or not, batch and length are free."""
    options = {"made": made, "norm": "layer", "heads": 4, "width": 2, "fused": fused, "bias": True}
    plan = Plan("tokens", (Part("attention", tuple(options.items())),), seed=3)
    model, inputs = build(plan), inputs_of(plan)
    chosen = choose_axes(model, inputs, share=0.5)
    assert chosen.gone
    others = [inputs_of(plan, batch, seed=batch) for batch in (1, 3)]
    others.append((torch.randn(2, 11, 6, dtype=torch.float64),))
    RemovalTester().check(model, inputs, chosen, others)


class Swapped(nn.Module):
    """Windows as part of the batch: a size in the code is a product of the batch and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        windows = x.view(b, n // 4, 4, c).reshape(-1, 4, c)
        return self.head(self.inner(windows, n // 4).view(b, n, c))


class Inner(nn.Module):
    """Gets windows and their number, and parts batch and windows again."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.join = nn.Linear(8, 24), nn.Linear(8, 8)
        self.bias = nn.Parameter(torch.randn(2, HEADS, 4, 4))

    def forward(self, x: Tensor, windows: int) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1)
        scores = scores.view(b // windows, windows, HEADS, n, n) + self.bias
        scores = scores.view(-1, HEADS, n, n).softmax(-1)
        return self.join((scores @ v).transpose(1, 2).reshape(b, n, c))


def test_windows_within_the_batch() -> None:
    torch.manual_seed(0)
    model = Swapped().double().eval()
    inputs = (torch.randn(2, 8, 8, dtype=torch.float64),)
    chosen = heads(model, inputs)
    assert chosen.gone
    others = [(torch.randn(batch, 8, 8, dtype=torch.float64),) for batch in (1, 3)]
    result = RemovalTester().check(model, inputs, chosen, others)
    assert "inner" in result.grafts


class TestCode:
    """What comes from a file runs nothing but operators of torch that a rule covers."""

    @pytest.fixture
    def code(self, inputs: Any) -> Any:
        return copy.deepcopy(shrunk(inputs)[2].grafts["attention"])

    def test_what_was_written_is_accepted(self, code: Any) -> None:
        check_code(code)

    @pytest.mark.parametrize("damaged", [
        None, [], {}, "code", {"inputs": 1}, {"steps": []}, {"inputs": "1", "steps": []},
        {"inputs": 1, "steps": {}}, {"inputs": 1, "steps": [3]}, {"inputs": 1, "steps": [{}]},
        {"inputs": 1, "steps": [{"name": "step 1"}]},
        {"inputs": 1, "steps": [{"name": "step 1", "operator": "aten.relu.default"}]},
        {"inputs": 1, "steps": [], "result": {"value": ["unhashable"]}},
        {"inputs": 1, "steps": [], "result": {"other": 1}},
        {"inputs": 1, "steps": [], "result": {"value": "step 9"}},
    ])  # fmt: skip
    def test_what_is_damaged(self, damaged: Any) -> None:
        with pytest.raises(SecateurError, match="graft"):
            check_code(damaged)

    @pytest.mark.parametrize("name", [
        "os.system.default", "aten.from_file.default", "prim.device.default", "aten.relu",
        "aten.relu.default.more", "__builtins__.eval.default", "aten.__class__.default",
        "aten.linear.__class__", "profiler._record_function_enter.default", "", "relu", 3, None,
        "aten.set_.source_Tensor", "aten.resize_.default", "inductor.foo.default",
        "aten.relu.nothing",
    ])  # fmt: skip
    def test_operators_that_no_rule_covers(self, code: Any, name: Any) -> None:
        step = next(step for step in code["steps"] if "operator" in step)
        step["operator"] = name
        with pytest.raises(SecateurError, match="graft"):
            check_code(code)

    @pytest.mark.parametrize("path", ["", "..", "__class__", "forward", "qkv.weight", 3, "nothing"])
    def test_children_that_are_none(self, inputs: Any, code: Any, path: Any) -> None:
        step = next(step for step in code["steps"] if "module" in step)
        step["module"] = path
        with pytest.raises((SecateurError, AttributeError, TypeError)):
            check_code(code)
            Graft(Rigid().double(), code)(*inputs)

    def test_an_operator_by_name(self) -> None:
        assert operator_of("aten.relu.default") is torch.ops.aten.relu.default
