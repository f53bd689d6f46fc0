"""Recording: the operators that one forward pass calls, as a graph, with who called them.

The pass runs on tensors without data wherever the model allows it, so that it costs milliseconds
and no memory; constants (tables of positions, masks) keep their values. Where the model looks at
its data, it runs on the real inputs. Operators are seen before they are decomposed: ``linear``,
``layer_norm``, ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import contextlib
import operator
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakIdKeyDictionary

from secateur.errors import SecateurError
from secateur.structure.dataless import Dataless
from secateur.structure.nesting import each_of, flat, plain
from secateur.structure.recording import Failure, ModuleCall, Recording
from secateur.structure.usage import answering, evaluating, transparent, unchanged

_TORCH = str(Path(torch.__file__).parent) + "/"
_OWN = str(Path(__file__).parent) + "/"


def record(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    keywords: Mapping[str, Any] | None = None,
    *,
    real: bool = False,
    double: bool = True,
    training: bool = False,
    traced: bool = False,
) -> Recording:
    """Record a forward pass of the model in eval mode, or in that of ``training``.

    With ``traced``, code that asks whether it is being traced or compiled is told so.

    The model is left as it was. With ``double``, a batch of one becomes a batch of two, so that the
    batch can be told from dimensions of size one. Without ``real`` no data is touched. Read
    ``failure`` of what comes back.
    """
    keywords = dict(keywords or {})
    if double and not real:
        inputs, named, doubled = _doubled(example_inputs, keywords)
    else:
        inputs, named, doubled = example_inputs, keywords, False
    recorder = _Recorder(model, real)
    recorder.recording.doubled = doubled
    with contextlib.ExitStack() as stack:
        for each in (evaluating(model), transparent(model), unchanged(model), recorder.watching()):
            stack.enter_context(each)
        stack.enter_context(torch.inference_mode())
        if training:
            model.train()
        stack.enter_context(answering(traced, recorder.asked))
        recorder.run(inputs, named)
    return recorder.recording


def record_best(
    model: nn.Module, example_inputs: tuple[Any, ...], keywords: Mapping[str, Any] | None = None
) -> tuple[Recording, bool]:
    """Record without data, with a batch of two; then with the batch as it is; then with data.

    Returns the recording and whether it was made with data. Raises SecateurError with the place in
    the user's code where none of them runs.
    """
    ways = ({"double": True}, {"double": False}, {"real": True})
    failure: Failure | None = None
    for way in ways:
        recording = record(model, example_inputs, keywords, **way)
        if recording.failure is None:
            if recording.real and failure is not None:
                recording.looked = failure.place
            return recording, recording.real
        failure = recording.failure
    assert failure is not None
    reason = (str(failure.error).strip().splitlines() or [type(failure.error).__name__])[0][:300]
    where = (
        f" in {failure.module or type(model).__name__} ({failure.place})" if failure.place else ""
    )
    raise SecateurError(
        f"the model cannot run on the example inputs: {reason}{where}"
    ) from failure.error


def _doubled(
    inputs: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    tensors = [each for each in flat((inputs, keywords)) if isinstance(each, Tensor)]
    single = [each for each in tensors if each.dim() > 0]
    if not single or any(each.shape[0] != 1 for each in single):
        return inputs, keywords, False

    def twice(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() > 0:
            return value.expand(2, *value.shape[1:])
        return value

    doubled = each_of(twice, (inputs, keywords))
    return doubled[0], doubled[1], True


class _Recorder:
    """Builds the graph while the model runs."""

    def __init__(self, model: nn.Module, real: bool) -> None:
        self.model = model
        self.real = real
        self.recording = Recording(fx.Graph(), [], real=real)
        self.nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.twins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.dataless = Dataless()
        self.kept: list[Tensor] = []
        self.sharing: dict[int, list[tuple[weakref.ref[Tensor], fx.Node]]] = {}
        self.failed: tuple[BaseException, int] | None = None
        self.stack: list[int] = []
        self.paths = {id(module): path for path, module in model.named_modules()}
        for path, module in model.named_modules(remove_duplicate=False):
            first = self.paths[id(module)]
            if path != first:
                self.recording.shared.setdefault(first, []).append(path)
        self.named = _names(model)
        self.lifted: dict[str, fx.Node] = {}
        self.parameters = {id(parameter) for parameter in model.parameters()}
        # What a parametrised weight is computed from is cut with it, and no constant.
        self.parameters |= {id(buffer) for name, buffer in model.named_buffers()
                            if "parametrizations." in name}  # fmt: skip

    def run(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """Call the model and note what comes out, or where it failed."""
        arguments = each_of(self._input, (inputs, keywords))
        try:
            with _Mode(self):
                result = self.model(*arguments[0], **arguments[1])
            nodes = each_of(self._output, plain(result))
            self.recording.outputs = nodes
            self.recording.graph.output(nodes)
        except Exception as error:  # the user's model may raise anything
            known = self.failed is not None and self.failed[0] is error
            call = self.failed[1] if self.failed and known else None
            path = self.recording.calls[call].path if call is not None else ""
            self.recording.failure = Failure(path, _raised_at(error), error, call)

    def asked(self) -> None:
        """Note that the code wants to know whether it is being traced."""
        self.recording.asked = True

    def _input(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        number = len(self.recording.inputs)
        node = self.recording.graph.placeholder(f"input_{number}")
        twin = value if self.real else value.to("meta")
        if twin is value:
            twin = value.view_as(value) if value.dim() else value.clone()
        self._know(twin, node, value)
        self.recording.inputs.append(node)
        return twin

    def _output(self, value: Any) -> Any:
        return self.node(value) if isinstance(value, Tensor) else value

    def _know(self, tensor: Tensor, node: fx.Node, source: Tensor | None = None) -> None:
        node.meta["val"] = tensor if tensor.is_meta else _shape_only(tensor)
        node.meta.setdefault("call", self.stack[-1] if self.stack else None)
        if source is not None:
            self.nodes[source] = node
        self.nodes[tensor] = node
        self.sharing.setdefault(_storage(tensor), []).append((weakref.ref(tensor), node))

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Mark what an operator writes to through another tensor of the same storage."""
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            target = args[place] if place < len(args) else kwargs.get(argument.name)
            if isinstance(target, Tensor):
                for other, node in self.sharing.get(_storage(target), ()):
                    if other() is not target:
                        node.meta["written"] = True

    def node(self, tensor: Tensor) -> fx.Node:
        """Return the node that made a tensor; parameters, buffers and constants get one here."""
        found: fx.Node | None = self.nodes.get(tensor)
        if found is not None:
            return found
        name = self.named.get(id(tensor))
        if name is None:
            name = f"_constant_{len(self.lifted)}"
            self.kept.append(tensor)
        if name not in self.lifted:
            graph = self.recording.graph
            first = next(iter(graph.nodes), None)
            with graph.inserting_before(first):
                lifted = graph.create_node("get_attr", name)
            lifted.meta["val"] = _shape_only(tensor)
            lifted.meta["call"] = None
            lifted.meta["constant"] = name.startswith("_constant_")
            if id(tensor) not in self.parameters and not tensor.is_meta:
                lifted.meta["value"] = tensor.detach()
            self.lifted[name] = lifted
            self.sharing.setdefault(_storage(tensor), []).append((weakref.ref(tensor), lifted))
        self.nodes[tensor] = self.lifted[name]
        return self.lifted[name]

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator and put it down."""
        result = self.execute(func, args, kwargs)
        if func._schema.is_mutable:
            self._written(func, args, kwargs)
        tensors = [each for each in flat(result) if isinstance(each, Tensor)]
        if not tensors:
            return result
        taken = each_of(self._argument, (args, kwargs))
        graph = self.recording.graph
        node = graph.create_node("call_function", func, taken[0], taken[1])
        node.meta["call"] = self.stack[-1] if self.stack else None
        node.meta["place"] = _place()
        if isinstance(result, Tensor):
            self._know(result, node)
        else:
            node.meta["val"] = each_of(_shape_of_any, result)
            self._parts(result, node)
        if not any(tensor.is_meta for tensor in tensors) and not self.real:
            node.meta["value"] = result
        return result

    def _argument(self, value: Any) -> Any:
        return self.node(value) if isinstance(value, Tensor) else value

    def _parts(self, result: Any, node: fx.Node) -> None:
        for place, each in enumerate(result):
            if isinstance(each, Tensor):
                part = self.recording.graph.create_node(
                    "call_function", operator.getitem, (node, place)
                )
                part.meta["place"] = node.meta["place"]
                part.meta["call"] = node.meta["call"]
                self._know(each, part)
            elif isinstance(each, (list, tuple)):
                part = self.recording.graph.create_node(
                    "call_function", operator.getitem, (node, place)
                )
                part.meta.update(node.meta, val=each_of(_shape_of_any, each))
                self._parts(each, part)

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator: with data on constants, without as soon as one operand has none."""
        with torch.inference_mode(False), torch.no_grad():
            if self.real:
                return func(*args, **kwargs)
            given = list(flat((args, kwargs)))
            tensors = [each for each in given if isinstance(each, Tensor)]
            written = func._schema.is_mutable and any(id(each) in self.named for each in tensors)
            if written or any(each.is_meta or id(each) in self.parameters for each in tensors):
                args, kwargs = each_of(self.twin, (args, kwargs))
                return self.dataless.run(func, args, kwargs)
            if any(_is_meta_device(each) for each in given):
                place = tensors[0].device if tensors else torch.device("cpu")
                args, kwargs = each_of(
                    lambda each: place if _is_meta_device(each) else each, (args, kwargs)
                )
            return func(*args, **kwargs)

    def twin(self, value: Any) -> Any:
        """Return a tensor of the same shape without data."""
        if _is_device(value):
            return torch.device("meta")
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        if value not in self.twins:
            self.twins[value] = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="meta"
            )
        return self.twins[value]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note which module calls what, for as long as the recording runs."""
        original = nn.Module.__call__

        def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self.paths.get(id(module))
            if path is None:
                return original(module, *args, **kwargs)
            parent = self.stack[-1] if self.stack else None
            entry = ModuleCall(path, type(module).__name__, parent)
            entry.inputs = each_of(self._known, (plain(args), plain(kwargs)))
            self.recording.calls.append(entry)
            self.stack.append(len(self.recording.calls) - 1)
            try:
                result = original(module, *args, **kwargs)
            except Exception as error:
                if self.failed is None or self.failed[0] is not error:
                    self.failed = (error, self.stack[-1])
                raise
            finally:
                self.stack.pop()
            entry.outputs = each_of(self._known, plain(result))
            return result

        nn.Module.__call__ = called  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = original  # type: ignore[method-assign]

    def _known(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.named:
            return self.nodes.get(value, value)
        # What the model holds may be handed to a module before any operator has read it.
        with _disable_current_modes():
            return self.node(value)


class _Mode(TorchDispatchMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.recorder.call(func, args, dict(kwargs or {}))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _names(model: nn.Module) -> dict[int, str]:
    """Name every tensor that the model's modules hold: parameters, buffers, plain attributes."""
    names: dict[int, str] = {}
    for path, module in model.named_modules():
        held: dict[str, Any] = {**module._parameters, **module._buffers, **vars(module)}
        for attribute, value in held.items():
            if isinstance(value, Tensor):
                names.setdefault(id(value), f"{path}.{attribute}" if path else attribute)
    return names


def _shape_only(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _shape_of_any(value: Any) -> Any:
    return _shape_only(value) if isinstance(value, Tensor) else value


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device)


def _is_meta_device(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == "meta"


def _place() -> str:
    """Return the line of code, outside torch and this file, that called the running operator."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _OWN)) and not file.startswith("<"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _raised_at(error: BaseException) -> str:
    """Return the last line outside torch and this file that an error came through."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((_TORCH, _OWN)):
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
