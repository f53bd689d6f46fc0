"""Checkpoints: one file, written whole or not at all, read without running code."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.errors import SecateurError

NAME = "checkpoint.pt"
FORMAT = 1


def save_checkpoint(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write a checkpoint into a folder, replacing the one before in a single move."""
    path = folder / NAME
    temporary = folder / f"{NAME}.partial"
    # Into an open file: given a path, PyTorch hides the reason why it cannot write.
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
    temporary.replace(path)
    return path


def load_checkpoint(folder: Path, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of the same run; refuse a damaged one and one of other settings."""
    path = folder / NAME
    if not path.is_file():
        raise SecateurError(f"{folder} holds no checkpoint: start without --resume")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found, version = content["fingerprint"], content["format"]
    except Exception as error:  # a damaged file can raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        raise SecateurError(
            f"{path} is damaged ({reason}): delete it and start without --resume"
        ) from error
    if version != FORMAT:
        raise SecateurError(f"{path} has the format {version}, this version reads {FORMAT}")
    different = [name for name in fingerprint if found.get(name) != fingerprint[name]]
    if different:
        name = different[0]
        raise SecateurError(
            f"{path} belongs to another run: its {name} is {found.get(name)!r}, not "
            f"{fingerprint[name]!r}; resume with the same settings or choose another --out"
        )
    return dict(content)


def random_state() -> dict[str, Any]:
    """Return the state of every random generator that training may use."""
    state = np.random.get_state(legacy=False)
    python = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": torch.from_numpy(np.asarray(state["state"]["key"]).astype(np.int64)),
        "numpy_position": int(state["state"]["pos"]),
        "python": [python[0], list(python[1]), python[2]],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put every random generator back to a saved state."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    current = dict(np.random.get_state(legacy=False))
    current["state"] = {
        "key": state["numpy"].numpy().astype(np.uint32),
        "pos": state["numpy_position"],
    }
    np.random.set_state(current)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
