"""Which parameters are prunable weights, and the common layout in which they are seen."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier, shrink
from secateur.structure import choose_weights, find_weights
from secateur.structure.weights import PrunableWeight


def weights_of(model: nn.Module) -> dict[str, PrunableWeight]:
    return {weight.name: weight for weight in find_weights(model).weights}


SHAPES = {
    "linear": (nn.Linear(5, 7), (1, 7, 5)),
    "conv1d": (nn.Conv1d(4, 6, 5), (1, 6, 4, 5)),
    "conv2d": (nn.Conv2d(4, 6, (3, 5)), (1, 6, 4, 3, 5)),
    "conv3d": (nn.Conv3d(4, 6, (2, 3, 5)), (1, 6, 4, 2, 3, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 3, 2, 3, 3)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 2, 1, 3, 3)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), (1, 6, 4, 3, 3)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3), (1, 6, 4, 3)),
    "transposed3d": (nn.ConvTranspose3d(4, 6, 3), (1, 6, 4, 3, 3, 3)),
    "grouped_transposed": (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 3, 2, 3, 3)),
    "embedding": (nn.Embedding(11, 3), (1, 3, 11)),
    "embedding_bag": (nn.EmbeddingBag(11, 3), (1, 3, 11)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_layout_is_groups_outputs_inputs_kernel_and_shares_memory(name: str) -> None:
    module, shape = SHAPES[name]
    (weight,) = find_weights(module).weights
    view = weight.view(module.weight.detach())
    assert weight.shape == tuple(view.shape) == shape
    assert view.untyped_storage().data_ptr() == module.weight.untyped_storage().data_ptr()
    assert weight.numel == module.weight.numel()
    assert len(weight.axes) == len(shape)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_an_output_in_the_layout_is_the_output_of_the_convolution(
    kind: type[nn.Conv2d], groups: int
) -> None:
    module = kind(4, 6, 3, groups=groups)
    (weight,) = find_weights(module).weights
    view = weight.view(module.weight.detach())
    view[0, 1] = 0
    weight.view_outputs(module.bias.detach())[0, 1] = 0
    zero = module(torch.randn(2, 4, 9, 9)).abs().amax((0, 2, 3)) == 0
    assert torch.nonzero(zero).flatten().tolist() == [1]


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_an_input_in_the_layout_is_the_input_of_the_convolution(kind: type[nn.Conv2d]) -> None:
    module = kind(4, 6, 3, groups=2)
    (weight,) = find_weights(module).weights
    weight.view(module.weight.detach())[1, :, 0] = 0
    x = torch.randn(1, 4, 9, 9)
    changed = x.clone()
    changed[:, 2] += 1
    assert torch.equal(module(x), module(changed))


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_are_the_parameters_own_where_attributes_say_otherwise(name: str) -> None:
    module, shape = SHAPES[name]
    module = copy.deepcopy(module)
    for attribute in ("in_features", "out_features", "in_channels", "out_channels",
                      "num_embeddings", "embedding_dim"):  # fmt: skip
        if hasattr(module, attribute):
            setattr(module, attribute, 99)
    (weight,) = find_weights(module).weights
    assert weight.shape == shape
    assert tuple(weight.view(module.weight.detach()).shape) == shape


def test_a_packed_attention_is_parted_into_q_k_and_v() -> None:
    attention = nn.MultiheadAttention(8, 2)
    found = weights_of(nn.ModuleDict({"attention": attention}))
    assert list(found) == [
        *(f"attention.in_proj_weight[{part}]" for part in "qkv"), "attention.out_proj.weight",
    ]  # fmt: skip
    stored = attention.in_proj_weight.detach()
    for place, part in enumerate("qkv"):
        weight = found[f"attention.in_proj_weight[{part}]"]
        assert weight.shape == (1, 8, 8)
        assert weight.biases == ("attention.in_proj_bias",)
        assert torch.equal(weight.view(stored)[0], stored[8 * place : 8 * place + 8])
        assert weight.view(stored).data_ptr() == stored[8 * place].data_ptr()


def test_an_attention_with_widths_of_its_own_has_three_weights() -> None:
    found = weights_of(nn.MultiheadAttention(8, 2, kdim=5, vdim=3))
    shapes = {name: weight.shape for name, weight in found.items()}
    assert shapes == {
        "q_proj_weight": (1, 8, 8), "k_proj_weight": (1, 8, 5), "v_proj_weight": (1, 8, 3),
        "out_proj.weight": (1, 8, 8),
    }  # fmt: skip


def test_the_bias_of_an_unpacked_attention_goes_with_its_outputs() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=3)
    nn.init.normal_(attention.in_proj_bias)
    sparsifier = Sparsifier(
        attention, "filter | local | magnitude | one_shot", sparsity=0.5, include="*_proj_weight"
    )
    sparsifier.step(1.0)
    for place, part in enumerate("qkv"):
        removed = ~sparsifier.masks[f"{part}_proj_weight"].any(1)
        bias = attention.in_proj_bias[8 * place : 8 * place + 8]
        assert int(removed.sum()) == 4
        assert torch.equal(bias == 0, removed)


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_are_parted_into_their_gates(kind: type[nn.RNNBase], gates: int) -> None:
    module = kind(5, 6, num_layers=2, bidirectional=True)
    found = find_weights(module).weights
    assert len(found) == gates * 2 * 2 * 2
    assert {weight.parameter for weight in found} == {
        name for name, _ in module.named_parameters() if name.startswith("weight")
    }
    assert sum(weight.numel for weight in found) == sum(
        parameter.numel() for name, parameter in module.named_parameters() if "weight" in name
    )
    first = found[0]
    assert first.shape == (1, 6, 5)
    assert first.biases == ("bias_ih_l0",)


@pytest.mark.parametrize(
    ("kind", "gates"), [(nn.LSTMCell, "ifgo"), (nn.GRUCell, "rzn"), (nn.RNNCell, "h")]
)
def test_recurrent_cells_are_parted_into_their_gates(
    kind: type[nn.RNNCellBase], gates: str
) -> None:
    module = kind(5, 6)
    found = weights_of(module)
    assert list(found) == [f"weight_{side}[{gate}]" for side in ("ih", "hh") for gate in gates]
    for place, gate in enumerate(gates):
        for side, inputs in (("ih", 5), ("hh", 6)):
            weight, stored = found[f"weight_{side}[{gate}]"], getattr(module, f"weight_{side}")
            assert weight.shape == (1, 6, inputs)
            assert weight.biases == (f"bias_{side}",)
            own = stored.detach()[6 * place : 6 * place + 6]
            assert torch.equal(weight.view(stored.detach())[0], own)


class Attending(nn.Module):
    """Self-attention between two linear layers, with keys and values of other widths if asked."""

    def __init__(self, apart: bool, need_weights: bool) -> None:
        super().__init__()
        wide = (16, 12, 20) if apart else (16, 16, 16)
        self.parts = nn.ModuleList(nn.Linear(8, width) for width in wide)
        self.attention = nn.MultiheadAttention(16, 4, kdim=wide[1], vdim=wide[2], batch_first=True)
        self.head = nn.Linear(16, 3)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x) for part in self.parts)
        return self.head(self.attention(q, k, v, need_weights=self.need_weights)[0])


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("granularity", ["head", "filter"])
def test_the_attention_of_a_shrunk_model_is_parted_as_before(
    granularity: str, apart: bool, need_weights: bool
) -> None:
    """Values may be narrower than queries and keys, and the module's attributes are of old."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    model = Attending(apart, need_weights).eval()
    kind = next(w.kind for w in find_weights(model).weights if w.module == "attention")
    for _ in range(2):
        before = [weight.name for weight in find_weights(model).weights]
        sparsifier = Sparsifier(
            model, f"{granularity} | local | magnitude | one_shot", sparsity=0.4, example_inputs=x
        )
        sparsifier.step(1.0)
        masked = model(x)
        shrunk = shrink(model, sparsifier, x)
        assert shrunk.after.params < shrunk.before.params
        torch.testing.assert_close(model(x), masked, rtol=1e-4, atol=1e-5)
        found = weights_of(model)
        assert list(found) == before and not find_weights(model).skipped
        values = model.get_parameter("attention.out_proj.weight").shape[1]
        own = {name[-2] if name.endswith("]") else name[len("attention.")]: weight
               for name, weight in found.items() if "proj_weight" in name}  # fmt: skip
        assert set(own) == set("qkv") and {weight.kind for weight in own.values()} == {kind}
        assert own["v"].shape[1] == values and own["q"].shape[1] == own["k"].shape[1]
        ends = [weight.bias_rows for weight in own.values()]
        bias = model.get_parameter("attention.in_proj_bias")
        assert [end for _, end in ends] == [*[start for start, _ in ends[1:]], len(bias)]
        for each in ("weight", "shared_kernel", "layer"):
            copied = copy.deepcopy(model)
            Sparsifier(copied, f"{each} | global | magnitude | one_shot", sparsity=0.4).step(1.0)
            assert bool(copied(x).isfinite().all())


