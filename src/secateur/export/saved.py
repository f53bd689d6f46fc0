"""Exporting what lies in a folder: a saved model to ONNX, and to int8 where data is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.export.int8 import quantize_onnx
from secateur.export.onnx_file import OPSET, to_onnx
from secateur.export.runtime import answer, named_inputs, open_session
from secateur.reload import load
from secateur.structure.reload import DESCRIPTION, describe_saved

_BATCH = 32
_CALIBRATION = 256
_CHECKED = 512


def export_saved(
    source: str | Path,
    onnx: str | Path,
    *,
    int8: bool = False,
    data: str | None = None,
    model: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    classes: int | None = None,
    exclude: Sequence[str] = (),
    opset: int = OPSET,
) -> dict[str, Any]:
    """Write a saved image network to ``onnx``, and with ``int8`` also to FILE.int8.onnx beside it.

    ``source`` is a folder of ``secateur compress`` or ``save``, or a safetensors file of weights
    for ``model``. What the folder does not say has to be given: ``model`` (with ``channels`` and
    ``classes``) as in ``compress``, and ``size`` of the images. ``data`` names the images that int8
    is calibrated on (256 of training) and compared on (512 of validation, where accuracies are
    counted too). Returns plain values. Raises SecateurError where something is missing.
    """
    if int8 and data is None:
        raise SecateurError("int8 needs images to find the ranges of its numbers: pass --data")
    if data is not None and not int8:
        raise SecateurError("--data is for --int8: leave it out, or pass both")
    if exclude and not int8:
        raise SecateurError("--exclude is for --int8: leave it out, or pass both")
    path = Path(source)
    said = describe_saved(path) if (path / DESCRIPTION).is_file() else {}
    network = _network(path, said, model, channels, classes)
    shape = _shape(said, size, channels)
    images = _Images(data, said, shape) if data is not None else None
    example = images.train[0][0] if images is not None else torch.rand(2, *shape)
    written = to_onnx(network.eval(), example, onnx, input_names=["images"], opset=opset)
    found: dict[str, Any] = {"onnx": written.to_dict()}
    if images is None:
        return found
    target = written.path.with_name(f"{written.path.stem}.int8.onnx")
    small = quantize_onnx(written.path, images.train, target, check=images.valid, exclude=exclude)
    found["int8"] = small.to_dict()
    found["accuracy"] = {
        "onnx": images.accuracy(written.path), "int8": images.accuracy(small.path)
    }  # fmt: skip
    found["images"] = {"calibration": images.count("train"), "checked": images.count("valid")}
    return found


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each file that ``export_saved`` wrote, to be shown as a table."""
    rows = []
    for kind in ("onnx", "int8"):
        file = found.get(kind)
        if file is None:
            continue
        counted = [f"{name} ({number})" for name, number in file.get("others", {}).items()]
        accuracy = found.get("accuracy", {}).get(kind)
        rows.append({
            "file": kind,
            "bytes": f"{file.get('bytes', file.get('bytes_after')):,}",
            "difference": f"{file['difference']:.3g}",
            "relative": f"{file['relative']:.3g}",
            "accuracy": "" if accuracy is None else f"{accuracy:.4f}",
            "layers in int8": len(file["quantized"]) if "quantized" in file else "",
            "in floats": [*file.get("kept", ()), *counted],
        })  # fmt: skip
    return rows


def _network(
    path: Path, said: dict[str, Any], model: str | None, channels: int | None, classes: int | None
) -> nn.Module:
    """Build the network and put its tensors in."""
    from secateur.train.checkpoint import NAME
    from secateur.train.models import build_model, load_weights

    if not said and (path / NAME).is_file():
        raise SecateurError(
            f"'{path}' holds an interrupted run: let it end with secateur compress --resume"
        )
    if model is None:
        if not path.is_dir():
            raise SecateurError(f"'{path}' is no folder of a saved model; weights need --model")
        return load(path)
    how = said.get("build") or {}
    image = said.get("image") or {}
    channels = channels or how.get("channels") or image.get("channels") or 3
    classes = classes or how.get("num_classes") or len(said.get("classes") or [])
    if not classes:
        raise SecateurError(f"'{path}' does not say how many classes there are: pass --classes")
    built = build_model(model, num_classes=classes, channels=channels)
    if path.is_dir():
        return load(path, built.model)
    load_weights(built.model, path)
    return built.model


def _shape(said: dict[str, Any], size: int | None, channels: int | None) -> tuple[int, int, int]:
    """Return channels, height and width of an image."""
    image = said.get("image") or {}
    sides = [size, size] if size is not None else image.get("size")
    depth = channels or image.get("channels") or (said.get("build") or {}).get("channels") or 3
    good = isinstance(sides, list) and len(sides) == 2 and all(
        type(each) is int and each > 0 for each in (*sides, depth)
    )  # fmt: skip
    if not good:
        raise SecateurError("nothing says how large the images are: pass --size")
    assert sides is not None
    return depth, sides[0], sides[1]


class _Images:
    """Batches of images as the network was trained on, to calibrate and to compare on."""

    def __init__(self, data: str, said: dict[str, Any], shape: tuple[int, int, int]) -> None:
        from secateur.train.data import ImageDataset, load_data

        depth, height, width = shape
        square = height if height == width else None
        found = load_data(data, size=square, limit=_CHECKED).with_channels(depth)
        if found.size != (height, width):
            raise SecateurError(f"{data} has images of {found.size}, the network takes {shape[1:]}")
        normal = said.get("normalise") or {"mean": found.mean, "std": found.std}
        splits = [
            ImageDataset(each.images, each.labels, tuple(normal["mean"]), tuple(normal["std"]))
            for each in (found.train, found.valid)
        ]
        self.train = _batches(splits[0], _CALIBRATION)
        self.valid = _batches(splits[1], _CHECKED)

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return sum(len(labels) for _, labels in getattr(self, split))

    def accuracy(self, path: Path) -> float:
        """Return the share of validation images that a file knows."""
        session, right = open_session(path), 0
        for batch in self.valid:
            scores = torch.from_numpy(answer(session, named_inputs(session, batch))[0])
            right += int((scores.argmax(1) == batch[1]).sum())
        return right / max(1, self.count("valid"))


def _batches(images: Any, most: int) -> list[tuple[Tensor, Tensor]]:
    """Return up to so many images, spread over the whole split."""
    rows = torch.linspace(0, len(images) - 1, min(most, len(images))).long().tolist()
    return [
        images.__getitems__(rows[first : first + _BATCH]) for first in range(0, len(rows), _BATCH)
    ]
