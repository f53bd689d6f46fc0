from __future__ import annotations

import dataclasses
import random
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pictures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import Cancelled, MediaError
from unmask.media import LIMITS, examine
from unmask.video import Frame, Survey, open_clip

# Container, codec and, where it matters, options that put key frames and B frames in the way.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4": ("mp4", "libx264", {}),
    "mp4, key frames": ("mp4", "libx264", {"g": "7", "bf": "3"}),
    "mov": ("mov", "libx264", {"bf": "0"}),
    "mkv": ("matroska", "libx264", {"g": "7", "bf": "3"}),
    "webm, VP8": ("webm", "libvpx", {}),
    "webm, VP9": ("webm", "libvpx-vp9", {"g": "9"}),
    "avi": ("avi", "mpeg4", {}),
    "mpeg-ts": ("mpegts", "libx264", {"g": "7"}),
}


def sample(path: Path, data: bytes, count: int = 8, **limits: Any) -> list[Frame]:
    path.write_bytes(data)
    bounds = dataclasses.replace(LIMITS, **limits)
    with open_clip(examine(path, bounds), bounds) as clip:
        return list(clip.frames(count))


def refused(path: Path, data: bytes, **limits: Any) -> str:
    with pytest.raises(MediaError) as caught:
        sample(path, data, **limits)
    assert str(caught.value).isprintable()
    return caught.value.code


class TestFrames:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_sampled_frame_is_the_one_of_its_time(self, tmp_path: Path, kind: str) -> None:
        form, codec, options = KINDS[kind]
        data = pictures.encode(pictures.numbered(40), form, codec, **options)
        for count in [1, 5, 8, 40, 99]:
            frames = sample(tmp_path / "a", data, count)
            assert len(frames) == min(count, 40)
            for frame in frames:
                assert frame.pixels.shape == (96, 128, 3)
                assert frame.pixels.dtype == np.uint8
                assert pictures.number_of(frame.pixels, 40) == pytest.approx(frame.time * 10, abs=1)

    def test_the_frames_are_evenly_spread(self, tmp_path: Path) -> None:
        frames = sample(tmp_path / "a", pictures.encode(pictures.numbered(80)), 8)
        assert np.diff([frame.time for frame in frames]) == pytest.approx(1.0, abs=0.01)
        assert frames[0].time == pytest.approx(0.5, abs=0.11)

    def test_going_by_key_frames_finds_the_same_as_decoding_everything(
        self, tmp_path: Path
    ) -> None:
        data = pictures.encode(pictures.numbered(60), g="6", bf="2")
        path = tmp_path / "a"
        path.write_bytes(data)
        with open_clip(examine(path)) as clip:
            quick = list(clip.frames(7))
        with open_clip(examine(path)) as clip:
            clip._seekable = False
            slow = list(clip.frames(7))
        assert [frame.time for frame in quick] == [frame.time for frame in slow]
        for one, other in zip(quick, slow, strict=True):
            assert (one.pixels == other.pixels).all()

    def test_a_variable_rate_is_sampled_in_time(self, tmp_path: Path) -> None:
        rng = random.Random(0)
        times = [0]
        for _ in range(39):
            times.append(times[-1] + rng.choice([20, 20, 40, 400]))
        data = pictures.encode(pictures.numbered(40), times=times)
        frames = sample(tmp_path / "a", data, 8)
        spacing = times[-1] / 1000 * 40 / 39 / 8
        for part, frame in enumerate(frames):
            number = round(pictures.number_of(frame.pixels, 40))
            assert abs(times[number] / 1000 - frame.time) < 0.05
            # The frame on show in the middle of its part: it may have begun earlier, never later.
            middle = (part + 0.5) * spacing
            begun = max(time for time in times if time / 1000 <= middle + 0.001) / 1000
            assert frame.time == pytest.approx(begun, abs=0.05)

    def test_one_frame(self, tmp_path: Path) -> None:
        frames = sample(tmp_path / "a", pictures.encode(pictures.numbered(1)), 32)
        assert [frame.time for frame in frames] == [0.0]

    def test_sound_beside_the_pictures_does_not_matter(self, tmp_path: Path) -> None:
        frames = sample(tmp_path / "a", pictures.encode(pictures.numbered(40), sound=True), 8)
        assert [round(pictures.number_of(frame.pixels, 40)) for frame in frames][::7] == [2, 37]

    @pytest.mark.parametrize("degrees", [90, 180, 270])
    def test_a_turned_video_is_shown_upright(self, tmp_path: Path, degrees: int) -> None:
        picture = pictures.gradient(128, 96)
        data = pictures.turned(pictures.encode([picture] * 3), degrees)
        (frame,) = sample(tmp_path / "a", data, 1)
        upright = np.rot90(picture, -degrees // 90)
        assert frame.pixels.shape == upright.shape
        assert np.abs(frame.pixels.astype(int) - upright).mean() < 8

    @pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
    def test_a_mirrored_video_is_mirrored_and_no_more(
        self, tmp_path: Path, matrix: tuple[int, int, int, int]
    ) -> None:
        picture = pictures.gradient(128, 96)
        a, b, c, d = matrix
        (frame,) = sample(
            tmp_path / "a", pictures.shown(pictures.encode([picture] * 3), *matrix), 1
        )
        height, width = frame.pixels.shape[:2]
        for x, y in ((10, 10), (110, 20), (64, 80)):
            right, below = (a * x + c * y) % width, (b * x + d * y) % height
            shown = frame.pixels[below, right].astype(int)
            assert np.abs(shown - picture[y, x]).max() < 16

    @pytest.mark.parametrize(("shape", "size"), [("2/1", (48, 128)), ("1/2", (96, 64))])
    def test_pixels_that_are_not_square_are_made_so(
        self, tmp_path: Path, shape: str, size: tuple[int, int]
    ) -> None:
        data = pictures.encode(pictures.numbered(5), aspect=shape)
        assert sample(tmp_path / "a", data, 1)[0].pixels.shape[:2] == size

    def test_ten_bits_become_eight(self, tmp_path: Path) -> None:
        data = pictures.encode(pictures.numbered(9), colours="yuv420p10le")
        (frame,) = sample(tmp_path / "a", data, 1)
        assert pictures.number_of(frame.pixels, 9) == pytest.approx(4, abs=0.3)

    def test_the_quantiser_of_h264_follows_the_compression(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 255, (96, 128, 3), dtype=np.uint8) for _ in range(5)]
        found = []
        for crf in ["18", "30", "45"]:
            frames = sample(tmp_path / "a", pictures.encode(noise, crf=crf), 5)
            found.append(np.mean([frame.qp for frame in frames if frame.qp is not None]))
        assert found == sorted(found)
        assert found[0] < 30
        assert 42 < found[2] <= 51
        vp8 = sample(tmp_path / "a", pictures.encode(noise, "webm", "libvpx"), 5)
        assert {frame.qp for frame in vp8} == {None}

    def test_memory_holds_one_frame_and_not_the_video(self, tmp_path: Path) -> None:
        big = (np.zeros((480, 640, 3), np.uint8) for _ in range(60))
        path = tmp_path / "a"
        path.write_bytes(pictures.encode(big))
        source = examine(path)
        tracemalloc.start()
        with open_clip(source) as clip:
            count = sum(1 for _ in clip.frames(60))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 60
        assert peak < 6 * 480 * 640 * 3


