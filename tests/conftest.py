"""Fixtures that all tests share."""

from __future__ import annotations

import os

# The tests run side by side; threads that wait for each other on two cores take a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import real_data


def _needed(part: str) -> Path:
    if reason := real_data.missing(part):
        pytest.skip(reason)
    return real_data.SHARED / part


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images."""
    _needed("unpack.py")
    return real_data.SHARED


def _unpacked(
    factory: pytest.TempPathFactory, name: str, layout: str, limit: int | None = None
) -> Iterator[Path]:
    _needed("unpack.py")
    _needed(name)
    folder = factory.mktemp(name)
    yield real_data.unpack(name, layout, folder, limit)
    # pytest keeps the temporary folders of three runs; these are too large for that.
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cifar10_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """CIFAR-10, whole, for `cifar10:DIR`."""
    yield from _unpacked(tmp_path_factory, "cifar10", "torchvision")


@pytest.fixture(scope="session")
def fashion_mnist_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Fashion-MNIST, whole, for `fashion-mnist:DIR`."""
    yield from _unpacked(tmp_path_factory, "fashion_mnist", "torchvision")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The first 1000 images of CIFAR-10's two splits as PNG, for `imagefolder:DIR`; read only."""
    yield from _unpacked(tmp_path_factory, "cifar10", "imagefolder", limit=1000)


@pytest.fixture(scope="session")
def resnet20_weights() -> Path:
    """Weights of `networks.resnet_cifar(20)` trained on CIFAR-10."""
    return _needed("weights/resnet20_cifar10.safetensors")
