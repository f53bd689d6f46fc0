"""Static int8: an ONNX file whose layers compute with integers, and what that changed."""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import SecateurError, suggestion
from secateur.export.runtime import (
    Array,
    answer,
    check_target,
    difference,
    first_line,
    named_inputs,
    open_session,
    plain,
)
from secateur.extras import need

METHODS = ("minmax", "entropy", "percentile")
ACTIVATIONS = ("uint8", "int8")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# These compute nothing: they round, hold, or move values and sizes about.
_SILENT = {
    "QuantizeLinear", "DequantizeLinear", "Constant", "Cast", "Concat", "ConstantOfShape", "Expand",
    "Flatten", "Gather", "Identity", "Range", "Reshape", "Shape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip


@dataclass(frozen=True)
class Int8Result:
    """An int8 file, and what it is beside the one it was made from.

    ``quantized`` and ``kept`` name the layers (convolutions and matrix products, by the name of
    their weight or node) that compute with integers and those that do not; ``others`` counts the
    operators beside them that compute in floating point. ``difference`` is the largest distance of
    any output number over the batches, ``relative`` the same divided by the largest number of that
    output, ``mean_difference`` the mean; ``agreement`` is the share of examples whose highest
    score is the same, None where an output is no table of scores.
    """

    path: Path
    quantized: tuple[str, ...]
    kept: tuple[str, ...]
    others: dict[str, int]
    bytes_before: int
    bytes_after: int
    difference: float
    relative: float
    mean_difference: float
    agreement: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return plain(asdict(self))


def quantize_onnx(
    path: str | Path,
    batches: Iterable[Any],
    out: str | Path,
    *,
    check: Iterable[Any] | None = None,
    exclude: Sequence[str] = (),
    method: str = "minmax",
    activations: str = "uint8",
    reduce_range: bool = False,
) -> Int8Result:
    """Quantize an ONNX file statically: int8 weights per channel, 8-bit activations per tensor.

    ``batches`` calibrate the ranges of the activations: tensors, tuples whose first parts are the
    inputs, or mappings by input name. ``check`` are the batches that the two files are compared on,
    by default the same. ``exclude`` are glob patterns over names of weights or nodes that stay as
    they are; ``method`` is ``minmax``, ``entropy`` or ``percentile``. ``activations`` are
    ``uint8``, which x86 processors multiply fastest, or ``int8``; ``reduce_range`` gives weights 7
    bits, for x86 processors without VNNI, where ``uint8`` may overflow. The outputs themselves are
    not rounded. The file holds QuantizeLinear and DequantizeLinear nodes (QDQ).

    Raises SecateurError where there is no batch, a pattern matches nothing, or ONNX Runtime cannot
    quantize the file. Needs the extra ``export``.
    """
    target = check_target(out, ".onnx")
    onnx = need("onnx", "export", "quantizing an ONNX file")
    for what, value, accepted in (
        ("method", method, METHODS), ("activations", activations, ACTIVATIONS),
    ):  # fmt: skip
        if value not in accepted:
            raise SecateurError(f"unknown {what} '{value}': {suggestion(value, accepted)}")
    before = open_session(path)
    calibration = [named_inputs(before, batch) for batch in batches]
    if not calibration:
        raise SecateurError("the data holds no batch: int8 needs some to find the ranges")
    tried = calibration if check is None else [named_inputs(before, each) for each in check]
    if not tried:
        raise SecateurError("check= holds no batch to compare the files on")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, partial = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        options = {"reduce_range": reduce_range, "activations": activations, "method": method}
        _quantize(Path(path), prepared, partial, calibration, exclude, options)
        model = onnx.load(str(partial))
        _release_outputs(model.graph)
        _drop_unused_domains(model)
        onnx.save(model, str(partial))
        after = open_session(partial)
        pairs = [(answer(after, inputs), answer(before, inputs)) for inputs in tried]
        _write(partial, target)
    gaps = [difference(found, expected) for found, expected in pairs]
    quantized, kept, others = _told_apart(model.graph)
    return Int8Result(
        target,
        quantized,
        kept,
        others,
        Path(path).stat().st_size,
        target.stat().st_size,
        max(gap.largest for gap in gaps),
        max(gap.relative for gap in gaps),
        sum(gap.mean for gap in gaps) / len(gaps),
        _agreement(pairs),
    )


def _quantize(
    path: Path,
    prepared: Path,
    out: Path,
    calibration: Sequence[dict[str, Array]],
    exclude: Sequence[str],
    options: dict[str, Any],
) -> None:
    """Fold what can be folded, then let ONNX Runtime find the ranges and write the integers."""
    onnx = need("onnx", "export", "quantizing an ONNX file")
    tools = need("onnxruntime.quantization", "export", "quantizing an ONNX file")
    shapes = need("onnxruntime.quantization.shape_inference", "export", "quantizing an ONNX file")
    kinds = {"uint8": tools.QuantType.QUInt8, "int8": tools.QuantType.QInt8}
    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(calibration)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.left, None)

    try:
        # PyTorch writes the shapes; the symbolic search for more would need another library.
        shapes.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        nodes = _excluded(onnx.load(str(prepared)).graph, exclude)
        tools.quantize_static(
            str(prepared), str(out), Reader(), quant_format=tools.QuantFormat.QDQ, per_channel=True,
            reduce_range=options["reduce_range"], weight_type=tools.QuantType.QInt8,
            activation_type=kinds[options["activations"]], nodes_to_exclude=nodes,
            calibrate_method=tools.CalibrationMethod[methods[options["method"]]],
        )  # fmt: skip
    except SecateurError:
        raise
    except Exception as error:  # ONNX Runtime raises kinds of its own
        raise SecateurError(f"'{path}' cannot be quantized: {first_line(error)}") from error


