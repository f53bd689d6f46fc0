from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import real_data
import torch
from PIL import Image

from secateur.errors import SecateurError
from secateur.train.data import load_data


def _fill(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 5) -> Path:
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (40 * label + index, 100, 200 - index)
            Image.new("RGB", (10, 12), colour).save(folder / name / f"{index}.png")
    return folder


def _refused(folder: Path) -> str:
    with pytest.raises(SecateurError) as caught:
        load_data(f"imagefolder:{folder}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_real_images_with_a_test_folder(image_folder: Path) -> None:
    data = load_data(f"imagefolder:{image_folder}")
    assert (len(data.train), len(data.valid)) == (1000, 1000)
    assert (data.channels, data.size) == (3, (32, 32))
    assert data.classes == real_data.unpacker().CLASSES["cifar10"]
    pixels, labels = real_data.unpacker().load("cifar10", "test", limit=1000)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    # Within a class the files keep the order of the set.
    order = torch.from_numpy(labels).argsort(stable=True)
    assert torch.equal(data.valid.labels, torch.from_numpy(labels)[order])
    assert torch.equal(data.valid.images, expected[order])


def test_real_images_with_one_broken(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    whole = (folder / "train" / "cat" / "00003.png").read_bytes()
    (folder / "train" / "cat" / "00003.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "dog" / "00007.png").write_bytes(b"no image at all")
    message = _refused(folder)
    assert message.startswith(f"2 of 2000 images in {folder} cannot be read")
    assert "train/cat/00003.png" in message


def test_folder_without_splits_is_divided(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "pets", count=10)
    data = load_data(f"imagefolder:{folder}", seed=3)
    assert torch.bincount(data.train.labels).tolist() == [8, 8]
    assert torch.bincount(data.valid.labels).tolist() == [2, 2]
    assert (data.name, data.size) == ("imagefolder:pets", (12, 10))
    assert data.digest == load_data(f"imagefolder:{folder}", seed=3).digest
    assert data.digest != load_data(f"imagefolder:{folder}", seed=4).digest


def test_class_that_is_called_train(tmp_path: Path) -> None:
    data = load_data(f"imagefolder:{_fill(tmp_path / 'x', ('bus', 'train'))}")
    assert data.classes == ("bus", "train")


def test_other_files_and_hidden_folders_are_left_aside(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "x")
    (folder / "README.md").write_text("about")
    (folder / ".cache").mkdir()
    (folder / "cat" / "notes.txt").write_text("about")
    (folder / "cat" / ".hidden.png").write_text("about")
    data = load_data(f"imagefolder:{folder}")
    assert len(data.train) + len(data.valid) == 10


@pytest.mark.parametrize("held_out", ["valid", "val", "test"])
def test_names_of_the_validation_folder(tmp_path: Path, held_out: str) -> None:
    _fill(tmp_path / "x" / "train")
    _fill(tmp_path / "x" / held_out, count=2)
    assert len(load_data(f"imagefolder:{tmp_path / 'x'}").valid) == 4


def test_train_alone(tmp_path: Path) -> None:
    _fill(tmp_path / "x" / "train")
    assert f"imagefolder:{tmp_path / 'x' / 'train'}" in _refused(tmp_path / "x")


def test_classes_that_differ(tmp_path: Path) -> None:
    _fill(tmp_path / "x" / "train", ("cat", "dog"))
    _fill(tmp_path / "x" / "valid", ("cat", "fox"))
    message = _refused(tmp_path / "x")
    assert "dog only in train" in message
    assert "fox only in valid" in message


def test_empty_folder(tmp_path: Path) -> None:
    assert "expects a folder per class" in _refused(tmp_path)


def test_one_class_only(tmp_path: Path) -> None:
    assert "at least two, but found 1" in _refused(_fill(tmp_path / "x", ("cat",)))


def test_class_without_images(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "x")
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").write_text("none yet")
    assert f"{folder / 'emu'} holds no images" in _refused(folder)


def test_too_few_images_to_divide(tmp_path: Path) -> None:
    assert "too few images" in _refused(_fill(tmp_path / "x", count=1))


def test_folder_inside_a_class(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "x")
    (folder / "cat" / "more").mkdir()
    assert f"{folder / 'cat' / 'more'} is a folder inside a class" in _refused(folder)


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    Image.new("RGB", (10, 12)).save(outside)
    folder = _fill(tmp_path / "x")
    link = folder / "cat" / "z.png"
    link.symlink_to(outside)
    assert f"{link} is a link that leads out" in _refused(folder)


def test_linked_class_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    _fill(tmp_path / "other")
    folder = _fill(tmp_path / "x")
    (folder / "emu").symlink_to(tmp_path / "other" / "cat")
    assert f"{folder / 'emu'} is a link that leads out" in _refused(folder)


def test_links_within_and_a_linked_root_are_fine(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "x")
    (folder / "cat" / "z.png").symlink_to(folder / "cat" / "0.png")
    (tmp_path / "y").symlink_to(folder)
    data = load_data(f"imagefolder:{tmp_path / 'y'}")
    assert len(data.train) + len(data.valid) == 11


def test_dangling_link(tmp_path: Path) -> None:
    folder = _fill(tmp_path / "x")
    (folder / "cat" / "z.png").symlink_to(folder / "cat" / "gone.png")
    assert "z.png is not a file" in _refused(folder)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("")
    assert "does not exist" in _refused(tmp_path / "x.png") or "is a file" in _refused(
        tmp_path / "x.png"
    )