class TestLimits:
    def test_only_the_first_seconds_are_analysed(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(pictures.encode(pictures.numbered(60), bf="3"))
        bounds = dataclasses.replace(LIMITS, video_seconds=2.0)
        with open_clip(examine(path), bounds) as clip:
            assert clip.cut
            assert clip.seconds == pytest.approx(2.0, abs=0.01)
            frames = list(clip.frames(32))
        assert len(frames) == 20
        assert max(frame.time for frame in frames) < 2.0
        with open_clip(examine(path)) as clip:
            assert not clip.cut
            assert clip.seconds == pytest.approx(6.0, abs=0.01)

    def test_the_caps_hold_before_decoding(self, tmp_path: Path) -> None:
        data = pictures.encode(pictures.numbered(5))
        assert len(sample(tmp_path / "a", data, 5, video_pixels=128 * 96)) == 5
        assert refused(tmp_path / "a", data, video_pixels=128 * 96 - 1) == "too_many_pixels"
        assert refused(tmp_path / "a", data, video_bytes=len(data) - 1) == "too_large"
        assert refused(tmp_path / "a", data, decode_seconds=0.0) == "too_slow"

    def test_a_video_that_grows_on_its_way_stops_at_the_cap(self, tmp_path: Path) -> None:
        small = pictures.encode(pictures.numbered(10), "mpegts", bf="0")
        large = pictures.encode(pictures.numbered(10, 640, 480), "mpegts", bf="0")
        path = tmp_path / "a"
        path.write_bytes(small + large)
        bounds = dataclasses.replace(LIMITS, video_pixels=128 * 96)
        try:
            with open_clip(examine(path), bounds) as clip:
                frames = list(clip.frames(20))
        except MediaError as error:
            assert error.code in {"too_many_pixels", "corrupt"}
        else:
            assert {frame.pixels.shape for frame in frames} == {(96, 128, 3)}

    def test_what_the_caller_does_between_frames_is_not_decoding(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(pictures.encode(pictures.numbered(6)))
        bounds = dataclasses.replace(LIMITS, decode_seconds=1.0)
        with open_clip(examine(path), bounds) as clip:
            seen = 0
            for _ in clip.frames(6):
                time.sleep(0.25)
                seen += 1
        assert seen == 6

    def test_cancelling_stops_between_packets(self, tmp_path: Path) -> None:
        path = tmp_path / "a"
        path.write_bytes(pictures.encode(pictures.numbered(40)))
        stop: list[bool] = []
        with open_clip(examine(path), cancel=lambda: bool(stop)) as clip:
            frames = clip.frames(8)
            next(frames)
            stop.append(True)
            with pytest.raises(Cancelled):
                next(frames)


class TestBadFiles:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("share", [0.02, 0.4, 0.7])
    def test_what_is_cut_off_is_refused(self, tmp_path: Path, kind: str, share: float) -> None:
        form, codec, options = KINDS[kind]
        data = pictures.encode(pictures.numbered(60), form, codec, **options)
        short = data[: max(int(len(data) * share), 16)]
        if form == "mpegts" and share > 0.1:  # a recording of a stream may end anywhere
            assert sample(tmp_path / "a", short, 4)
        else:
            assert refused(tmp_path / "a", short) in {"truncated", "corrupt"}

    @pytest.mark.parametrize("front", [False, True])
    def test_an_mp4_that_is_cut_off_says_truncated(self, tmp_path: Path, front: bool) -> None:
        options = {"movflags": "faststart"} if front else {}
        data = pictures.encode(pictures.numbered(40), **options)
        for end in [len(data) - 1, len(data) // 2]:
            assert refused(tmp_path / "a", data[:end]) == "truncated"

    @pytest.mark.parametrize("kind", KINDS)
    def test_damage_is_decoded_or_refused_and_never_anything_else(
        self, tmp_path: Path, kind: str
    ) -> None:
        form, codec, options = KINDS[kind]
        data = pictures.encode(pictures.numbered(30), form, codec, **options)
        rng = random.Random(kind)
        for _ in range(25):
            bad = bytearray(data)
            for _ in range(rng.choice([1, 10, 100])):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            try:
                frames = sample(tmp_path / "a", bytes(bad), 6, decode_seconds=10.0)
            except MediaError:
                continue
            assert 1 <= len(frames) <= 6
            assert all(frame.pixels.ndim == 3 for frame in frames)

    def test_noise_behind_a_good_beginning_is_refused(self, tmp_path: Path) -> None:
        rng = random.Random(0)
        noise = bytes(rng.randrange(256) for _ in range(4000))
        for head in [b"\0\0\0\x18ftypisom", b"\x1aE\xdf\xa3", b"RIFF\xa0\x0f\0\0AVI ", b"OggS"]:
            assert refused(tmp_path / "a", head + noise) in {"corrupt", "truncated"}

    @pytest.mark.parametrize(
        ("form", "codec"),
        [
            ("mp4", "aac"),
            ("matroska", "aac"),
            ("ogg", "libopus"),
            ("wav", "pcm_s16le"),
            ("adts", "aac"),
        ],
    )
    def test_sound_alone_is_refused(self, tmp_path: Path, form: str, codec: str) -> None:
        assert refused(tmp_path / "a", pictures.sound_only(form, codec)) == "no_picture"

    def test_the_cover_of_a_song_is_no_video(self, tmp_path: Path) -> None:
        path = tmp_path / "a.mp4"
        with av.open(str(path), "w") as container:
            song: Any = container.add_stream("aac", rate=8000, layout="mono")
            cover: Any = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(pictures.gradient(32, 32), format="rgb24")
            container.mux(cover.encode(frame.reformat(format="yuvj420p")))
            container.mux(cover.encode(None))
            pictures.silence(container, song)
        assert refused(path, path.read_bytes()) == "no_picture"

    def test_a_movie_whose_pictures_lie_in_another_file_is_refused(self, tmp_path: Path) -> None:
        secret = pictures.encode(pictures.numbered(10))
        (tmp_path / "secret.mp4").write_bytes(secret)
        # The data reference says "in this file"; without that flag and with a name it points out.
        at = secret.index(b"url ")
        outside = bytearray(secret)
        outside[at + 4 : at + 8] = b"\0\0\0\0"
        try:
            frames = sample(tmp_path / "a.mp4", bytes(outside), 2)
        except MediaError:
            return
        assert len(frames) == 2  # its own pictures, found in the file itself


class TestSurvey:
    @given(
        st.lists(st.integers(1, 500), min_size=1, max_size=80), st.integers(1, 64),
        st.integers(-1000, 1000),
    )  # fmt: skip
    def test_the_spread_is_ordered_even_and_of_the_clip(
        self, gaps: list[int], count: int, start: int
    ) -> None:
        times = tuple(int(t) for t in start + np.cumsum([0, *gaps]))
        survey = Survey(times, times[:1], Fraction(1, 1000), 1.0, False)
        chosen = survey.spread(count)
        assert 1 <= len(chosen) <= count
        assert list(chosen) == sorted(set(chosen))
        assert set(chosen) <= set(times)
        if len(set(gaps)) == 1:
            assert len(chosen) == min(count, len(times))

    @given(st.lists(st.integers(0, 1000), min_size=1, unique=True), st.integers(0, 1000))
    def test_the_key_is_the_last_before(self, keys: list[int], moment: int) -> None:
        survey = Survey((-5,), tuple(sorted(keys)), Fraction(1, 1000), 1.0, False)
        before = [key for key in keys if key <= moment]
        assert survey.key_before(moment) == max(before, default=-5)
