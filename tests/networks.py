"""Toy networks that the tests share; `example(name)` gives inputs for the network of that name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def small_cnn(num_classes: int = 10) -> nn.Sequential:
    """Two convolutions with batch norm, pooling and a linear layer; grey images of any size."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


def mlp(num_classes: int = 10) -> nn.Sequential:
    """Three linear layers over 8x8 images; no norms."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Linear(16, num_classes),
    )


class _CifarBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            # Every second pixel; zero channels, half of them before and half after.
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *[self.padding] * 2))
        return F.relu(x + y)


class _CifarResNet(nn.Module):
    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = _CifarBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(_CifarBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet_cifar(depth: int = 20, num_classes: int = 10) -> nn.Module:
    """The residual network for CIFAR-10 of He et al. 2015, section 4.2: depth is 6 n + 2."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth {depth} is not 6 n + 2")
    return _CifarResNet(blocks, num_classes)


def grouped_cnn(num_classes: int = 10) -> nn.Sequential:
    """A grouped, a depthwise and a pointwise convolution between two plain layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=4),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, num_classes),
    )


class _DenseBlock(nn.Module):
    """Each layer normalises and reads all that came before it, joined along the channels."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [inputs + growth * layer for layer in range(layers)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, growth, 3, padding=1, bias=False) for width in widths
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            parts.append(conv(F.relu(norm(torch.cat(parts, 1)))))
        return torch.cat(parts, 1)


def dense_block_net(num_classes: int = 10) -> nn.Sequential:
    """A dense block of three layers, which concatenates and then normalises."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        _DenseBlock(8, growth=4, layers=3),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, num_classes),
    )


class _Transformer(nn.Module):
    def __init__(self, width: int, heads: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm1(tokens)
        tokens = tokens + self.attention(x, x, x, need_weights=False)[0]
        tokens = tokens + self.down(F.gelu(self.up(self.norm2(tokens))))
        return self.head(tokens.mean(1))


def transformer(num_classes: int = 10) -> nn.Module:
    """One transformer block (nn.MultiheadAttention, 4 heads) over tokens of width 16."""
    return _Transformer(16, 4, num_classes)


def conv1d_net(num_classes: int = 10) -> nn.Sequential:
    """Two one-dimensional convolutions, the second grouped."""
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Conv1d(8, 12, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(12, num_classes),
    )


def conv3d_net(num_classes: int = 10) -> nn.Sequential:
    """Two three-dimensional convolutions."""
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.Conv3d(4, 8, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(8, num_classes),
    )


def transposed_net() -> nn.Sequential:
    """An autoencoder whose decoder is a plain and a grouped transposed convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(12, 8, 4, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1),
    )


class _EmbeddingNet(nn.Module):
    def __init__(self, words: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.embedding(words).mean(1))))


def embedding_net(num_classes: int = 10) -> nn.Module:
    """The mean of 24 embedded words, then two linear layers."""
    return _EmbeddingNet(24, 12, num_classes)


class _CellNet(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.enter = nn.Linear(8, width)
        self.long = nn.LSTMCell(width, width + 2)
        self.gated = nn.GRUCell(width + 2, width)
        self.plain = nn.RNNCell(width, width - 1)
        self.head = nn.Linear(width - 1, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        held = gated = plain = None
        x = self.enter(x)
        for place in range(3):
            held = self.long(x[:, place], held)
            gated = self.gated(held[0], gated)
            plain = self.plain(gated, plain)
        return self.head(plain)


def cell_net(num_classes: int = 10) -> nn.Module:
    """Three recurrent cells over three tokens, one after the other; their states start empty."""
    return _CellNet(9, num_classes)


class _PreactivationBlock(nn.Module):
    """Norm and ReLU stand before each convolution; a 1x1 convolution widens the shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(y)))) + self.shortcut(x)


def preactivation_resnet(num_classes: int = 10) -> nn.Sequential:
    """A residual network whose norms do not follow their convolutions (He et al. 2016)."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        _PreactivationBlock(8, 8),
        _PreactivationBlock(8, 16),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, num_classes),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    network.__name__: network
    for network in (
        small_cnn,
        mlp,
        resnet_cifar,
        grouped_cnn,
        dense_block_net,
        transformer,
        conv1d_net,
        conv3d_net,
        transposed_net,
        embedding_net,
        preactivation_resnet,
        cell_net,
    )
}

_SHAPES = {
    "small_cnn": (1, 8, 8),
    "mlp": (1, 8, 8),
    "resnet_cifar": (3, 32, 32),
    "grouped_cnn": (3, 8, 8),
    "dense_block_net": (3, 8, 8),
    "transformer": (6, 16),
    "conv1d_net": (4, 16),
    "conv3d_net": (1, 6, 8, 8),
    "transposed_net": (3, 8, 8),
    "preactivation_resnet": (3, 8, 8),
    "cell_net": (3, 8),
}


def example(name: str, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
    """Return example inputs, to be called as NETWORKS[name]()(*example(name))."""
    generator = torch.Generator().manual_seed(seed)
    if name == "embedding_net":
        return (torch.randint(24, (batch, 5), generator=generator),)
    return (torch.randn(batch, *_SHAPES[name], generator=generator),)
