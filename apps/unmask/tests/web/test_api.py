"""The REST API with a stand-in for the analysis: states, errors, limits, and nothing left."""

from __future__ import annotations

import base64
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import MP4, eventually, left
from starlette.testclient import TestClient

from unmask.web.app import create_app
from unmask.web.problems import CODES
from unmask.web.settings import Settings

BASE = "/api/v1"


def post(client, data, name="a.png", path="/jobs", **fields):
    return client.post(BASE + path, files={"file": (name, data)}, data=fields)


def finished(client, job):
    def ended():
        return client.get(f"{BASE}/jobs/{job}").json()["state"] not in {"queued", "running"}

    eventually(ended)
    return client.get(f"{BASE}/jobs/{job}").json()


def code(response):
    body = response.json()
    assert set(body) == {"error"} and body["error"]["message"]
    assert body["error"]["code"] in CODES
    return response.status_code, body["error"]["code"]


def test_a_job_goes_from_queued_to_its_result(client, image):
    response = post(client, image, "me & you.png", model="pruned")
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == job["links"]["self"] == f"{BASE}/jobs/{job['id']}"
    ended = finished(client, job["id"])
    assert ended["state"] == "done" and ended["progress"] == {"done": 1, "total": 1}
    assert 0 < ended["expires_in"] <= 600
    result = client.get(ended["links"]["result"]).json()
    assert result["report"]["file"]["name"] == "me & you.png"
    assert result["report"]["model"]["name"] == "pruned"
    for picture in result["pictures"]:
        found = client.get(picture["url"])
        assert found.headers["content-type"] in {"image/png", "image/jpeg"}
    assert {picture["kind"] for picture in result["pictures"]} == {"thumbnail", "map"}


def test_progress_goes_up_frame_by_frame(client):
    job = post(client, MP4 + b"!slow", "clip.mp4").json()["id"]
    seen = []
    while (state := client.get(f"{BASE}/jobs/{job}?wait=5").json())["state"] in {
        "queued",
        "running",
    }:
        seen.append(state["progress"]["done"])
        if len(seen) > 6:
            break
    assert seen == sorted(seen) and len(set(seen)) > 3
    assert client.get(f"{BASE}/jobs/{job}/result").status_code == 409
    assert client.delete(f"{BASE}/jobs/{job}").status_code == 204


def test_cancelling_stops_the_work_and_forgets(client, settings):
    job = post(client, MP4 + b"!slow", "clip.mp4").json()["id"]
    eventually(lambda: client.get(f"{BASE}/jobs/{job}").json()["progress"]["done"])
    assert client.delete(f"{BASE}/jobs/{job}").status_code == 204
    assert code(client.get(f"{BASE}/jobs/{job}")) == (404, "not_found")
    eventually(lambda: client.get(f"{BASE}/health").json()["busy"] == 0, 3)
    assert client.get(f"{BASE}/health").json()["replaced"] == 0
    assert not left(settings.folder)


def test_one_that_does_not_listen_is_killed_when_cancelled(client, image, settings):
    job = post(client, image + b"!hang").json()["id"]
    eventually(lambda: client.get(f"{BASE}/jobs/{job}").json()["state"] == "running")
    client.delete(f"{BASE}/jobs/{job}")
    eventually(lambda: client.get(f"{BASE}/health").json()["replaced"] == 1)
    assert post(client, image, path="/inspect").status_code == 200


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (b"!corrupt", (422, "corrupt")),
        (b"!crash", (422, "crashed")),
        (b"!abort", (422, "too_much_memory")),
        (b"!memory", (422, "too_much_memory")),
        (b"!bug", (422, "crashed")),
        (b"!hang", (422, "too_slow")),
    ],
)
def test_a_bad_file_is_told_and_stalls_nobody(client, image, settings, word, expected):
    assert code(post(client, image + word, path="/inspect")) == expected
    assert not left(settings.folder)
    assert post(client, image, path="/inspect").status_code == 200


def test_a_failed_job_says_why(client, image):
    job = post(client, image + b"!corrupt").json()["id"]
    ended = finished(client, job)
    assert ended["state"] == "failed" and ended["error"]["code"] == "corrupt"
    assert code(client.get(f"{BASE}/jobs/{job}/result")) == (422, "corrupt")
    assert code(client.get(f"{BASE}/jobs/{job}/pictures/frame-0")) == (422, "corrupt")


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        (b"", "a.png", (422, "empty")),
        (b"hello", "a.png", (415, "unknown_type")),
        (b"%PDF-1.7" + bytes(100), "a.jpg", (415, "unknown_type")),
        (b"\xff\xd8\xff" + bytes(9), "../../etc/passwd", (422, "bad_name")),
        (b"\xff\xd8\xff" + bytes(9), "C:\\boot.png", (422, "bad_name")),
        (b"\xff\xd8\xff" + bytes(9), "a%0Ab.png", (422, "bad_name")),
        (b"\xff\xd8\xff" + bytes(9), "a%0D%0Ab.png", (422, "bad_name")),
        (b"\xff\xd8\xff" + bytes(9), "a" * 300, (422, "bad_name")),
        (b"\xff\xd8\xff" + bytes(9), "a\u202egnp.exe", (422, "bad_name")),
    ],
)  # fmt: skip
def test_bad_uploads_are_refused_at_once(client, settings, data, name, expected):
    for path in ("/jobs", "/inspect"):
        assert code(post(client, data, name, path)) == expected
    assert not left(settings.folder)


