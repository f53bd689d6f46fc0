"""Untrusted files: what they are, the caps before anything is decoded, and pictures.

A file is judged by its first bytes; its name counts for nothing. Every refusal is a `MediaError`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, features

from unmask.errors import MediaError

Pixels = npt.NDArray[np.uint8]
Kind = Literal["image", "video"]
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What is accepted: bytes, pixels, and seconds (of the clip analysed, and of decoding)."""

    image_bytes: int = 20 * MIB
    image_pixels: int = 40_000_000
    video_bytes: int = 100 * MIB
    video_pixels: int = 4096 * 2304
    video_seconds: float = 60.0
    decode_seconds: float = 60.0


LIMITS = Limits()

# The word is Pillow's or FFmpeg's name of the format, so that no other reader is ever tried:
# FFmpeg's play lists, for one, may name other files and addresses.
PICTURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
CLIPS = {b"\x1aE\xdf\xa3": "matroska", b"OggS": "ogg", b"\x00\x00\x01\xba": "mpeg"}
SOUNDS = (b"ID3", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf1", b"#!AMR", b"MThd")
ANIMATED = {"GIF", "PNG", "WEBP", "AVIF"}  # further pages of a TIFF or a JPEG are no animation
SCANNED = 1_000_000_000  # pixels that the scans of one JPEG may write
BOXES = 10_000  # that are walked through in an MP4
HEAD = 192  # bytes that tell what a file is: a packet of MPEG-TS and the first of the next
PACKET = 188
AVIF = {b"avif", b"avis"}
HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
ACCEPTED = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, MP4, MOV, WebM, MKV, AVI, Ogg, MPEG"


@dataclass(frozen=True)
class Source:
    """A file that passed the caps: ``format`` is the one reader that may open it."""

    path: Path
    kind: Kind
    format: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Still:
    """A decoded picture, upright, 8-bit RGB; ``jpeg_quality`` (1 to 100) if its tables say it."""

    pixels: Pixels
    jpeg_quality: float | None = None
    notes: tuple[str, ...] = ()


def examine(path: str | os.PathLike[str], limits: Limits = LIMITS) -> Source:
    """Check what kind of file this is and how large it is; raises `MediaError`, decodes nothing."""
    path = Path(path)
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            raise MediaError("empty", "the file is empty")
        kind, word = sniff(file.read(HEAD))
        cap = limits.image_bytes if kind == "image" else limits.video_bytes
        if size > cap:
            what = "picture" if kind == "image" else "video"
            raise MediaError(
                "too_large",
                f"the {what} has {size / MIB:.1f} MB; at most {cap / MIB:g} MB are taken",
            )
        _check_length(file, word, size)
        file.seek(0)
        return Source(path, kind, word, size, _hash(file))


def open_file(path: Path) -> BinaryIO:
    """Open a plain file for reading; folders, devices, pipes and what is missing are refused."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise MediaError("not_a_file", "this is not a plain file; give a picture or a video")
        return path.open("rb")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError("missing", f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise MediaError("missing", f"{str(path)!r} cannot be read: {error.strerror}") from None


def sniff(head: bytes) -> tuple[Kind, str]:
    """Return the kind of a file and its reader by its first bytes, or raise `MediaError`.

    >>> sniff(b"GIF89a...")
    ('image', 'GIF')
    """
    for magic, word in PICTURES.items():
        if head.startswith(magic):
            return "image", word
    for magic, word in CLIPS.items():
        if head.startswith(magic):
            return "video", word
    if head[:4] == b"RIFF":
        return _sniff_riff(head)
    if head[4:8] == b"ftyp":
        return _sniff_brands(head[8 : max(12, int.from_bytes(head[:4], "big"))])
    if head[4:8] in {b"moov", b"mdat", b"wide", b"free", b"skip"}:
        return "video", "mov"
    if head[:1] == head[PACKET : PACKET + 1] == b"G":
        return "video", "mpegts"
    if head.startswith(SOUNDS):
        raise MediaError("no_picture", "the file holds sound but no picture")
    raise MediaError("unknown_type", f"neither a picture nor a video of a known kind ({ACCEPTED})")


def _sniff_riff(head: bytes) -> tuple[Kind, str]:
    if head[8:12] == b"WEBP":
        return "image", "WEBP"
    if head[8:12] == b"AVI ":
        return "video", "avi"
    if head[8:12] == b"WAVE":
        raise MediaError("no_picture", "the file holds sound but no picture")
    raise MediaError("unknown_type", f"neither a picture nor a video of a known kind ({ACCEPTED})")


def _sniff_brands(box: bytes) -> tuple[Kind, str]:
    """Judge an MP4's first box: its main brand, a version, and the brands it is compatible with."""
    main = box[:4]
    brands = {main, *(box[at : at + 4] for at in range(8, len(box), 4))}
    if main in AVIF | HEIF and brands & AVIF:
        if features.check("avif"):
            return "image", "AVIF"
        raise MediaError("unknown_type", "AVIF pictures cannot be read here; save it as JPEG")
    if main in AVIF | HEIF:
        raise MediaError("unknown_type", "HEIC pictures cannot be read here; save it as JPEG")
    if main in {b"M4A ", b"M4B "}:
        raise MediaError("no_picture", "the file holds sound but no picture")
    return "video", "mov"


def _check_length(file: BinaryIO, word: str, size: int) -> None:
    """Compare the lengths that the containers declare with the file's; raises ``truncated``."""
    end = 0
    if word in {"WEBP", "avi"}:
        file.seek(4)
        end = 8 + int.from_bytes(file.read(4), "little")
        # The size of an AVI of several parts counts the first only; one never closed has none.
        end = 0 if end in {8, 8 + 2**32 - 1} else end
    elif word in {"mov", "AVIF"}:
        for _ in range(BOXES):
            if end >= size:
                break
            file.seek(end)
            head = file.read(16)
            length = int.from_bytes(head[:4], "big")
            if length == 1:
                length = int.from_bytes(head[8:16], "big")
            if length == 0 or len(head) < 8:  # it reaches to the end, or a few bytes trail
                break
            end += max(length, 8)
    if end > size:
        raise MediaError("truncated", f"the file ends too early: {size} of {end} bytes are there")


def _hash(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(MIB):
        digest.update(block)
    return digest.hexdigest()


def read_image(source: Source, limits: Limits = LIMITS) -> Still:
    """Decode a picture upright to 8-bit RGB; of an animation only the first frame.

    Transparent parts are shown on white. Raises `MediaError`.
    """
    with open_file(source.path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(file, formats=[source.format]) as image:
                _check_pixels(image.size, limits)
                if source.format == "JPEG":
                    _check_scans(source.path, image.size)
                animated = source.format in ANIMATED and getattr(image, "is_animated", False)
                quality = _jpeg_quality(getattr(image, "quantization", None))
                image.load()
                pixels = _to_rgb(_upright(image))
        except (MediaError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise _too_many_pixels(limits) from None
        except Exception as error:  # a hostile file can make a decoder raise nearly anything
            raise _damaged(error) from None
    notes = ("of the animation only the first frame was analysed",) if animated else ()
    return Still(pixels, quality, notes)


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    if size[0] * size[1] > limits.image_pixels:
        raise _too_many_pixels(limits, f"has {size[0]} x {size[1]} pixels")


def _check_scans(path: Path, size: tuple[int, int]) -> None:
    """Refuse a progressive JPEG that goes over its pixels hundreds of times: it takes minutes."""
    # Within compressed data a zero follows 0xff, so that this is the marker of a scan.
    scans = path.read_bytes().count(b"\xff\xda")
    if scans * size[0] * size[1] > SCANNED:
        raise MediaError("too_slow", f"decoding the picture takes too long: it has {scans} scans")


def _too_many_pixels(limits: Limits, what: str = "is far too large") -> MediaError:
    most = limits.image_pixels / 1e6
    return MediaError(
        "too_many_pixels", f"the picture {what}; at most {most:g} megapixels are taken"
    )


def _damaged(error: Exception) -> MediaError:
    if "truncated" in str(error).lower() or isinstance(error, EOFError):
        return MediaError("truncated", "the picture ends too early: the file is cut off")
    return MediaError("corrupt", "the picture is damaged and cannot be decoded")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF that nobody can read turns nothing, as in every viewer
        return image


def _to_rgb(image: Image.Image) -> Pixels:
    """Return 8-bit RGB pixels (height, width, 3) of a picture in any of Pillow's modes."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(np.asarray(image))
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.new("RGBA", above.size, (255, 255, 255, 255))
        image.alpha_composite(above)
    return np.array(image.convert("RGB"))


def _from_deep(values: npt.NDArray[np.generic]) -> Pixels:
    """Return deep grey as 8-bit RGB: of integers the upper byte; reals up to 1 are stretched."""
    pixels = np.empty((*values.shape, 3), np.uint8)
    whole = values.dtype.kind in "iu"
    top = float(values.max(initial=0)) if whole else _highest(values)
    if values.dtype == np.uint16 or (whole and top > 255):
        scale = 1 / 256
    else:
        scale = 255 / top if 0 < top <= 1 and not whole else 1.0
    for row, line in zip(pixels, values, strict=True):  # line by line: no copy of the whole
        grey = np.nan_to_num(line.astype(np.float64) * scale, posinf=255, neginf=0)
        row[:] = np.clip(np.floor(grey), 0, 255).astype(np.uint8)[:, None]
    return pixels


def _highest(values: npt.NDArray[np.generic]) -> float:
    finite = np.isfinite(values)
    return float(np.max(values, initial=0.0, where=finite))


# The sum of the luminance table that Annex K of the JPEG standard gives (quality 50).
STANDARD_SUM = 3688


def _jpeg_quality(tables: dict[int, Sequence[int]] | None) -> float | None:
    """Return the quality (1 to 100) whose scaling of the standard table has the same sum.

    The scaling is libjpeg's: 5000 / quality per cent below 50, 200 - 2 * quality above.
    """
    if not tables:
        return None
    scale = 100 * sum(tables[min(tables)]) / STANDARD_SUM
    return float(np.clip((200 - scale) / 2 if scale < 100 else 5000 / scale, 1, 100))
