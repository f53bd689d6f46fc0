"""The packed format: a masked tensor as the values it kept and one bit per place.

A tensor NAME with a mask is stored as three tensors, all on the CPU:

- ``NAME:values``: the kept values, one after the other in row-major order, in the tensor's dtype;
- ``NAME:mask``: uint8, one bit per place in row-major order, lowest bit first, 1 where kept;
  the bits beyond the last place are 0;
- ``NAME:shape``: int64, the tensor's shape.

Where these three take no fewer bytes than the dense tensor, NAME stays dense, with zeros where
the mask removed. Tensors without a mask stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from secateur.errors import SecateurError

_VALUES, _MASK, _SHAPE = ":values", ":mask", ":shape"
_PARTS = (_VALUES, _MASK, _SHAPE)
# More dimensions than this cannot come from a real network, only from a damaged file.
_MOST_DIMENSIONS = 64


def pack(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store each masked tensor in the fewest bytes: dense, or kept values and one bit per place.

    ``masks`` holds one bool tensor per masked name, of the tensor's shape, true where kept.
    Raises ``SecateurError`` for a mask that fits no tensor and for a name that the format uses.

    >>> weight = torch.tensor([[0.0, 1.5, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0]])
    >>> packed = pack({"weight": weight}, {"weight": weight != 0})
    >>> {name: tensor.tolist() for name, tensor in packed.items()}
    {'weight:values': [1.5, -2.0], 'weight:mask': [130], 'weight:shape': [2, 4]}
    """
    _check(state, masks)
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in masks:
            packed[name] = _plain(name, tensor)
            continue
        values, mask = _plain(name, tensor), _plain(name, masks[name])
        rows, kept = _rows(values), mask.reshape(-1)
        if _packs(tensor, int(kept.sum())):
            packed[name + _VALUES] = rows[kept].reshape(-1).view(tensor.dtype)
            packed[name + _MASK] = _to_bits(kept)
            packed[name + _SHAPE] = torch.tensor(tensor.shape, dtype=torch.int64)
        else:
            packed[name] = _from_rows(rows * kept[:, None], tensor.dtype, tuple(tensor.shape))
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dense tensors of ``pack``: kept values bit for bit, zeros where removed.

    Raises ``SecateurError`` where a part is missing or the parts disagree.

    >>> weight = torch.tensor([0.0, 1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    >>> torch.equal(unpack(pack({"w": weight}, {"w": weight != 0}))["w"], weight)
    True
    """
    state: dict[str, Tensor] = {}
    for key, tensor in packed.items():
        name, part = _split(key)
        if part is None:
            if any(key + other in packed for other in _PARTS):
                raise _corrupt(name, "it is stored both dense and packed")
            state[key] = tensor
        elif name not in state:
            missing = [name + other for other in _PARTS if name + other not in packed]
            if missing:
                raise _corrupt(name, f"'{missing[0]}' is missing")
            state[name] = _unpacked(name, *(packed[name + other].cpu() for other in _PARTS))
    return state


def packed_bytes(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> int:
    """Count the bytes of the tensors that ``pack`` returns, without building them.

    A packed tensor takes ``kept * itemsize + ceil(n / 8) + 8 * dimensions`` bytes. Raises as
    ``pack`` does.

    >>> packed_bytes({"w": torch.ones(100)}, {"w": torch.arange(100) < 10})
    61
    """
    _check(state, masks)
    total = 0
    for name, tensor in state.items():
        kept = int(masks[name].sum()) if name in masks else tensor.numel()
        packs = name in masks and _packs(tensor, kept)
        total += _packed_size(tensor, kept) if packs else _dense_size(tensor)
    return total


def file_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size in bytes of the safetensors file of these tensors, its header included.

    Tensors that share memory are each counted whole. Raises ``SecateurError`` for what
    safetensors cannot store.

    >>> file_bytes({"weight": torch.zeros(1000)}) - 4 * 1000 < 100
    True
    """
    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = _plain(name, tensor)
        storage = plain.untyped_storage().data_ptr()
        own[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    try:
        return len(safetensors.torch.save(own))
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        dtypes = sorted({str(tensor.dtype) for tensor in own.values()})
        raise SecateurError(
            f"safetensors cannot store these tensors ({', '.join(dtypes)}): {error}"
        ) from error


def _check(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, tensor in state.items():
        _check_plain(name, tensor)
        if _split(name)[1] is not None:
            raise SecateurError(
                f"the tensor name '{name}' ends in '{_split(name)[1]}', which the packed format "
                "uses itself; rename the tensor"
            )
    for name, mask in masks.items():
        if name not in state:
            raise SecateurError(f"there is a mask for '{name}' but no such tensor; drop the mask")
        if mask.dtype != torch.bool:
            raise SecateurError(
                f"the mask of '{name}' is {mask.dtype}; give torch.bool, true where kept"
            )
        if mask.shape != state[name].shape:
            raise SecateurError(
                f"the mask of '{name}' has shape {list(mask.shape)}, "
                f"its tensor {list(state[name].shape)}; give one bool per weight"
            )


def _check_plain(name: str, tensor: Tensor) -> None:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise SecateurError(f"'{name}' is not a plain dense tensor with values; convert it first")


def _plain(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor's values as they are, row-major on the CPU."""
    _check_plain(name, tensor)
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _dense_size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _packed_size(tensor: Tensor, kept: int) -> int:
    return kept * tensor.element_size() + math.ceil(tensor.numel() / 8) + 8 * tensor.dim()


def _packs(tensor: Tensor, kept: int) -> bool:
    return _packed_size(tensor, kept) < _dense_size(tensor)


def _rows(tensor: Tensor) -> Tensor:
    """View a contiguous tensor as one row of bytes per value.

    Bytes keep every bit (signed zeros, NaN payloads) and exist for every dtype.
    """
    return tensor.reshape(-1).view(torch.uint8).reshape(tensor.numel(), tensor.element_size())


def _from_rows(rows: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return rows.reshape(-1).view(dtype).reshape(shape)


def _to_bits(kept: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(kept.numpy(), bitorder="little"))


def _split(key: str) -> tuple[str, str | None]:
    for part in _PARTS:
        if key.endswith(part):
            return key[: -len(part)], part
    return key, None


def _unpacked(name: str, values: Tensor, mask: Tensor, shape: Tensor) -> Tensor:
    sizes = _read_shape(name, shape)
    count = math.prod(sizes)
    if mask.dtype != torch.uint8 or mask.dim() != 1 or mask.numel() != math.ceil(count / 8):
        raise _corrupt(
            name, f"its mask should be {math.ceil(count / 8)} bytes for the shape {sizes}"
        )
    bits = torch.from_numpy(np.unpackbits(mask.contiguous().numpy(), bitorder="little")).bool()
    if bool(bits[count:].any()):
        raise _corrupt(name, "its mask keeps places beyond the end of the tensor")
    kept = bits[:count]
    if values.dim() != 1 or values.numel() != int(kept.sum()):
        raise _corrupt(
            name, f"its mask keeps {int(kept.sum())} values, {values.numel()} are stored"
        )
    rows = torch.zeros(count, values.element_size(), dtype=torch.uint8)
    rows[kept] = _rows(values.contiguous())
    return _from_rows(rows, values.dtype, tuple(sizes))


def _read_shape(name: str, shape: Tensor) -> list[int]:
    if shape.dtype != torch.int64 or shape.dim() != 1 or shape.numel() > _MOST_DIMENSIONS:
        raise _corrupt(name, "its shape is not a short list of int64")
    sizes: list[int] = shape.tolist()
    if any(size < 1 for size in sizes):
        raise _corrupt(name, f"its shape {sizes} has a size below 1")
    return sizes


def _corrupt(name: str, reason: str) -> SecateurError:
    return SecateurError(f"the packed tensor '{name}' is damaged: {reason}; write the file again")
