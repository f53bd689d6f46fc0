from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.errors import SecateurError
from secateur.train import images as module
from secateur.train.data import load_data
from secateur.train.folders import Files
from secateur.train.images import LazyImages, read_images


def _files(folder: Path, *names: str) -> Files:
    return Files(folder, names)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and ends there."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    parts = [struct.pack(">I", 13), chunk, struct.pack(">I", zlib.crc32(chunk))]
    parts += [struct.pack(">I", 0), end, struct.pack(">I", zlib.crc32(end))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_common_small_size_is_kept(tmp_path: Path) -> None:
    for index in range(2):
        Image.fromarray(_noise(20, 96, index)).save(tmp_path / f"{index}.png")
    (found,) = read_images([_files(tmp_path, "0.png", "1.png")], None)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.uint8
    assert torch.equal(found[1], torch.from_numpy(_noise(20, 96, 1)).permute(2, 0, 1))


@pytest.mark.parametrize("second", [(20, 21), (100, 100)])
def test_other_sizes_become_224(tmp_path: Path, second: tuple[int, int]) -> None:
    Image.fromarray(_noise(*second)).save(tmp_path / "0.png")
    Image.fromarray(_noise(*second[::-1])).save(tmp_path / "1.png")
    (found,) = read_images([_files(tmp_path, "0.png", "1.png")], None)
    assert found.shape == (2, 3, 224, 224)


def test_wide_images_are_cropped_at_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 16:32] = 200
    Image.fromarray(pixels).save(tmp_path / "0.png")
    (found,) = read_images([_files(tmp_path, "0.png")], 8)
    # At the edges the filter reaches a little beyond the window.
    assert found[torch.tensor([0])][..., 1:-1].eq(200).all()
    assert found[torch.tensor([0])].gt(150).all()


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (9, 9), (255, 255, 255)).convert(mode).save(tmp_path / "0.png")
    (found,) = read_images([_files(tmp_path, "0.png")], None)
    assert found[torch.tensor([0])].eq(255).all()


def test_sixteen_bit_greys_keep_their_upper_bits(tmp_path: Path) -> None:
    values = np.array([[0, 300], [25_700, 65_535]], np.uint16).repeat(4, 0).repeat(4, 1)
    Image.fromarray(values).save(tmp_path / "0.png")
    (found,) = read_images([_files(tmp_path, "0.png")], None)
    expected = torch.from_numpy((values >> 8).astype(np.uint8))
    assert torch.equal(found[torch.tensor([0])][0], expected.expand(3, -1, -1))


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    Image.fromarray(pixels).save(tmp_path / "0.png", exif=exif)
    (found,) = read_images([_files(tmp_path, "0.png")], None)
    assert torch.equal(found[torch.tensor([0])][0, 0], torch.from_numpy(pixels[::-1, :, 0].copy()))


def test_large_jpeg_scales_as_a_full_decode_does(tmp_path: Path) -> None:
    y, x = np.mgrid[:600, :600]
    pixels = np.stack([x * 255 // 599, y * 255 // 599, (x + y) * 255 // 1198], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.jpg", quality=95)
    (found,) = read_images([_files(tmp_path, "0.jpg")], 64)
    with Image.open(tmp_path / "0.jpg") as image:
        slow = np.asarray(image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))
    difference = found[torch.tensor([0])][0].permute(1, 2, 0).int() - torch.from_numpy(slow.copy())
    assert float(difference.abs().float().mean()) < 2


def test_file_over_the_cap(tmp_path: Path) -> None:
    with (tmp_path / "0.png").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(SecateurError, match=r"0\.png has 65 MiB; at most 64"):
        read_images([_files(tmp_path, "0.png")], None)


@pytest.mark.filterwarnings("ignore")
def test_image_over_the_cap(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(_png_header(11_000, 11_000))
    with pytest.raises(SecateurError, match=r"0\.png has 121 megapixels; at most 100"):
        read_images([_files(tmp_path, "0.png")], None)


def test_decompression_bomb(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(_png_header(1_000_000, 1_000_000))
    with pytest.raises(SecateurError, match=r"0\.png"):
        read_images([_files(tmp_path, "0.png")], None)


def test_formats_that_start_programs_are_not_opened(tmp_path: Path) -> None:
    Image.fromarray(_noise(9, 9)).save(tmp_path / "0.eps")
    (tmp_path / "0.eps").rename(tmp_path / "0.png")
    with pytest.raises(SecateurError, match="not an image in a format that is read: BMP"):
        read_images([_files(tmp_path, "0.png")], None)


def test_every_broken_image_is_counted(tmp_path: Path) -> None:
    Image.fromarray(_noise(30, 30)).save(tmp_path / "good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((30, 30), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(SecateurError, match=r"3 of 4 images .* the first is cut\.png"):
        read_images([_files(tmp_path, "good.png", "cut.png", "empty.png", "float.tiff")], None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, suffix: str) -> None:
    buffer = io.BytesIO()
    kind = {"jpg": "jpeg"}.get(suffix, suffix)
    Image.fromarray(_noise(24, 24)).save(buffer, format=kind)
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(40):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 12)] = random.integers(0, 256, 12)
        (tmp_path / "0").write_bytes(damaged.tobytes())
        try:
            read_images([_files(tmp_path, "0")], 24)
        except SecateurError:
            refused += 1
    assert refused > 0


def test_what_does_not_fit_in_memory_is_decoded_when_asked_for(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = load_data(f"imagefolder:{image_folder}", limit=60)
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    lazy = load_data(f"imagefolder:{image_folder}", limit=60)
    assert isinstance(lazy.train.images, LazyImages)
    assert (held.mean, held.std) == (lazy.mean, lazy.std)
    rows = [3, 50, 3]
    for one, other in ((held.train, lazy.train), (held.valid, lazy.valid)):
        one.set_epoch(2)
        other.set_epoch(2)
        assert torch.equal(one.__getitems__(rows)[0], other.__getitems__(rows)[0])
    assert lazy.digest == load_data(f"imagefolder:{image_folder}", limit=60).digest
    assert lazy.digest != load_data(f"imagefolder:{image_folder}", limit=60, seed=1).digest


def test_image_that_breaks_later_is_named_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        Image.fromarray(_noise(16, 16, index)).save(tmp_path / f"{index}.png")
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    (lazy,) = read_images([_files(tmp_path, "0.png", "1.png", "2.png")], None)
    assert lazy[torch.tensor([0, 2])].shape == (2, 3, 16, 16)
    with pytest.raises(SecateurError, match=r"1 of 2 images .* 1\.png"):
        lazy[torch.tensor([0, 1])]


def test_broken_header_is_found_at_once_even_if_images_stay_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(_noise(16, 16)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"")
    monkeypatch.setattr(module, "IN_MEMORY", 10)
    with pytest.raises(SecateurError, match=r"1 of 2 images .* 1\.png"):
        read_images([_files(tmp_path, "0.png", "1.png")], None)
