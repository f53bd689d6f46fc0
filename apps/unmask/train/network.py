"""The network: a small residual net with a map of the blending seam beside its two answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (32, 64, 128, 256)
BLOCKS = (1, 1, 1, 1)
NECK = 32


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al., CVPR 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, N x C x H x W."""
        out = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class Detector(nn.Module):
    """Faces (N x 3 x S x S, RGB in 0..1) to logits (N x 2) and maps (N x 2 x S/4 x S/4, logits).

    The two answers are *swap* (a blended face) and *generated* (a wholly generated one). The maps
    are the seam of the blend and, for training only, its inside. A first layer of stride 2 and no
    pooling before S/4 keep the fine detail that gives a blend away; the maps are read from three
    scales at once.
    """

    def __init__(
        self, widths: Sequence[int] = WIDTHS, blocks: Sequence[int] = BLOCKS, neck: int = NECK
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages, inputs = [], widths[0]
        for stage, (outputs, count) in enumerate(zip(widths, blocks, strict=True)):
            parts = []
            for number in range(count):
                parts.append(Block(inputs, outputs, 2 if stage and not number else 1))
                inputs = outputs
            stages.append(nn.Sequential(*parts))
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.lateral2 = nn.Conv2d(widths[1], neck, 1)
        self.lateral3 = nn.Conv2d(widths[2], neck, 1)
        self.lateral4 = nn.Conv2d(widths[3], neck, 1)
        self.merge = nn.Conv2d(neck, neck, 3, 1, 1, bias=False)
        self.merge_norm = nn.BatchNorm2d(neck)
        self.maps = nn.Conv2d(neck, 2, 1)
        self.head = nn.Linear(widths[3] + 2 * neck, 2)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and maps."""
        x = (faces - 0.5) * 4.0
        fine = self.stage2(self.stage1(functional.relu(self.norm(self.stem(x)))))
        middle = self.stage3(fine)
        coarse = self.stage4(middle)
        side = self.lateral3(middle) + functional.interpolate(
            self.lateral4(coarse), scale_factor=2.0, mode="nearest"
        )
        side = self.lateral2(fine) + functional.interpolate(side, scale_factor=2.0, mode="nearest")
        side = functional.relu(self.merge_norm(self.merge(side)))
        pooled = (coarse.mean((2, 3)), side.mean((2, 3)), side.amax((2, 3)))
        return self.head(torch.cat(pooled, 1)), self.maps(side)


class Shipped(nn.Module):
    """The network without its training-only map: what is exported."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the map of the seam."""
        logits, maps = self.detector(faces)
        return logits, maps[:, :1]
