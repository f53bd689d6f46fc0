"""Input features as an axis: found, removed exactly, kept with the model, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur import (
    SecateurError,
    Sparsifier,
    feature_map,
    load,
    save,
    select_inputs,
    select_patches,
    shrink,
    trace,
)
from secateur.structure import PatchSelector, SelectedInputs
from secateur.structure.reload import DESCRIPTION, WEIGHTS

JOINT = "shared_kernel | local | magnitude | one_shot"


def perceptron(features: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(features, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(5, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


class Patches(nn.Module):
    """Patches, embedded by a convolution, mixed by attention, averaged."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(2, 8, 4, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(tokens.mean(1))


def with_patches() -> nn.Module:
    model = Patches()
    select_patches(model, "embed")
    return model


def flat() -> nn.Module:
    return select_inputs(perceptron(), 12, flatten=True)


def channels() -> nn.Module:
    return select_inputs(convolutions(), 5)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "pixels": (flat, (2, 1, 3, 4)),
    "channels": (channels, (2, 5, 8, 8)),
    "patches": (with_patches, (2, 2, 8, 8)),
}


def selector(model: nn.Module) -> nn.Module:
    return model.select if isinstance(model, SelectedInputs) else model.embed  # type: ignore[union-attr,return-value]


@pytest.mark.parametrize("case", CASES)
def test_the_features_are_one_removable_axis(case: str) -> None:
    build, shape = CASES[case]
    model = build().eval()
    kept = "select.kept" if isinstance(model, SelectedInputs) else "embed.kept"
    axis = next(axis for axis in trace(model, torch.zeros(shape)).axes
                if (kept, 0) in axis.carriers)  # fmt: skip
    assert axis.pinned is None
    assert axis.inexact is None
    assert axis.size == selector(model).features


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sparsity", [0.4, 0.7])
def test_selected_is_masked_to_a_millionth(case: str, sparsity: float) -> None:
    build, shape = CASES[case]
    model = build().double().eval()
    inputs = torch.randn(shape, dtype=torch.float64)
    sparsifier = Sparsifier(model, JOINT, sparsity=sparsity, example_inputs=inputs)
    sparsifier.step(1.0)
    masked = model(inputs)
    shrink(model, sparsifier, inputs)
    found = selector(model)
    assert 0 < len(found.kept) < found.features
    assert int(found.mask.sum()) == len(found.kept)
    assert torch.allclose(model(inputs), masked, rtol=0, atol=1e-6)
    # What is not kept is not read: other values there change nothing.
    if case == "pixels":
        noise = inputs.flatten(1).clone()
        noise[:, ~found.mask] = torch.randn(2, int((~found.mask).sum()), dtype=torch.float64)
        assert torch.equal(model(noise.reshape(shape)), model(inputs))


def test_zeros_of_single_weights_are_traced_to_the_inputs() -> None:
    """An oracle by hand: features whose every weight is zero go, and no others."""
    model = flat().double()
    inputs = torch.randn(4, 12, dtype=torch.float64)
    mask = torch.rand(8, 12, generator=torch.Generator().manual_seed(3)) > 0.4
    unread = [1, 4, 5, 11]
    mask[:, unread] = False
    mask[0, [place for place in range(12) if place not in unread]] = True
    masks = {"model.1.weight": mask}
    reference = model.model[1]
    with torch.no_grad():
        expected = torch.relu(inputs @ (reference.weight * mask).T + reference.bias)
    shrink(model, masks, inputs)
    assert model.select.kept.tolist() == [0, 2, 3, 6, 7, 8, 9, 10]
    assert model.model[1].in_features == 8
    hidden = torch.relu(model.model[1](model.select(inputs)))
    assert torch.allclose(hidden, expected, rtol=0, atol=1e-12)


def test_a_dead_neuron_frees_the_inputs_that_it_alone_reads() -> None:
    """Backwards to a fixed point: nobody reads neuron 2, and it alone reads feature 5."""
    model = flat()
    first, second = torch.ones(8, 12, dtype=torch.bool), torch.ones(6, 8, dtype=torch.bool)
    second[:, 2] = False
    first[[0, 1, 3, 4, 5, 6, 7], 5] = False
    inputs = torch.randn(2, 12)
    masks = {"model.1.weight": first, "model.3.weight": second}
    shrink(model, masks, inputs)
    assert len(model.select.kept) == 12
    # What the neuron's removal has freed goes with the next call.
    shrink(model, {"model.1.weight": model.model[1].weight != 0}, inputs)
    assert model.model[1].out_features == 7
    assert 5 not in model.select.kept.tolist()


def test_only_the_inputs_that_matter_stay() -> None:
    """Four of sixteen features decide; training under the technique finds them."""
    torch.manual_seed(1)
    matter = [2, 7, 8, 13]
    inputs = torch.randn(512, 16)
    targets = (inputs[:, matter] * torch.tensor([1.0, -1.0, 1.5, -1.5])).sum(1).gt(0).long()
    model = select_inputs(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)
    sparsifier = Sparsifier(
        model, "shared_kernel | local | magnitude | one_cycle", sparsity=0.75,
        include=["model.0"], example_inputs=inputs[:1],
    )  # fmt: skip
    sparsifier.attach(optimizer, total_steps=150)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    shrink(model, sparsifier, inputs[:1], optimizer=optimizer)
    assert model.select.kept.tolist() == matter
    # Retraining goes on with the same optimiser.
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert (model(inputs).argmax(1) == targets).float().mean() > 0.95


def smaller(case: str) -> tuple[nn.Module, Tensor]:
    build, shape = CASES[case]
    model = build().eval()
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    sparsifier = Sparsifier(model, JOINT, sparsity=0.5, example_inputs=inputs)
    sparsifier.step(1.0)
    shrink(model, sparsifier, inputs)
    return model, inputs


