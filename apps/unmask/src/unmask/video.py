"""Frames of a video: evenly spaced in time, decoded one after the other, never all in memory."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from unmask.errors import Cancelled, MediaError
from unmask.media import LIMITS, Limits, Pixels, Source, open_file

# More pictures than this in the seconds that are analysed are no video but an attack.
PACKETS = 60_000
DECLARING = {"mov", "matroska", "avi", "ogg"}  # what they say of their length is no guess
WIDEST = 4  # times as long as it is wide may a pixel be; what says more is not believed
SLACK = 0.5  # seconds that may be missing at the end of what a container declares


@dataclass(frozen=True)
class Frame:
    """A sampled frame, upright RGB; ``time`` in seconds; ``qp`` the mean quantiser of H.264."""

    time: float
    pixels: Pixels
    qp: float | None = None


@dataclass(frozen=True)
class Survey:
    """What the packets tell before anything is decoded; times are in units of ``base`` seconds."""

    times: tuple[int, ...]
    keys: tuple[int, ...]
    base: Fraction
    seconds: float
    cut: bool

    @property
    def start(self) -> int:
        """Return the time of the first picture."""
        return self.times[0]

    def spread(self, count: int) -> tuple[int, ...]:
        """Return the times of the pictures shown in the middle of ``count`` equal parts."""
        step = (self.times[-1] - self.start) / max(len(self.times) - 1, 1)
        span = self.times[-1] - self.start + step
        wanted = set()
        for part in range(min(count, len(self.times))):
            middle = self.start + span * (part + 0.5) / min(count, len(self.times))
            wanted.add(self.times[max(bisect.bisect_right(self.times, middle) - 1, 0)])
        return tuple(sorted(wanted))

    def key_before(self, moment: int) -> int:
        """Return the time of the last picture that can be decoded on its own, before ``moment``."""
        at = bisect.bisect_right(self.keys, moment) - 1
        return self.keys[at] if at >= 0 else self.start


class Clip:
    """A video; ``seconds`` is what of it is analysed and ``cut`` says that there is more.

    It is opened once to survey its packets and once to decode: some containers cannot go back.
    """

    def __init__(
        self,
        file: BinaryIO,
        source: Source,
        limits: Limits = LIMITS,
        cancel: Callable[[], bool] = lambda: False,
    ) -> None:
        self._file, self._source, self._limits, self._cancel = file, source, limits, cancel
        self._deadline = time.monotonic() + limits.decode_seconds
        self._seekable = source.format in {"mov", "matroska"}
        with self._open() as container:
            stream = _picture_stream(container)
            self._check_coding(stream)
            self.survey = self._look(container, stream)
        self.seconds, self.cut = self.survey.seconds, self.survey.cut

    def frames(self, count: int) -> Iterator[Frame]:
        """Yield at most ``count`` frames, in order; raises `MediaError` or `Cancelled`."""
        found = 0
        with self._open() as container:
            stream = _picture_stream(container)
            context = stream.codec_context
            context.thread_count, context.thread_type = 1, "NONE"
            # The sequence may change its size half-way: the decoder itself keeps to the cap.
            context.options = {
                "max_pixels": str(self._limits.video_pixels),
                "export_side_data": "venc_params",
            }
            shape = stream.sample_aspect_ratio
            for frame in self._decoded(container, stream, self.survey.spread(count)):
                found += 1
                ready = self._convert(frame, shape)
                left = time.monotonic()
                yield ready
                self._deadline += time.monotonic() - left  # the caller's own time is not decoding
        if not found:
            raise MediaError("corrupt", "no frame of the video can be decoded")

    def _open(self) -> InputContainer:
        self._file.seek(0)
        word = self._source.format
        # Data of a movie may lie in other files if the movie says so: never here.
        options = {"enable_drefs": "0", "use_absolute_path": "0"} if word == "mov" else {}
        try:
            return av.open(self._file, "r", format=word, options=options)
        except (av.FFmpegError, ValueError):
            raise MediaError("corrupt", "the video is damaged and cannot be opened") from None

    def _check_coding(self, stream: VideoStream) -> None:
        if getattr(stream, "codec_context", None) is None:
            raise MediaError("corrupt", "nobody knows how the video's pictures are coded")
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width or not height:
            raise MediaError("corrupt", "the video does not say how large its pictures are")
        if width * height > self._limits.video_pixels:
            raise MediaError(
                "too_many_pixels", f"the video has {width} x {height} pixels; at most 4K is taken"
            )

    def _look(self, container: InputContainer, stream: VideoStream) -> Survey:
        """Read the packets, of all streams, and decode none."""
        base = stream.time_base or Fraction(1, 90_000)
        first: int | None = None
        times: set[int] = set()
        keys: set[int] = set()
        end, cut = 0.0, False
        for packet in _packets(container):
            self._breathe()
            moment = packet.pts if packet.pts is not None else packet.dts
            if moment is None or packet.time_base is None:
                continue
            end = max(end, float((moment + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index or packet.is_discard:
                continue
            first = moment if first is None else first
            order = packet.dts if packet.dts is not None else moment
            if (order - first) * base >= self._limits.video_seconds or len(times) > PACKETS:
                cut = True
                break
            if (moment - first) * base >= self._limits.video_seconds:
                cut = True  # of the pictures that follow, some are shown before
                continue
            times.add(moment)
            if packet.is_keyframe:
                keys.add(moment)
        if not times:
            raise MediaError("corrupt", "the video holds no pictures")
        if not cut and self._source.format in DECLARING:
            _check_end(container, end)
        ordered = tuple(sorted(times))
        length = float((ordered[-1] - ordered[0]) * base)
        length *= len(ordered) / max(len(ordered) - 1, 1)
        seconds = min(length, self._limits.video_seconds) if cut else length
        return Survey(ordered, tuple(sorted(keys)), base, seconds, cut)

    def _decoded(
        self, container: InputContainer, stream: VideoStream, wanted: tuple[int, ...]
    ) -> Iterator[VideoFrame]:
        """Yield, per wanted time, the first frame that is not before it.

        Goes from key frame to key frame where the container allows it, and leaves out what no
        other frame needs.
        """
        context, moments = stream.codec_context, frozenset(wanted)
        at, fed = 0, None
        while at < len(wanted):
            behind = fed
            if self._may_jump(wanted[at], fed):
                fed = self.survey.key_before(wanted[at])
                _seek(container, stream, fed)
            for packet in _packets(container, stream):
                self._breathe()
                moment = packet.pts
                if moment is not None:
                    # An index that leads back leads back for ever.
                    self._seekable &= behind is None or moment >= behind or fed == behind
                    fed = moment if fed is None else max(fed, moment)
                needed = moment is None or moment in moments
                context.skip_frame = "DEFAULT" if needed else "NONREF"
                for frame in _decode(packet):
                    shown = _moment(frame)
                    if at == len(wanted) or shown is None or shown < wanted[at]:
                        continue
                    yield frame
                    at = bisect.bisect_right(wanted, max(shown, wanted[at]))
                if at == len(wanted) or self._may_jump(wanted[at], fed):
                    break
            else:
                return

    def _may_jump(self, moment: int, fed: int | None) -> bool:
        key = self.survey.key_before(moment)
        return self._seekable and key > (self.survey.start if fed is None else fed)

    def _breathe(self) -> None:
        if self._cancel():
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise MediaError("too_slow", "decoding the video takes too long; try a shorter one")

    def _convert(self, frame: VideoFrame, shape: Fraction | None) -> Frame:
        """Return a frame upright, its pixels square: the longer side of a pixel is shrunk."""
        width, height = frame.width, frame.height
        if width * height > self._limits.video_pixels:
            raise MediaError("too_many_pixels", "the video grows beyond 4K on its way")
        if shape is not None and 1 / WIDEST <= shape <= WIDEST:
            ratio = float(shape)
            width, height = round(width * min(ratio, 1.0)), round(height / max(ratio, 1.0))
        try:
            square = frame.reformat(max(width, 1), max(height, 1), format="rgb24")
            pixels = square.to_ndarray().astype(np.uint8, copy=False)
        except (av.FFmpegError, ValueError):
            raise MediaError("corrupt", "the video's colours cannot be read") from None
        upright = np.ascontiguousarray(_upright(pixels, frame))
        moment = _moment(frame) or 0
        return Frame(float((moment - self.survey.start) * self.survey.base), upright, _qp(frame))


@contextmanager
def open_clip(
    source: Source, limits: Limits = LIMITS, cancel: Callable[[], bool] = lambda: False
) -> Iterator[Clip]:
    """Open a video for sampling; raises `MediaError`."""
    with open_file(source.path) as file:
        yield Clip(file, source, limits, cancel)


def _check_end(container: InputContainer, end: float) -> None:
    """Compare the end of the last packet, in seconds, with what the container declares."""
    if not container.duration:
        return
    declared = container.duration / av.time_base
    missing = (container.start_time or 0) / av.time_base + declared - end
    if missing > SLACK + 0.05 * declared:
        raise MediaError(
            "truncated", f"the video ends too early: its last {missing:.1f} s are missing"
        )


def _packets(container: InputContainer, *streams: VideoStream) -> Iterator[av.Packet[Any]]:
    """Yield packets, of all streams if none is named; whatever goes wrong is the file's fault."""
    try:
        yield from container.demux(*streams)
    except MemoryError:
        raise
    except Exception:  # besides FFmpeg's own errors an IndexError for a stream that appears late
        raise MediaError("corrupt", "the video is damaged and cannot be read") from None


