from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from secateur.errors import SecateurError
from secateur.train import images as images_module
from secateur.train.data import load_data

datasets = pytest.importorskip("datasets", reason="needs the extra hf")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the library stores in the test's folder, and keep it off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def _png(image: torch.Tensor) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(buffer, format="png")
    return {"bytes": buffer.getvalue(), "path": None}


def _write(folder: Path, splits: dict[str, dict[str, list[Any]]], **kinds: Any) -> str:
    """Write columns as parquet, one file per split, and return the spec."""
    folder.mkdir(exist_ok=True)
    features = datasets.Features({"image": datasets.Image(), **kinds})
    for name, columns in splits.items():
        part = datasets.Dataset.from_dict(columns, features=features)
        part.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return f"hf:{folder}"


def _columns(split: Any, count: int) -> dict[str, list[Any]]:
    images = [_png(image) for image in split.images[:count]]
    return {"image": images, "label": split.labels[:count].tolist()}


def _digits(count: int = 60) -> dict[str, dict[str, list[Any]]]:
    digits = load_data("digits", limit=count)
    return {"train": _columns(digits.train, count), "test": _columns(digits.valid, count)}


def _label(names: int = 10) -> Any:
    return datasets.ClassLabel(names=[f"number {i}" for i in range(names)])


def test_local_parquet_with_a_class_label(tmp_path: Path) -> None:
    spec = _write(tmp_path / "numbers", _digits(), label=_label())
    data = load_data(spec)
    digits = load_data("digits", limit=60)
    assert data.name == "hf:numbers"
    assert data.classes[3] == "number 3"
    assert (data.channels, data.size) == (3, (8, 8))
    for split, known in ((data.train, digits.train), (data.valid, digits.valid)):
        assert torch.equal(split.images, known.images.expand(-1, 3, -1, -1))
        assert torch.equal(split.labels, known.labels)
    assert len(load_data(spec, limit=20).train) == 20


def test_integers_are_ranked_into_classes(tmp_path: Path) -> None:
    splits = _digits()
    for columns in splits.values():
        columns["answer"] = [10 * label + 5 for label in columns.pop("label")]
    data = load_data(_write(tmp_path / "x", splits, answer=datasets.Value("int32")))
    assert data.classes == tuple(str(10 * i + 5) for i in range(10))
    assert torch.equal(data.train.labels, load_data("digits", limit=60).train.labels)


def test_train_alone_is_divided(tmp_path: Path) -> None:
    data = load_data(_write(tmp_path / "x", {"train": _digits(100)["train"]}, label=_label()))
    assert (len(data.train), len(data.valid)) == (80, 20)


def test_local_image_files(tmp_path: Path) -> None:
    digits = load_data("digits", limit=40)
    folder = tmp_path / "x"
    for name, split in (("train", digits.train), ("test", digits.valid)):
        for row, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            (folder / name / f"c{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / name / f"c{label}" / f"{row:02}.png")
    data = load_data(f"hf:{folder}")
    assert data.classes == tuple(f"c{i}" for i in range(10))
    assert torch.bincount(data.train.labels).tolist() == [4] * 10
    assert data.size == (8, 8)


def test_images_that_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _write(tmp_path / "x", _digits(), label=_label())
    held = load_data(spec)
    monkeypatch.setattr(images_module, "IN_MEMORY", 100)
    lazy = load_data(spec)
    assert torch.equal(held.valid.__getitems__([7, 1])[0], lazy.valid.__getitems__([7, 1])[0])


def _refused(spec: str) -> str:
    with pytest.raises(SecateurError) as caught:
        load_data(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_no_label_column(tmp_path: Path) -> None:
    splits = _digits(20)
    for columns in splits.values():
        columns["caption"] = [str(label) for label in columns.pop("label")]
    message = _refused(_write(tmp_path / "x", splits, caption=datasets.Value("string")))
    assert "its columns are image (Image), caption (Value)" in message


def test_several_label_columns_need_one_called_label(tmp_path: Path) -> None:
    splits = _digits(20)
    for columns in splits.values():
        columns["coarse"] = [0] * len(columns["label"])
    kinds = {"label": _label(), "coarse": datasets.ClassLabel(names=["a", "b"])}
    assert len(load_data(_write(tmp_path / "x", splits, **kinds)).classes) == 10
    for columns in splits.values():
        columns["fine"] = columns.pop("label")
    kinds["fine"] = kinds.pop("label")
    assert "fine (ClassLabel)" in _refused(_write(tmp_path / "y", splits, **kinds))


def test_unlabelled_test_split(tmp_path: Path) -> None:
    splits = _digits(20)
    splits["test"]["label"] = [-1] * 20
    message = _refused(_write(tmp_path / "x", splits, label=_label()))
    assert "no class of train (-1)" in message


def test_missing_labels(tmp_path: Path) -> None:
    splits = _digits(20)
    splits["train"]["label"][4] = None
    assert "rows without a label" in _refused(_write(tmp_path / "x", splits, label=_label()))


def test_missing_and_broken_images(tmp_path: Path) -> None:
    splits = _digits(20)
    splits["train"]["image"][4] = None
    assert "row 4 of train" in _refused(_write(tmp_path / "x", splits, label=_label()))
    splits["train"]["image"][4] = {"bytes": b"no image", "path": None}
    message = _refused(_write(tmp_path / "y", splits, label=_label()))
    assert "1 of 40 images" in message
    assert "row 4 of train" in message


def test_paths_that_lead_out_of_the_data_set(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    splits = _digits(20)
    splits["train"]["image"][4] = {"bytes": None, "path": str(outside)}
    spec = _write(tmp_path / "x", splits, label=_label())
    cells = datasets.load_dataset(str(tmp_path / "x"))["train"].cast_column(
        "image", datasets.Image(decode=False)
    )
    if cells[4]["image"]["bytes"] is not None:
        pytest.skip("this version of datasets embeds the files that it writes")
    assert "out of the data set" in _refused(spec)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert "cannot be loaded" in _refused(f"hf:{tmp_path / 'x'}")
    assert "cannot be loaded" in _refused(f"hf:{tmp_path / 'nowhere'}")


def test_hub_name_without_the_network() -> None:
    assert "hf:nobody/nothing cannot be loaded" in _refused("hf:nobody/nothing")
