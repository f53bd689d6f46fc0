"""Whole channels over coupled layers: what is masked can be removed, and budgets count that."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, example, resnet_cifar
from torch import Tensor, nn
from training import batch, equal, fresh, state_of, train, zeros_match

from secateur import SecateurError, Sparsifier, Technique, shrink, trace
from secateur.sparsify import describe_layers
from secateur.structure import Removal, observe
from secateur.technique.criteria import CRITERIA

Inputs = tuple[Tensor, ...]
NAMES = ["small_cnn", "resnet_cifar", "grouped_cnn", "dense_block_net", "transformer",
         "preactivation_resnet", "transposed_net", "conv1d_net", "embedding_net",
         "cell_net"]  # fmt: skip
BUDGETS = [{"sparsity": 0.5}, {"params": 0.5}, {"macs": 0.5}, {"bytes": 0.5}]
LOCAL = "filter | local | magnitude | one_shot"


def in_double(inputs: Inputs) -> Inputs:
    return tuple(each.double() if each.is_floating_point() else each for each in inputs)


def awake(name: str) -> tuple[nn.Module, Inputs]:
    """Return a network in double precision whose biases, shifts and statistics are not their first.

    A channel that is not zero everywhere shows.
    """
    torch.manual_seed(0)
    model = resnet_cifar(8) if name == "resnet_cifar" else NETWORKS[name]()
    model, inputs = model.double(), in_double(example(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for _ in range(2):
        model(*inputs)
    return model.eval(), inputs


def measured(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Count a model by its own tensors and the operators that it runs."""
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "macs": observe(model, lambda: model(*inputs)).macs,
    }


def weights_left(model: nn.Module, sparsifier: Sparsifier) -> int:
    names = {re.sub(r"\[\w\]$", "", layer.name) for layer in sparsifier.report().layers}
    return sum(model.get_parameter(name).numel() for name in names)