def test_bodies_that_are_no_upload(client):
    assert code(client.post(f"{BASE}/jobs", content=b"x")) == (415, "not_multipart")
    assert code(client.post(f"{BASE}/jobs", json={"file": "/etc/passwd"})) == (415, "not_multipart")
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert code(client.post(f"{BASE}/jobs", content=b"nonsense", headers=kind)) == (
        400,
        "malformed",
    )
    half = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n\x89PNG'
    assert code(client.post(f"{BASE}/jobs", content=half, headers=kind)) == (400, "malformed")
    path = client.post(
        f"{BASE}/jobs", files={"model": (None, "int8"), "file": (None, "/etc/hosts")}
    )
    assert code(path) == (422, "no_file")
    assert code(client.post(f"{BASE}/jobs", files={"other": ("a.png", b"x")})) == (422, "no_file")


def test_unknown_models_leave_no_file(client, image, settings):
    assert code(post(client, image, model="huge")) == (422, "unknown_model")
    assert not left(settings.folder)


def test_one_file_means_one(client, image, settings):
    two = [("file", ("a.png", image)), ("file", ("b.png", image))]
    assert code(client.post(f"{BASE}/jobs", files=two)) == (422, "too_many_files")
    assert not left(settings.folder)


def test_sizes_are_counted_by_kind(settings, image):
    small = Settings(**{**vars(settings), "image_bytes": 50_000, "video_bytes": 200_000})
    with TestClient(create_app(small)) as client:
        too_much = image[:40] + bytes(60_000)
        assert code(post(client, too_much)) == (413, "too_large")
        assert code(post(client, MP4 + bytes(250_000))) == (413, "too_large")
        assert post(client, MP4 + bytes(60_000)).status_code == 202


def test_a_batch_takes_the_good_and_names_the_bad(client, image):
    files = [("file", (name, data)) for name, data in [
        ("a.png", image), ("b.png", b""), ("c.txt", b"text" * 40), ("d.png", image + b"!corrupt"),
        ("../e.png", image),
    ]]  # fmt: skip
    response = client.post(f"{BASE}/batch", files=files, data={"model": "dense"})
    assert response.status_code == 202
    items = response.json()["jobs"]
    errors = [item["error"]["code"] if item["error"] else None for item in items]
    assert errors == [None, "empty", "unknown_type", None, "bad_name"]
    assert finished(client, items[0]["job"]["id"])["state"] == "done"
    assert finished(client, items[3]["job"]["id"])["error"]["code"] == "corrupt"
    many = [("file", (f"{i}.png", image)) for i in range(11)]
    assert code(client.post(f"{BASE}/batch", files=many)) == (422, "too_many_files")


