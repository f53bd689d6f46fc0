"""Finds the real images beside the repository, and unpacks them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def missing(part: str = "unpack.py") -> str:
    """Return why a part of the real data cannot be used, or nothing if it can."""
    return "" if (SHARED / part).exists() else f"there is no ../shared/data/{part} beside the repo"


def unpacker() -> ModuleType:
    """Import the unpack.py that lies with the data."""
    spec = importlib.util.spec_from_file_location("unpack", SHARED / "unpack.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpack(name: str, layout: str, folder: Path, limit: int | None = None) -> Path:
    """Unpack cifar10 or fashion_mnist into a folder, as npz, imagefolder or torchvision's files."""
    folder.mkdir(parents=True, exist_ok=True)
    unpacker().WRITERS[layout](name, folder, limit)
    return folder
