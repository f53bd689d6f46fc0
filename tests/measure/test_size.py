from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import SecateurError
from secateur.measure import file_bytes, pack, packed_bytes, unpack

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.uint8,
    torch.bool,
]


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Random bits, so that NaN payloads and signed zeros occur; bool holds 0 and 1 only."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    top = 2 if dtype == torch.bool else 256
    count = math.prod(shape) * size
    raw = torch.randint(0, top, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def random_mask(shape: tuple[int, ...], share: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def tensor_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    shapes,
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.integers(0, 2**20),
    st.booleans(),
)
def test_unpack_gives_the_kept_bits_back_and_zeros_elsewhere(shape, dtype, share, seed, turned):
    tensor, mask = random_tensor(shape, dtype, seed), random_mask(shape, share, seed + 1)
    if turned:  # a transposed view: not contiguous, and a mask that is not either
        axes = tuple(reversed(range(len(shape))))
        tensor, mask = tensor.permute(axes), mask.permute(axes)
    packed = pack({"w": tensor, "other": tensor}, {"w": mask})
    assert packed_bytes({"w": tensor, "other": tensor}, {"w": mask}) == tensor_bytes(packed)

    found = unpack(packed)
    assert list(found) == ["w", "other"]
    assert found["w"].dtype == dtype
    assert found["w"].shape == tensor.shape
    size = tensor.element_size()
    kept = mask.reshape(-1).repeat_interleave(size).tolist()
    assert bits(found["w"]) == [b if k else 0 for b, k in zip(bits(tensor), kept, strict=True)]
    assert bits(found["other"]) == bits(tensor)


@settings(max_examples=100, deadline=None)
@given(shapes, st.sampled_from(DTYPES), st.integers(0, 10), st.integers(0, 2**20))
def test_a_tensor_is_packed_exactly_where_that_is_smaller(shape, dtype, tenths, seed):
    tensor, mask = random_tensor(shape, dtype, seed), random_mask(shape, tenths / 10, seed)
    dense = tensor.numel() * tensor.element_size()
    packed = (
        int(mask.sum()) * tensor.element_size() + math.ceil(tensor.numel() / 8) + 8 * len(shape)
    )
    found = pack({"w": tensor}, {"w": mask})
    assert set(found) == ({"w:values", "w:mask", "w:shape"} if packed < dense else {"w"})
    assert packed_bytes({"w": tensor}, {"w": mask}) == min(packed, dense) == tensor_bytes(found)


def test_the_layout_is_the_documented_one():
    weight = torch.arange(1.0, 37.0).reshape(4, 9)
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[0, 0] = mask[0, 7] = mask[0, 8] = mask[3, 8] = True
    packed = pack({"w": weight}, {"w": mask})
    assert packed["w:values"].tolist() == [1.0, 8.0, 9.0, 36.0]
    assert packed["w:mask"].tolist() == [0b10000001, 0b00000001, 0, 0, 0b00001000]
    assert packed["w:mask"].dtype == torch.uint8
    assert packed["w:shape"].tolist() == [4, 9]
    assert packed["w:shape"].dtype == torch.int64


def test_a_tenth_of_a_large_layer_takes_about_a_tenth_and_one_bit_per_weight():
    weight, mask = torch.randn(512, 512), torch.zeros(512, 512, dtype=torch.bool)
    mask.view(-1)[::10] = True
    kept = int(mask.sum())
    assert packed_bytes({"w": weight}, {"w": mask}) == 4 * kept + 512 * 512 // 8 + 16


def test_the_inputs_stay_as_they_were():
    weight, mask = torch.ones(6, 6, requires_grad=True), torch.zeros(6, 6, dtype=torch.bool)
    mask[0, 0] = True
    packed = pack({"w": weight}, {"w": mask})
    packed["w:values"].zero_()
    assert not packed["w:values"].requires_grad
    assert torch.equal(weight, torch.ones(6, 6))
    assert int(mask.sum()) == 1


def test_a_packed_file_survives_safetensors(tmp_path):
    state = {"w": random_tensor((7, 11), torch.bfloat16, 3), "b": torch.randn(7)}
    packed = pack(state, {"w": random_mask((7, 11), 0.2, 4)})
    safetensors.torch.save_file(packed, tmp_path / "packed.safetensors")
    again = unpack(safetensors.torch.load_file(tmp_path / "packed.safetensors"))
    expected = unpack(packed)
    assert {name: bits(tensor) for name, tensor in again.items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }


@pytest.mark.parametrize(
    ("state", "masks", "words"),
    [
        ({"w": torch.ones(4)}, {"v": torch.ones(4, dtype=torch.bool)}, "no such tensor"),
        ({"w": torch.ones(4)}, {"w": torch.ones(4)}, "torch.bool"),
        ({"w": torch.ones(4)}, {"w": torch.ones(2, 2, dtype=torch.bool)}, r"\[2, 2\]"),
        ({"w:mask": torch.ones(4)}, {}, "rename"),
        ({"w": torch.ones(4, device="meta")}, {}, "convert"),
        ({"w": torch.eye(4).to_sparse()}, {}, "convert"),
    ],
)
@pytest.mark.parametrize("function", [pack, packed_bytes])
def test_what_cannot_be_packed_is_refused(function, state, masks, words):
    with pytest.raises(SecateurError, match=words) as caught:
        function(state, masks)
    assert "\n" not in str(caught.value)


def damaged(key: str, tensor: Tensor | None) -> dict[str, Tensor]:
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0, 1] = mask[2, 4] = True
    packed = pack({"w": torch.ones(3, 5)}, {"w": mask})
    packed.pop(key, None)
    return packed if tensor is None else {**packed, key: tensor}


