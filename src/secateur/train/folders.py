"""Reads images from folders, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from secateur.errors import SecateurError
from secateur.train.images import SUFFIXES
from secateur.train.sources import VALID_NAMES, Source, Split, divided, few


@dataclass(frozen=True)
class Files:
    """Image files below a folder."""

    root: Path
    names: tuple[str, ...]

    @property
    def where(self) -> str:
        """The folder as the user wrote it."""
        return str(self.root)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, Path]:
        return self.names[index], self.root / self.names[index]

    def pick(self, rows: Sequence[int]) -> Files:
        """Return the files of these rows, in this order."""
        return replace(self, names=tuple(self.names[row] for row in rows))


def image_folder(folder: Path, seed: int) -> Source:
    """Read FOLDER/train/CLASS/* with valid, val or test beside it, or FOLDER/CLASS/* to divide."""
    try:
        return _image_folder(folder, seed)
    except OSError as error:
        raise SecateurError(f"imagefolder cannot read {folder}: {error}") from error


def _image_folder(folder: Path, seed: int) -> Source:
    if not folder.is_dir():
        raise SecateurError(
            f"imagefolder expects a folder, but {folder} does not exist; name one that holds "
            "train/CLASS/* and valid/CLASS/*, or CLASS/*"
        )
    names = {entry.name for entry in _folders(folder, folder)}
    if "train" not in names or not any(_folders(folder / "train", folder)):
        classes, whole = _classes(folder, folder)
        train, valid = divided(whole, seed, str(folder))
        return Source(train, valid, classes)
    held_out = next((name for name in VALID_NAMES if name in names), None)
    if held_out is None:
        raise SecateurError(
            f"{folder} has a folder train but no valid, val or test; add one, or give "
            f"imagefolder:{folder / 'train'} to have 20 % of it held back"
        )
    classes, train = _classes(folder / "train", folder)
    others, valid = _classes(folder / held_out, folder)
    if classes != others:
        only = [f"{name} only in train" for name in sorted({*classes} - {*others})]
        only += [f"{name} only in {held_out}" for name in sorted({*others} - {*classes})]
        raise SecateurError(
            f"the classes of {folder}/train and {folder}/{held_out} differ "
            f"({few(only)}); give both the same class folders"
        )
    return Source(train, valid, classes)


def _classes(folder: Path, root: Path) -> tuple[tuple[str, ...], Split]:
    """Return the classes, which are the folders here by name, and all their images."""
    entries = _folders(folder, root)
    if len(entries) < 2:
        raise SecateurError(
            f"imagefolder expects a folder per class in {folder}, at least two, but found "
            f"{len(entries)}; put the images of each class into a folder of its own"
        )
    files, labels = [], []
    for label, entry in enumerate(entries):
        found = _images_of_class(Path(entry.path), root)
        files += found
        labels += [label] * len(found)
    split = Split(Files(root, tuple(files)), torch.tensor(labels))
    return tuple(entry.name for entry in entries), split


def _folders(folder: Path, root: Path) -> list[os.DirEntry[str]]:
    visible = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    return [_inside(entry, root) for entry in visible if entry.is_dir()]


def _images_of_class(folder: Path, root: Path) -> list[str]:
    found = []
    for entry in _entries(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            raise SecateurError(
                f"{entry.path} is a folder inside a class folder; images lie directly in the "
                "folder of their class"
            )
        if Path(entry.name).suffix.lower() in SUFFIXES:
            if not _inside(entry, root).is_file():
                raise SecateurError(f"{entry.path} is not a file; remove it")
            found.append(Path(entry.path).relative_to(root).as_posix())
    if not found:
        raise SecateurError(
            f"the class folder {folder} holds no images ({', '.join(sorted(SUFFIXES))}); "
            "add images or remove the folder"
        )
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    # os.scandir knows what each entry is without a further call, which matters for a million.
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _inside(entry: os.DirEntry[str], root: Path) -> os.DirEntry[str]:
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise SecateurError(
            f"{entry.path} is a link that leads out of {root}; copy what it points to into the "
            "folder or remove the link"
        )
    return entry
