"""Toy blocks over images: [batch, channels, *extent] in and out, of one, two or three dimensions.

Every block is one small module, made for an input's ``Size``; ``out`` is the size of what it gives.
They are the shapes that pruning stumbles over: what is joined, shuffled, gated, shared, or held by
no layer at all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from structure.toys import (
    ACTIVATIONS,
    CONVS,
    KEEPING,
    MAX_POOLS,
    NORMS,
    TRANSPOSED,
    Block,
    block,
    conv,
    even,
    groups_for,
    halved,
    make_act,
    make_norm,
    small,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations

IMAGE_BLOCKS: dict[str, Block] = {}
WIDTHS = (8, 4, 12, 6, 16)


class Layer(nn.Sequential):
    """A convolution, a norm, an activation; keeps the extent."""

    def __init__(self, size, out, norm="batch", act="relu", kernel=3, **options: Any) -> None:
        super().__init__(
            conv(size, out, kernel, **options),
            make_norm(norm, out, size.rank),
            make_act(act, out),
        )


@block(IMAGE_BLOCKS, out=WIDTHS, norm=NORMS, act=tuple(ACTIVATIONS), kernel=(3, 1),
       bias=(True, False), dilation=(1, 2))  # fmt: skip
class Plain(Layer):
    def __init__(self, size, out, **options):
        super().__init__(size, out, **options)
        self.out = size.with_width(out)


@block(IMAGE_BLOCKS, out=(None, 8, 12), norm=NORMS, act=tuple(ACTIVATIONS), order=("post", "pre"))
class Residual(nn.Module):
    """Two convolutions beside a shortcut, which a projection widens where it must."""

    def __init__(self, size, out, norm, act, order):
        super().__init__()
        width = out or size.width
        self.out, self.order = size.with_width(width), order
        self.conv1 = conv(size, width, bias=False)
        self.conv2 = conv(self.out, width, bias=norm == "none")
        first = size.width if order == "pre" else width
        self.norm1, self.act1 = make_norm(norm, first, size.rank), make_act(act, first)
        self.norm2, self.act2 = make_norm(norm, width, size.rank), make_act(act, width)
        self.shortcut = nn.Identity() if out is None else conv(size, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "pre":
            y = self.conv1(self.act1(self.norm1(x)))
            return self.conv2(self.act2(self.norm2(y))) + self.shortcut(x)
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.shortcut(x))


@block(IMAGE_BLOCKS, out=(8, 12), norm=NORMS, stride=(1, 2), multiplier=(1, 2),
       fits=even)  # fmt: skip
class Separable(nn.Sequential):
    """A depthwise convolution, which may make several channels of each, then a pointwise one."""

    def __init__(self, size, out, norm, stride, multiplier):
        inner = size.with_width(multiplier * size.width)
        super().__init__(
            conv(size, inner.width, groups=size.width, stride=stride, bias=False),
            make_norm(norm, inner.width, size.rank),
            nn.ReLU6(),
            conv(inner, out, 1),
        )
        self.out = (halved(size) if stride == 2 else size).with_width(out)


@block(IMAGE_BLOCKS, norm=("batch", "none"), act=("relu", "hardswish", "silu"),
       gate=("sigmoid", "hardsigmoid", "none"), residual=(True, False))  # fmt: skip
class Inverted(nn.Module):
    """Widen, depthwise, squeeze and excite, narrow; beside a shortcut."""

    def __init__(self, size, norm, act, gate, residual):
        super().__init__()
        self.out, self.residual = size, residual
        wide = size.with_width(2 * size.width)
        self.expand = Layer(size, wide.width, norm, act, kernel=1, bias=False)
        self.depthwise = Layer(wide, wide.width, norm, act, groups=wide.width)
        self.reduce = conv(wide, max(2, wide.width // 4), 1)
        self.restore = conv(wide.with_width(self.reduce.out_channels), wide.width, 1)
        self.gate = {"sigmoid": nn.Sigmoid(), "hardsigmoid": nn.Hardsigmoid()}.get(gate)
        self.project = Layer(wide, size.width, norm, "none", kernel=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        if self.gate is not None:
            whole = y.mean(tuple(range(2, y.dim())), keepdim=True)
            y = y * self.gate(self.restore(F.relu(self.reduce(whole))))
        y = self.project(y)
        return x + y if self.residual else y


@block(IMAGE_BLOCKS, out=(8, 12, 16), groups=(2, 4, 3), norm=KEEPING, bias=(True, False))
class Grouped(nn.Sequential):
    def __init__(self, size, out, groups, norm, bias):
        count = groups_for(size.width, groups, out)
        super().__init__(
            conv(size, out, groups=count, bias=bias), make_norm(norm, out, size.rank), nn.ReLU()
        )
        self.out = size.with_width(out)


@block(IMAGE_BLOCKS, growth=(4, 6), layers=(2, 3), norm=("batch", "none"), ends=("join", "narrow"))
class Dense(nn.Module):
    """Every layer normalises and reads all that came before it, joined along the channels."""

    def __init__(self, size, growth, layers, norm, ends):
        super().__init__()
        widths = [size.width + growth * number for number in range(layers + 1)]
        self.norms = nn.ModuleList(make_norm(norm, width, size.rank) for width in widths)
        self.convs = nn.ModuleList(
            conv(size.with_width(width), growth, bias=False) for width in widths[:-1]
        )
        self.end = conv(size.with_width(widths[-1]), 8, 1) if ends == "narrow" else nn.Identity()
        self.out = size.with_width(8 if ends == "narrow" else widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for norm, layer in zip(self.norms[:-1], self.convs, strict=True):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return self.end(F.relu(self.norms[-1](torch.cat(parts, 1))))


@block(IMAGE_BLOCKS, first=(6, 4), second=(4, 8), cut=("as joined", "elsewhere", "in half"),
       ends=("join", "add"))  # fmt: skip
class JoinAndSplit(nn.Module):
    """Two layers are joined, normed and parted again, at the seam or elsewhere."""

    def __init__(self, size, first, second, cut, ends):
        super().__init__()
        whole = first + second
        self.sizes = {
            "as joined": [first, second],
            "elsewhere": [whole - 3, 3],
            "in half": [whole // 2, whole // 2],
        }[cut]
        self.one, self.two = conv(size, first), conv(size, second)
        self.norm = make_norm("batch", whole, size.rank)
        self.left = conv(size.with_width(self.sizes[0]), 4)
        self.right = conv(size.with_width(self.sizes[1]), 4)
        self.ends = ends
        self.out = size.with_width(8 if ends == "join" else 4)

    def forward(self, x: Tensor) -> Tensor:
        joined = F.relu(self.norm(torch.cat([self.one(x), self.two(x)], dim=1)))
        left, right = torch.split(joined, self.sizes, dim=1)
        left, right = self.left(left), self.right(right)
        return torch.cat([left, right], 1) if self.ends == "join" else left + right


@block(IMAGE_BLOCKS, out=(8, 4), fits=even)
class JoinInSpace(nn.Module):
    """Two maps are joined along their last extent, and brought back to size."""

    def __init__(self, size, out):
        super().__init__()
        self.one, self.two = conv(size, out), conv(size, out, 1)
        self.mix = conv(size.with_width(out), out)
        self.out = size.with_width(out)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat((self.one(x), self.two(x)), dim=-1)
        return self.mix(F.relu(joined))[..., : x.shape[-1]]


@block(IMAGE_BLOCKS, groups=(2, 4), made=("view", "layer", "einsum"),
       fits=lambda size: size.width % 4 == 0 and size.rank == 2)  # fmt: skip
class Shuffle(nn.Module):
    """Half of the channels go through a branch; then the halves are shuffled."""

    def __init__(self, size, groups, made):
        super().__init__()
        half = size.with_width(size.width // 2)
        self.branch = nn.Sequential(
            Layer(half, half.width, kernel=1),
            conv(half, half.width, groups=half.width),
            make_norm("batch", half.width, size.rank),
            conv(half, half.width, 1),
        )
        self.groups, self.made = groups, made
        self.shuffle = nn.ChannelShuffle(groups)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = x.chunk(2, dim=1)
        x = torch.cat([kept, self.branch(taken)], 1)
        if self.made == "layer":
            return self.shuffle(x)
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w)
        if self.made == "einsum":
            return torch.einsum("bgchw->bcghw", x).reshape(b, c, h, w)
        return x.transpose(1, 2).contiguous().view(b, -1, h, w)


@block(IMAGE_BLOCKS, out=(4, 8), made=("shuffle", "unshuffle", "by hand"),
       fits=lambda size: size.rank == 2 and even(size))  # fmt: skip
class Pixels(nn.Module):
    """Channels become pixels and pixels channels; a stride or an upsampling undoes the extent."""

    def __init__(self, size, out, made):
        super().__init__()
        self.made = made
        if made == "unshuffle":
            self.before = conv(size, out)
            self.after = conv(size.with_width(4 * out), out)
        else:
            self.before = conv(size, 4 * out)
            self.after = conv(size.with_width(out), out, stride=2)
        self.out = size.with_width(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.made == "unshuffle":
            return F.interpolate(self.after(F.pixel_unshuffle(x, 2)), scale_factor=2)
        if self.made == "shuffle":
            return self.after(F.relu(F.pixel_shuffle(x, 2)))
        b, c, h, w = x.shape
        x = x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
        return self.after(F.relu(x.reshape(b, c // 4, 2 * h, 2 * w)))


@block(IMAGE_BLOCKS, out=(8, 6), made=("product", "chunk", "glu", "split", "slices", "tanh"))
class Gated(nn.Module):
    """One half says how much of the other goes through."""

    def __init__(self, size, out, made):
        super().__init__()
        self.made, self.half = made, out
        self.both = conv(size, 2 * out)
        self.gate = conv(size, out, 1) if made in ("product", "tanh") else None
        self.value = conv(size, out) if made in ("product", "tanh") else None
        self.out = size.with_width(out)

    def forward(self, x: Tensor) -> Tensor:
        if self.made == "product":
            return self.value(x) * torch.sigmoid(self.gate(x))
        if self.made == "tanh":
            return torch.tanh(self.value(x)) * self.gate(x).exp()
        both = self.both(x)
        if self.made == "glu":
            return F.glu(both, dim=1)
        if self.made == "slices":
            return both[:, : self.half] * both[:, self.half :].sigmoid()
        value, gate = both.chunk(2, 1) if self.made == "chunk" else both.split(self.half, 1)
        return value * gate


@block(IMAGE_BLOCKS, out=(8, 4), depth=(2, 3), ends=("add", "maximum", "multiply", "subtract"))
class Branches(nn.Module):
    """Two branches of different depths meet."""

    def __init__(self, size, out, depth, ends):
        super().__init__()
        inner = size.with_width(out)
        self.short = Layer(size, out, "batch", "none", kernel=1)
        self.long = nn.Sequential(Layer(size, out), *(Layer(inner, out) for _ in range(depth - 1)))
        meet = {"add": torch.add, "maximum": torch.maximum, "multiply": torch.mul}
        self.meet = meet.get(ends, torch.sub)
        self.out = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.meet(self.short(x), self.long(x))


@block(IMAGE_BLOCKS, each=(4, 2), norm=("batch", "none"))
class Inception(nn.Module):
    """Four branches side by side, joined."""

    def __init__(self, size, each, norm):
        super().__init__()
        self.narrow = Layer(size, each, norm, kernel=1)
        self.middle = nn.Sequential(
            Layer(size, each + 2, norm, kernel=1), Layer(size.with_width(each + 2), each, norm)
        )
        self.wide = nn.Sequential(
            Layer(size, each, norm, kernel=1), Layer(size.with_width(each), each + 2, kernel=5)
        )
        self.pool = nn.Sequential(
            MAX_POOLS[size.rank - 1](3, 1, 1), Layer(size, each, norm, kernel=1)
        )
        self.out = size.with_width(4 * each + 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.middle(x), self.wide(x), self.pool(x)], dim=1)


@block(IMAGE_BLOCKS, inner=(12, 8), up=("transposed", "nearest", "linear"), ends=("join", "add"),
       fits=even)  # fmt: skip
class Bridge(nn.Module):
    """A way down and up again, beside what was there: the skip of a U-Net or a pyramid."""

    def __init__(self, size, inner, up, ends):
        super().__init__()
        self.down = Layer(size, inner, stride=2)
        low = halved(size).with_width(inner)
        self.middle = Layer(low, inner)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[size.rank]
        self.up = {
            "transposed": lambda: TRANSPOSED[size.rank - 1](inner, size.width, 2, stride=2),
            "nearest": lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv(low, size.width)),
            "linear": lambda: nn.Sequential(
                conv(low, size.width, 1), nn.Upsample(scale_factor=2, mode=mode)
            ),
        }[up]()
        self.ends = ends
        joined = size.with_width(2 * size.width) if ends == "join" else size
        self.last = Layer(joined, size.width)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.middle(self.down(x)))
        return self.last(torch.cat([x, y], 1) if self.ends == "join" else x + y)


@block(IMAGE_BLOCKS, out=(8, 4, 12), groups=(1, 2, 4), bias=(True, False), norm=("batch", "none"),
       fits=small)  # fmt: skip
class Transposed(nn.Module):
    """A transposed convolution, perhaps grouped, and a pooling that brings the extent back."""

    def __init__(self, size, out, groups, bias, norm):
        super().__init__()
        count = groups_for(size.width, groups, out)
        layer = TRANSPOSED[size.rank - 1]
        self.up = layer(size.width, out, 3, 2, 1, output_padding=1, groups=count, bias=bias)
        self.norm = make_norm(norm, out, size.rank)
        self.pool = MAX_POOLS[size.rank - 1](2)
        self.out = size.with_width(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.norm(self.up(x))))


@block(IMAGE_BLOCKS, kernel=(3, 5))
class ChannelAttention(nn.Module):
    """A convolution slides over the channels: none of them can go, and it has to be said."""

    def __init__(self, size, kernel):
        super().__init__()
        self.before = Layer(size, 8)
        self.slide = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.out = size.with_width(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        pooled = x.flatten(2).mean(-1)
        weights = self.slide(pooled.unsqueeze(1)).sigmoid().squeeze(1)
        return x * weights.view(*weights.shape, *[1] * (x.dim() - 2))


@block(IMAGE_BLOCKS, pool=("both", "mean", "max"))
class SpatialAttention(nn.Module):
    """A map of one channel weighs all others; mean and largest value are taken over channels."""

    def __init__(self, size, pool):
        super().__init__()
        self.before = Layer(size, 8)
        self.pool = pool
        self.mix = conv(size.with_width(2 if pool == "both" else 1), 1)
        self.after = Layer(size.with_width(8), 8)
        self.out = size.with_width(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        pooled = {"mean": x.mean(1, keepdim=True), "max": x.amax(1, keepdim=True)}
        maps = list(pooled.values()) if self.pool == "both" else [pooled[self.pool]]
        return self.after(x * torch.sigmoid(self.mix(torch.cat(maps, 1))))


@block(IMAGE_BLOCKS, act=("relu", "sigmoid"))
class SingleChannel(nn.Module):
    """A convolution to one channel and back: it is no depthwise one."""

    def __init__(self, size, act):
        super().__init__()
        self.one = Layer(size, 1, "batch", act)
        self.back = conv(size.with_width(1), 8)
        self.gate = conv(size, 1, 1)
        self.out = size.with_width(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.one(x)) * self.gate(x).sigmoid()


@block(IMAGE_BLOCKS, expand=(2, 3), scaled=(True, False), kernel=(3, 5))
class Modern(nn.Module):
    """Depthwise, then a norm and a perceptron with the channels last, scaled, beside a shortcut."""

    def __init__(self, size, expand, scaled, kernel):
        super().__init__()
        width = size.width
        self.depthwise = conv(size, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, expand * width), nn.Linear(expand * width, width)
        self.scale = nn.Parameter(torch.ones(width)) if scaled else None
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        y = self.down(F.gelu(self.up(y)))
        if self.scale is not None:
            y = self.scale * y
        return x + y.movedim(-1, 1)


@block(IMAGE_BLOCKS, how=("module", "weight", "transposed"))
class Shared(nn.Module):
    """One layer that is used twice, or two that have one weight."""

    def __init__(self, size, how):
        super().__init__()
        self.how = how
        self.before = Layer(size, 8)
        inner = size.with_width(8)
        self.one = conv(inner, 8, bias=False)
        self.norm = make_norm("batch", 8, size.rank)
        self.two = self.one if how == "module" else conv(inner, 8, bias=True)
        if how == "weight":
            self.two.weight = self.one.weight
        self.after = Layer(inner, 8)
        self.out = inner

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(self.before(x))))
        if self.how == "transposed":
            functional = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
            y = functional[x.dim() - 3](x, self.one.weight, padding=1)
        else:
            y = self.two(x)
        return self.after(F.relu(y))


@block(IMAGE_BLOCKS, how=("scale", "shift", "buffer", "both", "unused"))
class Loose(nn.Module):
    """Parameters and buffers over channels that belong to no layer, and some that nobody uses."""

    def __init__(self, size, how):
        super().__init__()
        ones = [1] * size.rank
        self.how = how
        self.before = conv(size, 8)
        self.scale = nn.Parameter(torch.ones(8, *ones))
        self.shift = nn.Parameter(torch.zeros(1, 8, *ones))
        self.register_buffer("mean", torch.randn(1, 8, *ones))
        self.spare = conv(size, 3) if how == "unused" else None
        self.after = Layer(size.with_width(8), 8)
        self.out = size.with_width(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.how in ("scale", "both"):
            x = x * self.scale
        if self.how in ("shift", "both"):
            x = x + self.shift
        if self.how in ("buffer", "both"):
            x = x - self.mean
        return self.after(F.relu(x))


@block(IMAGE_BLOCKS, out=(8, 6), how=("functional", "weight norm", "standardized", "sum of two"))
class OwnWeight(nn.Module):
    """A weight that is made before it is used."""

    def __init__(self, size, out, how):
        super().__init__()
        self.how, self.rank = how, size.rank
        self.weight = nn.Parameter(torch.randn(out, size.width, *[3] * size.rank))
        self.extra = nn.Parameter(torch.randn(out, size.width, *[1] * size.rank))
        self.bias = nn.Parameter(torch.zeros(out))
        self.layer = parametrizations.weight_norm(conv(size, out)) if how == "weight norm" else None
        self.norm = make_norm("batch", out, size.rank)
        self.out = size.with_width(out)

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is not None:
            return F.relu(self.norm(self.layer(x)))
        weight = self.weight
        if self.how == "standardized":
            around = tuple(range(1, weight.dim()))
            weight = weight - weight.mean(around, keepdim=True)
        elif self.how == "sum of two":
            weight = weight + self.extra
        functional = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        return F.relu(self.norm(functional(x, weight, self.bias, padding=1)))


@block(IMAGE_BLOCKS, out=(4, 8), hidden=(12, 6), how=("flatten", "view", "reshape"))
class ThroughVector(nn.Module):
    """The image becomes a vector, goes through a perceptron, and becomes an image again."""

    def __init__(self, size, out, hidden, how):
        super().__init__()
        points = 1
        for each in size.extent:
            points *= each
        self.narrow = conv(size, 3, 1)
        self.one, self.two = nn.Linear(3 * points, hidden), nn.Linear(hidden, out * points)
        self.how, self.out = how, size.with_width(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.narrow(x))
        extent = x.shape[2:]
        if self.how == "flatten":
            x = torch.flatten(x, 1)
        elif self.how == "view":
            x = x.reshape(x.size(0), -1)
        else:
            x = x.reshape(-1, x.shape[1] * extent.numel())
        x = self.two(F.relu(self.one(x)))
        if self.how == "view":
            return x.view(x.size(0), -1, *extent)
        return x.unflatten(1, (self.out.width, *extent))


@block(IMAGE_BLOCKS, each=(4, 3), parts=(2, 3), how=("sum", "mean", "amax", "stack", "chunks", "softmax"))  # fmt: skip  # noqa: E501
class Folded(nn.Module):
    """Groups of channels are taken together: added up, averaged, the largest of each."""

    def __init__(self, size, each, parts, how):
        super().__init__()
        self.parts, self.how = parts, how
        self.before = Layer(size, each * parts)
        self.out = size.with_width(each)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.how == "stack":
            return torch.stack(x.chunk(self.parts, 1), 0).sum(0)
        if self.how == "chunks":
            return sum(x.chunk(self.parts, 1))
        x = x.unflatten(1, (self.parts, -1))
        if self.how == "softmax":
            return (x * x.softmax(1)).sum(1)
        return getattr(x, self.how)(1)


@block(IMAGE_BLOCKS, before=(1, 0), after=(2, 4), how=("pad", "zeros", "ones", "positions"))
class Widened(nn.Module):
    """A shortcut without parameters: channels of zeros, ones or positions are added."""

    def __init__(self, size, before, after, how):
        super().__init__()
        self.how, self.before, self.after = how, before, after
        self.out = size.with_width(size.width + before + after)
        self.branch = Layer(size, self.out.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "pad":
            wide = F.pad(x, (*[0, 0] * (x.dim() - 2), self.before, self.after))
            return wide + self.branch(x)
        shape = (x.shape[0], self.before + self.after, *x.shape[2:])
        if self.how == "zeros":
            made = torch.zeros(shape, dtype=x.dtype, device=x.device)
        elif self.how == "ones":
            made = x.new_ones(shape)
        else:
            made = torch.linspace(-1, 1, x.shape[-1]).to(x).expand(shape)
        return torch.cat([made, x], 1) + self.branch(x)


@block(IMAGE_BLOCKS, share=(2, 4), fits=lambda size: size.width % 4 == 0)
class Partial(nn.Module):
    """Only the first channels go through a convolution; the others pass."""

    def __init__(self, size, share):
        super().__init__()
        self.part = size.width // share
        self.mix = conv(size.with_width(self.part), self.part, bias=False)
        self.up = Layer(size, 2 * size.width, kernel=1)
        self.down = conv(size.with_width(2 * size.width), size.width, 1)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.mix(x[:, : self.part]), x[:, self.part :]], 1)
        return x + self.down(self.up(y))


@block(IMAGE_BLOCKS, rank=(1, 3), fits=lambda size: size.rank == 2)
class OtherRank(nn.Module):
    """The same image as a signal or a volume, and back."""

    def __init__(self, size, rank):
        super().__init__()
        self.rank = rank
        self.mix = CONVS[rank - 1](size.width, 8, 3, padding=1)
        self.norm = make_norm("batch", 8, rank)
        self.out = size.with_width(8)

    def forward(self, x: Tensor) -> Tensor:
        inner = x.flatten(2) if self.rank == 1 else x.unsqueeze(2)
        y = F.relu(self.norm(self.mix(inner)))
        return y.view(y.shape[0], y.shape[1], *x.shape[2:])


@block(IMAGE_BLOCKS, how=("softmax", "lengths", "clamp", "where", "lengths with scale"))
class Squashed(nn.Module):
    """Softmax, lengths and bounds over the channels, with a residual around them."""

    def __init__(self, size, how):
        super().__init__()
        self.how = how
        self.before = Layer(size, 8)
        self.scale = nn.Parameter(torch.ones(8, *[1] * size.rank))
        self.after = conv(size.with_width(8), 8)
        self.out = size.with_width(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.how == "softmax":
            x = x * x.softmax(1)
        elif self.how == "lengths":
            x = F.normalize(x, dim=1)
        elif self.how == "lengths with scale":
            x = x / (x.square().sum(1, keepdim=True) + 1e-6).sqrt() * self.scale
        elif self.how == "clamp":
            x = x.clamp(-0.5, 2.0) + x.clamp(min=0.1)
        else:
            x = torch.where(x > 0, x, 0.1 * x)
        return self.after(x)


@block(IMAGE_BLOCKS, heads=(2, 1), window=("no", "yes"),
       fits=lambda size: size.rank == 2 and size.width % 4 == 0 and even(size))  # fmt: skip
class ImageAttention(nn.Module):
    """Attention between pixels: all of an image, or those of a window."""

    def __init__(self, size, heads, window):
        super().__init__()
        self.heads, self.window = heads, window == "yes"
        self.qkv, self.out_proj = conv(size, 3 * size.width, 1), conv(size, size.width, 1)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).chunk(3, 1)
        if self.window:
            q, k, v = (self._windows(each) for each in (q, k, v))
        q, k, v = (
            each.reshape(each.shape[0], self.heads, c // self.heads, -1) for each in (q, k, v)
        )
        scores = (q.transpose(-1, -2) @ k) * 0.3
        y = (v @ scores.softmax(-1).transpose(-1, -2)).flatten(1, 2)
        if self.window:
            y = y.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return x + self.out_proj(y.reshape(b, c, h, w))

    @staticmethod
    def _windows(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        return x.reshape(-1, c, 2, 2)