@pytest.mark.parametrize(
    ("key", "tensor", "words"),
    [
        ("w:values", None, "'w:values' is missing"),
        ("w:mask", None, "'w:mask' is missing"),
        ("w:shape", None, "'w:shape' is missing"),
        ("w", torch.ones(3, 5), "both dense and packed"),
        ("w:mask", torch.tensor([2], dtype=torch.uint8), "2 bytes"),
        ("w:mask", torch.tensor([2, 64, 0], dtype=torch.uint8), "2 bytes"),
        ("w:mask", torch.tensor([2, 64]), "2 bytes"),
        ("w:mask", torch.tensor([[2, 64]], dtype=torch.uint8), "2 bytes"),
        ("w:mask", torch.tensor([2, 192], dtype=torch.uint8), "beyond the end"),
        ("w:mask", torch.tensor([3, 64], dtype=torch.uint8), "keeps 3 values, 2 are stored"),
        ("w:values", torch.ones(1), "keeps 2 values, 1 are stored"),
        ("w:values", torch.ones(2, 1), "keeps 2 values"),
        ("w:shape", torch.tensor([3, -5]), "below 1"),
        ("w:shape", torch.tensor([0, 2**62]), "below 1"),
        ("w:shape", torch.tensor([2**62, 2**62]), "bytes"),
        ("w:shape", torch.tensor([3.0, 5.0]), "int64"),
        ("w:shape", torch.tensor([[3, 5]]), "int64"),
        ("w:shape", torch.ones(100, dtype=torch.int64), "int64"),
    ],
)
def test_a_damaged_packed_tensor_is_an_error(key, tensor, words):
    with pytest.raises(SecateurError, match=words) as caught:
        unpack(damaged(key, tensor))
    assert "\n" not in str(caught.value)


def test_file_bytes_is_the_size_of_the_file(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path)
    assert file_bytes(tensors) == path.stat().st_size


def test_file_bytes_takes_shared_and_turned_tensors():
    weight = torch.randn(8, 4)
    separate = {"a": weight.clone(), "b": weight.clone(), "c": weight.t().contiguous()}
    shared = {"a": weight, "b": weight, "c": weight.t()}
    assert file_bytes(shared) == file_bytes(separate)
    assert file_bytes({"a": weight[:6], "b": weight[2:]}) == file_bytes(
        {"a": torch.ones(6, 4), "b": torch.ones(6, 4)}
    )


def test_file_bytes_says_what_it_cannot_store():
    with pytest.raises(SecateurError, match="complex128"):
        file_bytes({"a": torch.ones(2, dtype=torch.complex128)})
