"""Pooling, resizing, sampling, folding: channels pass, extents are pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure.axes import check, data, look, weights
from torch import Tensor

RESIZED: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    **{f"max_pool{rank}d": (rank, lambda h, rank=rank: getattr(F, f"max_pool{rank}d")(h, 2))
       for rank in (1, 2, 3)},
    **{f"avg_pool{rank}d": (rank, lambda h, rank=rank: getattr(F, f"avg_pool{rank}d")(h, 3, 2, 1))
       for rank in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{rank}d":
       (rank, lambda h, rank=rank, kind=kind: getattr(F, f"adaptive_{kind}_pool{rank}d")(h, 2))
       for rank in (1, 2, 3) for kind in ("avg", "max")},
    **{f"{mode} {rank}": (rank, lambda h, mode=mode: F.interpolate(h, scale_factor=2, mode=mode))
       for mode, rank in (("nearest", 1), ("nearest", 2), ("nearest", 3), ("nearest-exact", 2),
                          ("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3))},
    "smoothed": (2, lambda h: F.interpolate(h, (3, 3), mode="bilinear", antialias=True)),
    "norms in windows": (2, lambda h: F.lp_pool2d(h, 2, 2)),
    "with indices": (2, lambda h: F.max_pool2d(h, 2, return_indices=True)[0]),
    "put back": (2, lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2)),
    "reflected": (2, lambda h: F.pad(h, (1, 1, 1, 1), "reflect")),
    "replicated": (2, lambda h: F.pad(h, (1, 1, 1, 1), "replicate")),
    "circular": (2, lambda h: F.pad(h, (1, 1, 1, 1), "circular")),
    "padded": (2, lambda h: F.pad(h, (1, 1, 1, 1))),
    "sampled": (2, lambda h: F.grid_sample(h, torch.zeros(2, 3, 3, 2, dtype=h.dtype),
                                           align_corners=False)),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIZED)
def test_channels_pass_and_zeros_stay(name: str) -> None:
    rank, function = RESIZED[name]

    def code(toy: Any, x: Tensor) -> Tensor:
        return function(torch.einsum("ni...,ic->nc...", x, toy.made)).sum(1)

    check(code, weights(made=(5, 6)), data(2, 5, *[4] * rank), free=[6])


def test_another_value_at_the_border_is_no_zero() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        return F.pad(torch.einsum("ni...,ic->nc...", x, toy.made), (1, 1), value=2.0).sum(1)

    check(code, weights(made=(5, 6)), data(2, 5, 4), free=[6], inexact=[6])


def test_a_table_that_is_resized_has_pinned_extents() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        table = F.interpolate(toy.table, (6, 6), mode="bicubic")
        return F.conv2d(F.conv2d(x, toy.made) + table, toy.read)

    held = weights(table=(1, 7, 3, 3), made=(7, 2, 1, 1), read=(4, 7, 1, 1))
    seen = check(code, held, data(2, 2, 6, 6), free=[7])
    assert seen.written("table") == "1 7 !3 !3"
    assert "windows slide along it" in seen.reasons


def test_pooling_over_channels_pins_them() -> None:
    seen = look(lambda toy, x: F.max_pool1d((x @ toy.made)[:, None], 2)[:, 0] @ toy.read,
                weights(made=(5, 6), read=(3, 2)), data(2, 5))  # fmt: skip
    assert seen.written("made") == "!5 !6"


def test_pixel_shuffle_takes_whole_channels() -> None:
    seen = check(
        lambda toy, x: F.conv2d(F.pixel_shuffle(F.conv2d(x, toy.made), 2), toy.read),
        weights(made=(24, 4, 1, 1), read=(3, 6, 1, 1)), data(2, 4, 3, 3), free=[6],
    )  # fmt: skip
    assert seen.written("made") == "(6 !4) !4 !1 !1"


def test_pixel_unshuffle_gives_whole_channels() -> None:
    seen = check(
        lambda toy, x: F.conv2d(F.pixel_unshuffle(F.conv2d(x, toy.made), 2), toy.read),
        weights(made=(6, 4, 1, 1), read=(3, 24, 1, 1)), data(2, 4, 4, 4), free=[6],
    )  # fmt: skip
    assert seen.written("read") == "!3 (6 !4) !1 !1"


@pytest.mark.parametrize("by_hand", [True, False])
def test_channel_shuffle(by_hand: bool) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made)
        if by_hand:
            h = h.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)
        else:
            h = F.channel_shuffle(h, 3)
        return F.conv2d(h, toy.read)

    held = weights(made=(12, 2, 1, 1), read=(5, 12, 1, 1))
    seen = check(code, held, data(2, 2, 3, 3), free=[3, 4] if by_hand else [4], fits=False)
    assert seen.written("read") == ("!5 (4 3) !1 !1" if by_hand else "!5 (4 !3) !1 !1")


def test_windows_are_unfolded_and_folded() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.unfold(F.conv2d(x, toy.made), 2)
        return F.conv2d(F.fold(h * 2, (4, 4), 2), toy.read)

    seen = check(code, weights(made=(6, 3, 1, 1), read=(2, 6, 1, 1)), data(2, 3, 4, 4), free=[6])
    seen = check(lambda toy, x: F.unfold(F.conv2d(x, toy.made), 2).mT @ toy.read,
                 weights(made=(6, 3, 1, 1), read=(24, 2)), data(2, 3, 4, 4), free=[6])  # fmt: skip
    assert seen.written("read") == "(6 !4) !2"


def test_windows_along_a_dimension_of_the_data() -> None:
    """As a halo around blocks: windows along the image, channels as they were."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made).unfold(2, 3, 1).unfold(3, 3, 1)
        return torch.einsum("nchwij,co->nohw", h, toy.read)

    check(code, weights(made=(6, 3, 1, 1), read=(6, 2)), data(2, 3, 4, 4), free=[6])
    seen = look(lambda toy, x: (x @ toy.made).unfold(1, 2, 1).sum(1) @ toy.read,
                weights(made=(5, 6), read=(2, 3)), data(2, 5))  # fmt: skip
    assert seen.sizes == []


