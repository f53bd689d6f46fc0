"""ONNX: a model as a file that runs without Python, checked against the model."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.export.runtime import (
    Array,
    answer,
    as_array,
    check_target,
    difference,
    first_line,
    open_session,
    plain,
)
from secateur.extras import need
from secateur.structure.usage import evaluating

OPSET = 18
TOLERANCE = 1e-3


@dataclass(frozen=True)
class OnnxResult:
    """A file that was written and run.

    ``difference`` is the largest distance of any output number from PyTorch's, and ``relative`` the
    same divided by the largest number of that output; ``batches`` are the batch sizes tried.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bytes: int
    difference: float
    relative: float
    batches: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return plain(asdict(self))


def to_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
) -> OnnxResult:
    """Write a model, in eval mode, to an ONNX file, and measure it against PyTorch.

    ``example_inputs`` are the model's positional arguments, tensors whose first dimension is the
    batch; with ``dynamic_batch`` the file takes batches of any size. Names are, if not given, those
    of the arguments and of the parts of the output. The file is run by ONNX Runtime on the example
    and on other batch sizes; where an output is further from PyTorch's than ``tolerance`` times its
    largest number, nothing is written.

    Raises SecateurError where the model cannot be exported, with the reason. Needs the extra
    ``export``.
    """
    target = check_target(path, ".onnx")
    onnx = need("onnx", "export", "writing ONNX")
    need("onnxscript", "export", "writing ONNX")
    need("onnxruntime", "export", "checking an ONNX file")
    inputs = _tensors(example_inputs)
    network = model if _on_cpu(model) else copy.deepcopy(model).cpu()
    with evaluating(network):
        batches = _batches(inputs, dynamic_batch)
        expected = [_run(network, each) for each in batches]
        names = _names(network, inputs, expected[0], input_names, output_names)
        # A dimension of 1 counts as constant for torch.export.
        example = next((each for each in batches if len(each[0]) > 1), batches[0])
        proto = _export(network, example, names, dynamic_batch, opset)
    _strip(proto)
    partial = target.with_name(f"{target.name}.part")
    try:
        onnx.save(proto, str(partial))
        largest, relative = _measure(partial, names[0], batches, expected)
        if not relative <= tolerance:
            raise SecateurError(
                f"ONNX Runtime's answers are {relative:.2g} (relative) from PyTorch's, more than "
                f"the tolerance {tolerance:g}: nothing was written"
            )
        partial.replace(target)
    except (OSError, ValueError) as error:
        if isinstance(error, SecateurError):
            raise
        raise SecateurError(f"'{target}' cannot be written: {first_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
    sizes = tuple(len(each[0]) for each in batches)
    return OnnxResult(target, opset, *names, target.stat().st_size, largest, relative, sizes)


def _tensors(example_inputs: Any) -> tuple[Tensor, ...]:
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    good = isinstance(inputs, (tuple, list)) and len(inputs) > 0 and all(
        isinstance(each, Tensor) and each.dim() > 0 and len(each) > 0 for each in inputs
    )  # fmt: skip
    if not good:
        raise SecateurError(
            "example_inputs: expected a tensor with a batch, or a tuple of such, as the model takes"
        )
    return tuple(each.detach().cpu() for each in inputs)


def _on_cpu(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *model.buffers()]
    return all(each.device.type == "cpu" for each in tensors)


def _batches(inputs: tuple[Tensor, ...], dynamic: bool) -> list[tuple[Tensor, ...]]:
    """Return the example, and where any size is to do, batches of 1 and 3 made of it."""
    if not dynamic:
        return [inputs]
    sizes = {len(each) for each in inputs}
    if len(sizes) > 1:
        raise SecateurError(
            f"the example inputs hold batches of {sorted(sizes)}: they must be equal, or pass "
            "dynamic_batch=False"
        )
    size = sizes.pop()
    rows = [torch.arange(other) % size for other in (1, 3) if other != size]
    return [inputs, *(tuple(each[row] for each in inputs) for row in rows)]


def _run(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Array]:
    """Return the model's outputs by name."""
    try:
        with torch.no_grad():
            outputs = network(*inputs)
    except Exception as error:  # the user's model may raise anything
        raise SecateurError(
            f"the model cannot run on a batch of {len(inputs[0])}: {first_line(error)}; if it "
            "takes batches of one size only, pass dynamic_batch=False"
        ) from error
    found = _flat(outputs, "")
    if not found:
        raise SecateurError(f"the model returns a {type(outputs).__name__} without any tensor")
    return {name: as_array(value) for name, value in found.items()}


def _flat(outputs: Any, name: str) -> dict[str, Tensor]:
    """Name the tensors of an output, in the order in which torch.export returns them."""
    if isinstance(outputs, Tensor):
        return {name or "output": outputs}
    if isinstance(outputs, Mapping):
        parts = {str(key): value for key, value in outputs.items()}
    elif isinstance(outputs, (tuple, list)):
        fields = getattr(outputs, "_fields", None) or [f"output_{i}" for i in range(len(outputs))]
        parts = dict(zip(fields, outputs, strict=True))
    else:
        return {}
    prefix = f"{name}." if name else ""
    return {key: value for part in parts
            for key, value in _flat(parts[part], f"{prefix}{part}").items()}  # fmt: skip


def _names(
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    outputs: Mapping[str, Array],
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names as given, else those of the arguments and of the parts of the output."""
    parameters = list(inspect.signature(network.forward).parameters.values())
    plain = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    own = plain if len(plain) >= len(inputs) else [f"input_{i}" for i in range(len(inputs))]
    given = tuple(input_names or own[: len(inputs)])
    # One name stands for one value in a file.
    asked = output_names or [f"{name}_out" if name in given else name for name in outputs]
    for what, names, count in (("input", given, len(inputs)), ("output", asked, len(outputs))):
        if len(names) != count:
            raise SecateurError(f"{len(names)} {what}_names are given, and there are {count}")
    if len({*given, *asked}) != len(given) + len(asked):
        raise SecateurError(f"the names {[*given, *asked]} are not all different")
    return given, tuple(asked)


def _export(
    network: nn.Module,
    example: tuple[Tensor, ...],
    names: tuple[tuple[str, ...], tuple[str, ...]],
    dynamic: bool,
    opset: int,
) -> Any:
    """Return the ONNX graph that PyTorch's exporter makes."""
    if dynamic and len(example[0]) < 2:
        raise SecateurError("a batch of one cannot stand for batches of any size")
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} for _ in example) if dynamic else None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network, example, None, dynamo=True, verbose=False, opset_version=opset,
                input_names=list(names[0]), output_names=list(names[1]), dynamic_shapes=shapes,
                external_data=False,
            )  # fmt: skip
    except Exception as error:  # tracing runs the user's code, which may raise anything
        hint = "; dynamic_batch=False may help" if dynamic else ""
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise SecateurError(
            f"{type(network).__name__} cannot be exported to ONNX: {first_line(cause)}{hint}"
        ) from error
    assert program is not None
    return program.model_proto