def test_hugging_faces_conv1d_stores_inputs_first() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    module = conv1d(6, 4)
    (weight,) = find_weights(module).weights
    assert weight.shape == (1, 6, 4)
    assert weight.biases == ("bias",)
    weight.view(module.weight.detach())[0, 2] = 0
    assert torch.nonzero((module(torch.randn(3, 4)) == 0).all(0)).flatten().tolist() == [2]


def test_tied_weights_appear_once_under_the_models_name() -> None:
    embedding, head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    found = weights_of(nn.ModuleDict({"embedding": embedding, "head": head}))
    assert list(found) == ["embedding.weight"]
    assert found["embedding.weight"].shape == (1, 4, 10)


def test_a_computed_weight_is_passed_over_with_the_reason() -> None:
    model = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)
    )
    found = find_weights(model)
    assert [weight.name for weight in found.weights] == ["1.weight"]
    ((name, reason),) = found.skipped
    assert name == "0.weight"
    assert "computed" in reason


def test_a_matrix_of_no_known_layer_is_passed_over_with_the_reason() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Parameter(torch.randn(3, 8, 6))
            self.scale = nn.Parameter(torch.ones(1, 8))
            self.head = nn.Linear(8, 3)
            self.tied = self.head.weight
            self.norm, self.plane = nn.LayerNorm(8), nn.LayerNorm((5, 8))
            self.joined = nn.Bilinear(3, 2, 4)
            self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)

    found = find_weights(Experts())
    assert [name for name, _ in found.skipped] == ["enter", "joined.weight"]
    assert all("no layer" in reason for _, reason in found.skipped)


