"""What makes a face unfit to be judged: too small, too blurred, too heavily compressed.

The limits of sharpness and of the block grid are those that refuse 3 % and under 1 % of some
hundred plain photographs of faces; of the same ones blurred with sigma 3 (at 224 pixels), 87 % are
refused for blur, and of those saved at JPEG quality 10, most for their grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

SMALLEST = 64.0
SHARPNESS = 7.3
GRID = 2.4
JPEG = 20.0
QUANTISER = 40.0

TOO_SMALL = f"the face is too small (under {SMALLEST:.0f} pixels)"
BLURRED = "the face is too blurred"
COMPRESSED = "the face is too heavily compressed"

BLOCK = 8
CAP = 512
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Quality:
    """The longer side of a face in pixels, its sharpness, its block grid, its compression.

    ``jpeg`` is the quality (1 to 100) that a picture's tables tell, ``quantiser`` the mean one of
    an H.264 frame (0 to 51); None where the format does not say.
    """

    side: float
    sharpness: float
    grid: float = 1.0
    jpeg: float | None = None
    quantiser: float | None = None

    @property
    def weakness(self) -> str | None:
        """Return why the face cannot be judged, None where it can.

        >>> Quality(200, 30).weakness is None
        True
        """
        if self.side < SMALLEST:
            return TOO_SMALL
        tables = self.jpeg is not None and self.jpeg < JPEG
        frame = self.quantiser is not None and self.quantiser > QUANTISER
        if tables or frame or self.grid > GRID:
            return COMPRESSED
        return BLURRED if self.sharpness < SHARPNESS else None


def sharpness(crop: Pixels) -> float:
    """Return 1000 times the variance of the Laplacian of a crop over its own variance.

    The crop has the size that the network sees, so that what counts is the detail it gets; the
    division takes contrast and darkness out.
    """
    grey = _grey(crop)
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(1000 * (4 * middle - around).var() / (grey.var() + 1))


def grid(face: Pixels) -> float:
    """Return how much larger steps of brightness are at the borders of 8 x 8 blocks than elsewhere.

    About 1 for a picture without a grid, whatever the file says of itself; ``face`` is at its own
    resolution. The grid may begin anywhere: of the eight places the strongest counts, separately
    across and down, and the mean of both is returned.
    """
    grey = _grey(face[:CAP, :CAP])
    return (_strongest(np.diff(grey, axis=1)) + _strongest(np.diff(grey, axis=0).T)) / 2


def _grey(pixels: Pixels) -> Floats:
    return np.asarray(pixels.astype(np.float32) @ LUMA, np.float32)


def _strongest(steps: Floats) -> float:
    """Return the strongest of the eight phases of columns over the mean of the others."""
    usable = steps.shape[1] // BLOCK * BLOCK
    if usable < 2 * BLOCK or not steps.shape[0]:
        return 1.0
    # Larger steps are the picture's own edges: they say nothing about the grid.
    capped = np.minimum(np.abs(steps[:, :usable]), 12.0)
    phases = capped.mean(axis=0).reshape(-1, BLOCK).mean(axis=0)
    strongest = float(phases.max())
    others = (float(phases.sum()) - strongest) / (BLOCK - 1)
    return (strongest + 0.1) / (others + 0.1)
