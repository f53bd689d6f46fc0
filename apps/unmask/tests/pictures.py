"""Files that tests hand to the analysis, good and bad, all made here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from unmask.media import Pixels

THOUSANDTH = Fraction(1, 1000)


def gradient(width: int, height: int) -> Pixels:
    """Return a picture whose four corners differ: red grows rightwards, green downwards."""
    across = np.linspace(0, 255, width).astype(np.uint8)
    down = np.linspace(0, 255, height).astype(np.uint8)
    red, green = np.broadcast_to(across, (height, width)), np.broadcast_to(down, (width, height)).T
    return np.dstack([red, green, np.full((height, width), 40, np.uint8)])


def save(path: Path, picture: Image.Image | Pixels, form: str = "PNG", **options: Any) -> Path:
    """Write a picture and return its path."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(path, form, **options)
    return path


def png_claiming(width: int, height: int) -> bytes:
    """Return a tiny PNG that says it has this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def numbered(count: int, width: int = 128, height: int = 96) -> Iterable[Pixels]:
    """Yield frames that tell their number: the brightness of the left half, dark to bright."""
    for number in range(count):
        frame = np.full((height, width, 3), 128, np.uint8)
        frame[:, : width // 2] = round(255 * number / max(count - 1, 1))
        yield frame


def number_of(frame: Pixels, count: int) -> float:
    """Return the number that a frame of `numbered` tells, about."""
    height, width = frame.shape[:2]
    inner = frame[height // 4 : -height // 4, width // 8 : 3 * width // 8]
    return float(inner.mean()) / 255 * max(count - 1, 1)


def encode(
    frames: Iterable[Pixels],
    form: str = "mp4",
    codec: str = "libx264",
    rate: int = 10,
    times: Sequence[int] | None = None,
    sound: bool = False,
    colours: str = "yuv420p",
    aspect: str = "1/1",
    **options: str,
) -> bytes:
    """Return a video; ``times`` are the frames' times in thousandths of a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate, options={"threads": "1", **options})
        stream.pix_fmt = colours
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        song: Any = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for number, pixels in enumerate(frames):
            if not number:
                stream.height, stream.width = pixels.shape[:2]
                if times is not None:
                    stream.codec_context.time_base = THOUSANDTH
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], THOUSANDTH
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if song is not None:
            silence(container, song, seconds=1)
    return buffer.getvalue()


def silence(container: Any, stream: Any, seconds: int = 1) -> None:
    """Add silence to a container."""
    for number in range(8 * seconds):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1000), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 8000, 1000 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def sound_only(form: str, codec: str) -> bytes:
    """Return a file that holds silence and no picture."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        silence(container, container.add_stream(codec, rate=8000, layout="mono"))
    return buffer.getvalue()


def turned(movie: bytes, degrees: int) -> bytes:
    """Return an MP4 whose track says that it is shown turned clockwise by these degrees."""
    return shown(movie, *{90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees])


def shown(movie: bytes, a: int, b: int, c: int, d: int) -> bytes:
    """Return an MP4 whose track shows a point (x, y) at (a x + c y, b x + d y)."""
    at = movie.index(b"tkhd") + 4
    matrix = at + (40 if movie[at] == 0 else 52)
    one = 0x10000
    values = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)
    return movie[:matrix] + values + movie[matrix + 36 :]