@pytest.mark.parametrize("name", ["roi_align", "roi_pool"])
def test_regions_of_an_image(name: str) -> None:
    ops = pytest.importorskip("torchvision.ops")

    def code(toy: Any, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.0, 0, 0, 2, 2], [1, 1, 1, 3, 3]], dtype=x.dtype)
        return getattr(ops, name)(F.conv2d(x, toy.made), boxes, (2, 2)).sum(1)

    check(code, weights(made=(6, 3, 1, 1)), data(2, 3, 4, 4), free=[6])


def test_boxes_are_picked() -> None:
    ops = pytest.importorskip("torchvision.ops")
    seen = look(lambda toy, x: ops.nms(x @ toy.corners, x[:, 0].exp(), 0.5),
                weights(corners=(4, 4)), data(3, 4).abs(), real=True)  # fmt: skip
    assert "boxes are picked" in seen.reasons


def test_position_sensitive_regions_pin_channels() -> None:
    ops = pytest.importorskip("torchvision.ops")

    def code(toy: Any, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.0, 0, 0, 2, 2]], dtype=x.dtype)
        return ops.ps_roi_align(F.conv2d(x, toy.made), boxes, (2, 2))

    assert look(code, weights(made=(8, 3, 1, 1)), data(2, 3, 4, 4)).sizes == []


def test_a_fixed_blur_of_every_channel() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made)
        kernel = toy.blur.expand(h.shape[1], 1, 3, 3)
        return F.conv2d(F.conv2d(h, kernel, groups=h.shape[1]), toy.read)

    held = weights(made=(6, 3, 1, 1), read=(2, 6, 1, 1))
    check(code, held | {"blur": data(1, 1, 3, 3)}, data(2, 3, 5, 5), free=[6])
