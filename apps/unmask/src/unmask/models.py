"""The networks that ship: what they are, and their answers by ONNX Runtime on one thread."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.crops import SIZE
from unmask.errors import UnmaskError

Floats = npt.NDArray[np.float32]
ANSWERS = ("swap", "generated")
BATCH = 16  # faces that go through a network at once: bounds the memory


@dataclass(frozen=True)
class ModelInfo:
    """One row of ``weights/models.json``; ``ms`` was measured for one face on one thread.

    ``calibration`` holds scale and shift of each answer, ``thresholds`` the ends of its grey band.
    """

    name: str
    title: str
    version: str
    path: Path
    size: int
    params: int
    macs: int
    bytes: int
    ms: float
    calibration: Mapping[str, tuple[float, float]]
    thresholds: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, Any]
    default: bool = False

    def __post_init__(self) -> None:
        for answer in ANSWERS:
            low, high = (self.thresholds[answer][end] for end in ("low", "high"))
            if not 0 <= low <= high <= 1:
                raise UnmaskError(f"the thresholds of model {self.name!r} are not in order")
            if not all(np.isfinite(self.calibration[answer])):
                raise UnmaskError(f"the calibration of model {self.name!r} is not finite")


@dataclass(frozen=True)
class Scores:
    """Calibrated probabilities (N,) of both answers, and seam maps (N, S/4, S/4) in 0..1."""

    swap: Floats
    generated: Floats
    boundary: Floats


class Model:
    """A network in ONNX Runtime; the same input gives the same answer on any call."""

    def __init__(self, info: ModelInfo, threads: int = 1) -> None:
        onnxruntime = _runtime()
        if not info.path.is_file():
            raise UnmaskError(f"the weights of {info.name!r} are missing; install unmask anew")
        found = info.path.stat().st_size
        if found != info.bytes:
            raise UnmaskError(
                f"the weights of model {info.name!r} have {found} bytes, not {info.bytes}; "
                "install unmask anew"
            )
        self.info = info
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(info.path), options, providers=["CPUExecutionProvider"]
        )

    def scores(self, crops: npt.NDArray[np.uint8]) -> Scores:
        """The answers for crops (uint8 N x S x S x 3, RGB) as `unmask.crops.crop` cuts them."""
        logits, boundary = self.logits(crops)
        both = [
            probability(logits[:, place], self.info.calibration[answer])
            for place, answer in enumerate(ANSWERS)
        ]
        return Scores(both[0], both[1], sigmoid(boundary))

    def logits(self, crops: npt.NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """The network's own numbers before calibration: (N, 2) and (N, S/4, S/4)."""
        size = self.info.size
        if crops.dtype != np.uint8 or crops.ndim != 4 or crops.shape[1:] != (size, size, 3):
            raise UnmaskError(
                f"crops are uint8 N x {size} x {size} x 3, not {crops.dtype} {crops.shape}"
            )
        answers: list[Floats] = [np.zeros((0, 2), np.float32)]
        maps: list[Floats] = [np.zeros((0, size // 4, size // 4), np.float32)]
        for first in range(0, len(crops), BATCH):
            part = crops[first : first + BATCH].transpose(0, 3, 1, 2)
            # Written in the order that ONNX Runtime wants, or it would copy everything once more.
            faces = np.empty(part.shape, np.float32)
            np.divide(part, np.float32(255), out=faces, casting="unsafe")
            logits, boundary = self._session.run(["logits", "boundary"], {"faces": faces})
            answers.append(logits)
            maps.append(boundary[:, 0])
        return np.concatenate(answers), np.concatenate(maps)


def _runtime() -> Any:
    """ONNX Runtime, kept from telling its makers that and how it is used.

    Official builds do so from 1.29 on and write an identifier to the disk; only this variable, set
    before the import, keeps that from ever starting. The call is for one imported before.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    return onnxruntime


def sigmoid(values: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)), np.float32)


def probability(logits: Floats, calibration: Sequence[float]) -> Floats:
    """Platt's sigmoid(scale * logit + shift).

    >>> probability(np.float32([0.0, 2.0]), (2.0, -4.0)).round(3).tolist()
    [0.017999999225139618, 0.5]
    """
    scale, shift = calibration
    return sigmoid(np.asarray(scale * logits + shift, np.float32))


def weights_folder() -> Path:
    """Where the weights lie in the package."""
    return Path(str(resources.files("unmask"))) / "weights"


def available(folder: Path | None = None) -> list[ModelInfo]:
    """The models of ``weights/models.json``, in its order."""
    folder = folder or weights_folder()
    try:
        listed = json.loads((folder / "models.json").read_text("utf-8"))
        return [_info(row, listed, folder) for row in listed["models"]]
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UnmaskError(
            f"the list of models cannot be read ({error}); install unmask anew"
        ) from error


def default_name(folder: Path | None = None) -> str:
    """The model that is used where none is named."""
    return next(info.name for info in available(folder) if info.default)


@lru_cache(maxsize=8)
def load(name: str | None = None, threads: int = 1, folder: Path | None = None) -> Model:
    """Load a model by name, the default one for None; loaded once a process."""
    known = {info.name: info for info in available(folder)}
    name = default_name(folder) if name is None else name
    if name not in known:
        raise UnmaskError(f"there is no model {name!r}: choose one of {', '.join(known)}")
    return Model(known[name], threads)


def _info(row: Mapping[str, Any], listed: Mapping[str, Any], folder: Path) -> ModelInfo:
    file = str(row["file"])
    if Path(file).name != file or not file.endswith(".onnx"):
        raise UnmaskError(f"{file!r} is no name of an ONNX file beside the list of models")
    size = int(listed["size"])
    if size != SIZE:
        raise UnmaskError(f"the models take {size} pixels, the crops have {SIZE}")
    return ModelInfo(
        name=str(row["name"]), title=str(row["title"]), version=str(listed["version"]),
        path=folder / file, size=size, params=int(row["params"]), macs=int(row["macs"]),
        bytes=int(row["bytes"]), ms=float(row["ms"]),
        calibration={key: (float(row["calibration"][key][0]), float(row["calibration"][key][1]))
                     for key in ANSWERS},
        thresholds={key: {end: float(row["thresholds"][key][end]) for end in ("low", "high")}
                    for key in ANSWERS},
        figures=dict(row.get("figures", {})),
        default=row["name"] == listed["default"],
    )  # fmt: skip
