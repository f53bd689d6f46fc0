from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import networks
import pytest
import real_data
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.train.data import load_data
from secateur.train.models import load_weights
from secateur.train.sources import divide, stratified_order

labels_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60)


@given(labels=labels_lists, seed=st.integers(0, 100), share=st.floats(0, 1))
def test_every_prefix_is_stratified(labels: list[int], seed: int, share: float) -> None:
    order = stratified_order(torch.tensor(labels), seed).tolist()
    assert sorted(order) == list(range(len(labels)))
    taken = round(share * len(labels))
    for label in set(labels):
        expected = taken * labels.count(label) / len(labels)
        found = sum(labels[row] == label for row in order[:taken])
        # Rounding moves each class by at most a half, and all other classes push by as much.
        assert abs(found - expected) <= 0.5 + len(set(labels)) / 2


@given(labels=labels_lists, seed=st.integers(0, 100))
def test_division_holds_a_fifth_of_each_class_back(labels: list[int], seed: int) -> None:
    train, valid = (rows.tolist() for rows in divide(torch.tensor(labels), seed))
    assert sorted(train + valid) == list(range(len(labels)))
    assert (train, valid) == (sorted(train), sorted(valid))
    for label in set(labels):
        held_back = sum(labels[row] == label for row in valid)
        assert abs(held_back - labels.count(label) / 5) <= 0.5


def test_division_depends_on_the_seed() -> None:
    labels = torch.arange(100) % 4
    assert divide(labels, 0)[1].tolist() == divide(labels, 0)[1].tolist()
    assert divide(labels, 0)[1].tolist() != divide(labels, 1)[1].tolist()


def test_fashion_mnist(fashion_mnist_folder: Path) -> None:
    data = load_data(f"fashion-mnist:{fashion_mnist_folder}")
    assert (len(data.train), len(data.valid)) == (60000, 10000)
    assert (data.channels, data.size, len(data.classes)) == (1, (28, 28), 10)
    assert torch.bincount(data.train.labels).tolist() == [6000] * 10
    assert data.mean == pytest.approx((0.2860,), abs=1e-4)  # the constants that are published
    assert data.std == pytest.approx((0.3530,), abs=1e-4)
    images, labels = real_data.unpacker().load("fashion_mnist", "test", limit=50)
    assert torch.equal(data.valid.images[:50], torch.from_numpy(images).permute(0, 3, 1, 2))
    assert data.valid.labels[:50].tolist() == labels.tolist()
    assert "up to 3 px" in data.augment
    assert "mirrored" in data.augment


def _small_fashion(folder: Path) -> Path:
    real_data.unpack("fashion_mnist", "torchvision", folder, limit=30)
    return folder / "FashionMNIST" / "raw"


def test_fashion_mnist_cut_short(tmp_path: Path, shared_data: Path) -> None:
    images = _small_fashion(tmp_path) / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(SecateurError, match="damaged or cut short"):
        load_data(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0\0\x02\0", b"junk" * 40])
def test_fashion_mnist_with_odd_labels(tmp_path: Path, shared_data: Path, content: bytes) -> None:
    (_small_fashion(tmp_path) / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(SecateurError, match="fashion-mnist"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_fashion_mnist_with_fewer_labels_than_images(tmp_path: Path, shared_data: Path) -> None:
    raw = _small_fashion(tmp_path)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02\x01\x02")
    with pytest.raises(SecateurError, match="2 labels"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_fashion_mnist_file_over_the_cap(tmp_path: Path, shared_data: Path) -> None:
    with (_small_fashion(tmp_path) / "train-images-idx3-ubyte").open("r+b") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(SecateurError, match="over 64 MiB"):
        load_data(f"fashion-mnist:{tmp_path}")


def test_cifar10_and_its_reference_network(cifar10_folder: Path, resnet20_weights: Path) -> None:
    data = load_data(f"cifar10:{cifar10_folder}")
    assert (len(data.train), len(data.valid)) == (50000, 10000)
    assert (data.channels, data.size, data.classes[3]) == (3, (32, 32), "cat")
    assert torch.bincount(data.valid.labels).tolist() == [1000] * 10
    model = networks.resnet_cifar(20).eval()
    load_weights(model, resnet20_weights)
    images, labels = data.valid.__getitems__(range(500))
    with torch.inference_mode():
        accuracy = float((model(images).argmax(1) == labels).float().mean())
    assert accuracy > 0.88


class _Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.write_text, (self.path, "ran"))


def test_cifar10_files_that_are_not_official_are_never_unpickled(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    trace = tmp_path / "trace"
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (batches / name).write_bytes(pickle.dumps(_Harmful(trace)))
    with pytest.raises(SecateurError, match=r"data_batch_1 is not the official file"):
        load_data(f"cifar10:{tmp_path}")
    assert not trace.exists()


def test_cifar10_with_one_file_missing(tmp_path: Path, cifar10_folder: Path) -> None:
    shutil.copytree(
        cifar10_folder / "cifar-10-batches-py",
        tmp_path / "cifar-10-batches-py",
        copy_function=lambda source, target: Path(target).symlink_to(source),
    )
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(SecateurError, match=r"test_batch, which does not exist"):
        load_data(f"cifar10:{tmp_path}")
