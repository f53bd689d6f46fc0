"""Decodes image files that others wrote: formats are listed, sizes capped, broken ones named."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.extras import need

if TYPE_CHECKING:
    from PIL import Image

LARGEST_FILE = 64 * 2**20
LARGEST_IMAGE = 100_000_000
IN_MEMORY = 2 * 2**30
COMMON_SIZE = 96
DEFAULT_SIZE = 224

# Pillow opens only these: some of its other readers start programs (EPS runs Ghostscript).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    ".bmp .gif .jpg .jpeg .png .ppm .pgm .pbm .pnm .tif .tiff .webp".split()  # noqa: SIM905
)


Result = TypeVar("Result")


class Encoded(Protocol):
    """Image files that are not decoded yet."""

    @property
    def where(self) -> str:
        """What the user calls the place that holds them."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int) -> tuple[str, Path | bytes]:
        """Return the name of one image within the place, and its file as a path or as bytes."""
        ...

    def pick(self, rows: Sequence[int]) -> Encoded:
        """Return the images of these rows, in this order."""
        ...


@dataclass(frozen=True)
class LazyImages:
    """Images that are decoded anew whenever they are asked for; indexed like a tensor."""

    files: Encoded
    size: tuple[int, int]
    fingerprint: str

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape that the decoded images would have: [N, 3, H, W]."""
        return (len(self.files), 3, *self.size)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return uint8 [B, 3, H, W]; raise SecateurError if one of these images is broken."""
        pixels, broken = _decode(self.files, rows.tolist(), self.size)
        _refuse_broken(broken, len(rows), self.files.where)
        return pixels


Images: TypeAlias = Tensor | LazyImages


@dataclass(frozen=True)
class _Header:
    name: str
    length: int
    size: tuple[int, int]


def read_images(parts: Sequence[Encoded], side: int | None) -> list[Images]:
    """Decode each part to RGB, uint8 [N, 3, H, W], in memory if all parts together fit there.

    The size is side x side, or where side is None the one size that all images have, if that is
    at most 96 pixels, else 224. Other shapes are cropped at the centre and scaled. What does not
    fit in 2 GiB is decoded when it is asked for: then only the headers are checked here.
    Raises SecateurError for a file over 64 MiB or 100 megapixels, and for broken files, naming
    the first and how many there are.
    """
    where, total = parts[0].where, sum(len(part) for part in parts)
    found = [_in_threads(partial(_header, part), range(len(part))) for part in parts]
    headers = [[one for one in part if isinstance(one, _Header)] for part in found]
    broken = [one for part in found for one in part if isinstance(one, str)]
    if len(broken) == total:
        _refuse_broken(broken, total, where)
    size = _size((one.size for part in headers for one in part), side)
    if total * 3 * size[0] * size[1] > IN_MEMORY:
        _refuse_broken(broken, total, where)
        return [
            LazyImages(part, size, _fingerprint(known))
            for part, known in zip(parts, headers, strict=True)
        ]
    decoded = [_decode(part, range(len(part)), size) for part in parts]
    _refuse_broken([reason for _, reasons in decoded for reason in reasons], total, where)
    return [pixels for pixels, _ in decoded]


def _size(sizes: Iterable[tuple[int, int]], side: int | None) -> tuple[int, int]:
    if side is not None:
        return (side, side)
    different = set(sizes)
    if len(different) == 1 and max(common := next(iter(different))) <= COMMON_SIZE:
        return common
    return (DEFAULT_SIZE, DEFAULT_SIZE)


def _fingerprint(headers: Sequence[_Header]) -> str:
    sha = hashlib.sha256()
    for header in headers:
        sha.update(f"{header.name}\0{header.length}\0".encode(errors="surrogateescape"))
    return sha.hexdigest()


def _refuse_broken(broken: Sequence[str], total: int, where: str) -> None:
    if broken:
        raise SecateurError(
            f"{len(broken)} of {total} images in {where} cannot be read, the first is {broken[0]}; "
            "repair or remove what is broken"
        )


def _in_threads(work: Callable[[int], Result], rows: Iterable[int]) -> list[Result]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, rows))


def _header(files: Encoded, row: int) -> _Header | str:
    """Return what the header of an image says, or why it cannot be read."""
    name, content = files[row]
    try:
        length = len(content) if isinstance(content, bytes) else content.stat().st_size
        if length > LARGEST_FILE:
            raise SecateurError(f"{name} has {length / 2**20:.0f} MiB; at most 64 are accepted")
        with _open(content) as image:
            width, height = image.size
    except SecateurError:
        raise
    except Exception as error:
        return f"{name} ({_reason(error)})"
    if width * height > LARGEST_IMAGE:
        raise SecateurError(
            f"{name} has {width * height / 1e6:.0f} megapixels; at most 100 are accepted"
        )
    return _Header(name, length, (height, width))


def _decode(files: Encoded, rows: Sequence[int], size: tuple[int, int]) -> tuple[Tensor, list[str]]:
    """Return the pixels of these rows, uint8 [B, 3, H, W], and why some cannot be read."""
    pixels = torch.zeros(len(rows), 3, *size, dtype=torch.uint8)

    def one(at: int) -> str | None:
        name, content = files[rows[at]]
        try:
            with _open(content) as image:
                pixels[at] = torch.from_numpy(_pixels(image, size)).permute(2, 0, 1)
        # Decoders of damaged files raise almost anything.
        except Exception as error:
            return f"{name} ({_reason(error)})"
        return None

    return pixels, [reason for reason in _in_threads(one, range(len(rows))) if reason]


def _reason(error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return f"not an image in a format that is read: {', '.join(FORMATS)}"
    return str(error).partition("\n")[0] or type(error).__name__


def _open(content: Path | bytes) -> Image.Image:
    pillow = need("PIL.Image", "vision", "reading image files")
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    opened: Image.Image = pillow.open(source, formats=FORMATS)
    return opened


def _pixels(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return an opened image upright, as RGB, cropped at the centre and scaled: [H, W, 3]."""
    from PIL import Image, ImageOps

    height, width = size
    if image.width * image.height > LARGEST_IMAGE:
        raise ValueError("over 100 megapixels")
    # A JPEG decodes several times faster at half or a quarter of its size; twice what is needed
    # leaves the scaling below enough to average over.
    image.draft("RGB", (2 * width, 2 * height))
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise ValueError("its pixels are floats without a known range")
    if upright.mode.startswith("I"):
        # Pillow would clip 16-bit greys at 255; keep their upper 8 bits instead.
        grey = np.asarray(upright).astype(np.int64).clip(0, 65535) >> 8
        upright = Image.fromarray(grey.astype(np.uint8))
    colours = upright.convert("RGB")
    if colours.size != (width, height):
        colours = ImageOps.fit(colours, (width, height), Image.Resampling.BILINEAR)
    return np.array(colours)
