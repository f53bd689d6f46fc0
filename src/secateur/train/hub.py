"""Reads image data sets with Hugging Face's datasets library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import SecateurError
from secateur.extras import need
from secateur.train.sources import VALID_NAMES, Source, Split, divided, few

_INTEGER = re.compile(r"u?int\d+")


@dataclass(frozen=True)
class HubImages:
    """The image column of a Hugging Face data set; `roots` are the folders it may read from."""

    where: str
    dataset: Any
    column: str
    rows: Sequence[int]
    roots: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, Path | bytes]:
        row = self.rows[index]
        name = f"row {row} of {self.dataset.split}"
        cell = self.dataset[row][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise SecateurError(f"{name} in {self.where} has no image; remove the row")
        if cell["bytes"] is not None:
            return name, cell["bytes"]
        path = Path(cell["path"])
        if not any(path.resolve().is_relative_to(root.resolve()) for root in self.roots):
            raise SecateurError(f"{name} in {self.where} points to {path}, out of the data set")
        return name, path

    def pick(self, rows: Sequence[int]) -> HubImages:
        """Return the images of these rows, in this order."""
        return replace(self, rows=tuple(self.rows[row] for row in rows))


def hub(name: str, seed: int) -> Source:
    """Read a Hugging Face data set by its hub name or from a local folder of parquet or images."""
    where = f"hf:{name}"
    datasets = need("datasets", "hf", where)
    config = datasets.config
    try:
        # False keeps versions before 4 from running a script that comes with the data.
        found = datasets.load_dataset(name, trust_remote_code=False)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SecateurError(
            f"{where} cannot be loaded ({type(error).__name__}: {reason}); give a data set of "
            "the Hugging Face hub or a local folder of parquet or image files"
        ) from error
    if "train" not in found:
        raise SecateurError(f"{where} has no split train; it has {', '.join(found)}")
    held_out = next((one for one in ("validation", *VALID_NAMES) if one in found), None)
    train = found["train"]
    image, label = _columns(train.features, datasets, where)
    roots = (Path(name), Path(config.HF_DATASETS_CACHE), Path(config.HF_CACHE_HOME))
    feature = train.features[label]
    codes = (
        np.arange(len(feature.names))
        if isinstance(feature, datasets.ClassLabel)
        else np.unique(_codes(train, label, where))
    )

    def read(part: Any) -> Split:
        # Undecoded cells are read with the same care as files.
        cells = part.select_columns([image]).cast_column(image, datasets.Image(decode=False))
        images = HubImages(where, cells, image, range(len(cells)), roots)
        return Split(images, _labels(part, label, codes, where))

    classes = tuple(getattr(feature, "names", None) or (str(code) for code in codes))
    if len(classes) < 2:
        raise SecateurError(
            f"{where} has {len(classes)} classes in '{label}'; at least 2 are needed"
        )
    whole = read(train)
    if held_out is None:
        return Source(*divided(whole, seed, where), classes)
    return Source(whole, read(found[held_out]), classes)


def _columns(features: Any, datasets: Any, where: str) -> tuple[str, str]:
    """Return the image column and the label column: ClassLabel before integers, 'label' first."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    whole = [name for name, kind in features.items() if _INTEGER.fullmatch(_dtype(kind))]
    labels = named or whole
    labels = ["label"] if "label" in labels else labels
    if len(images) != 1 or len(labels) != 1:
        listed = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
        raise SecateurError(
            f"{where} should have one Image column and one label column (ClassLabel or integer, "
            f"called 'label' if there are several), but its columns are {listed}"
        )
    return images[0], labels[0]


def _dtype(kind: Any) -> str:
    return str(getattr(kind, "dtype", ""))


def _codes(part: Any, label: str, where: str) -> np.ndarray:
    column = part.select_columns([label]).with_format(None)[label]
    values = list(column)
    if not values or any(value is None for value in values):
        raise SecateurError(f"{where} has rows without a label in split {part.split}; remove them")
    return np.asarray(values, dtype=np.int64)


def _labels(part: Any, label: str, codes: np.ndarray, where: str) -> Tensor:
    """Return the labels as ranks among the codes; raise SecateurError for any other label."""
    values = _codes(part, label, where)
    unknown = np.setdiff1d(values, codes)
    if len(unknown):
        raise SecateurError(
            f"{where} has labels in split {part.split} that are no class of train "
            f"({few(map(str, unknown))}); -1 stands for unlabelled, which cannot be measured on"
        )
    return torch.from_numpy(np.searchsorted(codes, values))
