"""Operators that look at an image through windows: pooling, resizing, sampling, folding."""

from __future__ import annotations

from typing import Any

from secateur.structure.rules.registry import Call, Dims, rule
from secateur.structure.terms import Term, product


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "fractional_max_pool2d", "fractional_max_pool3d", "max_unpool2d", "max_unpool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "_upsample_lanczos2d_aa",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", zero="carried",
)  # fmt: skip
def _pool(call: Call) -> Any:
    data = call.dims("self")
    if data is None:
        data = call.need("input")
    spatial = next(int(mark) for mark in "123" if f"{mark}d" in call.name)
    value = call.node.meta["val"]
    made = [
        [*data[:-spatial], *call.window(data[-spatial:], tuple(tensor.shape[-spatial:]))]
        for tensor in (value if call.several else (value,))
    ]
    return made if call.several else made[0]


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", zero="first")
def _grid(call: Call) -> Dims:
    data, grid = call.need("input"), call.need("grid")
    call.unify(data[0], grid[0])
    for term in grid[1:]:
        call.pin(term, "where an image is sampled")
    return [*data[:2], *call.window(data[2:], call.shape[2:])]


@rule("torchvision::roi_align", "torchvision::roi_pool", zero="first")
def _regions(call: Call) -> Any:
    data, regions = call.need("input"), call.need("rois")
    for term in (*regions, data[0], *data[2:]):
        call.pin(term, "where an image is sampled")
    value = call.node.meta["val"]
    made = [
        [call.data(tensor.shape[0]), data[1], *(call.data(size) for size in tensor.shape[2:])]
        for tensor in (value if call.several else (value,))
    ]
    return made if call.several else made[0]


@rule("torchvision::ps_roi_align", "torchvision::ps_roi_pool")
def _position_sensitive(call: Call) -> Any:
    """Every channel belongs to one cell of the output."""
    for dims in call.operands:
        for term in dims:
            call.pin(term, "its channels belong to places of a region")
    return [[call.data(size) for size in shape] for shape in call.shapes]


@rule("torchvision::nms")
def _suppression(call: Call) -> Dims:
    for dims in call.operands:
        for term in dims:
            call.pin(term, "boxes are picked")
    return [call.data(size) for size in call.shape]


@rule("pixel_shuffle", zero="carried")
def _pixel_shuffle(call: Call) -> Dims:
    dims, factor = call.need("self"), call.get("upscale_factor")
    channel = len(dims) - 3
    kept = Term(dims[channel].size // factor**2)
    block = call.fixed(factor**2, "pixel shuffle spreads it over the image")
    call.unify(dims[channel], product([kept, block]))
    return [*dims[:channel], kept, *call.window(dims[-2:], call.shape[-2:])]


@rule("pixel_unshuffle", zero="carried")
def _pixel_unshuffle(call: Call) -> Dims:
    dims, factor = call.need("self"), call.get("downscale_factor")
    channel = len(dims) - 3
    block = call.fixed(factor**2, "pixel unshuffle gathers it from the image")
    spatial = call.window(dims[-2:], call.shape[-2:])
    return [*dims[:channel], product([dims[channel], block]), *spatial]


@rule("channel_shuffle", "native_channel_shuffle", zero="carried")
def _channel_shuffle(call: Call) -> Dims:
    dims, groups = call.need("self"), call.get("groups")
    outer, inner = Term(groups), Term(dims[1].size // groups)
    call.unify(dims[1], product([outer, inner]))
    call.pin(outer, "the groups of a channel shuffle")
    return [dims[0], product([inner, outer]), *dims[2:]]


@rule("im2col", zero="carried")
def _unfold(call: Call) -> Dims:
    dims = call.need("self")
    channel = len(dims) - 3
    window = call.fixed(call.shape[channel] // dims[channel].size, "a kernel's extent")
    for term in dims[-2:]:
        call.pin(term, "an image's extent")
    return [*dims[:channel], product([dims[channel], window]), call.data(call.shape[-1])]


@rule("col2im", zero="carried")
def _fold(call: Call) -> Dims:
    dims = call.need("self")
    channel = len(dims) - 2
    kept = Term(call.shape[channel])
    window = call.fixed(dims[channel].size // kept.size, "a kernel's extent")
    call.unify(dims[channel], product([kept, window]))
    call.pin(dims[-1], "an image's extent")
    return [*dims[:channel], kept, *(call.data(size) for size in call.shape[-2:])]


@rule("unfold", zero="carried")
def _slide(call: Call) -> Dims:
    dims = call.need("self")
    axis = call.get("dimension") % len(dims)
    call.pin(dims[axis], "windows slide along it")
    return [*dims[:axis], call.data(call.shape[axis]), *dims[axis + 1 :], call.data(call.shape[-1])]
