"""Whole layers as units: branches go, budgets count what is left, the rest is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from secateur import SecateurError, Sparsifier, shrink

TECHNIQUE = "layer | global | magnitude | one_shot"


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(1, 3, 32, 32)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


@pytest.mark.parametrize("budget", [{"macs": 0.7}, {"params": 0.5}, {"bytes": 0.6},
                                    {"sparsity": 0.3}], ids=str)  # fmt: skip
def test_what_is_counted_is_what_is_left(budget: dict[str, float], images: Tensor) -> None:
    model = resnet()
    sparsifier = Sparsifier(model, TECHNIQUE, example_inputs=images, **budget)
    step = sparsifier.step(1.0)
    masked = copy.deepcopy(model)
    result = shrink(model, sparsifier, images)
    assert result.after.params / result.before.params == pytest.approx(step.achieved["params"])
    assert result.after.macs / result.before.macs == pytest.approx(step.achieved["macs"])
    assert result.after.bytes / result.before.bytes == pytest.approx(
        step.achieved["bytes"], abs=1e-4
    )
    assert torch.allclose(model(images), masked(images), atol=1e-4)
    assert result.dropped


def test_the_least_go_first(images: Tensor) -> None:
    """With equal costs the branch of least magnitude goes, and no other."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *[Residual() for _ in range(4)], nn.Conv2d(4, 2, 1))
    for number, block in enumerate(list(model)[1:5]):
        block.conv.weight.data.fill_(abs(number - 2.5) + 1)  # the third block is least
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=0.25, example_inputs=images)
    result = sparsifier.step(1.0)
    assert result.removed == 1
    assert {name for name, mask in sparsifier.masks.items() if not mask.any()} == {
        "3.conv.weight", "3.conv.bias",
    }  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_every_branch_may_go(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), Residual(), nn.Conv2d(4, 2, 1)).eval()
    sparsifier = Sparsifier(model, TECHNIQUE, sparsity=1.0, example_inputs=images)
    assert sparsifier.step(1.0).shortfall == 0
    result = shrink(model, sparsifier, images)
    assert set(result.dropped) == {"1.conv", "2.conv"}
    assert result.after.params == 3 * 4 + 4 + 4 * 2 + 2


def test_a_schedule_takes_one_after_the_other(images: Tensor) -> None:
    model = resnet()
    sparsifier = Sparsifier(
        model, "layer | global | magnitude | linear", params=0.3, example_inputs=images
    )
    counts = [sparsifier.step(progress).removed for progress in (0.0, 0.5, 1.0)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[1] < counts[2]


@pytest.mark.parametrize(("build", "options", "message"), [
    (resnet, {"macs": 0.01}, r"macs=0\.01 is out of reach by whole layers: without any of the 8 "
     r"residual branches, macs is 0\.\d+"),
    (resnet, {"macs": 0.5, "round_to": 8}, "round_to=8 has no meaning for whole layers"),
    (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), {"macs": 0.5},
     "has no residual branch to remove: 0.weight, 1.weight: no residual branch: nothing"),
])  # fmt: skip
def test_refusals(build: Any, options: dict[str, Any], message: str, images: Tensor) -> None:
    with pytest.raises(SecateurError, match=message):
        Sparsifier(build(), TECHNIQUE, example_inputs=images, **options)


def test_a_branch_with_an_excluded_layer_stays(images: Tensor) -> None:
    sparsifier = Sparsifier(
        resnet(), TECHNIQUE, params=0.9, example_inputs=images, exclude=["layer4.1.conv2"]
    )
    sparsifier.step(1.0)
    assert "layer4.1.conv1.weight" not in sparsifier.masks
    assert any("is in the same branch and is left out" in reason
               for _, reason in sparsifier.report().passed_over)  # fmt: skip
