from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pictures
import pytest
from PIL import Image, ImageFilter
from stand_ins import PAIR, PLACE, THRESHOLDS, Boxes, Network, reddened, redness, walk

from unmask import Cancelled, MediaError, Report, UnmaskError, inspect, models, samples
from unmask.media import LIMITS, Pixels
from unmask.quality import BLURRED, COMPRESSED, TOO_SMALL
from unmask.verdict import CLEAR, SIGNS, UNDECIDED


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "portrait.png"
    return pictures.save(path, samples.draw((640, 480), (PLACE,), seed=3))


@pytest.fixture(scope="module")
def strolling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a person: reddened in the middle one, away in the last half second."""
    path = tmp_path_factory.mktemp("clips") / "walk.mp4"
    samples.clip(path, walk(36, changed=range(12, 24), away=range(30, 36)), rate=12)
    return path


def look(path: Path, network: Network | None = None, **options: object) -> Report:
    return inspect(path, network or Network(), **options)  # type: ignore[arg-type]


class TestPicture:
    def test_the_report_says_all_that_the_contract_names(self, portrait: Path) -> None:
        found = json.loads(json.dumps(look(portrait).to_dict()))
        assert set(found) == {
            "file", "model", "verdict", "reasons", "persons", "frames", "seconds", "limits",
        }  # fmt: skip
        assert found["file"] == {
            "name": "portrait.png", "kind": "image", "width": 640, "height": 480, "seconds": None,
            "sha256": hashlib.sha256(portrait.read_bytes()).hexdigest(),
        }  # fmt: skip
        assert found["model"] == {"name": "fake", "version": "0", "thresholds": THRESHOLDS}
        assert found["frames"] == [{"time": 0.0, "faces": 1}]
        (person,) = found["persons"]
        assert set(person) == {"id", "verdict", "score", "swap", "generated", "reasons", "frames"}
        (row,) = person["frames"]
        assert set(row) == {"time", "box", "swap", "generated", "score", "usable", "reason"}
        seconds = found["seconds"]
        assert set(seconds) == {"decode", "detect", "classify", "total"}
        assert (
            seconds["decode"] + seconds["detect"] + seconds["classify"] <= seconds["total"] + 1e-3
        )

    def test_the_box_is_around_the_drawn_face(self, portrait: Path) -> None:
        (person,) = look(portrait).persons
        x0, y0, x1, y1 = person.sightings[0].box
        assert x0 < PLACE.x < x1
        assert y0 < PLACE.y < y1
        assert 0.6 * PLACE.radius < x1 - x0 < 2.4 * PLACE.radius

    @pytest.mark.parametrize(
        ("swap", "generated", "word"),
        [(0.1, 0.1, CLEAR), (0.5, 0.1, UNDECIDED), (0.9, 0.1, SIGNS), (0.1, 0.9, SIGNS)],
    )
    def test_scores_make_the_verdict(
        self, portrait: Path, swap: float, generated: float, word: str
    ) -> None:
        found = look(portrait, Network(lambda crop: swap, lambda crop: generated))
        assert (found.verdict, found.persons[0].verdict) == (word, word)
        assert found.persons[0].swap == pytest.approx(swap)
        assert found.persons[0].generated == pytest.approx(generated)

    def test_pictures_are_a_thumbnail_and_a_map(self, portrait: Path) -> None:
        shown = look(portrait).pictures
        assert set(shown) == {"frame-0", "map-1"}
        thumbnail = Image.open(io.BytesIO(shown["frame-0"]))
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (640, 480))
        seam = np.asarray(Image.open(io.BytesIO(shown["map-1"])))
        assert seam.shape == (128, 128)
        assert seam[:, :50].min() > 250
        assert seam[:, 78:].max() < 5

    def test_pictures_come_in_base_64_if_asked_for(self, portrait: Path) -> None:
        found = look(portrait)
        assert set(found.to_dict(pictures=True)["pictures"]) == set(found.pictures)

    def test_two_people_have_a_row_each_the_larger_first(self, tmp_path: Path) -> None:
        path = pictures.save(tmp_path / "two.png", samples.draw((640, 480), PAIR, seed=5))
        found = look(path)
        assert [person.id for person in found.persons] == [1, 2]
        assert found.persons[0].side >= found.persons[1].side
        centres = sorted(sum(p.sightings[0].box[::2]) / 2 for p in found.persons)
        assert centres == pytest.approx([PAIR[0].x, PAIR[1].x], abs=20)
        assert {"map-1", "map-2"} <= set(found.pictures)

    def test_no_face_is_undecided(self, tmp_path: Path) -> None:
        found = look(pictures.save(tmp_path / "wall.png", samples.draw((640, 480), (), seed=5)))
        assert (found.verdict, found.persons) == (UNDECIDED, ())
        assert found.reasons == ("no face was found",)

    @pytest.mark.parametrize("size", [(1, 1), (1, 400), (12, 12), (39, 700)])
    def test_pictures_too_small_for_a_face_hold_none(
        self, tmp_path: Path, size: tuple[int, int]
    ) -> None:
        path = pictures.save(tmp_path / "tiny.png", pictures.gradient(*size))
        assert look(path).reasons == ("no face was found",)

    def test_a_small_face_is_undecided(self, tmp_path: Path) -> None:
        place = samples.Place(160, 120, 26)
        path = pictures.save(tmp_path / "far.png", samples.draw((320, 240), (place,), seed=3))
        found = look(path, Network(lambda crop: 0.99))
        assert (found.verdict, found.reasons) == (UNDECIDED, (TOO_SMALL,))

    def test_a_blurred_face_is_undecided(self, portrait: Path, tmp_path: Path) -> None:
        soft = Image.open(portrait).filter(ImageFilter.GaussianBlur(9))
        found = look(pictures.save(tmp_path / "soft.png", soft), Network(lambda crop: 0.99))
        assert (found.verdict, found.reasons) == (UNDECIDED, (BLURRED,))

    def test_a_heavily_compressed_face_is_undecided(self, portrait: Path, tmp_path: Path) -> None:
        path = pictures.save(tmp_path / "a.jpg", Image.open(portrait), "JPEG", quality=8)
        assert look(path, Network(lambda crop: 0.99)).reasons == (COMPRESSED,)
        again = pictures.save(tmp_path / "again.png", Image.open(path))
        assert look(again, Network(lambda crop: 0.99)).reasons == (COMPRESSED,)

    def test_a_turned_photograph_is_looked_at_upright(self, portrait: Path, tmp_path: Path) -> None:
        image = Image.open(portrait)
        lying = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6
        path = pictures.save(tmp_path / "turned.png", lying, exif=exif)
        found = look(path)
        assert (found.file.width, found.file.height) == (640, 480)
        upright = look(portrait).persons[0].sightings[0].box
        assert found.persons[0].sightings[0].box == pytest.approx(upright, abs=2)

    def test_of_an_animation_the_first_frame_is_looked_at_and_said_so(
        self, portrait: Path, tmp_path: Path
    ) -> None:
        first = Image.open(portrait)
        path = pictures.save(
            tmp_path / "a.gif", first, "GIF", save_all=True, append_images=[first.rotate(180)]
        )
        found = look(path)
        assert len(found.persons) == 1
        assert any("first" in reason for reason in found.reasons)

    def test_a_crowd_is_looked_at_up_to_a_number(self, portrait: Path) -> None:
        boxes = [(float(x), float(y), x + 70.0, y + 70.0) for x in range(0, 560, 80)
                 for y in range(0, 400, 80)]  # fmt: skip
        found = look(portrait, detector=Boxes([boxes]))
        assert len(found.persons) == 24
        assert any("24 largest" in reason for reason in found.reasons)

    def test_boxes_over_the_edge_are_cut_out_all_the_same(self, portrait: Path) -> None:
        network = Network()
        boxes = [(-40.0, -30.0, 60.0, 70.0), (580.0, 420.0, 700.0, 520.0)]
        look(portrait, network, detector=Boxes([boxes]))
        assert network.sizes == [(2, 128, 128, 3)]


class TestVideo:
    def test_every_person_has_one_row_with_gaps(self, strolling: Path) -> None:
        found = look(strolling)
        assert (found.file.kind, found.file.width, found.file.height) == ("video", 640, 360)
        assert found.file.seconds == pytest.approx(3, abs=0.1)
        assert len(found.frames) == 32
        (person,) = found.persons
        assert [f.faces for f in found.frames].count(0) == 32 - len(person.sightings)
        assert all(not f.faces for f in found.frames if f.time > 2.6)
        assert {s.time for s in person.sightings} <= {f.time for f in found.frames}

    def test_a_change_in_the_middle_second_is_found_there(self, strolling: Path) -> None:
        found = look(strolling, Network(redness))
        assert found.verdict == SIGNS
        high = [s.time for s in found.persons[0].sightings if s.score > 0.5]
        assert 0.95 <= min(high) <= 1.15
        assert 1.85 <= max(high) <= 2.05

    def test_the_map_is_of_the_highest_usable_score(self, strolling: Path) -> None:
        (person,) = look(strolling, Network(redness)).persons
        assert person.clearest.score == 1
        assert 1 <= person.clearest.time <= 2

    def test_there_is_a_thumbnail_of_every_frame(self, strolling: Path) -> None:
        shown = look(strolling, frames=6).pictures
        assert set(shown) == {*(f"frame-{i}" for i in range(6)), "map-1"}

    def test_an_absent_person_keeps_the_row(self, tmp_path: Path) -> None:
        path = tmp_path / "away.mp4"
        samples.clip(path, walk(24, away=range(8, 16)), rate=12)
        found = look(path, frames=12)
        assert len(found.persons) == 1
        times = [s.time for s in found.persons[0].sightings]
        assert min(times) < 0.5
        assert max(times) > 1.5
        assert all(not f.faces for f in found.frames if 0.75 < f.time < 1.25)

    def test_a_picture_as_video_gives_the_verdict_of_the_picture(self, tmp_path: Path) -> None:
        (frame,) = walk(1)
        path = tmp_path / "one.mp4"
        samples.clip(path, iter([reddened(frame)]), rate=12)
        found = look(path, Network(redness))
        assert (found.verdict, len(found.frames)) == (SIGNS, 1)

    def test_heavy_compression_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "poor.mp4"
        samples.clip(path, walk(8), rate=8, crf=49)
        found = look(path, Network(lambda crop: 0.99), frames=4)
        assert found.verdict == UNDECIDED
        if found.persons:
            assert found.persons[0].reasons == (COMPRESSED,)

    def test_what_is_longer_is_cut_and_said_so(self, strolling: Path) -> None:
        found = look(strolling, limits=replace(LIMITS, video_seconds=1.0))
        assert max(f.time for f in found.frames) < 1
        assert "of the video only the first 1 seconds were analysed" in found.reasons

    def test_progress_is_told_frame_by_frame(self, strolling: Path) -> None:
        told: list[tuple[int, int]] = []
        look(strolling, frames=6, progress=lambda done, total: told.append((done, total)))
        assert [total for _, total in told] == [6] * len(told)
        assert [done for done, _ in told] == [0, 1, 2, 3, 4, 5, 5, 6]

    @pytest.mark.parametrize("frames", [0, -1, 257])
    def test_the_number_of_frames_has_bounds(self, strolling: Path, frames: int) -> None:
        with pytest.raises(UnmaskError, match="frames must be 1 to 256"):
            look(strolling, frames=frames)


class TestCancel:
    def test_before_the_first_frame(self, portrait: Path, strolling: Path) -> None:
        for path in (portrait, strolling):
            with pytest.raises(Cancelled):
                look(path, cancel=lambda: True)

    def test_half_way(self, strolling: Path) -> None:
        done: list[int] = []
        with pytest.raises(Cancelled):
            look(
                strolling, frames=12, progress=lambda n, total: done.append(n),
                cancel=lambda: len(done) > 3, detector=Boxes([[]]),
            )  # fmt: skip
        assert max(done) <= 4


class TestRefusal:
    @pytest.mark.parametrize(
        ("data", "code"),
        [(b"", "empty"), (b"hello", "unknown_type"), (b"\xff\xd8\xff" + bytes(90), "corrupt"),
         (b"\x00\x00\x00\x18ftypisom" + bytes(64), "corrupt"), (b"ID3" + bytes(90), "no_picture")],
    )  # fmt: skip
    def test_bad_files_are_refused_with_a_code(
        self, tmp_path: Path, data: bytes, code: str
    ) -> None:
        path = tmp_path / "bad.jpg"
        path.write_bytes(data)
        with pytest.raises(MediaError) as caught:
            look(path)
        assert caught.value.code == code
        assert str(caught.value).isprintable()

    def test_an_unknown_network_is_refused(self, portrait: Path) -> None:
        with pytest.raises(UnmaskError, match="there is no model 'nonsense'"):
            inspect(portrait, "nonsense")


WEIGHTS = (models.weights_folder() / "models.json").is_file()


@pytest.mark.parametrize(("count", "word"), [(24, CLEAR), (25, UNDECIDED)])
def test_no_sign_is_not_said_of_a_crowd_that_was_not_looked_at(
    portrait: Path, count: int, word: str
) -> None:
    crowd = [(240.0 + shift, 115.0, 410.0 + shift, 340.0) for shift in range(count)]
    found = look(portrait, detector=Boxes([crowd]))
    assert len(found.persons) == 24
    assert found.verdict == word
    assert any("24 largest" in reason for reason in found.reasons) == (word == UNDECIDED)


@pytest.mark.parametrize(("share", "word"), [(0.2, CLEAR), (0.7, UNDECIDED)])
def test_no_sign_is_not_said_of_a_video_that_was_mostly_lost(
    tmp_path: Path, share: float, word: str
) -> None:
    movie = pictures.encode(walk(20), g="1", bf="0")
    at = movie.index(b"mdat") + 4
    size = int.from_bytes(movie[at - 8 : at - 4], "big") - 8
    begin, end = at + round(0.25 * size), at + round((0.25 + share) * size)
    path = tmp_path / "a.mp4"
    path.write_bytes(movie[:begin] + bytes(end - begin) + movie[end:])
    found = look(path)
    assert found.verdict == word
    assert any("cannot be decoded" in reason for reason in found.reasons)


def half(frames: Iterable[Pixels]) -> Iterator[Pixels]:
    for frame in frames:
        yield np.asarray(Image.fromarray(frame).resize((320, 180)))


def test_boxes_keep_to_one_size_where_the_video_changes_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    first, second = ([100 * (start + i) for i in range(8)] for start in (0, 8))
    path.write_bytes(
        pictures.encode(walk(8), "mpegts", times=first, bf="0")
        + pictures.encode(half(walk(8)), "mpegts", times=second, bf="0")
    )
    found = look(path)
    assert (found.file.width, found.file.height, len(found.frames)) == (640, 360, 16)
    (person,) = found.persons
    assert len(person.sightings) == 16
    widths = [sighting.box[2] - sighting.box[0] for sighting in person.sightings]
    assert min(widths) > 0.8 * max(widths)
    assert sum("changes its size" in reason for reason in found.reasons) == 1


def test_the_api_describes_every_field_of_a_report(portrait: Path, strolling: Path) -> None:
    schemas = pytest.importorskip("unmask.web.schemas")
    for path in (portrait, strolling):
        found = look(path).to_dict()
        assert schemas.Report.model_validate(found).model_dump() == found


@pytest.mark.skipif(not WEIGHTS, reason="the weights are not there")
class TestShipped:
    def test_every_network_looks_at_a_picture(self, portrait: Path) -> None:
        for info in models.available():
            found = inspect(portrait, info.name)
            assert found.model.name == info.name
            assert found.verdict in {SIGNS, CLEAR, UNDECIDED}
            assert 0 <= (found.persons[0].score or -1) <= 1

    def test_the_default_network_says_the_same_every_time(self, strolling: Path) -> None:
        def scores(found: Report) -> Sequence[float]:
            return [s.score for p in found.persons for s in p.sightings]

        one, other = inspect(strolling, frames=8), inspect(strolling, frames=8)
        assert one.model.name == models.default_name()
        assert scores(one) == scores(other)
        assert one.verdict == other.verdict