def _strip(proto: Any) -> None:
    """Take out notes on where the code lies: they are longer than small networks, and private."""
    parts = [proto, proto.graph, *proto.functions]
    graphs = [proto.graph, *proto.functions]
    while graphs:
        graph = graphs.pop()
        parts += [*graph.node, *graph.value_info]
        if hasattr(graph, "initializer"):
            parts += [*graph.initializer, *graph.input, *graph.output]
        for node in graph.node:
            for each in node.attribute:
                inner = [*each.graphs, *([each.g] if each.HasField("g") else [])]
                graphs += inner
                parts += inner
    for part in parts:
        part.ClearField("doc_string")
        if hasattr(part, "metadata_props"):
            part.ClearField("metadata_props")


def _measure(
    path: Path,
    input_names: tuple[str, ...],
    batches: list[tuple[Tensor, ...]],
    expected: list[dict[str, Array]],
) -> tuple[float, float]:
    session = open_session(path)
    gaps = []
    for inputs, outputs in zip(batches, expected, strict=True):
        # An argument that the model does not use is no input of the file.
        taken = {each.name for each in session.get_inputs()}
        named = {n: as_array(v) for n, v in zip(input_names, inputs, strict=True) if n in taken}
        gaps.append(difference(answer(session, named), list(outputs.values())))
    return max(gap.largest for gap in gaps), max(gap.relative for gap in gaps)
