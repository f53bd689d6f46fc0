"""Branches that add only zeros leave the network, and nothing that is computed changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from secateur import SecateurError, load, save, shrink, trace
from secateur.structure.depth import Branch, find_branches
from secateur.structure.graft import Graft


class Block(nn.Module):
    """A residual block, with what surrounds the addition in real networks."""

    def __init__(self, width: int, scale: bool = False, inplace: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.back = nn.Conv2d(2 * width, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 0.5)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.back(self.conv(x).relu()))
        if self.gamma is not None:
            out = self.gamma * out
        out += x
        return self.relu(out)


class Net(nn.Module):
    """Blocks, of which all intermediate results are used once more."""

    def __init__(self, blocks: int = 3, **options: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(Block(6, **options) for _ in range(blocks))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept = [x]
        for block in self.blocks:
            x = block(x)
            kept.append(x)
        return self.head(torch.stack([each.mean((2, 3)) for each in kept]).sum(0))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def net(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    return Net(**options).double().eval()


def masks_of(model: nn.Module, branches: Iterable[Branch]) -> dict[str, Tensor]:
    names = {name for branch in branches for name in branch.parameters}
    return {name: torch.zeros_like(parameter, dtype=torch.bool)
            for name, parameter in model.named_parameters() if name in names}  # fmt: skip


def masked_copy(model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            masked.get_parameter(name).mul_(mask)
    return masked


def close(one: nn.Module, other: nn.Module, *inputs: Tensor) -> bool:
    return torch.allclose(one(*inputs), other(*inputs), atol=1e-10)


class TestABranch:
    @pytest.mark.parametrize("options", [{}, {"scale": True}, {"inplace": False}], ids=str)
    def test_it_goes(self, options: dict[str, bool], images: Tensor) -> None:
        model = net(**options)
        structure = trace(model, images)
        branches = find_branches(structure)
        assert [branch.module for branch in branches] == ["blocks.0", "blocks.1", "blocks.2"]
        masks = masks_of(model, branches[1:2])
        masked = masked_copy(model, masks)
        result = shrink(model, masks, images)
        own = sum(parameter.numel() for parameter in masked.blocks[1].parameters())
        assert result.before.params - result.after.params == own
        assert result.after.params == sum(parameter.numel() for parameter in model.parameters())
        assert result.after.macs < result.before.macs
        assert result.exact
        assert set(result.dropped) >= {"blocks.1.conv", "blocks.1.back", "blocks.1.norm"}
        assert not list(model.blocks[1].parameters())
        assert close(model, masked, images)
        assert close(model, masked, torch.randn(5, 3, 9, 7, dtype=torch.float64))

    def test_only_what_closes_it_is_zero(self, images: Tensor) -> None:
        """The last norm's scale and shift are enough."""
        model = net()
        names = ("blocks.0.norm.weight", "blocks.0.norm.bias")
        masks = {name: torch.zeros(6, dtype=torch.bool) for name in names}
        masked = masked_copy(model, masks)
        result = shrink(model, masks, images)
        assert "blocks.0.conv" in result.dropped
        assert close(model, masked, images)

    def test_a_shift_lets_a_constant_through(self, images: Tensor) -> None:
        model = net()
        model.blocks[0].norm.bias.data.fill_(0.3)
        masks = {"blocks.0.norm.weight": torch.zeros(6, dtype=torch.bool)}
        masked = masked_copy(model, masks)
        with pytest.raises(SecateurError, match="nothing can be removed"):
            shrink(model, masks, images)
        assert close(model, masked, images) is False  # the masks were taken back
        assert not any(isinstance(each, Graft) for each in model.modules())

    def test_what_is_zero_without_a_mask_stays(self, images: Tensor) -> None:
        """A branch that starts at zero may still learn."""
        model = net(scale=True)
        for block in model.blocks:
            block.gamma.data.zero_()
        few = torch.arange(12) < 5
        masks = {"blocks.1.conv.weight": few[:, None, None, None].expand(12, 6, 3, 3),
                 "blocks.1.conv.bias": few}  # fmt: skip
        result = shrink(model, masks, images)
        assert result.dropped == ()
        assert model.blocks[1].conv.out_channels == 5

    def test_channels_go_along(self, images: Tensor) -> None:
        model = net()
        branches = find_branches(trace(model, images))
        masks = masks_of(model, branches[:1])
        few = torch.arange(12) < 5
        masks |= {"blocks.1.conv.weight": few[:, None, None, None].expand(12, 6, 3, 3),
                  "blocks.1.conv.bias": few}  # fmt: skip
        masked = masked_copy(model, masks)
        result = shrink(model, masks, images)
        assert model.blocks[1].conv.out_channels == 5
        assert result.removed
        assert result.dropped
        assert close(model, masked, images)

    def test_all_branches(self, images: Tensor) -> None:
        model = net()
        masks = masks_of(model, find_branches(trace(model, images)))
        masked = masked_copy(model, masks)
        shrink(model, masks, images)
        assert close(model, masked, images)

    def test_its_input_is_not_overwritten(self, images: Tensor) -> None:
        """In place of a sum, what it was added to: the activation behind must not write into it."""
        model = net()
        branches = find_branches(trace(model, images))
        shrink(model, masks_of(model, branches[:1]), images)
        given = torch.randn(1, 6, 4, 4, dtype=torch.float64)
        before = given.clone()
        model.blocks[0](given)
        assert torch.equal(given, before)

    def test_a_branch_that_others_read_stays(self, images: Tensor) -> None:
        class Read(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

            def forward(self, x: Tensor) -> Tensor:
                out = self.one(x)
                return self.two((x + out).relu()) * out.exp()

        model = nn.Sequential(Read(), nn.Conv2d(3, 2, 1)).double().eval()
        assert find_branches(trace(model, images)) == []

    def test_code_of_the_whole_model_stays(self, images: Tensor) -> None:
        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.one(x).relu()
                return x + self.two(x)

        model = Whole().double().eval()
        masks = {"two.weight": torch.zeros(3, 3, 1, 1, dtype=torch.bool),
                 "two.bias": torch.zeros(3, dtype=torch.bool)}  # fmt: skip
        with pytest.raises(SecateurError, match="adds only zeros and its code cannot be replaced"):
            shrink(model, masks, images)
        assert bool(model.two.weight.any())


class TestWhatStays:
    @pytest.fixture
    def pair(self, images: Tensor) -> tuple[nn.Module, nn.Module]:
        model = net(scale=True)
        masks = masks_of(model, find_branches(trace(model, images))[:2])
        masked = masked_copy(model, masks)
        shrink(model, masks, images)
        return model, masked

    def test_it_trains_like_the_masked_one(self, images: Tensor) -> None:
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        model.train()(images).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = len(list(model.parameters()))
        masks = masks_of(model.eval(), find_branches(trace(model, images))[:1])
        shrink(model, masks, images, optimizer)
        left = list(model.parameters())
        assert len(left) == before - 5
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {
            id(parameter) for parameter in left
        }
        assert len(optimizer.state) == len(left)
        values = copy.deepcopy(left)
        model.train()(images).square().sum().backward()
        optimizer.step()
        assert all(not torch.equal(one, two) for one, two in zip(left, values, strict=True))

    def test_saved_and_loaded(self, pair: Any, images: Tensor, tmp_path: Any) -> None:
        model, _ = pair
        loaded = load(save(model, tmp_path / "saved"), lambda: net(scale=True))
        assert torch.equal(loaded(images), model(images))
        assert {name for name, _ in loaded.named_parameters()} == {
            name for name, _ in model.named_parameters()
        }
        again = load(save(loaded, tmp_path / "again"), lambda: net(scale=True))
        assert torch.equal(again(images), model(images))

    def test_a_file_that_drops_what_is_not_there(self, pair: Any, tmp_path: Any) -> None:
        folder = save(pair[0], tmp_path / "saved")
        path = folder / "secateur.json"
        path.write_text(path.read_text().replace('"blocks.0.conv"', '"blocks.9.conv"'))
        model = net(scale=True)
        with pytest.raises(SecateurError, match=r"has no 'blocks\.9\.conv' to drop"):
            load(folder, model)
        assert hasattr(model.blocks[0], "conv")

    def test_shrunk_again(self, pair: Any, images: Tensor, tmp_path: Any) -> None:
        model, _ = pair
        masks = masks_of(model, find_branches(trace(model, images)))
        masked = masked_copy(model, masks)
        shrink(model, masks, images)
        assert close(model, masked, images)
        loaded = load(save(model, tmp_path / "saved"), lambda: net(scale=True))
        assert torch.equal(loaded(images), model(images))

    def test_copied_and_exported(self, pair: Any, images: Tensor) -> None:
        model, masked = pair
        assert close(copy.deepcopy(model), masked, images)
        exported = torch.export.export(model, (images,)).module()
        assert torch.allclose(exported(images), masked(images))

    def test_as_a_graph_leaves_the_model(self, images: Tensor) -> None:
        model = net()
        names = [name for name, _ in model.named_parameters()]
        masks = masks_of(model, find_branches(trace(model, images))[:1])
        masked = masked_copy(model, masks)
        result = shrink(model, masks, images, as_graph=True)
        assert result.graph is not None
        assert torch.allclose(result.graph(images), masked(images))
        assert [name for name, _ in model.named_parameters()] == names
        assert not any(isinstance(each, Graft) for each in model.modules())

    def test_all_is_put_back_on_a_failure(
        self, images: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        model(images).sum().backward()
        optimizer.step()
        before, state = model(images), copy.deepcopy(optimizer.state_dict())
        masks = masks_of(model, find_branches(trace(model, images))[:1])
        monkeypatch.setattr("secateur.structure.verify.difference", lambda *_: 1.0)
        with pytest.raises(SecateurError, match="differs from the masked one"):
            shrink(model, masks, images, optimizer)
        assert torch.equal(model(images), before)
        after = optimizer.state_dict()
        assert after["param_groups"] == state["param_groups"]
        assert after["state"].keys() == state["state"].keys()


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "mobilenet_v2", "convnext_tiny"])
def test_networks_as_they_are(name: str) -> None:
    """Every second branch of real networks goes."""
    torch.manual_seed(0)
    options = {"image_size": 32} if name.startswith("vit") else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    images = torch.randn(1, 3, 32, 32)
    branches = find_branches(trace(model, images))
    assert len(branches) >= 8
    masks = masks_of(model, branches[::2])
    masked = masked_copy(model, masks)
    result = shrink(model, masks, images)
    assert result.exact
    more = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model(more), masked(more), atol=1e-4)
