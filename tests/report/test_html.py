from __future__ import annotations

import json
import math
import re
import sys
from importlib import resources
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pages import Page, paths, put, row, sample

from secateur.report import render

MASKS = "zeros alone make nothing faster"


def test_the_page_asks_nothing_of_the_network():
    page = render(sample())
    assert "://" not in page
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    read = Page(page)
    for _, attributes in read.elements:
        for key in ("href", "src", "srcset", "data", "action"):
            assert attributes.get(key, "#").startswith(("#", "data:,"))
    assert {"script", "iframe", "object", "embed", "img"}.isdisjoint(t for t, _ in read.elements)
    policy = [m for m in read.find("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"].startswith("default-src 'none'")


def test_the_page_is_accessible():
    read = Page(render(sample()))
    assert read.find("html") == [{"lang": "en"}]
    assert all(attributes.get("scope") in {"row", "col"} for attributes in read.find("th"))
    pictures = read.find("svg")
    assert len(pictures) == 6  # schedule and layers, each wide and narrow; loss; accuracy
    assert all(p["role"] == "img" and len(p["aria-label"]) > 40 for p in pictures)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = [a["aria-labelledby"] for _, a in read.elements if "aria-labelledby" in a]
    assert len(labelled) == 4
    assert set(labelled) <= set(ids)


def test_every_reference_inside_a_picture_is_met():
    page = render(sample())
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert wanted
    assert wanted <= set(re.findall(r'id="([^"]+)"', page))


def test_the_pictures_use_the_colours_of_the_page_in_light_and_dark():
    page = render(sample())
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    defined = set(re.findall(r"--([\w-]+):", light))
    assert defined == set(re.findall(r"--([\w-]+):", dark))
    assert set(re.findall(r"var\(--([\w-]+)", page)) <= defined
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.search(r"(?:fill|stroke): #", svgs)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_can_be_read_in_light_and_dark(scheme):
    colours = dict(
        re.findall(
            r"--([\w-]+): (#\w{6})",
            re.findall(r":root \{(.*?)\}", render({"technique": "x"}), re.DOTALL)[scheme],
        )
    )
    pairs = [(front, back) for front in ("ink", "muted", "accent") for back in ("paper", "card")]
    for front, back in [*pairs, ("warn", "card"), ("warn", "warn-soft"), ("ink", "soft")]:
        low, high = sorted(luminance(colours[name]) for name in (front, back))
        # WCAG 2.2, success criterion 1.4.3: at least 4.5 for text.
        assert (high + 0.05) / (low + 0.05) >= 4.5, (front, back)


def test_the_trade_off_shows_both_sides_and_the_change():
    page = render(sample())
    assert row(page, "Accuracy") == "Accuracy 0.9722 0.9639 −0.0083"
    assert row(page, "Loss") == "Loss 0.1034 0.1193 +0.0159"
    assert row(page, "Sparsity") == "Sparsity 0.0000 0.9000 +0.9000"
    assert row(page, "Parameters") == "Parameters zeros not counted 98,442 10,312 9.55× fewer"
    assert row(page, "MACs") == "MACs 1.23 M 1.23 M no change"
    assert row(page, "File, dense") == "File, dense 394 kB 394 kB no change"
    assert row(page, "File, packed") == "File, packed 394 kB 53.6 kB 7.35× smaller"
    assert row(page, "Latency, p50").endswith("0.990 of before, within the spread")
    assert "0.978 to 1.08" in row(page, "Latency, p50")


def test_layers_and_settings_stand_in_tables():
    page = render(sample())
    assert row(page, "conv1.weight") == "conv1.weight Conv2d 8 × 1 × 3 × 3 72 30 0.4167 30 of 72"
    assert row(page, "head.weight").endswith("1,280 64 0.0500 64 of 1,280")
    assert row(page, "budget") == "budget sparsity 0.9 (share of weights removed)"
    assert row(page, "achieved") == "achieved sparsity 0.9 · params 0.105"
    assert row(page, "versions") == "versions torch 2.6.0"
    assert row(page, "hardware") == "hardware cpu some processor · threads 2"
    assert row(page, "seed") == "seed 0"
    assert row(page, "command") == "command secateur compress --sparsity 0.9"
    assert "cnn on digits" in page
    assert "All layers compete." in page
    assert "trained dense for the same epochs" in page


def test_an_emptied_layer_is_named():
    metrics = sample()
    metrics["layers"][1]["kept"] = 0
    assert "nothing left" in row(render(metrics), "head.weight")
    assert "nothing left" not in render(sample())


def with_latency(before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    metrics = sample()
    metrics["before"]["latency"], metrics["after"]["latency"] = before, after
    return metrics


def spread(low: float, middle: float, high: float) -> dict[str, Any]:
    return {"p50_ms": middle, "p95_ms": high, "low_ms": low, "high_ms": high}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (spread(0.9, 1.0, 1.1), spread(0.4, 0.5, 0.6), False),
        (spread(0.9, 1.0, 1.1), spread(0.85, 0.95, 1.0), True),
        (spread(0.9, 1.0, 1.1), spread(1.9, 2.0, 2.1), True),
        (spread(0.9, 1.0, 1.1), spread(0.9, 1.0, 1.1), True),
        ({"p50_ms": 1.0}, {"p50_ms": 0.5}, False),
        ({"p50_ms": 1.0}, {"p50_ms": 1.5}, True),
        (None, spread(0.9, 1.0, 1.1), True),
        (spread(0.9, 1.0, 1.1), None, False),
    ],
)
def test_what_is_not_faster_is_said_to_be_so(before, after, said):
    page = render(with_latency(before, after))
    assert (MASKS in page) == said
    assert ("the packed file is what got smaller" in page) == said
    called_faster = "faster" in row(page, "Latency, p50")
    assert called_faster == (before is not None and after is not None and not said)


