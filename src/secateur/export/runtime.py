"""ONNX Runtime: running a file, and measuring how far its answers are from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import SecateurError
from secateur.extras import need

Array = NDArray[Any]


@dataclass(frozen=True)
class Difference:
    """How far answers are from others: the largest and the mean distance of any two numbers.

    ``relative`` is the largest distance divided by the largest absolute value of the same output.
    """

    largest: float
    relative: float
    mean: float


def open_session(path: str | Path, threads: int = 1) -> Any:
    """Open an ONNX file on the CPU; raise SecateurError where ONNX Runtime cannot run it."""
    runtime = need("onnxruntime", "export", "running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not Path(path).is_file():
        raise SecateurError(f"'{path}' does not exist: expected an ONNX file")
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise SecateurError(f"ONNX Runtime cannot open '{path}': {first_line(error)}") from error


def answer(session: Any, inputs: Mapping[str, Array]) -> list[Array]:
    """Return the outputs of an open file for its inputs by name."""
    try:
        return [np.asarray(each) for each in session.run(None, dict(inputs))]
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise SecateurError(f"ONNX Runtime cannot run the file: {first_line(error)}") from error


def named_inputs(session: Any, batch: Any) -> dict[str, Array]:
    """Name the arrays of a batch as a file names its inputs.

    A batch is a tensor or array, a mapping by name, or a tuple whose first parts are the inputs;
    what follows them, such as labels, is left out.
    """
    names = [each.name for each in session.get_inputs()]
    if isinstance(batch, Mapping):
        missing = [name for name in names if name not in batch]
        if missing:
            raise SecateurError(f"the batch lacks the input '{missing[0]}' of the file")
        return {name: as_array(batch[name]) for name in names}
    parts = batch if isinstance(batch, (tuple, list)) else (batch,)
    if len(parts) < len(names):
        raise SecateurError(f"a batch holds {len(parts)} tensors, the file takes {len(names)}")
    return {name: as_array(part) for name, part in zip(names, parts, strict=False)}


def as_array(value: Any) -> Array:
    """Return a tensor or an array as a NumPy array."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def difference(found: Sequence[Array], expected: Sequence[Array]) -> Difference:
    """Measure the distance between two lists of outputs; NaN and infinity count as infinite.

    Raises SecateurError where they differ in number or shape.

    >>> difference([np.array([1.0, 2.5])], [np.array([1.0, 2.0])])
    Difference(largest=0.5, relative=0.25, mean=0.25)
    """
    shapes = [[each.shape for each in side] for side in (found, expected)]
    if shapes[0] != shapes[1]:
        raise SecateurError(f"the file's outputs have the shapes {shapes[0]}, not {shapes[1]}")
    largest, relative, total, count = 0.0, 0.0, 0.0, 0
    for one, other in zip(found, expected, strict=True):
        if not other.size:
            continue
        same = one == other
        gap = np.abs(np.where(same, 0, one.astype(np.float64) - other.astype(np.float64)))
        gap = np.where(np.isfinite(gap), gap, np.inf)
        highest = float(np.abs(other[np.isfinite(other)]).max(initial=0))
        largest = max(largest, float(gap.max()))
        relative = max(relative, float(gap.max()) / max(highest, 1e-12))
        total, count = total + float(gap.sum()), count + gap.size
    return Difference(largest, relative, total / max(1, count))


def plain(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result's fields as JSON holds them: lists for tuples, texts for paths."""
    found: dict[str, Any] = {}
    for name, value in result.items():
        found[name] = list(value) if isinstance(value, tuple) else value
        if isinstance(value, Path):
            found[name] = str(value)
    return found


def first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def check_target(path: str | Path, suffix: str) -> Path:
    """Return a path to write to; raise SecateurError where it ends otherwise or has no folder."""
    target = Path(path)
    if target.suffix != suffix:
        raise SecateurError(f"'{target}' should end in {suffix}")
    if not target.absolute().parent.is_dir():
        raise SecateurError(f"'{target}' cannot be written: its folder does not exist")
    if target.is_dir():
        raise SecateurError(f"'{target}' cannot be written: it is a folder")
    return target
