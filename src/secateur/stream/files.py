"""Reading and writing safetensors tensor by tensor, without holding a file in memory."""

from __future__ import annotations

import json
import math
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import SecateurError

INDEX = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000
_LARGEST_INDEX = 100_000_000
_PIECE = 1 << 24
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its file, its first byte and the one after its last, dtype and shape."""

    path: Path
    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Read the tensor into memory of its own."""
        values = torch.empty(self.end - self.start, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.start)
            if file.readinto(values.numpy().data) != len(values):
                raise SecateurError(f"{self.path} ends too early")
        return values.view(self.dtype).reshape(self.shape)

    def mapped(self) -> Tensor:
        """Return the tensor as the file holds it; only what is read of it comes into memory."""
        if self.start == self.end or self.start % self.dtype.itemsize:
            return self.read()
        values = np.memmap(self.path, np.uint8, "r", self.start, (self.end - self.start,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot be written to is meant
            return torch.from_numpy(values).view(self.dtype).reshape(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Yield the tensor's bytes, a piece at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.end - self.start
            while left:
                piece = file.read(min(_PIECE, left))
                if not piece:
                    raise SecateurError(f"{self.path} ends too early")
                left -= len(piece)
                yield piece


def open_weights(source: Path) -> dict[str, Stored]:
    """Return where every tensor lies, of a safetensors file or of a folder with its shards.

    Raises SecateurError where a file is missing or damaged, or an index leads out of the folder.
    """
    if source.is_file():
        return read_header(source)
    index = source / INDEX
    if index.is_file():
        if index.stat().st_size > _LARGEST_INDEX:
            raise SecateurError(f"{index} is too large to be an index")
        try:
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(places.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SecateurError(f"{index} is not an index of safetensors files") from error
        if any(not isinstance(name, str) or Path(name).name != name for name in names):
            raise SecateurError(f"{index} names files outside of its folder")
    else:
        names = sorted(path.name for path in source.glob("*.safetensors"))
    if not names:
        raise SecateurError(f"{source} holds no safetensors files")
    found: dict[str, Stored] = {}
    for name in names:
        found |= read_header(source / name)
    return found


def read_header(path: Path) -> dict[str, Stored]:
    """Return where every tensor of one safetensors file lies; raise SecateurError if damaged."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _LARGEST_HEADER):
                raise SecateurError(f"{path} is not a safetensors file")
            header = json.loads(file.read(length))
    except (OSError, struct.error, ValueError) as error:
        raise SecateurError(f"{path} cannot be read as safetensors: {error}") from error
    header.pop("__metadata__", None)
    return {name: _stored(path, name, entry, 8 + length, size) for name, entry in header.items()}


def _stored(path: Path, name: str, entry: Any, first: int, size: int) -> Stored:
    try:
        dtype, shape = _DTYPES[entry["dtype"]], tuple(int(extent) for extent in entry["shape"])
        start, end = (first + int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise SecateurError(f"{path}: the entry of '{name}' is damaged") from error
    fits = first <= start <= end <= size and min(shape, default=0) >= 0
    if not fits or end - start != math.prod(shape) * dtype.itemsize:
        raise SecateurError(f"{path}: '{name}' lies outside of the file, or has another size")
    return Stored(path, start, end, dtype, shape)


def write_shard(path: Path, tensors: Mapping[str, Tensor | Stored]) -> None:
    """Write a safetensors file beside its place, then move it there: whole or not at all.

    What is stored elsewhere is copied a piece at a time.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        header[name] = {
            "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for piece in tensor.pieces() if isinstance(tensor, Stored) else _bytes(tensor):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file beside its place, then move it there."""
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def _bytes(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    for piece in flat.split(_PIECE):
        yield piece.numpy().data
