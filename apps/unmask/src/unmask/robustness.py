"""The grid of everyday damage that a detector has to bear: JPEG, resizing, blur, noise, H.264."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]
Damage = Callable[[Pixels], Pixels]

JPEG = (90, 70, 50, 30)
RESIZE = (0.75, 0.5, 0.25)
BLUR = (0.5, 1.0, 2.0)
NOISE = (2.0, 5.0, 10.0)
H264 = (18, 23, 28, 35)


def jpeg(image: Pixels, quality: int) -> Pixels:
    """The picture after JPEG compression (4:2:0), RGB uint8 H x W x 3."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"), np.uint8)


def resize(image: Pixels, factor: float) -> Pixels:
    """The picture shrunk by ``factor`` and brought back to its size."""
    height, width = image.shape[:2]
    small = (max(round(width * factor), 1), max(round(height * factor), 1))
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BICUBIC)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BICUBIC), np.uint8)


def blur(image: Pixels, sigma: float) -> Pixels:
    """The picture under a Gaussian of ``sigma`` pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), np.uint8)


def noise(image: Pixels, sigma: float, seed: int = 0) -> Pixels:
    """The picture with Gaussian noise of ``sigma`` grey levels, the same for the same seed."""
    grain = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.asarray(np.clip(np.rint(image + grain), 0, 255), np.uint8)


def h264(image: Pixels, crf: int) -> Pixels:
    """The picture as a key frame of H.264 (yuv420p) at a constant rate factor."""
    import av

    height, width = (length // 2 * 2 for length in image.shape[:2])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), "rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    buffer.seek(0)
    with av.open(buffer) as container:
        frame = next(container.decode(video=0))
        decoded = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    out = np.array(image, np.uint8)
    out[:height, :width] = decoded
    return out


def grid() -> Mapping[str, Damage]:
    """Every damage by its name, such as ``jpeg 50``; ``none`` comes first."""
    found: dict[str, Damage] = {"none": lambda image: image}
    kinds: tuple[tuple[str, Callable[..., Pixels], tuple[float, ...]], ...] = (
        ("jpeg", jpeg, JPEG), ("resize", resize, RESIZE), ("blur", blur, BLUR),
        ("noise", noise, NOISE), ("h264", h264, H264),
    )  # fmt: skip
    for kind, damage, levels in kinds:
        for level in levels:
            found[f"{kind} {level:g}"] = partial(_at, damage, level)
    return found


def _at(damage: Callable[..., Pixels], level: float, image: Pixels) -> Pixels:
    return damage(image, level)
