from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pictures
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.errors import MEDIA_CODES, MediaError
from unmask.media import LIMITS, Still, examine, read_image, sniff

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16"]


def read(path: Path, **limits: Any) -> Still:
    bounds = dataclasses.replace(LIMITS, **limits)
    return read_image(examine(path, bounds), bounds)


def refused(path: Path, **limits: Any) -> str:
    with pytest.raises(MediaError) as caught:
        read(path, **limits)
    assert str(caught.value).isprintable()
    return caught.value.code


def encoded(form: str, picture: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (picture or Image.fromarray(pictures.gradient(80, 60))).save(buffer, form, **options)
    return buffer.getvalue()


class TestExamine:
    def test_a_file_is_known_by_its_bytes_and_not_by_its_name(self, tmp_path: Path) -> None:
        for form in ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]:
            path = tmp_path / "named.mp4"
            path.write_bytes(encoded(form))
            source = examine(path)
            assert (source.kind, source.format) == ("image", form)
            assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
            assert source.bytes == path.stat().st_size

    @pytest.mark.parametrize("name", ["nowhere.jpg", "../nowhere.jpg", "a\nb.jpg", "a\0b.jpg"])
    def test_what_is_not_there_is_missing(self, tmp_path: Path, name: str) -> None:
        assert refused(tmp_path / name) == "missing"

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        file = pictures.save(tmp_path / "a.png", pictures.gradient(8, 8))
        assert refused(file / "b.png") == "missing"

    def test_folders_pipes_and_devices_are_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in [tmp_path, tmp_path / "pipe", Path("/dev/zero")]:
            assert refused(path) == "not_a_file"

    def test_a_name_with_a_line_break_is_read_and_quoted_on_one_line(self, tmp_path: Path) -> None:
        path = pictures.save(tmp_path / "a\nb.png", pictures.gradient(8, 8))
        assert read(path).pixels.shape == (8, 8, 3)
        with pytest.raises(MediaError) as caught:
            examine(tmp_path / "c\nd")
        assert "\n" not in str(caught.value)

    def test_an_empty_file_says_so(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        path.touch()
        assert refused(path) == "empty"

    def test_the_caps_on_bytes_hold_to_the_byte(self, tmp_path: Path) -> None:
        path = pictures.save(tmp_path / "a.png", pictures.gradient(8, 8))
        size = path.stat().st_size
        assert read(path, image_bytes=size).pixels.shape == (8, 8, 3)
        assert refused(path, image_bytes=size - 1) == "too_large"

    @pytest.mark.parametrize(
        ("head", "code"),
        [
            (b"%PDF-1.7", "unknown_type"),
            (b"#EXTM3U\nhttp://example.org/a.ts", "unknown_type"),
            (b"ffconcat version 1.0\nfile /etc/passwd", "unknown_type"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown_type"),
            (b"\0\0\0\x18ftypheic", "unknown_type"),
            (b"\0\0\0\x18ftypheim\0\0\0\0msf1heim", "unknown_type"),
            (b"\0\0\0\x18ftyphevc\0\0\0\0msf1hevc", "unknown_type"),
            (b"Group of people\n" * 12, "unknown_type"),
            (b"ID3\x04", "no_picture"),
            (b"RIFF\0\0\0\0WAVEfmt ", "no_picture"),
            (b"\0\0\0\x18ftypM4A ", "no_picture"),
        ],
    )
    def test_other_kinds_of_files_are_refused(self, head: bytes, code: str) -> None:
        with pytest.raises(MediaError) as caught:
            sniff(head)
        assert caught.value.code == code

    def test_an_avif_is_known_by_what_it_is_compatible_with(self) -> None:
        brands = b"ftypmif1\0\0\0\0avifmif1"
        assert sniff((len(brands) + 4).to_bytes(4, "big") + brands) == ("image", "AVIF")
        with pytest.raises(MediaError, match="HEIC"):
            sniff((16).to_bytes(4, "big") + brands)  # what follows is no brand

    def test_a_transport_stream_shows_two_packets(self) -> None:
        packet = b"G" + bytes(187)
        assert sniff((2 * packet)[:192]) == ("video", "mpegts")

    @given(st.binary(max_size=200))
    @example(b"RIFF")
    @example(b"\0\0\0\0ftyp")
    def test_any_bytes_are_sniffed_or_refused(self, head: bytes) -> None:
        try:
            assert sniff(head)[0] in {"image", "video"}
        except MediaError as error:
            assert error.code in MEDIA_CODES


class TestReadImage:
    @pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
    def test_lossless_pixels_come_back(self, tmp_path: Path, form: str) -> None:
        pixels = pictures.gradient(31, 17)
        options = {"lossless": True} if form == "WEBP" else {}
        path = pictures.save(tmp_path / "a", pixels, form, **options)
        assert (read(path).pixels == pixels).all()

    @pytest.mark.parametrize("turn", range(1, 9))
    def test_exif_turns_the_picture_upright(self, tmp_path: Path, turn: int) -> None:
        upright = pictures.gradient(48, 32)
        stored = {
            1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
            5: upright.transpose(1, 0, 2), 6: np.rot90(upright),
            7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
        }[turn]  # fmt: skip
        exif = Image.Exif()
        exif[0x0112] = turn
        path = pictures.save(tmp_path / "a", np.ascontiguousarray(stored), "PNG", exif=exif)
        assert (read(path).pixels == upright).all()

    def test_damaged_exif_turns_nothing(self, tmp_path: Path) -> None:
        pixels = pictures.gradient(48, 32)
        path = pictures.save(tmp_path / "a", pixels, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
        assert (read(path).pixels == pixels).all()

    @pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
    def test_of_an_animation_the_first_frame_is_read_and_that_is_said(
        self, tmp_path: Path, form: str
    ) -> None:
        frames = [Image.new("RGB", (16, 16), colour) for colour in ["red", "lime", "blue"]]
        options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
        path = pictures.save(
            tmp_path / "a", frames[0], form, save_all=True, append_images=frames[1:], **options
        )
        still = read(path)
        assert (still.pixels == [255, 0, 0]).all()
        assert [note for note in still.notes if "first frame" in note]

    @pytest.mark.parametrize("form", ["MPO", "TIFF"])
    def test_further_pages_are_no_animation(self, tmp_path: Path, form: str) -> None:
        pages = [Image.new("RGB", (16, 16), colour) for colour in ["red", "blue"]]
        path = pictures.save(tmp_path / "a", pages[0], form, save_all=True, append_images=pages[1:])
        still = read(path)
        assert not still.notes
        assert still.pixels[8, 8, 0] > 250

    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_becomes_rgb(self, tmp_path: Path, mode: str) -> None:
        grey = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
        if mode == "I;16":
            picture = Image.fromarray(grey.astype(np.uint16) * 257)
        elif mode == "I":
            picture = Image.fromarray(grey.astype(np.int32))
        else:
            picture = Image.fromarray(grey).convert(mode)
        form = "PNG" if mode in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"} else "TIFF"
        pixels = read(pictures.save(tmp_path / "a", picture, form)).pixels
        assert pixels.dtype == np.uint8
        assert pixels.shape == (8, 8, 3)
        if mode != "1":
            assert np.abs(pixels.astype(int) - grey[..., None]).max() <= 2

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        picture = Image.fromarray(pictures.gradient(64, 48))
        path = pictures.save(tmp_path / "a", picture.convert("CMYK"), "JPEG", quality=95)
        error = read(path).pixels.astype(int) - np.asarray(picture)
        assert np.abs(error).mean() < 3

    def test_real_numbers_that_are_none_do_not_matter(self, tmp_path: Path) -> None:
        values = np.array([[0.0, 0.5], [np.nan, np.inf]], np.float32)
        pixels = read(pictures.save(tmp_path / "a", Image.fromarray(values), "TIFF")).pixels
        assert pixels[0, 1, 0] == 255
        assert pixels[1, 0, 0] == 0

    def test_transparent_parts_are_white(self, tmp_path: Path) -> None:
        picture = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
        picture.putpixel((1, 1), (0, 0, 255, 255))
        pixels = read(pictures.save(tmp_path / "a", picture)).pixels
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[1, 1].tolist() == [0, 0, 255]

    def test_one_pixel(self, tmp_path: Path) -> None:
        path = pictures.save(tmp_path / "a", np.full((1, 1, 3), 9, np.uint8))
        assert read(path).pixels.tolist() == [[[9, 9, 9]]]

    def test_the_cap_on_pixels_is_checked_before_anything_is_decoded(self, tmp_path: Path) -> None:
        path = pictures.save(tmp_path / "a", pictures.gradient(20, 10))
        assert read(path, image_pixels=200).pixels.shape == (10, 20, 3)
        assert refused(path, image_pixels=199) == "too_many_pixels"
        for width, height in [(10_000, 4_001), (30_000, 30_000), (2**31 - 1, 2**31 - 1)]:
            path.write_bytes(pictures.png_claiming(width, height))
            assert refused(path) in {"too_many_pixels", "corrupt"}
        path.write_bytes(pictures.png_claiming(10_000, 4_000))
        assert refused(path) in {"truncated", "corrupt"}

    def test_text_that_unpacks_to_a_gigabyte_is_refused(self, tmp_path: Path) -> None:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("bomb", "0" * (80 * 2**20), zip=True)
        path = pictures.save(tmp_path / "a", pictures.gradient(8, 8), pnginfo=info)
        assert path.stat().st_size < 2**20
        assert refused(path) == "corrupt"

    def test_a_jpeg_of_a_thousand_scans_is_refused(self, tmp_path: Path) -> None:
        data = encoded("JPEG", Image.new("RGB", (4000, 3000)), progressive=True)
        path = tmp_path / "a.jpg"
        path.write_bytes(data)
        assert read(path).pixels.shape == (3000, 4000, 3)
        scan = data.rindex(b"\xff\xda")
        path.write_bytes(data[:scan] + 1000 * data[scan:-2] + data[-2:])
        assert refused(path) == "too_slow"

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
    def test_a_file_that_is_cut_off_is_refused(self, tmp_path: Path, form: str) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        data = encoded(form, Image.fromarray(noise))
        path = tmp_path / "a"
        for share in [0.3, 0.6, 0.9]:
            path.write_bytes(data[: int(len(data) * share)])
            assert refused(path) in {"truncated", "corrupt"}
        path.write_bytes(data[: len(data) // 2])
        if form not in {"TIFF", "AVIF"}:
            assert refused(path) == "truncated"

    @pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
    def test_damage_is_decoded_or_refused_and_never_anything_else(
        self, tmp_path: Path, form: str
    ) -> None:
        rng = random.Random(form)
        data = encoded(form)
        path = tmp_path / "a"
        for _ in range(60):
            bad = bytearray(data)
            for _ in range(rng.choice([1, 5, 50])):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            path.write_bytes(bytes(bad))
            try:
                pixels = read(path).pixels
            except MediaError:
                continue
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3

    def test_a_disguised_file_gets_a_reason(self, tmp_path: Path) -> None:
        path = tmp_path / "holiday.jpg"
        path.write_text("not a picture at all")
        assert refused(path) == "unknown_type"

    @settings(max_examples=20, deadline=None)
    @given(quality=st.integers(15, 98))
    def test_the_quality_of_a_jpeg_is_read_from_its_tables(self, quality: int) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = pictures.save(
                Path(folder) / "a", pictures.gradient(32, 32), "JPEG", quality=quality
            )
            found = read(path).jpeg_quality
        assert found == pytest.approx(quality, abs=6)

    def test_other_formats_tell_no_quality(self, tmp_path: Path) -> None:
        assert read(pictures.save(tmp_path / "a", pictures.gradient(8, 8))).jpeg_quality is None


def test_errors_keep_their_code_between_processes() -> None:
    error = pickle.loads(pickle.dumps(MediaError("corrupt", "damaged\nfile")))
    assert (error.code, str(error)) == ("corrupt", "damaged\\nfile")