def largest_unit(sparsifier: Sparsifier, model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Return the largest share of each currency that one index of one axis takes along."""
    structure = trace(model, inputs)
    names = {re.sub(r"\[\w\]$", "", layer.name) for layer in sparsifier.report().layers}
    weights = sum(model.get_parameter(name).numel() for name in names)
    found = dict.fromkeys(("sparsity", "params", "macs"), 0.0)
    for axis in structure.removable:
        removal = Removal({structure.leaves[axis.name]: torch.arange(axis.size) > 0})
        params, macs = structure.count(removal)
        left = sum(math.prod(removal.shape(structure.held[name])) for name in names)
        for currency, share in (("sparsity", left / weights), ("params", params / structure.params),
                                ("macs", macs / structure.macs)):  # fmt: skip
            found[currency] = max(found[currency], 1 - share)
    return {**found, "bytes": found["params"]}


CONTEXTS = ["global", "local", "isomorphic", "local(erk)", "local(lamp)", "global(keep=0.2)"]
# Every two of network, context, granularity and currency meet at least once.
CASES = [
    (name, context, granularity, BUDGETS[(i + j + 2 * k + j // 4) % 4])
    for i, name in enumerate(NAMES)
    for j, context in enumerate(CONTEXTS)
    for k, granularity in enumerate(["filter", "shared_kernel"])
]


@pytest.mark.parametrize(("name", "context", "granularity", "budget"), CASES)
def test_budgets_are_met_by_what_shrinking_leaves(
    name: str, context: str, granularity: str, budget: dict[str, float]
) -> None:
    model, inputs = awake(name)
    technique = f"{granularity} | {context} | magnitude | one_shot"
    sparsifier = Sparsifier(model, technique, example_inputs=inputs, **budget)
    ((currency, asked),) = budget.items()
    coarsest = largest_unit(sparsifier, model, inputs)[currency]
    before, weights = measured(model, inputs), weights_left(model, sparsifier)
    result = sparsifier.step(1.0)
    assert abs(result.achieved[currency] - asked) <= max(0.01, coarsest / 2)
    assert result.shortfall == 0 and result.reason is None
    masked = model(*inputs)
    assert dict(sparsifier.report().achieved) == dict(result.achieved)
    shrunk = shrink(model, sparsifier, inputs)
    assert shrunk.exact and not shrunk.left
    after = measured(model, inputs)
    for each, value in after.items():
        assert result.achieved[each] == pytest.approx(value / before[each], abs=1e-9), each
    left = weights_left(model, sparsifier) / weights
    assert result.achieved["sparsity"] == pytest.approx(1 - left, abs=1e-9)
    assert shrunk.after.bytes / shrunk.before.bytes == pytest.approx(result.achieved["bytes"])
    torch.testing.assert_close(model(*inputs), masked, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("criterion", [record.name for record in CRITERIA])
@pytest.mark.parametrize("context", ["global", "local"])
def test_every_criterion_meets_the_budget(criterion: str, context: str) -> None:
    model, inputs = fresh("small_cnn"), example("small_cnn", batch=4)
    sparsifier = Sparsifier(
        model, f"filter | {context} | {criterion} | one_shot", macs=0.5, example_inputs=inputs,
        data=[(inputs[0], torch.tensor([0, 1, 2, 3]))],
    )  # fmt: skip
    coarsest = largest_unit(sparsifier, model, inputs)["macs"]
    result = sparsifier.step(1.0)
    assert result.achieved["macs"] == pytest.approx(0.5, abs=coarsest)
    shrunk = shrink(model, sparsifier, inputs)
    assert shrunk.after.macs / shrunk.before.macs == pytest.approx(result.achieved["macs"])


def test_the_lowest_channels_go_of_a_chain() -> None:
    model, inputs = fresh("mlp"), example("mlp")
    scores = {name: model.get_parameter(f"{name}.weight").detach().abs().mean(1) for name in "13"}
    sparsifier = Sparsifier(model, LOCAL, params=0.5, example_inputs=inputs)
    sparsifier.step(1.0)
    for name, behind in (("1", "3"), ("3", "5")):
        kept = sparsifier.masks[f"{name}.weight"].any(1)
        gone = int((~kept).sum())
        assert 0 < gone < len(kept)
        assert set(scores[name].argsort()[:gone].tolist()) == set(
            (~kept).nonzero().flatten().tolist()
        )
        assert torch.equal(sparsifier.masks[f"{name}.bias"], kept)
        assert torch.equal(sparsifier.masks[f"{behind}.weight"].any(0), kept)


class Summed(nn.Module):
    """Two layers add to one, which a third reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(6, 8)
        self.c = nn.Linear(8, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(F.relu(self.a(x) + self.b(y)))


SUMMED = (torch.randn(3, 4), torch.randn(3, 6))


def test_layers_that_add_to_one_channel_are_scored_together() -> None:
    model = Summed()
    scores = model.a.weight.detach().abs().mean(1) + model.b.weight.detach().abs().mean(1)
    sparsifier = Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=SUMMED)
    assert sparsifier.step(1.0).removed == 4
    kept = torch.zeros(8, dtype=torch.bool)
    kept[scores.argsort()[4:]] = True
    for name in ("a", "b"):
        assert torch.equal(
            sparsifier.masks[f"{name}.weight"], kept[:, None].expand(8, 4 if name == "a" else 6)
        )
        assert torch.equal(sparsifier.masks[f"{name}.bias"], kept)
    assert torch.equal(sparsifier.masks["c.weight"], kept.expand(2, 8))
    assert set(sparsifier.masks) == {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight"}


def test_group_magnitude_counts_what_reads_a_channel() -> None:
    model = Summed()
    with torch.no_grad():
        model.a.weight[:4] *= 0.1
        model.b.weight[:4] *= 0.1
        model.c.weight[:, :4] *= 100
    for technique, gone in (
        ("filter | local | magnitude(reduce=l2) | one_shot", [0, 1, 2, 3]),
        ("filter | local | group_magnitude | one_shot", [4, 5, 6, 7]),
    ):
        sparsifier = Sparsifier(
            copy.deepcopy(model), technique, sparsity=0.5, example_inputs=SUMMED
        )
        sparsifier.step(1.0)
        assert (~sparsifier.masks["c.weight"][0]).nonzero().flatten().tolist() == gone


@pytest.mark.parametrize("granularity", ["filter", "shared_kernel"])
@pytest.mark.parametrize("name", NAMES)
def test_group_magnitude_is_the_mass_that_goes_with_a_channel(name: str, granularity: str) -> None:
    model, inputs = awake(name)
    technique = f"{granularity} | local | group_magnitude | one_shot"
    sparsifier = Sparsifier(model, technique, sparsity=0.4, example_inputs=inputs)
    structure = trace(model, inputs)
    before = {each: values.detach().clone() for each, values in model.named_parameters()}
    assert sparsifier.step(1.0).removed
    for axis in structure.removable:
        carriers = [each for each in axis.carriers if each[0] in sparsifier.masks]
        stay, go = [math.inf], [-math.inf]
        for index in range(axis.size):
            one = Removal({structure.leaves[axis.name]: torch.arange(axis.size) != index})
            mass = alive = 0.0
            for parameter, dim in carriers:
                rest = one.indices(structure.held[parameter][dim])
                squares = before[parameter].square()
                mask = sparsifier.masks[parameter].double()
                mass += float(squares.sum() - squares.index_select(dim, rest).sum())
                alive += float(mask.sum() - mask.index_select(dim, rest).sum())
            (stay if alive else go).append(mass)
        assert max(go) <= min(stay) + 1e-9


def test_of_equal_channels_the_first_go_first_and_the_last_stays() -> None:
    model = fresh("mlp")
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    sparsifier = Sparsifier(model, LOCAL, sparsity=0.7, example_inputs=example("mlp"))
    sparsifier.step(1.0)
    for name in ("1", "3"):
        kept = sparsifier.masks[f"{name}.bias"]
        assert torch.equal(kept, torch.arange(len(kept)) >= int((~kept).sum()))
        assert 0 < int(kept.sum()) < len(kept)


RISING = [
    ("filter | global | magnitude", {}), ("filter | local | magnitude", {}),
    ("filter | isomorphic | magnitude", {}), ("shared_kernel | global | magnitude", {}),
    ("filter | global | random", {}), ("filter | local | small_final", {}),
    ("filter | local(erk) | random", {"round_to": 2}),
    ("filter | global | random", {"round_to": 4}),
]  # fmt: skip


@pytest.mark.parametrize("currency", ["sparsity", "macs"])
@pytest.mark.parametrize(("kind", "more"), RISING)
def test_a_permanent_mask_never_gives_back_and_never_empties(
    kind: str, more: dict[str, Any], currency: str
) -> None:
    model, inputs = fresh("small_cnn", seed=1), example("small_cnn")
    asked = {currency: 0.55 if currency == "sparsity" else 0.4}
    sparsifier = Sparsifier(
        model, f"{kind} | linear", example_inputs=inputs, **asked, **more
    )  # fmt: skip
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    for step in range(31):
        sparsifier.step(step / 30)
        for name, mask in sparsifier.masks.items():
            assert not bool((mask & ~before[name]).any()), f"{name} at {step}"
            assert bool(mask.any())
        before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    assert not all(bool(mask.all()) for mask in before.values())


@pytest.mark.parametrize("criterion", ["random", "small_final", "magnitude", "movement"])
@pytest.mark.parametrize("context", ["global", "local", "isomorphic", "local(lamp)"])
@pytest.mark.parametrize("kind", ["permanent", "reselected", "regrown(by=random, share=0.5)"])
def test_one_channel_stays_whatever_is_asked(context: str, criterion: str, kind: str) -> None:
    model, inputs = fresh("dense_block_net"), example("dense_block_net")
    sparsifier = Sparsifier(
        model, f"filter | {context} | {criterion} | linear(mask={kind})", params=0.1,
        example_inputs=inputs,
    )  # fmt: skip
    for step in range(9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        sparsifier.apply()
        result = sparsifier.step(step / 8)
        assert max(result.layers.values()) < 1
    assert shrink(model, sparsifier, inputs).left == {}
    assert min(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("kind", ["reselected", "regrown(by=magnitude, share=0.4)",
                                  "regrown(by=random, share=0.4)"])  # fmt: skip
@pytest.mark.parametrize("context", ["local", "global"])
def test_masks_that_move_exchange_channels_and_keep_the_budget(kind: str, context: str) -> None:
    model, inputs = fresh("small_cnn"), example("small_cnn")
    technique = f"filter | {context} | magnitude | constant(mask={kind})"
    sparsifier = Sparsifier(model, technique, macs=0.5, example_inputs=inputs)
    coarsest = largest_unit(sparsifier, model, inputs)["macs"]
    first = sparsifier.step(0.0)
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    torch.manual_seed(3)
    for parameter in model.parameters():
        parameter.data += torch.randn_like(parameter)
    second = sparsifier.step(0.5)
    for result in (first, second):
        assert result.achieved["macs"] == pytest.approx(0.5, abs=coarsest)
    came = [bool((mask & ~before[name]).any()) for name, mask in sparsifier.masks.items()]
    assert second.changed > 0 and any(came)


def test_a_channel_that_returns_has_the_values_that_it_had() -> None:
    """Zero in all layers that share it, it could never learn again."""
    model, inputs = fresh("resnet_cifar"), example("resnet_cifar")
    dense = state_of(model)
    sparsifier = Sparsifier(
        model, "filter | global | magnitude | dsd", params=0.4, example_inputs=inputs
    )
    for step in range(11):
        sparsifier.step(step / 20)
    assert zeros_match(model, sparsifier)
    assert not equal(state_of(model), dense)
    for step in range(11, 21):
        sparsifier.step(step / 20)
    assert all(bool(mask.all()) for mask in sparsifier.masks.values())
    assert equal(state_of(model), dense)


def test_regrown_channels_learn() -> None:
    model = fresh("small_cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    technique = "filter | local | magnitude | constant(mask=regrown(by=random, share=0.5), every=4)"
    sparsifier = Sparsifier(model, technique, macs=0.4, example_inputs=example("small_cnn"))
    sparsifier.attach(optimizer, 12)
    train(model, optimizer, range(3))
    gone = ~sparsifier.masks["3.weight"].flatten(1).any(1)
    train(model, optimizer, range(3, 4))
    back = gone & sparsifier.masks["3.weight"].flatten(1).any(1)
    assert bool(back.any())
    inputs, targets = batch(4)
    optimizer.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    assert bool((model[3].weight.grad[back].flatten(1).abs().amax(1) > 0).all())
    assert bool((model[8].weight.grad[:, back].abs().amax(0) > 0).all())


@pytest.mark.parametrize("name", ["small_cnn", "grouped_cnn"])
def test_what_learns_while_it_is_removed_can_learn_and_is_zero_at_the_end(name: str) -> None:
    model, inputs = fresh(name).train(), example(name)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # no ReLU is shut where a channel shows its shift alone
            parameter.data.fill_(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    technique = (
        "filter | local | magnitude | constant(every=3, mask=reselected) | keep(removed=learning)"
    )
    sparsifier = Sparsifier(model, technique, macs=0.5, example_inputs=inputs)
    sparsifier.attach(optimizer, 6)

    def learn() -> None:
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()

    last = [each for each in sparsifier.masks if each.endswith("weight")][-1]
    gone = ~sparsifier.masks[last].any(0)
    assert bool(gone.any())
    assert bool((model.get_parameter(last)[:, gone] != 0).any())  # what reads it stays
    removed = ~sparsifier.masks["0.weight"].flatten(1).any(1)
    assert not bool(model[0].weight[removed].any())
    learn()
    assert bool(model[0].weight[removed].flatten(1).any(1).all())
    for _ in range(5):
        learn()
    assert zeros_match(model, sparsifier)
    learn()
    assert zeros_match(model, sparsifier)
    assert shrink(model, sparsifier, inputs).left == {}


def test_include_and_exclude() -> None:
    inputs = example("resnet_cifar")
    one = Sparsifier(fresh("resnet_cifar"), LOCAL, sparsity=0.5, include="layer2.1.conv1",
                     example_inputs=inputs)  # fmt: skip
    assert one.step(1.0).removed == 16
    assert set(one.masks) == {"layer2.1.conv1.weight", "layer2.1.bn1.weight", "layer2.1.bn1.bias",
                              "layer2.1.conv2.weight"}  # fmt: skip
    rest = Sparsifier(fresh("resnet_cifar"), LOCAL, sparsity=0.5, exclude="layer2.1.conv1",
                      example_inputs=inputs)  # fmt: skip
    rest.step(1.0)
    assert "layer2.1.bn1.weight" not in rest.masks
    assert rest.masks["layer2.1.conv1.weight"].flatten(1).any(1).all()
    assert "layer2.1.conv1.weight" not in [layer.name for layer in rest.report().layers]


def test_an_axis_that_an_excluded_layer_makes_too_is_spared() -> None:
    sparsifier = Sparsifier(fresh("resnet_cifar"), LOCAL, sparsity=0.5, exclude="layer1.0.conv2",
                            example_inputs=example("resnet_cifar"))  # fmt: skip
    sparsifier.step(1.0)
    assert "bn1.weight" not in sparsifier.masks
    assert "layer1.0.bn1.weight" in sparsifier.masks
    spared = dict(sparsifier.report().passed_over)
    assert any("layer1.0.conv2.weight makes the same channels" in why for why in spared.values())
    with pytest.raises(SecateurError, match=r"b\.weight makes the same channels and is left out"):
        Sparsifier(Summed(), LOCAL, sparsity=0.5, include="a", example_inputs=SUMMED)
    with pytest.raises(SecateurError, match="the model's output"):
        Sparsifier(Summed(), LOCAL, sparsity=0.5, include="c", example_inputs=SUMMED)


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def test_what_is_inexact_is_refused_unless_it_is_asked_for() -> None:
    x = torch.randn(4, 6)
    spared = Sparsifier(normed(), LOCAL, sparsity=0.5, example_inputs=x)
    spared.step(1.0)
    assert set(spared.masks) == {"2.weight", "2.bias", "4.weight"}
    assert any("inexact=True" in reason for _, reason in spared.report().passed_over)
    with pytest.raises(SecateurError, match="averages over it; inexact=True removes it") as error:
        Sparsifier(normed(), LOCAL, sparsity=0.5, include="0", example_inputs=x)
    assert "\n" not in str(error.value)
    model = normed()
    asked = Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=x, inexact=True)
    asked.step(1.0)
    assert {"0.weight", "0.bias", "1.weight", "1.bias"} <= set(asked.masks)
    result = shrink(model, asked, x)
    assert result.notes and result.after.params < result.before.params
    assert model[1].normalized_shape == (model[0].out_features,) != (12,)


@pytest.mark.parametrize("context", ["global", "local"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_widths_are_multiples(context: str, share: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 44), nn.ReLU(), nn.Linear(44, 6), nn.ReLU(),
        nn.Linear(6, 2),
    )  # fmt: skip
    x = torch.randn(2, 8)
    sparsifier = Sparsifier(
        model, f"filter | {context} | magnitude | one_shot", sparsity=share, round_to=8,
        example_inputs=x,
    )  # fmt: skip
    result = sparsifier.step(1.0)
    widths = [int(sparsifier.masks[f"{place}.bias"].sum()) for place in (0, 2, 4)]
    assert widths[0] % 8 == 0 and (widths[1] % 8 == 0 or widths[1] == 44) and widths[2] == 6
    assert min(widths) > 0
    assert result.achieved["sparsity"] == pytest.approx(share, abs=0.1)
    if share:
        shrink(model, sparsifier, x)
        assert [model[place].out_features for place in (0, 2, 4)] == widths
    else:
        assert result.removed == 0


def test_heads_go_whole() -> None:
    model, inputs = awake("transformer")
    before = model.attention.in_proj_weight.detach().clone()
    sparsifier = Sparsifier(model, "head | local | magnitude | one_shot", sparsity=0.5,
                            example_inputs=inputs)  # fmt: skip
    assert sparsifier.step(1.0).removed == 2
    scores = before.view(3, 4, 4, 16).abs().mean((0, 2, 3))
    kept = torch.zeros(4, dtype=torch.bool)
    kept[scores.argsort()[2:]] = True
    rows = kept.repeat_interleave(4)
    masks = sparsifier.masks
    assert torch.equal(masks["attention.in_proj_weight"], rows.repeat(3)[:, None].expand(48, 16))
    assert torch.equal(masks["attention.in_proj_bias"], rows.repeat(3))
    assert torch.equal(masks["attention.out_proj.weight"], rows.expand(16, 16))
    assert len(masks) == 3
    masked = model(*inputs)
    result = shrink(model, sparsifier, inputs)
    assert result.exact and result.removed == {"attention[1]": (~kept).nonzero().flatten().tolist()}
    torch.testing.assert_close(model(*inputs), masked, rtol=1e-9, atol=1e-9)


def test_heads_ask_for_inputs_and_for_attention() -> None:
    technique = "head | local | magnitude | one_shot"
    with pytest.raises(SecateurError, match="pass example_inputs="):
        Sparsifier(fresh("transformer"), technique, sparsity=0.5)
    with pytest.raises(SecateurError, match="no head to remove: no attention"):
        Sparsifier(fresh("mlp"), technique, sparsity=0.5, example_inputs=example("mlp"))


@pytest.mark.parametrize("currency", ["sparsity", "params", "macs", "bytes"])
@pytest.mark.parametrize("more", [{}, {"round_to": 4}])
def test_a_budget_that_would_empty_a_layer_is_refused_with_what_is_possible(
    currency: str, more: dict[str, Any]
) -> None:
    def build(value: float) -> Sparsifier:
        return Sparsifier(
            fresh("small_cnn"), LOCAL, example_inputs=example("small_cnn"),
            **{currency: value}, **more,
        )  # fmt: skip

    with pytest.raises(SecateurError, match=f"{currency}=.* would empty a layer") as error:
        build(1.0 if currency == "sparsity" else 0.0)
    found = re.search(rf"{currency} is ([\d.e-]+);", str(error.value))
    assert found is not None
    possible = float(found.group(1)) * (0.999 if currency == "sparsity" else 1.001)
    result = build(possible).step(1.0)
    assert result.achieved[currency] == pytest.approx(possible, abs=0.02)
    assert result.shortfall < 0.001
    assert set(result.layers.values()) <= {7 / 8, 15 / 16} or more


def test_what_a_context_keeps_is_a_stated_shortfall() -> None:
    result = Sparsifier(
        fresh("small_cnn"), "filter | global(keep=0.5) | magnitude | one_shot", sparsity=0.8,
        example_inputs=example("small_cnn"),
    ).step(1.0)  # fmt: skip
    assert set(result.layers.values()) == {0.5}
    assert result.shortfall == pytest.approx(0.8 - result.achieved["sparsity"])
    assert result.reason is not None and "keeps 0.5" in result.reason


def test_emptied_names_layers_of_which_one_channel_is_left() -> None:
    model = fresh("small_cnn")
    model[0].weight.data *= 1e-3
    sparsifier = Sparsifier(model, "filter | global | magnitude | one_shot", sparsity=0.9,
                            example_inputs=example("small_cnn"))  # fmt: skip
    result = sparsifier.step(1.0)
    assert result.emptied == ("0",)
    assert result.layers["0"] == 7 / 8


def test_shares_that_are_written_name_any_layer_of_an_axis() -> None:
    for name in ("a", "b"):
        sparsifier = Sparsifier(Summed(), f'filter | {{"{name}": 0.25}} | magnitude | one_shot',
                                example_inputs=SUMMED)  # fmt: skip
        assert sparsifier.step(1.0).layers == {"a": 0.25}
    technique = 'filter | {"1": 0.75} | magnitude | linear'
    inputs = example("mlp")
    both = Sparsifier(fresh("mlp"), technique, sparsity=0.8, example_inputs=inputs)
    assert both.step(0.5).layers["1"] == pytest.approx(0.375)
    result = both.step(1.0)
    assert result.layers["1"] == 0.75
    assert result.achieved["sparsity"] == pytest.approx(0.8, abs=0.02)
    with pytest.raises(SecateurError, match=r"more than the budget's 0\.3"):
        Sparsifier(fresh("mlp"), technique, sparsity=0.3, example_inputs=inputs).step(1.0)


@pytest.mark.parametrize(
    ("technique", "more", "words"),
    [
        (LOCAL, {"round_to": 8}, "round_to= is for what can be removed"),
        (LOCAL, {"inexact": True}, "inexact= is for what can be removed"),
        ("weight | local | magnitude | one_shot",
         {"round_to": 8, "example_inputs": example("small_cnn")}, "round_to= is for what can"),
        (LOCAL, {"round_to": 0, "example_inputs": example("small_cnn")}, "round_to=0"),
        (LOCAL, {"round_to": 1.5, "example_inputs": example("small_cnn")}, "round_to=1.5"),
        ("filter | local | magnitude | constant(mask=regrown(by=gradient))",
         {"example_inputs": example("small_cnn")}, "write regrown"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(technique: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(SecateurError, match=re.escape(words)) as error:
        Sparsifier(fresh("small_cnn"), technique, sparsity=0.5, **more)
    assert "\n" not in str(error.value)


def test_frozen_layers_that_are_not_scored_are_no_obstacle() -> None:
    model = fresh("small_cnn")
    model[8].requires_grad_(False)
    data = [(example("small_cnn")[0], torch.tensor([0, 1]))]
    technique = "filter | local | taylor | one_shot"
    Sparsifier(model, technique, sparsity=0.5, example_inputs=example("small_cnn"),
               data=data).step(1.0)  # fmt: skip
    model[0].requires_grad_(False)
    with pytest.raises(SecateurError, match=r"0\.weight has none"):
        Sparsifier(model, technique, sparsity=0.5, example_inputs=example("small_cnn"), data=data)


def test_masks_lie_on_exactly_what_carries_an_axis() -> None:
    model, inputs = fresh("grouped_cnn"), example("grouped_cnn")
    sparsifier = Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=inputs)
    structure = trace(model, inputs)
    expected = {name for axis in structure.removable for name, _ in axis.carriers}
    assert set(sparsifier.masks) == expected & {name for name, _ in model.named_parameters()}
    assert all(bool(mask.all()) for mask in sparsifier.masks.values())
    assert sparsifier.coupled and sparsifier.structure is not None


def test_making_a_sparsifier_leaves_the_model_alone() -> None:
    model, inputs = fresh("resnet_cifar").train(), example("resnet_cifar")
    before, state = state_of(model), torch.random.get_rng_state()
    Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=inputs)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert equal(state_of(model), before)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["grouped_cnn", "resnet_cifar", "transformer"])
def test_the_report_counts_units_that_are_left_whatever_their_inputs(name: str) -> None:
    model = fresh(name)
    sparsifier = Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=example(name))
    sparsifier.step(1.0)
    counted = 0
    for layer in sparsifier.report().layers:
        if "[" not in layer.name:
            mask = sparsifier.masks[layer.name]
            assert layer.units_kept == int(mask.flatten(1).any(1).sum())
            assert layer.units == mask.shape[0]
            counted += 1
    assert counted


def test_a_layer_is_described_with_those_that_share_its_axis() -> None:
    technique = Technique.parse(LOCAL)
    found = describe_layers(fresh("resnet_cifar"), technique, example("resnet_cifar"))
    layers = {each.name: each.words for each in found}
    assert layers["layer1.0.conv1.weight"] == (
        "16 units of 144 weights each, each with its part of layer1.0.bn1, layer1.0.conv2"
    )
    assert layers["conv1.weight"].startswith(
        "16 units of 27 weights each, each with its part of bn1, layer1.0.conv1"
    )
    assert layers["linear"] == "spared: the model's output"
    grouped = describe_layers(fresh("grouped_cnn"), technique, example("grouped_cnn"))
    # Two of every group, or a group as a whole.
    assert grouped[0].words == (
        "4 units of 54 weights each, each with its part of 2, 3, 5, 6 and 1 more; "
        "2 units of 108 weights each, each with its part of 2"
    )
    heads = describe_layers(fresh("transformer"), Technique("head"), example("transformer"))
    assert heads[0].words.startswith("4 units of 64 weights each")


def test_after_shrinking_a_sparsifier_says_that_it_is_spent() -> None:
    model, inputs = fresh("small_cnn"), example("small_cnn")
    sparsifier = Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=inputs)
    sparsifier.step(1.0)
    shrink(model, sparsifier, inputs)
    for again in (sparsifier.apply, sparsifier.reapply, lambda: sparsifier.step(1.0)):
        with pytest.raises(SecateurError, match="make a new Sparsifier"):
            again()
    assert Sparsifier(model, LOCAL, sparsity=0.5, example_inputs=inputs).step(1.0).removed > 0


def test_a_copy_of_a_masked_model_shrinks_by_the_masks_alone() -> None:
    model, inputs = awake("preactivation_resnet")
    sparsifier = Sparsifier(model, LOCAL, macs=0.5, example_inputs=inputs)
    achieved = sparsifier.step(1.0).achieved
    other = copy.deepcopy(model)
    result = shrink(other, dict(sparsifier.masks), inputs)
    assert result.after.macs / result.before.macs == pytest.approx(achieved["macs"])
    torch.testing.assert_close(other(*inputs), model(*inputs), rtol=1e-9, atol=1e-9)


class Experts(nn.Module):
    """Two layers of three experts side by side, in matrices that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Parameter(torch.randn(3, 8, 6))
        self.leave = nn.Parameter(torch.randn(3, 6, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(torch.einsum("btf,nfe->bnte", x, self.enter))
        return self.head(torch.einsum("bnte,nef->btf", hidden, self.leave))


def test_weights_that_cannot_be_scored_are_named_with_the_reason() -> None:
    weight_norm = nn.utils.parametrizations.weight_norm
    normed = nn.Sequential(weight_norm(nn.Linear(8, 6)), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(2, 5, 8)
    with pytest.raises(SecateurError, match=r"no channel.* 0\.weight: it is computed from other"):
        Sparsifier(normed, LOCAL, sparsity=0.5, example_inputs=x)
    with pytest.raises(SecateurError, match=r"no channel.* enter, leave: it belongs to no layer"):
        Sparsifier(Experts(), LOCAL, sparsity=0.5, example_inputs=x)
    with pytest.raises(SecateurError, match=r"no prunable layer.* 0\.weight: it is computed"):
        Sparsifier(normed[:2], LOCAL, sparsity=0.5, example_inputs=x)


def test_an_axis_that_no_known_weight_makes_is_passed_over_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Experts())
    x = torch.randn(2, 5, 8)
    sparsifier = Sparsifier(model, LOCAL, sparsity=0.3, example_inputs=x)
    passed = dict(sparsifier.report().passed_over)
    assert {"1.enter", "1.leave"} <= set(passed)
    pruned = {axis for layer in sparsifier.report().layers for axis in [layer.name]}
    assert pruned == {"0.weight"}
    unscored = {name for name, reason in passed.items() if "no weight of a known layer" in reason}
    rest = {axis.name for axis in trace(model, x).removable} - {"0"}
    assert unscored == rest and rest


def test_a_layer_that_is_used_by_its_weight_is_pruned_again_after_shrinking() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(8, 12), nn.Linear(12, 3)
            self.register_buffer("seen", (torch.rand(12, 8) > 0.3).float())

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(F.linear(x, self.inner.weight * self.seen, self.inner.bias)))

    model, x = Masked(), torch.randn(2, 8)
    for _ in range(2):
        sparsifier = Sparsifier(model, LOCAL, sparsity=0.3, example_inputs=x)
        sparsifier.step(1.0)
        shrink(model, sparsifier, x)
        model.inner.out_features = 12
    again = Sparsifier(model, "weight | global | magnitude | one_shot", sparsity=0.5)
    assert again.step(1.0).achieved["sparsity"] == pytest.approx(0.5, abs=0.02)