ORIGINALS: dict[str, Callable[[], nn.Module]] = {
    "pixels": perceptron, "channels": convolutions, "patches": Patches,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_selected_model_loads_with_its_selector(case: str, wrapped: bool, tmp_path: Path) -> None:
    """Built plain or with a selector that keeps all, the file brings its own."""
    model, inputs = smaller(case)
    save(model, tmp_path)
    again = load(tmp_path, CASES[case][0] if wrapped else ORIGINALS[case]).eval()
    assert torch.equal(again(inputs), model(inputs))
    assert torch.equal(selector(again).kept, selector(model).kept)
    assert type(again) is type(model)
    save(again, tmp_path / "twice")
    assert torch.equal(load(tmp_path / "twice", ORIGINALS[case]).eval()(inputs), model(inputs))


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_process_reloads_it_bit_for_bit(case: str, tmp_path: Path) -> None:
    model, inputs = smaller(case)
    save(model, tmp_path)
    torch.save({"inputs": inputs, "outputs": model(inputs).detach()}, tmp_path / "case.pt")
    code = f"""
        import sys, torch
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        import test_selector
        from secateur import load
        case = torch.load({str(tmp_path / "case.pt")!r}, weights_only=True)
        model = load({str(tmp_path)!r}, test_selector.ORIGINALS[{case!r}]).eval()
        assert torch.equal(model(case["inputs"]), case["outputs"])
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


@pytest.mark.parametrize("kept", [[0, 0, 1], [3, 2, 5], [-1, 2, 4], [0, 5, 12], [[0, 1, 2]]])
def test_positions_of_a_damaged_file_are_refused(kept: list[int], tmp_path: Path) -> None:
    model = flat()
    shrink(model, {"model.1.weight": torch.tensor([True] * 3 + [False] * 9).expand(8, 12)},
           torch.zeros(1, 12))  # fmt: skip
    save(model, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({**tensors, "select.kept": torch.tensor(kept)}, tmp_path / WEIGHTS)
    with pytest.raises(SecateurError, match=r"select\.kept"):
        load(tmp_path, perceptron)


@pytest.mark.parametrize(
    "selectors",
    ["x", [{}], [{"inputs": 12}], [{"patches": 3}], [{"inputs": 2**60, "dim": 1, "flatten": True}],
     [{"inputs": 12, "dim": -4, "flatten": True}], [{"inputs": True, "dim": 1, "flatten": False}],
     [{"patches": "1"}]],
)  # fmt: skip
def test_what_a_file_says_of_selectors_is_checked(selectors: object, tmp_path: Path) -> None:
    save(flat(), tmp_path)
    said = json.loads((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(json.dumps({**said, "selectors": selectors}))
    with pytest.raises(SecateurError):
        load(tmp_path, perceptron)


def test_a_file_of_an_earlier_version_has_no_selectors(tmp_path: Path) -> None:
    model = perceptron()
    save(model, tmp_path)
    said = json.loads((tmp_path / DESCRIPTION).read_text())
    del said["selectors"]
    (tmp_path / DESCRIPTION).write_text(json.dumps(said))
    assert torch.equal(load(tmp_path, perceptron)(torch.ones(1, 12)), model(torch.ones(1, 12)))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.booleans(),
)  # fmt: skip
def test_a_patch_selector_is_the_convolution(
    channels: int, height: int, width: int, rows: int, columns: int, bias: bool
) -> None:
    conv = nn.Conv2d(channels, 5, (height, width), stride=(height, width), bias=bias).double()
    images = torch.randn(2, channels, rows * height, columns * width, dtype=torch.float64)
    assert torch.allclose(PatchSelector(conv)(images), conv(images), rtol=0, atol=1e-12)


def test_a_patch_selector_cuts_the_rest_of_an_image_as_the_convolution_does() -> None:
    conv, images = nn.Conv2d(1, 2, 4, stride=4), torch.randn(1, 1, 11, 6)
    assert torch.allclose(PatchSelector(conv)(images), conv(images), atol=1e-6)


def test_the_map_has_the_shape_of_the_data() -> None:
    model = flat()
    mask = torch.tensor([True, False, True] * 4).expand(8, 12)
    shrink(model, {"model.1.weight": mask}, torch.zeros(1, 12))
    assert feature_map(model.select, (3, 4)).flatten().tolist() == [True, False, True] * 4
    with pytest.raises(SecateurError, match="do not fill"):
        feature_map(model.select, (3, 5))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: select_inputs(perceptron(), 0), "features=0"),
        (lambda: select_inputs(perceptron(), 4, dim=-1), "dim=-1"),
        (lambda: select_inputs("x", 4), "expected an nn.Module"),  # type: ignore[arg-type]
        (lambda: select_patches(convolutions(), "0"), "stride"),
        (lambda: select_patches(convolutions(), "7"), "expected an nn.Conv2d"),
        (lambda: select_patches(convolutions(), "nowhere"), "nowhere"),
        (lambda: select_patches(nn.Sequential(nn.Conv2d(2, 2, 2, 2, groups=2)), "0"), "groups"),
    ],
)
def test_what_cannot_be_selected_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(SecateurError, match=words):
        make()


def test_a_model_that_was_shrunk_is_refused() -> None:
    model = perceptron()
    shrink(model, {"3.weight": torch.tensor([True] * 4 + [False] * 4).expand(6, 8)},
           torch.zeros(1, 12))  # fmt: skip
    with pytest.raises(SecateurError, match="before it is shrunk"):
        select_inputs(model, 12)
