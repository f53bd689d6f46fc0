"""The kept-feature map: which input features a network still reads, over what they show."""

from __future__ import annotations

from matplotlib.patches import Rectangle
from torch import Tensor

from secateur.errors import SecateurError
from secateur.report.plots import COLOURS, drawing

_MOST_PIXELS = 512 * 512


def features_svg(kept: Tensor, image: Tensor, *, title: str = "", width: float = 2.4) -> str:
    """Draw booleans [H, W] over a grey image [H, W], such as the mean of the data, as SVG.

    Kept features are filled with colour; of the others the image shows through. Raises
    SecateurError where the two do not fit.
    """
    if kept.dim() != 2 or kept.shape != image.shape or not 0 < kept.numel() <= _MOST_PIXELS:
        raise SecateurError(
            f"a map of {tuple(kept.shape)} features over an image of {tuple(image.shape)}: "
            f"expected two equal [H, W] of at most {_MOST_PIXELS:,} pixels"
        )
    count = int(kept.sum())
    label = f"Map of the input: {count} of {kept.numel()} features are read."
    rows, columns = kept.shape
    height = width * rows / columns + 0.3
    with drawing(f"features-{title}-{count}", label, width, height) as (figure, svg):
        axes = figure.add_subplot()
        axes.imshow(image.detach().cpu().float().numpy(), cmap="gray", interpolation="nearest")
        own = kept.cpu()
        for row, column in own.nonzero().tolist():
            axes.add_patch(_square(row, column))
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_axis_off()
        axes.set_title(title or f"{count} of {kept.numel()}", fontsize=9.5, color=COLOURS["ink"])
    return svg[0]


def _square(row: int, column: int) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, color=COLOURS["series2"], alpha=0.6, lw=0)
