"""Page, queue, worker and analysis together, on samples drawn by code.

The network is the one that ships; where no weights are there, a stand-in takes its place and the
rest stays real.
"""

from __future__ import annotations

import json
import zlib
from importlib import resources
from pathlib import Path

import httpx
import pytest
from browser import DESKTOP, PHONE, browser
from conftest import HERE, eventually, serving

from unmask.web.samples import Samples
from unmask.web.settings import ENGINE, Settings

pytest.importorskip("facenet_pytorch", reason="pip install --no-deps facenet-pytorch")
SHIPPED = (Path(str(resources.files("unmask"))) / "weights" / "models.json").exists()
VERDICTS = {"signs of manipulation", "no sign found", "cannot say"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    settings = Settings(
        engine=ENGINE if SHIPPED else "engines:drawn",
        models=None if SHIPPED else HERE / "models.json",
        folder=tmp_path_factory.mktemp("whole") / "private", workers=1,
    )  # fmt: skip
    with serving(settings) as address:
        eventually(lambda: httpx.get(address + "/api/v1/health").json()["ready"], 180)
        yield address


@pytest.fixture(scope="module")
def drawn():
    return {sample.name: sample.make() for sample in Samples().all}


def inspect(address, name, data, **fields):
    files = {"file": (name, data)}
    return httpx.post(address + "/api/v1/inspect", files=files, data=fields, timeout=120)


def claim(png, side):
    """Let a PNG's header say that it has side x side pixels."""
    header = b"IHDR" + side.to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]


def test_every_sample_gets_a_verdict(whole, drawn):
    for name, data in drawn.items():
        report = inspect(whole, name, data).json()["report"]
        assert report["verdict"] in VERDICTS
        assert bool(report["persons"]) == (name != "nobody.png")
    assert [person["id"] for person in report["persons"]] == [1, 2]  # of the video, the last


def test_every_network_looks_at_the_same_faces(whole, drawn):
    names = [model["name"] for model in httpx.get(whole + "/api/v1/models").json()["models"]]
    boxes = []
    for name in names:
        report = inspect(whole, "a.png", drawn["portrait.png"], model=name).json()["report"]
        assert report["model"]["name"] == name
        boxes.append(report["persons"][0]["frames"][0]["box"])
    assert len(names) >= 2 and all(box == boxes[0] for box in boxes)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda png: png[:5000], {"truncated", "corrupt"}),
        (lambda png: png[:40] + bytes(500) + png[540:], {"corrupt", "truncated"}),
        (lambda png: claim(png, 60_000), {"too_many_pixels"}),
    ],
    ids=["cut", "overwritten", "bomb"],
)
def test_bad_pictures_are_told_apart(whole, drawn, change, code):
    answer = inspect(whole, "a.png", change(drawn["portrait.png"]))
    assert 400 <= answer.status_code < 500 and answer.json()["error"]["code"] in code


def test_a_cut_video_is_a_clear_error(whole, drawn):
    answer = inspect(whole, "a.mp4", drawn["two-people.mp4"][:60_000])
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["code"] in {"truncated", "corrupt"}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_shows_a_picture_and_a_video(whole, drawn, size):
    with browser() as chrome:
        page = chrome.new_context(viewport=size).new_page()
        page.set_default_timeout(60_000)
        page.goto(whole + "/")
        page.wait_for_selector("#samples button")
        page.set_input_files(
            "#file", {"name": "a.png", "mimeType": "image/png", "buffer": drawn["blended.png"]}
        )
        page.wait_for_selector("#verdict")
        assert page.inner_text("#verdict").lower() in VERDICTS
        page.wait_for_selector(".looks canvas >> nth=1")
        page.select_option("#switch", index=0)
        page.click("#again")
        page.wait_for_selector("#runs tbody tr >> nth=1")
        with page.expect_download() as caught:
            page.click("#download")
        assert len(json.loads(caught.value.path().read_text())["file"]["sha256"]) == 64
        page.click("text=Look at another file")
        page.set_input_files(
            "#file", {"name": "a.mp4", "mimeType": "video/mp4", "buffer": drawn["two-people.mp4"]}
        )
        page.wait_for_selector(".timeline")
        assert page.locator(".cells.bars").count() == 2
        assert page.locator(".cells.bars .gap").count() > 10
