"""From a file to a report: decode, find faces, score them, follow them, judge."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from unmask import tracking
from unmask.crops import crop
from unmask.errors import Cancelled, UnmaskError
from unmask.faces import MINIMUM, Detector, Face, shared, sight
from unmask.media import LIMITS, Kind, Limits, Pixels, Source, examine, read_image
from unmask.quality import SMALLEST, Quality, grid, sharpness
from unmask.report import FileFacts, Frame, ModelFacts, Report
from unmask.verdict import CLEAR, UNDECIDED, Band, Sighting, conclude, judge
from unmask.video import open_clip

FRAMES = 32
MOST_FRAMES = 256
MOST_FACES = 24
THUMBNAIL = {"image": 640, "video": 400}

Progress = Callable[[int, int], None]
Cancel = Callable[[], bool]
Floats = npt.NDArray[np.float32]


class Info(Protocol):
    """What a network says of itself (see `unmask.models.ModelInfo`)."""

    @property
    def name(self) -> str:
        """Return its name."""
        ...

    @property
    def version(self) -> str:
        """Return the version of its weights."""
        ...

    @property
    def thresholds(self) -> Mapping[str, Mapping[str, float]]:
        """Return the ends of the grey band, ``low`` and ``high``, of both claims."""
        ...


class Scores(Protocol):
    """Two probabilities (N,) and a map of seams (N, H, W) in 0..1."""

    @property
    def swap(self) -> Floats:
        """Return how likely each face was blended over another."""
        ...

    @property
    def generated(self) -> Floats:
        """Return how likely each face was generated as a whole."""
        ...

    @property
    def boundary(self) -> Floats:
        """Return where the network saw a seam."""
        ...


class Classifier(Protocol):
    """A loaded network (see `unmask.models.Model`)."""

    @property
    def info(self) -> Info:
        """Return what it says of itself."""
        ...

    def scores(self, crops: Pixels) -> Scores:
        """Return the scores of crops (uint8, N x S x S x 3)."""
        ...


def inspect(
    path: str | os.PathLike[str],
    model: str | Classifier | None = None,
    frames: int = FRAMES,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    *,
    limits: Limits = LIMITS,
    detector: Detector | None = None,
) -> Report:
    """Look for signs of manipulation in the faces of a picture or a video.

    ``model`` is a name of `unmask.models.available` (None for the default one) or a loaded model;
    of a video, ``frames`` evenly spaced ones of its first minute are looked at. ``progress`` hears
    how many of how many frames are done; where ``cancel`` returns True, `Cancelled` is raised.
    A file that cannot be analysed raises `MediaError`.
    """
    if not 1 <= frames <= MOST_FRAMES:
        raise UnmaskError(f"frames must be 1 to {MOST_FRAMES}, not {frames}")
    begun = time.perf_counter()
    source = examine(path, limits)
    spent = time.perf_counter() - begun
    classifier = _load(model) if model is None or isinstance(model, str) else model
    detector = detector or shared()
    # What loads once a process is no part of the time that a file takes.
    begun = time.perf_counter() - spent
    look = _Look(classifier, detector, limits, progress, cancel, begun, {"decode": spent})
    return look.image(source) if source.kind == "image" else look.video(source, frames)


def _load(name: str | None) -> Classifier:
    from unmask import models

    return models.load(name, threads=1)


@dataclass(frozen=True)
class _Scored:
    """What was measured on one face of one frame."""

    swap: float
    generated: float
    boundary: Floats
    weakness: str | None


@dataclass
class _Look:
    """One look at one file: what has been seen so far, frame by frame."""

    classifier: Classifier
    detector: Detector
    limits: Limits
    progress: Progress | None
    cancel: Cancel | None
    begun: float
    seconds: dict[str, float]
    times: list[float] = field(default_factory=list)
    faces: list[tuple[Face, ...]] = field(default_factory=list)
    scored: list[dict[Face, _Scored]] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: float = 0.0
    lost: int = 0

    def image(self, source: Source) -> Report:
        """Look at a picture."""
        self._tell(0, 1)
        with self.clock("decode"):
            still = read_image(source, self.limits)
        self.notes += still.notes
        self._frame(0.0, still.pixels, "image", jpeg=still.jpeg_quality)
        self._tell(1, 1)
        return self._report(source, still.pixels.shape)

    def video(self, source: Source, count: int) -> Report:
        """Look at frames of a video, one after the other."""
        with open_clip(source, self.limits, self.cancel or (lambda: False)) as clip:
            total = len(clip.survey.spread(count))
            self._tell(0, total)
            shape: tuple[int, ...] = ()
            for frame in self._timed(clip.frames(count)):
                shape = shape or frame.pixels.shape
                pixels = self._of_shape(frame.pixels, shape)
                self._frame(frame.time, pixels, "video", quantiser=frame.qp)
                self._tell(min(len(self.times), total - 1), total)
            if clip.cut:
                most = self.limits.video_seconds
                self.notes.append(f"of the video only the first {most:g} seconds were analysed")
            self.lost = total - len(self.times)
            if self.lost:
                self.notes.append(f"{self.lost} of {total} frames cannot be decoded")
            self._tell(total, total)
            return self._report(source, shape, clip.seconds)

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time that passes here to a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _timed(self, frames: Iterable[Any]) -> Iterator[Any]:
        """Yield frames, the time of their making counted as decoding."""
        iterator = iter(frames)
        while True:
            with self.clock("decode"):
                frame = next(iterator, None)
            if frame is None:
                return
            yield frame

    def _of_shape(self, pixels: Pixels, shape: Sequence[int]) -> Pixels:
        """Return a frame at the size of the first one, as players show it."""
        if pixels.shape == shape:
            return pixels
        note = "the video changes its size: all frames were brought to that of the first"
        self.notes += [note] if note not in self.notes else []
        size = (shape[1], shape[0])
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))

    def _tell(self, done: int, total: int) -> None:
        if self.cancel is not None and self.cancel():
            raise Cancelled
        if self.progress is not None:
            self.progress(done, total)

    def _frame(
        self,
        moment: float,
        pixels: Pixels,
        kind: Kind,
        jpeg: float | None = None,
        quantiser: float | None = None,
    ) -> None:
        """Find and score the faces of one frame, and keep a small copy of it."""
        with self.clock("detect"):
            found = self.detector.detect(pixels, sight(kind, max(pixels.shape)))
        if len(found) > MOST_FACES:
            note = f"only the {MOST_FACES} largest faces of a picture were analysed"
            self.notes += [note] if note not in self.notes else []
            self.skipped = max(self.skipped, found[MOST_FACES].side)
            found = found[:MOST_FACES]
        with self.clock("classify"):
            crops = [crop(pixels, face.box) for face in found]
            fits = [
                Quality(face.side, sharpness(cut), grid(_inside(pixels, face)), jpeg, quantiser)
                for face, cut in zip(found, crops, strict=True)
            ]
            self.scored.append(dict(zip(found, self._score(crops, fits), strict=True)))
        self.pictures[f"frame-{len(self.times)}"] = _thumbnail(pixels, THUMBNAIL[kind])
        self.times.append(moment)
        self.faces.append(found)

    def _score(self, crops: Sequence[Pixels], fits: Sequence[Quality]) -> list[_Scored]:
        if not crops:
            return []
        scores = self.classifier.scores(np.stack(crops))
        return [
            _Scored(float(swap), float(generated), boundary, fit.weakness)
            for swap, generated, boundary, fit in zip(
                scores.swap, scores.generated, scores.boundary, fits, strict=True
            )
        ]

    def _report(self, source: Source, shape: Sequence[int], length: float | None = None) -> Report:
        info = self.classifier.info
        bands = {claim: Band(t["low"], t["high"]) for claim, t in info.thresholds.items()}
        rows = sorted(
            tracking.track(zip(self.times, self.faces, strict=True)),
            key=lambda row: -sum(seen.face.side for seen in row),
        )
        persons = []
        for number, row in enumerate(rows, 1):
            sightings = [self._sighting(seen) for seen in row]
            person = judge(number, sightings, bands, len(self.times))
            persons.append(person)
            best = person.clearest
            seen = next(seen for seen in row if seen.frame == best.frame)
            self.pictures[f"map-{number}"] = _map(self.scored[seen.frame][seen.face].boundary)
        verdict, reasons = conclude(persons, self.skipped)
        if verdict == CLEAR and self.lost > len(self.times):
            verdict = UNDECIDED  # most of the video was not seen; the notes say so
        return Report(
            file=FileFacts(
                source.path.name, source.sha256, source.kind, shape[1], shape[0], length
            ),
            model=ModelFacts(info.name, info.version, info.thresholds),
            verdict=verdict,
            reasons=(*reasons, *self.notes),
            persons=tuple(persons),
            frames=tuple(Frame(t, len(f)) for t, f in zip(self.times, self.faces, strict=True)),
            seconds={**self.seconds, "total": time.perf_counter() - self.begun},
            limits=self._limits(source.kind, shape),
            pictures=self.pictures,
        )

    def _limits(self, kind: Kind, shape: Sequence[int]) -> dict[str, float]:
        """Return what bounded this look; ``face`` is the smallest side that is judged."""
        longer = max(shape[:2])
        face = max(SMALLEST, MINIMUM * longer / sight(kind, longer))
        return {"frames": len(self.times), "seconds": self.limits.video_seconds, "face": face}

    def _sighting(self, seen: tracking.Seen) -> Sighting:
        scored = self.scored[seen.frame][seen.face]
        return Sighting(
            seen.frame, seen.time, seen.face.box, scored.swap, scored.generated, scored.weakness
        )


def _inside(pixels: Pixels, face: Face) -> Pixels:
    """Return the pixels in a face's box, as far as it lies in the picture."""
    x0, y0, x1, y1 = (max(round(edge), 0) for edge in face.box)
    return pixels[y0:y1, x0:x1]


def _thumbnail(pixels: Pixels, side: int) -> bytes:
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return _encode(picture, "JPEG", quality=82)


def _map(boundary: Floats) -> bytes:
    grey = np.clip(np.nan_to_num(boundary) * 255, 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    return _encode(picture.resize((128, 128), Image.Resampling.BICUBIC), "PNG")


def _encode(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()
