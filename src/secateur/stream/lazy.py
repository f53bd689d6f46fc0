"""Models without memory for their parameters, and blocks that get theirs for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.stream.blocks import Calls
from secateur.stream.files import Stored


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model whose parameters lie on the meta device; buffers hold what the code computes.

    It is in eval mode, and keeps no cache of what it was given.
    """
    with init_empty_weights(include_buffers=False):
        model = build()
    if not isinstance(model, nn.Module):
        raise SecateurError(f"build returns a {type(model).__name__}: expected an nn.Module")
    bare(model)
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "use_cache"):
        config.use_cache = False
    return model.eval()


def bare(module: nn.Module) -> None:
    """Take the memory of all parameters away."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and not parameter.is_meta:
                part._parameters[name] = nn.Parameter(
                    torch.empty_like(parameter, device="meta"), parameter.requires_grad
                )


@dataclass(frozen=True)
class Source:
    """Where a model's tensors are stored, by the model's names, and what they become in memory."""

    weights: Mapping[str, Stored]
    keys: Mapping[str, str]
    dtype: torch.dtype | None
    device: torch.device

    @classmethod
    def of(
        cls,
        model: nn.Module,
        weights: Mapping[str, Stored],
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> Source:
        """Match the names of a model's tensors to stored ones, with or without a first part.

        A checkpoint of the model beneath a head lacks that part, one of a whole model has it.
        """
        names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
        firsts = sorted({f"{name.partition('.')[0]}." for name in (*names, *weights)})
        ways = [{name: name for name in names}]
        ways += [{name: name.removeprefix(first) for name in names} for first in firsts]
        ways += [{name: f"{first}{name}" for name in names} for first in firsts]
        keys = max(ways, key=lambda way: sum(key in weights for key in way.values()))
        own = {name: key for name, key in keys.items() if key in weights}
        own |= {name: name for name in names if name in weights}
        if not own:
            raise SecateurError(
                f"{type(model).__name__} has none of the tensors that are stored: build another "
                "architecture, or name another source"
            )
        return cls(weights, own, dtype, device)

    def take(self, name: str, like: Tensor) -> Tensor:
        """Read a tensor; raise SecateurError where it is not stored or has another shape."""
        if name not in self.keys:
            raise SecateurError(f"{name} is not among the stored tensors")
        stored = self.weights[self.keys[name]]
        if stored.shape != tuple(like.shape):
            raise SecateurError(
                f"{name} is stored as {list(stored.shape)}, and the model has {list(like.shape)}"
            )
        return self.convert(stored.read())

    def convert(self, tensor: Tensor) -> Tensor:
        """Bring a tensor to the device, and a floating one to the dtype."""
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype)

    def converted(self, value: Any) -> Any:
        """Convert every tensor in what a block is given."""
        if isinstance(value, Tensor):
            return self.convert(value)
        if isinstance(value, Calls):
            return replace(value, arguments=self.converted(value.arguments))
        if isinstance(value, dict):
            return {key: self.converted(part) for key, part in value.items()}
        if type(value) in (tuple, list):
            return type(value)(self.converted(part) for part in value)
        return value

    def stored_again(self, block: nn.Module, prefix: str) -> dict[str, Tensor | Stored]:
        """Return a block's tensors as they are now, by their stored names and in their dtype."""
        now = {**dict(block.named_parameters()), **dict(block.named_buffers())}
        found: dict[str, Tensor | Stored] = {}
        for name, tensor in now.items():
            if prefix + name in self.keys:
                key = self.keys[prefix + name]
                found[key] = tensor.detach().to("cpu", self.weights[key].dtype)
        return found

    def outside(self, prefix: str) -> dict[str, Tensor | Stored]:
        """Return everything that is stored and belongs to no block."""
        inside = {key for name, key in self.keys.items() if name.startswith(prefix)}
        return {key: stored for key, stored in self.weights.items() if key not in inside}

    @contextlib.contextmanager
    def lending(self, model: nn.Module, blocks: str) -> Iterator[None]:
        """Let all that lies outside of the blocks use the stored tensors in place."""
        lent = []
        for path, module in model.named_modules():
            for own in module._parameters:
                name = f"{path}.{own}" if path else own
                if name in self.keys and not name.startswith(f"{blocks}."):
                    lent.append((module, own, module._parameters[own]))
                    mapped = self.weights[self.keys[name]].mapped()
                    module._parameters[own] = nn.Parameter(mapped, requires_grad=False)
        try:
            yield
        finally:
            for module, own, before in lent:
                module._parameters[own] = before


def fill(block: nn.Module, source: Source, prefix: str) -> None:
    """Read a block's parameters and stored buffers into memory."""
    for path, module in block.named_modules():
        start = f"{prefix}{path}." if path else prefix
        for own, parameter in module._parameters.items():
            if parameter is not None:
                values = source.take(start + own, parameter)
                module._parameters[own] = nn.Parameter(values, parameter.requires_grad)
        for own, buffer in module._buffers.items():
            if buffer is not None:
                known = start + own in source.keys
                module._buffers[own] = (
                    source.take(start + own, buffer) if known else buffer.to(source.device)
                )
