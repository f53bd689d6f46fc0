from __future__ import annotations

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from secateur.report import plots


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


def height(svg: str) -> float:
    return float(ElementTree.fromstring(svg).attrib["viewBox"].split()[3])


def accented(svg: str, kind: str) -> list[list[tuple[float, float]]]:
    """The points of every path that is filled or stroked in the accent colour."""
    found = []
    for element in ElementTree.fromstring(svg).iter("path"):
        if f"{kind}: var(--accent" in element.attrib.get("style", ""):
            pairs = re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", element.attrib["d"])
            found.append([(float(x), float(y)) for x, y in pairs])
    return found


def history(count: int) -> list[dict[str, float]]:
    places = [place / (count - 1) for place in range(count)]
    return [{"progress": p, "target": 0.9 * p, "achieved": 0.8 * p} for p in places]


def layers(count: int) -> list[dict[str, object]]:
    return [
        {"name": f"layer{place}.weight", "weights": 100 + place, "kept": place}
        for place in range(count)
    ]


def test_the_schedule_names_the_currency_and_the_end():
    svg = plots.schedule_svg(history(5), "macs: share left", "a label")
    assert svg is not None
    assert {"macs: share left", "training progress", "target", "achieved", "0.800"} <= set(
        texts(svg)
    )
    assert 'role="img" aria-label="a label"' in svg


def test_the_schedule_holds_each_mask_until_the_next():
    svg = plots.schedule_svg(history(3), "sparsity", "a label")
    assert svg is not None
    line = max(accented(svg, "stroke"), key=len)
    # Steps: every stretch is either level or upright.
    pairs = list(itertools.pairwise(line))
    assert len(pairs) >= 4
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairs)


def test_a_long_history_stays_a_small_picture():
    svg = plots.schedule_svg(history(50_000), "sparsity", "a label")
    assert svg is not None
    assert len(svg) < 120_000
    assert "0.800" in texts(svg)  # the last step is always among those drawn


def test_bars_are_as_long_as_the_shares_they_show():
    shares = [1.0, 0.5, 0.25, 0.01]
    rows = [{"name": str(s), "weights": 1000, "kept": int(1000 * s)} for s in shares]
    svg = plots.layers_svg(rows, "a label")
    assert svg is not None
    widths = [max(x for x, _ in bar) - min(x for x, _ in bar) for bar in accented(svg, "fill")]
    assert [width / widths[0] for width in widths] == pytest.approx(shares, abs=1e-4)
    assert [text for text in texts(svg) if text in {"1.000", "0.500", "0.250", "0.010"}] == [
        "1.000",
        "0.500",
        "0.250",
        "0.010",
    ]


def test_of_many_layers_the_largest_are_drawn_in_the_order_of_the_network():
    most = plots.MOST_LAYERS
    few, capped, more = (plots.layers_svg(layers(n), "x") for n in (most // 2, most, 300))
    assert few is not None and capped is not None and more is not None
    assert height(few) < height(capped) == height(more)
    named = [text for text in texts(more) if text.startswith("layer")]
    assert named == [f"layer{place}" for place in range(300 - most, 300)]


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_long_names_are_cut_but_still_tell_layers_apart(width):
    names = [f"distilbert.transformer.layer.{n}.attention.out_projection.weight" for n in range(6)]
    rows = [{"name": name, "weights": 10, "kept": 5} for name in [*names, "x" * 500]]
    svg = plots.layers_svg(rows, "a label", width=width)
    assert svg is not None
    labels = texts(svg)[-20:] + texts(svg)
    shown = {text for text in labels if "out_p" in text or ".o" in text}
    assert len(shown) == 6
    assert max(map(len, labels)) <= 44


def test_curves_tell_dense_from_pruned_and_skip_what_is_missing():
    rows = [{"epoch": e, "valid_loss": 1 / e, "train_loss": None} for e in (1, 2, 3)]
    rows[1]["valid_loss"] = math.nan
    lines = {"valid_loss": "validation", "train_loss": "training"}
    svg = plots.curves_svg({"dense": rows, "pruned": rows[:1]}, lines, "loss", "a label")
    assert svg is not None
    assert {"dense, validation", "pruned, validation"} <= set(texts(svg))
    assert not {"dense, training", "pruned, training"} & set(texts(svg))


@pytest.mark.parametrize("rows", [[], [{}], [{"epoch": 1}], [{"epoch": None, "valid_loss": 1.0}]])
def test_without_values_there_is_no_picture(rows):
    assert plots.curves_svg({"dense": rows}, {"valid_loss": ""}, "loss", "x") is None
    assert plots.schedule_svg(rows, "sparsity", "x") is None
    assert plots.layers_svg(rows, "x") is None


@pytest.mark.parametrize(
    ("kept", "weights", "share"),
    [(30, 60, 0.5), (0, 60, 0.0), (61, 60, 1.0), (1, 0, None), (None, 60, None), (1, None, None)],
)
def test_kept_share(kept, weights, share):
    assert plots.kept_share({"kept": kept, "weights": weights}) == share


def test_ids_differ_between_pictures():
    ids = [
        set(re.findall(r'id="([^"]+)"', svg or ""))
        for svg in (
            plots.schedule_svg(history(5), "sparsity", "x"),
            plots.schedule_svg(history(5), "sparsity", "x", width=plots.NARROW),
            plots.layers_svg(layers(3), "x"),
        )
    ]
    assert all(ids)
    assert sum(map(len, ids)) == len(set.union(*ids))
