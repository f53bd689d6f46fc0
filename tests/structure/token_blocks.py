"""Toy blocks over rows of tokens: [batch, length, width] in and out.

A token's ``Size`` has its width and, as extent, the length of the row.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from structure.toys import Block, Size, block
from torch import Tensor, nn

TOKEN_BLOCKS: dict[str, Block] = {}
TOKEN_NORMS = ("none", "layer", "layer without affine", "rms", "batch")


class RootMeanSquare(nn.Module):
    """x / sqrt(mean of x squared + eps) times a scale, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class BatchLast(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def token_norm(kind: str, width: int) -> nn.Module:
    """Make a norm over the last dimension."""
    return {
        "none": nn.Identity,
        "layer": lambda: nn.LayerNorm(width),
        "layer without affine": lambda: nn.LayerNorm(width, elementwise_affine=False),
        "rms": lambda: RootMeanSquare(width),
        "batch": lambda: BatchLast(width),
    }[kind]()


def square_of(size: Size) -> int:
    """Return the side of the square that the tokens fill, 0 where they fill none."""
    side = math.isqrt(size.extent[0])
    return side if side**2 == size.extent[0] else 0


@block(TOKEN_BLOCKS, norm=TOKEN_NORMS, hidden=(12, 16), gate=("gelu", "swiglu", "geglu", "fused"),
       residual=(True, False), bias=(True, False))  # fmt: skip
class Perceptron(nn.Module):
    """Two linear layers, or a gated one, beside a shortcut."""

    def __init__(self, size, norm, hidden, gate, residual, bias):
        super().__init__()
        self.norm = token_norm(norm, size.width)
        wide = 2 * hidden if gate == "fused" else hidden
        self.up = nn.Linear(size.width, wide, bias=bias)
        self.gate = nn.Linear(size.width, hidden, bias=bias) if "glu" in gate else None
        self.down = nn.Linear(hidden, size.width, bias=bias)
        self.kind, self.residual = gate, residual
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.kind == "fused":
            value, gate = self.up(y).chunk(2, dim=-1)
            y = value * F.silu(gate)
        elif self.gate is not None:
            squash = F.silu if self.kind == "swiglu" else F.gelu
            y = squash(self.gate(y)) * self.up(y)
        else:
            y = F.gelu(self.up(y))
        return x + self.down(y) if self.residual else self.down(y)


@block(TOKEN_BLOCKS, made=("unbind", "chunk", "separate", "grouped query", "one key", "layer"),
       norm=TOKEN_NORMS, heads=(4, 2), width=(3, 4), fused=(False, True), bias=(True, False),
       fits=lambda size: size.width % 4 == 0)  # fmt: skip
class Attention(nn.Module):
    """Self-attention, its heads made in one of the ways in which people make them."""

    def __init__(self, size, made, norm, heads, width, fused, bias):
        super().__init__()
        inner = heads * width
        self.made, self.heads, self.width, self.fused = made, heads, width, fused
        self.pairs = {"grouped query": heads // 2, "one key": 1}.get(made, heads)
        self.norm = token_norm(norm, size.width)
        if made == "layer":
            self.layer = nn.MultiheadAttention(size.width, heads, bias=bias, batch_first=True)
        elif made in ("unbind", "chunk"):
            self.qkv = nn.Linear(size.width, 3 * inner, bias=bias)
        else:
            self.query = nn.Linear(size.width, inner, bias=bias)
            self.key = nn.Linear(size.width, self.pairs * width, bias=bias)
            self.value = nn.Linear(size.width, self.pairs * width, bias=bias)
        self.join = nn.Linear(inner, size.width) if made != "layer" else None
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.join is None:
            return x + self.layer(y, y, y, need_weights=self.fused)[0]
        q, k, v = self._heads(y)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * self.width**-0.5).softmax(-1) @ v
        b, h, n, d = y.shape
        return x + self.join(y.transpose(1, 2).reshape(b, n, h * d))

    def _heads(self, y: Tensor) -> tuple[Tensor, ...]:
        b, n, _ = y.shape
        if self.made == "unbind":
            y = self.qkv(y).reshape(b, n, 3, self.heads, self.width)
            return y.permute(2, 0, 3, 1, 4).unbind(0)
        if self.made == "chunk":
            parts = self.qkv(y).chunk(3, dim=-1)
        else:
            parts = self.query(y), self.key(y), self.value(y)
        q, k, v = (each.view(b, n, -1, self.width).transpose(1, 2) for each in parts)
        if self.pairs != self.heads:
            k = k.repeat_interleave(self.heads // self.pairs, dim=1)
            v = v.repeat_interleave(self.heads // self.pairs, dim=1)
        return q, k, v


@block(TOKEN_BLOCKS, heads=(2, 4), shifted=(False, True),
       fits=lambda size: size.width % 4 == 0 and square_of(size) % 2 == 0 < square_of(size))  # fmt: skip  # noqa: E501
class WindowedAttention(nn.Module):
    """Attention in windows of 2 x 2 tokens, perhaps shifted, with a table of relative positions."""

    def __init__(self, size, heads, shifted):
        super().__init__()
        self.side, self.heads, self.shifted = square_of(size), heads, shifted
        self.norm = nn.LayerNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.join = nn.Linear(size.width, size.width)
        self.table = nn.Parameter(torch.zeros(9, heads))
        self.scale = 0.5
        row, column = torch.arange(4) // 2, torch.arange(4) % 2
        index = (row[:, None] - row + 1) * 3 + (column[:, None] - column + 1)
        self.register_buffer("index", index, persistent=False)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        half = self.side // 2
        y = self.norm(x).view(b, self.side, self.side, c)
        if self.shifted:
            y = torch.roll(y, (-1, -1), dims=(1, 2))
        y = y.view(b, half, 2, half, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = self.qkv(y).view(-1, 4, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, -1).permute(2, 0, 1)
        scores = q * self.scale @ k.transpose(-2, -1) + bias.unsqueeze(0)
        y = self.join((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, c))
        y = y.view(b, half, half, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(b, self.side, self.side, c)
        if self.shifted:
            y = torch.roll(y, (1, 1), dims=(1, 2))
        return x + y.reshape(b, n, c)


@block(TOKEN_BLOCKS, tokens=(1, 2), positions=("all", "patches", "none"))
class ClassToken(nn.Module):
    """Learned tokens are put before the row, and a table of positions is added."""

    def __init__(self, size, tokens, positions):
        super().__init__()
        (length,) = size.extent
        self.token = nn.Parameter(torch.zeros(1, tokens, size.width))
        rows = {"all": length + tokens, "patches": length}.get(positions)
        self.table = nn.Parameter(torch.zeros(1, rows, size.width)) if rows else None
        self.positions = positions
        self.out = Size(size.width, (length + tokens,))

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(x.shape[0], -1, -1)
        if self.positions == "patches":
            x = x + self.table
        x = torch.cat([token, x], dim=1)
        return x + self.table if self.positions == "all" else x


@block(TOKEN_BLOCKS, made=("lstm", "gru", "rnn"), hidden=(6, 8), layers=(1, 2),
       both=(False, True), last=(False, True), project=(0, 3),
       fits=lambda size: size.extent[0] <= 18)  # fmt: skip
class Recurrent(nn.Module):
    """A recurrent layer over the row; its whole output or its last state goes on."""

    def __init__(self, size, made, hidden, layers, both, last, project):
        super().__init__()
        kind = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[made]
        own = {"proj_size": project} if made == "lstm" and project else {}
        self.layer = kind(size.width, hidden, layers, bidirectional=both, batch_first=True, **own)
        width = (own.get("proj_size") or hidden) * (2 if both else 1)
        self.head = nn.Linear(width, size.width)
        self.last = last
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.layer(x)
        y = self.head(y)
        return x + y[:, -1:] if self.last else x + y


@block(TOKEN_BLOCKS, hidden=(6, 4))
class Mixer(nn.Module):
    """A perceptron over the tokens, then one over the width."""

    def __init__(self, size, hidden):
        super().__init__()
        (length,) = size.extent
        self.tokens = nn.Sequential(nn.Linear(length, hidden), nn.GELU(), nn.Linear(hidden, length))
        self.width = nn.Sequential(
            nn.LayerNorm(size.width), nn.Linear(size.width, 12), nn.GELU(),
            nn.Linear(12, size.width),
        )  # fmt: skip
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.width(x)


@block(TOKEN_BLOCKS, heads=(2, 3), width=(3, 4))
class Einsum(nn.Module):
    """Heads as a dimension of their own in weights that no layer holds."""

    def __init__(self, size, heads, width):
        super().__init__()
        self.enter = nn.Parameter(torch.randn(size.width, heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))
        self.leave = nn.Parameter(torch.randn(heads, width, size.width))
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bnd,dhe->bnhe", x, self.enter) + self.bias
        return x + torch.einsum("bnhe,hed->bnd", F.gelu(y), self.leave)


@block(TOKEN_BLOCKS, latents=(3, 4), hidden=(8, 6))
class Latents(nn.Module):
    """A few learned queries look at the row, and the row looks at them."""

    def __init__(self, size, latents, hidden):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(latents, hidden))
        self.key, self.value = nn.Linear(size.width, hidden), nn.Linear(size.width, hidden)
        self.back = nn.Linear(hidden, size.width)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        scores = 0.3 * self.queries @ self.key(x).transpose(1, 2)
        y = scores.softmax(-1) @ self.value(x)
        return x + self.back(y).mean(1, keepdim=True)


@block(TOKEN_BLOCKS, hidden=(8, 12), kernel=(3, 2))
class ConvolvedTokens(nn.Module):
    """Tokens as a signal: pointwise, gated, depthwise, pointwise."""

    def __init__(self, size, hidden, kernel):
        super().__init__()
        self.enter = nn.Conv1d(size.width, 2 * hidden, 1)
        self.depthwise = nn.Conv1d(hidden, hidden, kernel, padding=kernel - 1, groups=hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.leave = nn.Conv1d(hidden, size.width, 1)
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.enter(x.transpose(1, 2)), dim=1)
        y = self.depthwise(y)[..., : x.shape[1]]
        return x + self.leave(F.silu(self.norm(y))).mT


@block(TOKEN_BLOCKS, out=(8, 12), fits=lambda size: size.extent[0] % 2 == 0)
class Merge(nn.Module):
    """Two neighbours become one token of twice the width."""

    def __init__(self, size, out):
        super().__init__()
        self.before = nn.Linear(size.width, 6)
        self.norm = nn.LayerNorm(12)
        self.narrow = nn.Linear(12, out, bias=False)
        self.out = Size(out, (size.extent[0] // 2,))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(x))
        return self.narrow(self.norm(torch.cat([x[:, 0::2], x[:, 1::2]], -1)))


@block(TOKEN_BLOCKS, experts=(2, 3), hidden=(6, 4))
class Experts(nn.Module):
    """Several perceptrons side by side, weighed for every token."""

    def __init__(self, size, experts, hidden):
        super().__init__()
        self.gate = nn.Linear(size.width, experts)
        self.up = nn.Parameter(torch.randn(experts, size.width, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, size.width))
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(torch.matmul(x.unsqueeze(1), self.up)) @ self.down
        return x + (y * self.gate(x).softmax(-1).permute(0, 2, 1).unsqueeze(-1)).sum(1)


@block(TOKEN_BLOCKS, how=("twice", "tied", "factors"), norm=("none", "layer"))
class SharedPerceptron(nn.Module):
    """One layer used twice, or one weight there and back."""

    def __init__(self, size, how, norm):
        super().__init__()
        self.how = how
        self.norm = token_norm(norm, size.width)
        self.up = nn.Linear(size.width, 12)
        self.middle = nn.Linear(12, 12)
        self.bias = nn.Parameter(torch.zeros(size.width))
        self.down = nn.Linear(12, size.width)
        if how == "factors":
            self.middle.weight = nn.Parameter(torch.randn(12, 12))
        self.out = size

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.up(self.norm(x)))
        if self.how == "twice":
            y = self.middle(F.relu(self.middle(y)))
        elif self.how == "factors":
            y = y @ self.middle.weight.tril() @ self.middle.weight.t()
        if self.how == "tied":
            return x + y @ self.up.weight + self.bias
        return x + self.down(y)
