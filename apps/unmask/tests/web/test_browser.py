"""The page in a real browser, at desktop and phone width."""

from __future__ import annotations

import base64
import json
import re

import pytest
from browser import DESKTOP, PHONE, browser, violations
from conftest import MP4, eventually

from unmask.web.samples import Samples

VERDICTS = r"signs of manipulation|no sign found|cannot say"


@pytest.fixture(scope="module")
def chrome():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def clip():
    return next(sample for sample in Samples().all if sample.kind == "video").make()


def open_page(chrome, address, size, scheme="light"):
    """Return the page with everything noted that must not happen."""
    context = chrome.new_context(viewport=size, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.wrong = []
    page.on("console", lambda m: m.type in {"error", "warning"} and page.wrong.append(m.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda r: foreign(r.url, address) and page.wrong.append(r.url))
    page.goto(address + "/")
    page.wait_for_selector("#samples button")
    return page


def foreign(url, address):
    return not url.startswith((address, "blob:", "data:"))


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def page(request, chrome, address):
    page = open_page(chrome, address, request.param)
    yield page
    assert page.wrong == []
    page.context.close()


def upload(page, data, name="face.png", kind="image/png"):
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def until(page, condition):
    """Wait for an expression to come true; the page's own policy forbids evaluating it there."""
    eventually(lambda: page.evaluate(condition), 20)


def fits(page):
    """Nothing sticks out of the page to the side."""
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_limits_and_networks_are_told_before_the_upload(page):
    limits = page.inner_text("#limits")
    assert all(word in limits for word in ("20 MB", "40 megapixels", "100 MB", "60 seconds"))
    choices = page.locator("#choices .choice")
    assert choices.count() == 3
    assert re.search(r"720 kB\s+2\.9 ms a face", choices.nth(2).inner_text())
    assert page.is_checked("#choices input[value=int8]")
    assert violations(page) == [] and fits(page)


def test_a_picture_is_inspected_and_the_network_switched(page, image):
    upload(page, image)
    page.wait_for_selector("#verdict")
    assert re.fullmatch(VERDICTS, page.inner_text("#verdict").lower())
    assert page.evaluate("document.activeElement.id") == "verdict"
    assert "Verdict: signs of manipulation" in page.inner_text("#live")
    assert "flagged 3 of 100 untouched faces" in page.inner_text(".verdict")
    box = page.locator(".box").bounding_box()
    stage = page.locator(".stage").bounding_box()
    assert abs(box["x"] - stage["x"] - stage["width"] * 180 / 640) < 3
    assert abs(box["width"] - stage["width"] * 200 / 640) < 3
    assert "0.90" in page.inner_text(".box")
    page.wait_for_selector(".looks canvas >> nth=1")
    assert "not proof" in page.inner_text(".looks + figcaption")
    assert "authentic" not in page.inner_text("#verdict").lower()
    assert violations(page) == [] and fits(page)
    page.check("label:has-text('Where the network looked') input")
    assert page.locator(".stage .heat").count() == 1

    page.select_option("#switch", "dense")
    page.click("#again")
    page.wait_for_selector("#runs tbody tr >> nth=1")
    rows = page.locator("#runs tbody tr").all_inner_texts()
    assert rows[0].startswith("Pruned, int8") and rows[1].startswith("Dense")

    with page.expect_download() as caught:
        page.click("#download")
    assert caught.value.suggested_filename == "face.unmask.json"
    report = json.loads(caught.value.path().read_text())
    assert report["file"]["name"] == "face.png" and len(report["file"]["sha256"]) == 64
    assert report["model"]["name"] == "dense" and set(report["model"]["thresholds"]) == {
        "swap", "generated",
    }  # fmt: skip
    page.click("#forget")
    page.wait_for_selector("#drop")
    assert page.inner_html("#result") == ""


def test_a_video_is_followed_frame_by_frame(page, clip):
    page.evaluate(
        """() => { window.steps = [];
        new MutationObserver(() => steps.push(document.getElementById("step").textContent))
          .observe(document.getElementById("step"), {childList: true}); }"""
    )
    upload(page, clip + b"!slow", "clip.mp4", "video/mp4")
    until(page, "steps.filter((s) => /^Frame \\d+ of 32$/.test(s)).length >= 2")
    assert page.evaluate("document.getElementById('bar').value") > 0
    assert violations(page) == [] and fits(page)
    page.wait_for_selector("#verdict")
    told = [int(s.split()[1]) for s in page.evaluate("steps") if re.match(r"Frame \d+ of", s)]
    assert told == sorted(told) and len(set(told)) > 5
    assert page.locator(".cells.thumbs img").count() == 32
    assert page.locator(".cells.bars").count() == 2
    assert page.locator(".cells.bars >> nth=0").locator(".gap").count() == 8
    page.focus(".timeline input[type=range]")
    before = page.inner_text(".now-line")
    page.keyboard.press("ArrowRight")
    after = page.inner_text(".now-line")
    assert before.startswith("Frame 1 of 32") and after.startswith("Frame 2 of 32")
    assert page.get_attribute(".timeline input[type=range]", "aria-valuetext") == after
    page.locator(".cells.bars >> nth=1").locator(".cell >> nth=20").click()
    assert page.inner_text(".now-line").startswith("Frame 21 of 32")
    until(page, "Math.abs(document.querySelector('.stage video').currentTime - 2.5) < 0.1")
    assert page.locator(".box").count() == 2
    assert violations(page) == [] and fits(page)


@pytest.mark.parametrize("kind", ["image/png", "video/mp4"])
def test_without_a_face_it_cannot_say(page, image, clip, kind):
    upload(page, (image if kind == "image/png" else clip) + b"!noface", "empty", kind)
    page.wait_for_selector("#verdict")
    assert page.inner_text("#verdict").lower() == "cannot say"
    assert "No face was found" in page.inner_text("#result")
    assert page.locator(".box").count() == 0
    assert violations(page) == [] and fits(page)


def test_cancelling_gives_the_page_back(page, clip):
    upload(page, clip + b"!slow", "clip.mp4", "video/mp4")
    until(page, "/^Frame/.test(document.getElementById('step').textContent)")
    page.click("#cancel")
    page.wait_for_selector("#drop")
    assert page.evaluate("document.activeElement.id") == "file"


@pytest.mark.parametrize(
    ("size", "kind", "text"),
    [(0, "image/png", "empty"), (21, "image/png", "20 MB"), (101, "video/mp4", "100 MB")],
)
def test_what_is_surely_too_much_is_not_even_sent(page, size, kind, text):
    page.evaluate(
        """([size, kind]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(size * 2 ** 20)], "big", {type: kind}));
        const input = document.getElementById("file");
        input.files = transfer.files;
        input.dispatchEvent(new Event("change")); }""",
        [size, kind],
    )
    page.wait_for_selector("#refused:visible")
    assert text in page.inner_text("#refused")
    assert page.is_visible("#drop")
    assert violations(page) == []


@pytest.mark.parametrize(
    ("data", "name", "code"),
    [
        (b"%PDF-1.7" + bytes(100), "paper.png", "unknown_type"),
        (b"\x89PNG\r\n\x1a\n!corrupt" + bytes(50), "a.png", "corrupt"),
        (MP4 + b"!crash", "a.mp4", "crashed"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "a\nb.png", "bad_name"),
    ],
)
def test_bad_files_are_explained(chrome, address, image, data, name, code):
    page = open_page(chrome, address, DESKTOP)
    upload(page, data, name, "image/png")
    page.wait_for_selector("#failed:visible")
    assert page.inner_text("#failed-code") == code
    assert page.evaluate("document.activeElement.id") == "failed-title"
    assert violations(page) == []
    page.click("#failed-back")
    upload(page, image)
    page.wait_for_selector("#verdict")
    page.context.close()


TRANSFER = """([data, type]) => {
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], "given.png", {type: "image/png"}));
  const options = {bubbles: true, cancelable: true};
  if (type === "paste")
    dispatchEvent(new ClipboardEvent("paste", {...options, clipboardData: transfer}));
  else for (const name of ["dragenter", "dragover", "drop"]) {
    const event = new DragEvent(name, {...options, dataTransfer: transfer});
    document.getElementById("drop").dispatchEvent(event);
  }
}"""


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_files_can_be_dropped_and_pasted(chrome, address, image, how):
    page = open_page(chrome, address, DESKTOP)
    page.evaluate(TRANSFER, [base64.b64encode(image).decode(), how])
    page.wait_for_selector("#verdict")
    assert "given.png" in page.inner_text("#result")
    assert page.wrong == []
    page.context.close()


def test_several_files_at_once_are_not_silently_one(chrome, address):
    page = open_page(chrome, address, DESKTOP)
    page.evaluate(
        """() => {
        const transfer = new DataTransfer();
        for (const name of ["a.png", "b.png"]) transfer.items.add(new File(["x"], name));
        const options = {bubbles: true, cancelable: true, dataTransfer: transfer};
        document.getElementById("drop").dispatchEvent(new DragEvent("drop", options)); }"""
    )
    page.wait_for_selector("#refused:visible")
    assert "One file at a time" in page.inner_text("#refused")
    assert page.wrong == []
    page.context.close()


def test_a_file_that_changed_is_not_blamed_on_the_server(chrome, address, image, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(image)
    page = open_page(chrome, address, DESKTOP)
    page.set_input_files("#file", path)
    page.wait_for_selector("#verdict")
    path.unlink()
    page.click("#again")
    page.wait_for_selector("#failed:visible")
    assert page.inner_text("#failed-code") == "unreadable"
    page.context.close()


def test_the_keyboard_is_enough(chrome, address):
    page = open_page(chrome, address, DESKTOP)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.value") == "int8":
            break
    page.keyboard.press("ArrowUp")
    assert page.is_checked("#choices input[value=pruned]")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#verdict")
    assert page.locator("#runs tbody tr").inner_text().startswith("Pruned\n")
    page.context.close()


@pytest.mark.parametrize("path", ["/", "/about", "/api", "/nowhere"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_passes_axe_in_both_colours(chrome, address, path, scheme):
    for size in (DESKTOP, PHONE):
        page = open_page(chrome, address, size, scheme)
        page.goto(address + path)
        page.wait_for_load_state("networkidle")
        assert violations(page) == [] and fits(page)
        assert [said for said in page.wrong if "404" not in said or path != "/nowhere"] == []
        page.context.close()


def test_results_pass_axe_in_the_dark(chrome, address, image, clip):
    page = open_page(chrome, address, DESKTOP, "dark")
    upload(page, image)
    page.wait_for_selector(".looks canvas")
    assert violations(page) == []
    page.click("text=Look at another file")
    upload(page, clip, "clip.mp4", "video/mp4")
    page.wait_for_selector(".timeline")
    assert violations(page) == []
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.context.close()


def test_what_it_can_see_shows_the_measured_figures(chrome, address):
    page = open_page(chrome, address, DESKTOP)
    page.goto(address + "/about")
    page.wait_for_selector("#figures table")
    text = page.inner_text("#figures")
    assert (
        "Blended faces" in text
        and "0.951 [0.941, 0.961]" in text
        and "False alarms on untouched faces" in text
    )
    assert "authentic" in page.inner_text("main")
    page.context.close()


def test_the_report_prints(chrome, address, image):
    page = open_page(chrome, address, DESKTOP)
    upload(page, image)
    page.wait_for_selector("#verdict")
    page.emulate_media(media="print")
    assert not page.is_visible("#download") and not page.is_visible("header.top")
    facts = page.inner_text("dl.facts")
    assert "SHA-256" in facts and "version test" in facts and "signs from 0.70" in facts
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.context.close()
