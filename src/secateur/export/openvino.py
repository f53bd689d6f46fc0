"""OpenVINO: an ONNX file as OpenVINO's own pair of files, checked against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError
from secateur.export.runtime import (
    answer,
    check_target,
    difference,
    first_line,
    named_inputs,
    open_session,
)
from secateur.extras import need


@dataclass(frozen=True)
class OpenVinoResult:
    """The files ``path`` (.xml) and beside it .bin, and their distance from ONNX Runtime."""

    path: Path
    bytes: int
    difference: float
    relative: float


def to_openvino(
    path: str | Path, out: str | Path, batches: Iterable[Any], *, half: bool = False
) -> OpenVinoResult:
    """Convert an ONNX file, int8 ones too, to OpenVINO's format and run it on batches.

    ``half`` stores floats in 16 bits. Raises SecateurError where OpenVINO cannot convert or run it.
    Needs the extra ``openvino``.
    """
    target = check_target(out, ".xml")
    openvino = need("openvino", "openvino", "writing OpenVINO files")
    session = open_session(path)
    named = [named_inputs(session, batch) for batch in batches]
    if not named:
        raise SecateurError("no batch was given to compare the files on")
    try:
        openvino.save_model(openvino.convert_model(str(path)), str(target), compress_to_fp16=half)
        # The processor's own choice of precision (bfloat16, say) would be measured instead.
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(target), "CPU", exact)
        found = [[np.asarray(each) for each in compiled(inputs).values()] for inputs in named]
    except Exception as error:  # OpenVINO raises kinds of its own
        raise SecateurError(f"OpenVINO cannot take '{path}': {first_line(error)}") from error
    gaps = [
        difference(ours, answer(session, inputs)) for ours, inputs in zip(found, named, strict=True)
    ]
    size = sum(each.stat().st_size for each in (target, target.with_suffix(".bin")))
    largest, relative = max(gap.largest for gap in gaps), max(gap.relative for gap in gaps)
    return OpenVinoResult(target, size, largest, relative)
