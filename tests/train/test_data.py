from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, Subset

from secateur.errors import SecateurError
from secateur.train.data import Data, ImageDataset, collate, load_data


@cache
def _digits() -> Data:
    return load_data("digits")


def _batch(data: ImageDataset, epoch: int, indices: list[int]) -> torch.Tensor:
    data.set_epoch(epoch)
    return data.__getitems__(indices)[0]


def test_digits_are_all_there_once() -> None:
    data = _digits()
    bunch = load_digits()
    # 0..16 becomes 0..255 rounded, which 16/255 turns back.
    found = [
        (tuple((image.flatten().double() * 16 / 255).round().int().tolist()), label)
        for split in (data.train, data.valid)
        for image, label in zip(split.images, split.labels.tolist(), strict=True)
    ]
    known = [
        (tuple(row.astype(int).tolist()), int(label))
        for row, label in zip(bunch.data, bunch.target, strict=True)
    ]
    assert sorted(found) == sorted(known)
    assert (data.name, data.channels, data.size) == ("digits", 1, (8, 8))
    assert data.classes == tuple("0123456789")


def test_digits_are_divided_alike_whatever_the_seed() -> None:
    first, second = _digits(), load_data("digits", seed=7)
    assert first.digest == second.digest
    shares = torch.bincount(first.valid.labels) / torch.bincount(
        torch.cat([first.train.labels, first.valid.labels])
    )
    assert ((shares - 0.2).abs() < 0.005).all()


def test_images_are_normalised_by_the_training_split() -> None:
    data = _digits()
    plain = ImageDataset(data.train.images, data.train.labels, data.mean, data.std)
    images, labels = plain.__getitems__(range(len(plain)))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-3


def test_one_image_is_what_the_batch_holds() -> None:
    valid = _digits().valid
    images, labels = valid.__getitems__([5, 2])
    image, label = valid[2]
    assert torch.equal(image, images[1])
    assert label == labels[1]
    assert torch.equal(valid[-1][0], valid[len(valid) - 1][0])
    with pytest.raises(IndexError):
        valid[len(valid)]


@given(
    batch=st.lists(st.integers(0, 1437), min_size=1, max_size=20),
    at=st.integers(0, 19),
    epoch=st.integers(0, 50),
)
def test_augmentation_does_not_depend_on_the_batch(batch: list[int], at: int, epoch: int) -> None:
    train = _digits().train
    at %= len(batch)
    together = _batch(train, epoch, batch)[at]
    assert torch.equal(together, train[batch[at]][0])


def test_validation_images_are_never_augmented() -> None:
    data = _digits()
    rows = list(range(20))
    assert torch.equal(_batch(data.valid, 0, rows), _batch(data.valid, 1, rows))
    assert not torch.equal(_batch(data.train, 0, rows), _batch(data.train, 1, rows))


def test_workers_see_the_epoch_that_was_set() -> None:
    train = load_data("digits", limit=40).train
    alone = DataLoader(train, batch_size=16, collate_fn=collate)
    workers = DataLoader(
        train, batch_size=16, collate_fn=collate, num_workers=2, persistent_workers=True
    )
    seen = []
    for epoch in (0, 1):
        train.set_epoch(epoch)
        expected = torch.cat([images for images, _ in alone])
        assert torch.equal(torch.cat([images for images, _ in workers]), expected)
        seen.append(expected)
    assert not torch.equal(*seen)


def test_collate_also_takes_images_one_by_one() -> None:
    train = _digits().train
    train.set_epoch(0)
    whole = collate(train.__getitems__([3, 4, 5]))
    single = collate([train[3], train[4], train[5]])
    wrapped = next(iter(DataLoader(Subset(train, [3, 4, 5]), batch_size=3, collate_fn=collate)))
    for other in (single, wrapped):
        assert torch.equal(whole[0], other[0])
        assert torch.equal(whole[1], other[1])


def test_limit_keeps_the_proportions() -> None:
    data = load_data("digits", limit=100)
    assert len(data.train) == len(data.valid) == 100
    assert torch.bincount(data.train.labels).tolist() == [10] * 10
    assert data.digest != _digits().digest
    assert load_data("digits", limit=100).digest == data.digest
    assert load_data("digits", limit=100, seed=1).digest != data.digest
    assert len(load_data("digits", limit=10**6).train) == 1438


def test_size_scales_the_images() -> None:
    data = load_data("digits", size=16, limit=20)
    assert data.size == (16, 16)
    assert data.train[0][0].shape == (1, 16, 16)
    assert data.augment == "shifted at random by up to 2 px, zeros moving in"
    small = load_data("digits", limit=20).valid.images
    for scaled, image in zip(data.valid.images, small, strict=True):
        known = Image.fromarray(image[0].numpy()).resize((16, 16), Image.Resampling.BILINEAR)
        assert np.abs(scaled[0].numpy().astype(int) - np.asarray(known)).max() <= 1


def test_grey_is_repeated_to_three_channels() -> None:
    data = _digits()
    colour = data.with_channels(3)
    assert (colour.channels, len(colour.mean), len(colour.std)) == (3, 3, 3)
    grey = _batch(data.train, 4, [1, 9])
    assert torch.equal(_batch(colour.train, 4, [1, 9]), grey.expand(-1, 3, -1, -1))
    assert colour.with_channels(3) is colour
    with pytest.raises(SecateurError, match="has 3 channels, which cannot become 1"):
        colour.with_channels(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifar:there", "unknown data 'cifar:there': did you mean cifar10:DIR"),
        ("", "unknown data ''"),
        ("digits:there", "takes no folder"),
        ("cifar10", "write cifar10:DIR"),
        ("hf:", "write hf:NAME"),
        ("fashion-mnist:nowhere", "expects the unpacked file nowhere"),
        ("cifar10:nowhere", "expects the file nowhere"),
        ("imagefolder:nowhere", "nowhere does not exist"),
    ],
)
def test_specs_that_name_nothing(spec: str, message: str) -> None:
    with pytest.raises(SecateurError) as caught:
        load_data(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"size": 7}, {"size": 5000}, {"limit": 0}])
def test_sizes_and_limits_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(SecateurError, match="should be"):
        load_data("digits", **wrong)


@pytest.mark.parametrize(
    ("module", "spec", "extra"),
    [
        ("torchvision.datasets.mnist", "fashion-mnist:there", "vision"),
        ("torchvision.datasets", "cifar10:there", "vision"),
        ("datasets", "hf:there", "hf"),
    ],
)
def test_missing_library_names_the_extra(
    module: str, spec: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SecateurError) as caught:
        load_data(spec)
    assert f"pip install 'secateur[{extra}]'" in str(caught.value)


def test_data_describes_itself_in_json() -> None:
    data = _digits()
    described = {"mean": data.mean, "std": data.std, "classes": data.classes, "size": data.size}
    assert json.loads(json.dumps(described))["size"] == [8, 8]
    assert Path(data.name).name == data.name
