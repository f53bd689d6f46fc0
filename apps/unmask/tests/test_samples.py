from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from unmask.errors import UnmaskError
from unmask.faces import FaceDetector
from unmask.media import examine, read_image
from unmask.samples import Place, blend, clip, draw, stroll, write
from unmask.tracking import overlap
from unmask.video import open_clip

PLACE = Place(160, 110, 65)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "new" / "folder"
    write(folder)
    return folder


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


@pytest.mark.parametrize("seed", range(8))
def test_the_face_finder_finds_every_drawn_face(detector: FaceDetector, seed: int) -> None:
    places = (Place(140, 165, 85), Place(380, 170, 95))
    plain = draw((520, 340), places, seed)
    for pixels in [plain, blend(plain, places[0], seed)]:
        faces = sorted(detector.detect(pixels), key=lambda face: face.box)
        assert len(faces) == 2
        for face, place in zip(faces, places, strict=True):
            head = (place.x - 0.7 * place.radius, place.y - 0.9 * place.radius,
                    place.x + 0.7 * place.radius, place.y + place.radius)  # fmt: skip
            assert overlap(face.box, head) > 0.5


def test_nobody_is_found_where_nobody_is_drawn(detector: FaceDetector) -> None:
    assert [detector.detect(draw((320, 240), (), seed)) for seed in range(4)] == [()] * 4


def test_a_seed_gives_the_same_picture_and_another_one_another() -> None:
    one, same, other = (draw((320, 240), (PLACE,), seed) for seed in [1, 1, 2])
    assert (one == same).all()
    assert (one != other).any()
    assert (blend(one, PLACE, 1) == blend(one, PLACE, 1)).all()


def test_a_face_may_lie_at_the_edge() -> None:
    for x, y in [(0, 0), (-400, 30), (319, 239)]:
        assert draw((320, 240), (Place(x, y, 60),), 0).shape == (240, 320, 3)


def test_blending_changes_the_face_and_nothing_else() -> None:
    plain = draw((320, 240), (PLACE,), 1)
    changed = np.abs(blend(plain, PLACE, 1).astype(int) - plain).max(axis=2)
    rows, columns = np.nonzero(changed > 1)
    assert changed[100:130, 145:175].mean() > 3
    assert np.hypot(rows - PLACE.y, columns - PLACE.x).max() < 1.1 * PLACE.radius


def test_the_samples_are_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    paths = write(tmp_path)
    assert len(paths) == 5
    for path in paths:
        one, other = (
            hashlib.sha256((where / path.name).read_bytes()).hexdigest()
            for where in [tmp_path, folder]
        )
        assert one == other, path.name


def test_no_file_is_replaced(folder: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(UnmaskError, match="exists"):
        write(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_samples_can_be_read(folder: Path) -> None:
    sizes = {}
    for path in folder.iterdir():
        source = examine(path)
        if source.kind == "image":
            sizes[path.name] = read_image(source).pixels.shape
        else:
            with open_clip(source) as opened:
                assert opened.seconds == pytest.approx(3.0, abs=0.01)
                sizes[path.name] = next(opened.frames(1)).pixels.shape
    assert sizes == {
        "portrait.png": (480, 640, 3), "blended.png": (480, 640, 3),
        "two-people.png": (480, 640, 3), "nobody.png": (480, 640, 3),
        "middle-second.mp4": (360, 640, 3),
    }  # fmt: skip


def test_only_the_middle_second_of_the_clip_is_changed(tmp_path: Path) -> None:
    frames = list(stroll(rate=8))
    plain = draw((800, 460), (Place(400, 230, 105),), 0)
    assert len(frames) == 24
    # The camera's place is known: at the ends of a quarter the window lies on whole pixels.
    for index in [0, 12]:
        left, top = 80, 75 if index == 0 else 25
        window = plain[top : top + 360, left : left + 640].astype(int)
        error = np.abs(frames[index].astype(int) - window).mean()
        assert (error > 0.2) == (index == 12)


def test_a_clip_is_written_with_its_rate(tmp_path: Path) -> None:
    clip(tmp_path / "a.webm", stroll(seconds=1, rate=6), rate=6, codec="libvpx")
    with open_clip(examine(tmp_path / "a.webm")) as opened:
        assert len(opened.survey.times) == 6
        assert opened.seconds == pytest.approx(1.0, abs=0.01)