def test_a_full_queue_says_when_to_come_back(client, image, settings):
    jobs = [post(client, MP4 + b"!slow", "a.mp4").json()["id"]]
    eventually(lambda: client.get(f"{BASE}/health").json()["busy"] == 1)
    jobs += [post(client, image).json()["id"] for _ in range(settings.waiting)]
    refused = post(client, image)
    assert code(refused) == (429, "busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert code(client.post(f"{BASE}/batch", files=[("file", ("a.png", image))])) == (429, "busy")
    assert client.get(f"{BASE}/health").json()["status"] == "busy"
    assert len(left(settings.folder)) == settings.waiting + 1
    for job in jobs:
        assert client.delete(f"{BASE}/jobs/{job}").status_code == 204
    eventually(lambda: not left(settings.folder), 5)


def test_inspect_answers_at_once_and_keeps_nothing(client, image, settings):
    plain = post(client, image, path="/inspect").json()
    assert plain["report"]["verdict"] == "signs of manipulation" and plain["pictures"] == []
    full = client.post(f"{BASE}/inspect?pictures=true", files={"file": ("a.png", image)}).json()
    head, _, data = full["pictures"][0]["url"].partition(",")
    assert head == "data:image/jpeg;base64" and base64.b64decode(data).startswith(b"\xff\xd8")
    assert not client.app.state.desk.jobs._jobs
    assert not left(settings.folder)


def test_results_are_forgotten_in_time_and_when_there_are_many(settings, image):
    short = Settings(**{**vars(settings), "keep_seconds": 0.4})
    with TestClient(create_app(short)) as client:
        job = post(client, image).json()["id"]
        eventually(lambda: client.get(f"{BASE}/jobs/{job}").status_code == 404)
    few = Settings(**{**vars(settings), "keep_results": 2})
    with TestClient(create_app(few)) as client:
        jobs = []
        for _ in range(4):
            jobs.append(post(client, image).json()["id"])
            finished(client, jobs[-1])
        states = [client.get(f"{BASE}/jobs/{job}").status_code for job in jobs]
        assert states == [404, 404, 200, 200]


def test_results_are_held_within_a_size(settings, image):
    tight = Settings(**{**vars(settings), "keep_bytes": 20_000})
    with TestClient(create_app(tight)) as client:
        first = post(client, image).json()["id"]
        finished(client, first)
        second = post(client, image).json()["id"]
        finished(client, second)
        third = post(client, image).json()["id"]
        finished(client, third)
        assert client.get(f"{BASE}/jobs/{first}").status_code == 404
        assert client.get(f"{BASE}/jobs/{third}").status_code == 200


def test_what_the_page_asks_before_an_upload(client):
    models = client.get(f"{BASE}/models").json()
    assert [model["name"] for model in models["models"]] == ["dense", "pruned", "int8"]
    assert models["default"] == "int8" and all("file" not in model for model in models["models"])
    limits = client.get(f"{BASE}/limits").json()
    assert limits["image_bytes"] == 20 * 2**20 and limits["video_bytes"] == 100 * 2**20
    assert limits["image_pixels"] == 40_000_000 and limits["video_seconds"] == 60
    health = client.get(f"{BASE}/health").json()
    assert health["status"] == "ok" and health["files"] == 0
    for sample in client.get(f"{BASE}/samples").json()[:1]:
        data = client.get(sample["url"])
        assert data.headers["content-type"] == sample["type"]
        assert post(client, data.content, sample["name"], "/inspect").status_code == 200
    assert code(client.get(f"{BASE}/samples/none")) == (404, "not_found")


def test_a_mistyped_address_gives_people_a_page_and_scripts_an_error(client):
    person = client.get("/abuot", headers={"Accept": "text/html,*/*;q=0.8"})
    assert person.status_code == 404 and person.headers["content-type"].startswith("text/html")
    assert "no such page" in person.text and "content-security-policy" in person.headers
    assert code(client.get("/abuot")) == (404, "not_found")
    assert code(client.get(f"{BASE}/none", headers={"Accept": "text/html"})) == (404, "not_found")


def test_head_is_answered_like_get_without_a_body(client):
    for path in ("/", "/static/style.css", f"{BASE}/health", f"{BASE}/samples/nobody.png"):
        full, short = client.get(path), client.head(path)
        assert short.status_code == full.status_code == 200 and short.content == b""
        for name in ("content-length", "content-type"):
            assert short.headers[name] == full.headers[name]
    assert client.head(f"{BASE}/none").status_code == 404
    assert client.put(f"{BASE}/health").headers["allow"] == "GET, HEAD"
    assert client.head(f"{BASE}/jobs").headers["allow"] == "POST"


def test_the_description_tells_the_whole_answer(client):
    described = client.get(f"{BASE}/openapi.json").json()
    shapes = described["components"]["schemas"]
    report = shapes["Result"]["properties"]["report"]["$ref"].rpartition("/")[2]
    assert set(shapes[report]["required"]) == {
        "file", "model", "verdict", "reasons", "persons", "frames", "seconds", "limits",
    }  # fmt: skip
    post = described["paths"][f"{BASE}/jobs"]["post"]["responses"]
    assert "Retry-After" in post["429"]["headers"] and "Location" in post["202"]["headers"]


def test_every_answer_is_guarded(client):
    for path in ("/", "/about", "/api", "/static/style.css", f"{BASE}/health", f"{BASE}/none"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert client.get(f"{BASE}/health").headers["cache-control"] == "no-store"


def test_other_sites_may_not_send_files(client, image):
    answer = client.post(
        f"{BASE}/jobs", files={"file": ("a.png", image)}, headers={"Sec-Fetch-Site": "cross-site"}
    )
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "cross_site"


def test_names_are_not_logged(client, image, caplog):
    caplog.set_level(logging.DEBUG)
    for word in (b"", b"!corrupt", b"!bug", b"!crash"):
        post(client, image + word, "secret-name.png", "/inspect")
    post(client, b"text", "secret-name.png")
    assert "secret-name" not in caplog.text


def test_many_at_once_are_all_answered(client, image):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(client, image, path="/inspect"), range(40)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert sum(answer.status_code == 200 for answer in answers) >= 5


def test_without_workers_the_server_still_speaks(settings, image):
    lame = Settings(**{**vars(settings), "engine": "engines:broken"})
    with TestClient(create_app(lame)) as client:
        assert client.get(f"{BASE}/health").status_code == 503
        assert code(post(client, image, path="/inspect")) == (503, "unavailable")
        assert client.get("/").status_code == 200