def _seek(container: InputContainer, stream: VideoStream, moment: int) -> None:
    try:
        container.seek(moment, stream=stream, backward=True)
    except av.FFmpegError:
        raise MediaError("corrupt", "the video is damaged and cannot be searched") from None


def _picture_stream(container: InputContainer) -> VideoStream:
    """Return the first stream of moving pictures; the cover of a song is none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    if container.streams.audio:
        raise MediaError("no_picture", "the file holds sound but no picture")
    raise MediaError("corrupt", "the file holds no video")


def _decode(packet: av.Packet[VideoStream]) -> list[VideoFrame]:
    """Return the sound frames that a packet brings; a damaged packet brings none."""
    try:
        frames = packet.decode()
    except av.FFmpegError:
        return []
    return [frame for frame in frames if isinstance(frame, VideoFrame) and not frame.is_corrupt]


def _moment(frame: VideoFrame) -> int | None:
    return frame.pts if frame.pts is not None else frame.dts


def _upright(pixels: Pixels, frame: VideoFrame) -> Pixels:
    """Turn and mirror a frame as its display matrix says, to the nearest right angle.

    The matrix (a b u, c d v, x y w) shows a point at (a x + c y, b x + d y).
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None or len(bytes(data)) < 36:
        return pixels
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32, 5))
    if abs(a) >= abs(b):
        across, down = a, d
    else:
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]


def _qp(frame: VideoFrame) -> float | None:
    """Return the mean quantiser of an H.264 frame's blocks, None for other codecs.

    The layout is FFmpeg's AVVideoEncParams: the number of blocks, where they begin, their size,
    the codec's family, the frame's quantiser; a block ends with its difference from it.
    """
    data: Any = frame.side_data.get("VIDEO_ENC_PARAMS")
    if data is None:
        return None
    raw = bytes(data)
    if len(raw) < 32:
        return None
    count = int(np.frombuffer(raw, np.uint32, 1)[0])
    offset, size = (int(v) for v in np.frombuffer(raw, np.uint64, 2, 8))
    family, base = (int(v) for v in np.frombuffer(raw, np.int32, 2, 24))
    if family != 1:
        return None
    if not count or size < 20 or offset + count * size > len(raw):
        return float(base)
    blocks = np.frombuffer(raw, np.uint8, count * size, offset).reshape(count, size)
    return base + float(np.ascontiguousarray(blocks[:, 16:20]).view(np.int32).mean())