def test_attentions_that_share_their_projections_appear_once() -> None:
    one, other = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    other.in_proj_weight = one.in_proj_weight
    names = [weight.name for weight in find_weights(nn.ModuleList([one, other])).weights]
    assert names == [f"0.in_proj_weight[{part}]" for part in "qkv"] + [
        "0.out_proj.weight", "1.out_proj.weight",
    ]  # fmt: skip


def test_a_computed_weight_of_hugging_faces_conv1d_is_passed_over_too() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(conv1d(4, 4)), nn.Linear(4, 2)
    )
    found = find_weights(model)
    assert [weight.name for weight in found.weights] == ["1.weight"]
    assert [name for name, _ in found.skipped] == ["0.weight"]


def test_a_model_of_computed_weights_only_is_refused_with_the_reason() -> None:
    model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(SecateurError, match="computed"):
        Sparsifier(model, "weight | global | magnitude | one_shot", sparsity=0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_with_a_matrix_is_found_once(name: str) -> None:
    model = NETWORKS[name]()
    expected = {n: p.numel() for n, p in model.named_parameters() if p.dim() > 1}
    found: dict[str, int] = {}
    for weight in find_weights(model).weights:
        found[weight.parameter] = found.get(weight.parameter, 0) + weight.numel
    assert found == expected


def test_patterns_choose_by_name_parameter_or_module() -> None:
    found = find_weights(NETWORKS["transformer"]()).weights
    assert [w.name for w in choose_weights(found, include="up")] == ["up.weight"]
    assert [w.name for w in choose_weights(found, include="*in_proj*")] == [
        f"attention.in_proj_weight[{part}]" for part in "qkv"
    ]
    kept = choose_weights(found, exclude=["attention*", "head"])
    assert [w.name for w in kept] == ["up.weight", "down.weight"]
    assert [w.name for w in choose_weights(found, ["up", "down"], "down.*")] == ["up.weight"]


@pytest.mark.parametrize("where", ["include", "exclude"])
def test_a_pattern_without_match_names_what_is_near(where: str) -> None:
    found = find_weights(NETWORKS["transformer"]()).weights
    with pytest.raises(SecateurError, match=r"'upp'.*did you mean up\?") as error:
        choose_weights(found, **{where: ["upp"]})
    assert "\n" not in str(error.value)


class _Apart(nn.Module):
    """Three projections in layers of their own, which an attention would fuse."""

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        for label, weight in zip("qkv", fused.in_proj_weight.detach().chunk(3), strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data.copy_(weight)
            setattr(self, label, layer)


@pytest.mark.parametrize("granularity", ["weight", "filter", "shared_kernel", "2:4", "(o 2) (i 2)"])
@pytest.mark.parametrize("context", ["local", "global"])
def test_a_fused_projection_is_pruned_like_three_layers(granularity: str, context: str) -> None:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(8, 2)
    fused.in_proj_weight.data[8:16] *= 3
    apart = _Apart(fused)
    technique = f"{granularity} | {context} | magnitude | one_shot"
    one = Sparsifier(fused, technique, sparsity=0.4, include="in_proj_weight")
    three = Sparsifier(apart, technique, sparsity=0.4)
    one.step(1.0), three.step(1.0)
    expected = torch.cat([three.masks[f"{label}.weight"] for label in "qkv"])
    assert torch.equal(one.masks["in_proj_weight"], expected)
    assert not bool(expected.all())
