from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from secateur.train.augment import Augment, random_bits

_MASK = 2**64 - 1


def _split_mix(seed: int, epoch: int, index: int) -> int:
    """The same mixing with Python's own integers, one image at a time."""
    state = 0
    for word in (seed, epoch, index):
        state = (state + word + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


@given(
    seed=st.integers(-(2**70), 2**70),
    epoch=st.integers(0, 10_000),
    indices=st.lists(st.integers(0, 2**40), min_size=1, max_size=5),
)
def test_random_bits_are_split_mix(seed: int, epoch: int, indices: list[int]) -> None:
    found = random_bits(seed, epoch, torch.tensor(indices)).tolist()
    assert found == [_split_mix(seed & _MASK, epoch, index) for index in indices]


def test_first_output_is_the_published_one() -> None:
    # SplitMix64 seeded with 0 starts with 0xE220A8397B1DCDAF; one word alone is that first step.
    state = 0x9E3779B97F4A7C15
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    assert state ^ (state >> 31) == 0xE220A8397B1DCDAF


def _variants(image: torch.Tensor, shift: tuple[int, int]) -> dict[tuple[int, int, bool], bytes]:
    """Every way to mirror an image and then cut a window out of it after zero padding."""
    rows, columns = shift
    height, width = image.shape[1:]
    found = {}
    for flip in (False, True):
        padded = F.pad(image.flip(2) if flip else image, (columns, columns, rows, rows))
        for down in range(2 * rows + 1):
            for across in range(2 * columns + 1):
                window = padded[:, down : down + height, across : across + width]
                found[down, across, flip] = window.contiguous().numpy().tobytes()
    return found


def test_augmented_images_are_padded_windows_and_all_of_them_occur() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 256, (3, 9, 6), dtype=torch.uint8)
    variants = _variants(image, (2, 1))
    assert len(set(variants.values())) == 5 * 3 * 2
    count = 6000
    batch = image.expand(count, -1, -1, -1)
    found = Augment((2, 1), flip=True, seed=3)(batch, torch.arange(count), epoch=1)
    assert found.dtype == torch.uint8
    counts = dict.fromkeys(variants.values(), 0)
    for one in found:
        counts[one.numpy().tobytes()] += 1
    # 200 are expected of each; six standard deviations are 84.
    assert all(116 <= seen <= 284 for seen in counts.values())


def test_without_flip_nothing_is_mirrored() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 8, 8)
    plain = {key: value for key, value in _variants(image, (1, 1)).items() if not key[2]}
    found = Augment((1, 1), flip=False, seed=0)(
        image.expand(200, -1, -1, -1), torch.arange(200), epoch=0
    )
    assert {one.numpy().tobytes() for one in found} == set(plain.values())


def test_seed_epoch_and_index_each_matter() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).reshape(1, 1, 8, 8).expand(64, -1, -1, -1)
    indices = torch.arange(64)
    first = Augment((1, 1), flip=True, seed=0)(image, indices, epoch=0)
    assert not torch.equal(first, Augment((1, 1), flip=True, seed=1)(image, indices, epoch=0))
    assert not torch.equal(first, Augment((1, 1), flip=True, seed=0)(image, indices, epoch=1))
    assert not torch.equal(first, Augment((1, 1), flip=True, seed=0)(image, indices + 64, epoch=0))