def _excluded(graph: Any, patterns: Sequence[str]) -> list[str]:
    """Return the names of the nodes that stay as they are."""
    weights = {each.name for each in graph.initializer}
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    for node in graph.node:
        for pattern in patterns:
            own = [node.name, *(each for each in node.input if each in weights)]
            if fnmatch.filter(own, pattern):
                found[pattern].append(node.name)
    for pattern, nodes in found.items():
        if not nodes:
            layers = [_label(n, weights) for n in graph.node if n.op_type in _LAYERS]
            raise SecateurError(
                f"exclude='{pattern}' matches no layer: {suggestion(pattern, layers)}"
            )
    return sorted({name for nodes in found.values() for name in nodes})


def _label(node: Any, weights: Iterable[str]) -> str:
    """Name a layer by its weight, or by its node where it has none."""
    return next((each for each in node.input[1:2] if each in set(weights)), str(node.name))


def _release_outputs(graph: Any) -> None:
    """Let the graph's outputs come as they are: rounding them saves nothing and costs precision."""
    producers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    for output in graph.output:
        restore = producers.get(output.name)
        rounding = producers.get(restore.input[0]) if restore is not None else None
        if restore is None or rounding is None or rounding.op_type != "QuantizeLinear":
            continue
        source = producers.get(rounding.input[0])
        if source is None or readers[restore.input[0]] > 1 or readers[output.name]:
            continue
        before = rounding.input[0]
        graph.node.remove(restore)
        graph.node.remove(rounding)
        for node in graph.node:
            node.input[:] = [output.name if name == before else name for name in node.input]
        source.output[:] = [output.name if name == before else name for name in source.output]
        described = [each for each in graph.value_info if each.name in (before, output.name)]
        for each in described:
            graph.value_info.remove(each)
    used = {name for node in graph.node for name in node.input}
    for unused in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(unused)


def _drop_unused_domains(model: Any) -> None:
    """Keep the operator sets that the file uses; ONNX Runtime's preparation lists all it knows."""
    used = {node.domain for node in model.graph.node} | {""}
    for each in [each for each in model.opset_import if each.domain not in used]:
        model.opset_import.remove(each)


def _told_apart(graph: Any) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, int]]:
    """Tell the layers that read integers from those that do not, and count what else is float."""
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    quantized: list[str] = []
    kept: list[str] = []
    others: Counter[str] = Counter()
    weights = {each.name for each in graph.initializer}
    for node in graph.node:
        if node.op_type in _SILENT:
            continue
        reads = [getattr(producers.get(name), "op_type", "") == "DequantizeLinear"
                 for name in node.input[:2]]  # fmt: skip
        if node.op_type in _LAYERS:
            name = _origin(node, producers, weights)
            (quantized if all(reads) else kept).append(name)
            continue
        writes = {kind for name in node.output for kind in readers.get(name, [])}
        if not (any(reads) and writes == {"QuantizeLinear"}):
            others[node.op_type] += 1
    return tuple(quantized), tuple(kept), dict(sorted(others.items()))


def _origin(node: Any, producers: dict[str, Any], weights: set[str]) -> str:
    """Name a layer by its weight as it was called before it was quantized."""
    source = producers.get(node.input[1])
    if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in weights:
        return str(source.input[0]).removesuffix("_quantized")
    return _label(node, weights)


def _agreement(pairs: Sequence[tuple[list[Array], list[Array]]]) -> float | None:
    """Return the share of examples for which both give the same class the highest score."""
    first = pairs[0][1][0]
    if len(pairs[0][1]) != 1 or first.ndim != 2 or first.shape[1] < 2:
        return None
    same = [found[0].argmax(1) == expected[0].argmax(1) for found, expected in pairs]
    return float(np.concatenate(same).mean())


def _write(partial: Path, target: Path) -> None:
    beside = target.with_name(f"{target.name}.part")
    try:
        beside.write_bytes(partial.read_bytes())
        beside.replace(target)
    except OSError as error:
        raise SecateurError(f"'{target}' cannot be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's advice off the root logger; what matters is raised or returned."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