def test_a_packed_file_that_did_not_shrink_is_not_praised():
    metrics = sample()
    metrics["after"]["bytes_packed"] = metrics["before"]["bytes_packed"]
    page = render(metrics)
    assert MASKS in page
    assert "what got smaller" not in page


def test_shortfall_and_notes_stand_before_the_figures():
    metrics = sample()
    metrics |= {"shortfall": 0.03, "achieved": {"sparsity": 0.87}, "notes": ["One <odd> layer."]}
    text = Page(render(metrics)).text
    told = "The budget was not met. Asked for sparsity 0.9, reached 0.87: 0.03 is missing."
    assert text.index(told) < text.index("One <odd> layer.") < text.index("Before and after")
    assert "not met" not in Page(render(sample())).text


def test_other_currencies_are_named_for_what_they_count():
    metrics = sample()
    metrics |= {"budget": {"currency": "macs", "value": 0.5}, "achieved": {"macs": 0.52}}
    page = render(metrics)
    assert "MACs left 0.5200 asked for 0.5" in Page(page).text
    assert "macs: share of MACs left" in page
    assert row(page, "budget") == "budget macs 0.5 (share of MACs left)"


EVIL = "<script>alert(1)</script>\"'><b onclick=x>$\\frac{a}$ & ]]>--> 網路 \x00\ud800 {{ 7*7 }}"
SHOWN = EVIL.replace("\x00\ud800", "\ufffd\ufffd")


def test_everything_untrusted_is_escaped():
    metrics = sample()
    for path in paths(metrics):
        target: Any = metrics
        for key in path[:-1]:
            target = target[key]
        if isinstance(target[path[-1]], str) and path != ("budget", "currency"):
            target[path[-1]] = EVIL
    metrics["versions"] = {EVIL: EVIL}
    metrics["notes"] = [EVIL]
    page = render(metrics)
    page.encode("utf-8")
    read = Page(page)
    assert read.find("script") == [] == read.find("b")
    assert not any(key.startswith("on") for _, attributes in read.elements for key in attributes)
    for name in ("model", "data", "command"):
        assert row(page, name) == f"{name} {SHOWN}"
    assert f"{SHOWN} {SHOWN}" in row(page, "versions")
    # As the name of a layer it stands in the table, in both pictures and in what they are called.
    assert read.texts.count(SHOWN) >= 5
    assert all("<script>" in p["aria-label"] for p in read.find("svg")[-2:])


def test_a_currency_that_does_not_exist_is_escaped_too():
    page = render({"technique": "x", "budget": {"currency": "<i>", "value": 1}, "shortfall": 1})
    assert Page(page).find("i") == []


@pytest.mark.parametrize("metrics", [{}, {"technique": "a | b"}, {"technique": None}])
def test_a_run_of_which_nothing_is_known_still_has_a_report(metrics):
    page = render(metrics)
    assert row(page, "Accuracy") == "Accuracy – – –"
    assert row(page, "seed") == "seed –"
    assert Page(page).find("svg") == []
    assert "Nothing was recorded." in page


@pytest.mark.parametrize("key", sorted(sample()))
def test_any_key_may_be_none_or_missing(key):
    metrics = sample()
    metrics[key] = None
    page = render(metrics)
    assert not re.search(r"\b(None|nan|inf)\b", Page(page).text)
    del metrics[key]
    assert render(metrics) == page


@example([(("before", "params"), 5e-324), (("after", "latency", "p50_ms"), 1e308)])
@example([(("before", "latency", "p50_ms"), 5e-324)])
@example([(("before", "loss"), -1e308), (("after", "loss"), 1e308)])
@example([(("curves", "dense", 0, "valid_loss"), 1e308), (("history", 4, "progress"), 1e308)])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(paths(sample())),
            st.sampled_from(
                [None, math.nan, math.inf, -1, 0, 1e308, 5e-324, "word", [], {}, [None], True]
            ),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_no_value_breaks_the_page(changes):
    metrics = sample()
    for path, value in changes:
        put(metrics, path, value)
    text = Page(render(metrics)).text
    assert not re.search(r"\b(None|nan|inf)\b", text)


def test_numbers_come_back_from_json_the_same():
    assert render(json.loads(json.dumps(sample()))) == render(sample())


def test_the_same_run_gives_the_same_page_and_leaves_matplotlib_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    monkeypatch.setitem(mpl.rcParams, "font.size", 31.0)
    # Reading the backend would make Matplotlib choose one, and import pyplot for it.
    names = set(mpl.rcParams) - {"backend"}
    before = {name: mpl.rcParams[name] for name in names}
    first = render(sample())
    assert {name: mpl.rcParams[name] for name in names} == before
    monkeypatch.setitem(mpl.rcParams, "font.size", 3.0)
    assert render(sample()) == first


def test_the_template_lies_in_the_package():
    assert resources.files("secateur.report").joinpath("template.html.j2").is_file()
