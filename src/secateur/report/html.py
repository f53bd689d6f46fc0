"""The report's page: every word and number of it, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from secateur.report import plots, text
from secateur.report.text import NOTHING, number

# A shortfall below this is rounding of floats, not a missing unit.
_ROUNDING = 1e-9
_FOUR_PLACES = 5e-5
_MEANINGS = {
    "sparsity": "share of weights removed",
    "params": "share of parameters left",
    "macs": "share of MACs left",
    "bytes": "share of bytes left",
    "latency": "share of latency left",
}
_TITLES = {"sparsity": "Sparsity", "params": "Parameters left", "macs": "MACs left"}
_SETTINGS = ("model", "data", "seed", "epochs", "versions", "hardware", "command")


@dataclass(frozen=True)
class Row:
    """One measure before and after, its remark, and how it changed (better, worse or neither)."""

    name: str
    remark: str
    before: tuple[str, str]
    after: tuple[str, str]
    change: str = NOTHING
    tone: str = ""


@dataclass(frozen=True)
class Tile:
    """One of the few figures that stand at the top."""

    name: str
    value: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A picture for wide pages and, where that would be too small on a phone, one for narrow."""

    title: str
    wide: Markup
    narrow: Markup | None = None


def render(metrics: Mapping[str, Any]) -> str:
    """Return the report of one run as one HTML page that needs nothing from outside.

    Any key of ``metrics`` may be missing or None; what is not known shows as a dash.

    >>> page = render({"technique": "weight | global | magnitude | one_cycle"})
    >>> page.startswith("<!doctype html>"), "://" in page
    (True, False)
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("secateur.report").joinpath("template.html.j2")
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(_page(text.clean(metrics)), style=style())


def style() -> Markup:
    """Return the style sheet that our pages share."""
    sheet = resources.files("secateur.report").joinpath("style.css")
    return Markup(sheet.read_text(encoding="utf-8"))


def _page(metrics: Mapping[str, Any]) -> dict[str, Any]:
    before, after = _mapping(metrics.get("before")), _mapping(metrics.get("after"))
    layers = _mappings(metrics.get("layers"))
    rows = _trade_off(before, after)
    return {
        "title": " on ".join(text.lines([metrics.get("model"), metrics.get("data")]))
        or "A pruned network",
        "technique": text.line(metrics.get("technique")),
        "words": text.lines(metrics.get("technique_words")),
        "shortfall": _shortfall(metrics),
        "notes": text.lines(metrics.get("notes")),
        "tiles": _tiles(metrics, after, rows),
        "rows": rows,
        "before_is": text.line(metrics.get("before_is")),
        "latency_note": _latency_note(before, after),
        "masks_note": "" if metrics.get("shrunk") else _masks_note(before, after),
        "pictures": _training_pictures(metrics),
        "layers_picture": _layers_picture(layers),
        "layers_shown": plots.MOST_LAYERS,
        "layers_left_out": max(0, _drawable(layers) - plots.MOST_LAYERS),
        "layers": [_layer_row(layer) for layer in layers],
        "settings": _settings(metrics),
        "nothing": NOTHING,
    }


def _trade_off(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    def pair(key: str) -> tuple[float | None, float | None]:
        return number(before.get(key)), number(after.get(key))

    fewer = "zeros not counted"
    return [
        _difference("Accuracy", *pair("accuracy"), better=1),
        _difference("Loss", *pair("loss"), better=-1),
        _difference("Sparsity", *pair("sparsity"), better=0),
        _ratio("Parameters", *pair("params"), text.count, ("fewer", "more"), fewer),
        _ratio("MACs", *pair("macs"), text.count, ("fewer", "more"), fewer),
        _ratio("File, dense", *pair("bytes_dense"), text.size, ("smaller", "larger")),
        _ratio("File, packed", *pair("bytes_packed"), text.size, ("smaller", "larger")),
        *_latency_rows(_mapping(before.get("latency")), _mapping(after.get("latency"))),
    ]


def _difference(name: str, before: float | None, after: float | None, *, better: int) -> Row:
    change, tone = NOTHING, ""
    gain = None if before is None or after is None else number(after - before)
    if gain is not None:
        change = "no change" if abs(gain) < _FOUR_PLACES else text.signed(gain)
        if abs(gain) >= _FOUR_PLACES and better:
            tone = "better" if gain * better > 0 else "worse"
    return Row(name, "", (text.share(before), ""), (text.share(after), ""), change, tone)


def _ratio(
    name: str,
    before: float | None,
    after: float | None,
    show: Callable[[float | None, float], str],
    words: tuple[str, str],
    remark: str = "",
) -> Row:
    less = before is not None and after is not None and after < before
    change, tone = _times(before, after, words)
    # Both sides in the unit of the larger one, to be read side by side.
    largest = max(before or 0.0, after or 0.0)
    old, new = show(before, largest), show(after, largest)
    return Row(name, remark if less else "", (old, ""), (new, ""), change, tone)


def _times(before: float | None, after: float | None, words: tuple[str, str]) -> tuple[str, str]:
    """Say how many times less or more, and whether that is better; less is better."""
    if before is None or after is None or before < 0 or after < 0:
        return NOTHING, ""
    if before == after:
        return "no change", ""
    if not before or not after:
        return ("none left", "better") if before else (f"{words[1]}, from none", "worse")
    factor = number(max(before, after) / min(before, after))
    if factor is None:
        return NOTHING, ""
    word, tone = (words[0], "better") if after < before else (words[1], "worse")
    return f"{text.significant(factor)}× {word}", tone


def _latency_rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Row]:
    rows = []
    clear = _apart(before, after)
    for name, key in (("Latency, p50", "p50_ms"), ("Latency, p95", "p95_ms")):
        old, new = number(before.get(key)), number(after.get(key))
        median = key == "p50_ms"
        change, tone = _times(old, new, ("faster", "slower"))
        if old and new and not clear:
            # Nothing that the noise can explain is called faster or slower.
            tail = ", within the spread" if median else ""
            part = number(new / old)
            change, tone = (
                NOTHING if part is None else f"{text.significant(part)} of before{tail}",
                "",
            )
        spreads = (_spread(before), _spread(after)) if median else ("", "")
        sides = (text.milliseconds(old), spreads[0]), (text.milliseconds(new), spreads[1])
        rows.append(Row(name, "", *sides, change, tone))
    return rows


def _apart(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Say whether the spreads of two latencies do not touch, so that their order means something.

    Without spreads there is nothing to doubt the medians by.
    """
    spreads = [number(side.get(key)) for side in (before, after) for key in ("low_ms", "high_ms")]
    old_low, old_high, new_low, new_high = spreads
    if old_low is None or old_high is None or new_low is None or new_high is None:
        return True
    return new_high < old_low or new_low > old_high


def _spread(latency: Mapping[str, Any]) -> str:
    low, high = number(latency.get("low_ms")), number(latency.get("high_ms"))
    if low is None or high is None:
        return ""
    return f"{text.significant(low)} to {text.significant(high)}"


def _latency_note(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say how the latency was measured."""
    latency = _mapping(after.get("latency")) or _mapping(before.get("latency"))
    parts = [
        f"{text.line(latency.get(key))} {word}"
        for key, word in (("rounds", "rounds"), ("threads", "CPU threads"))
        if number(latency.get(key)) is not None
    ]
    if number(latency.get("batch")) is not None:
        parts.append(f"batch {text.line(latency.get('batch'))}")
    if not parts:
        return ""
    return f"Latency: {', '.join(parts)}; the small figures are the lowest and the highest round."


def _masks_note(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Say why nothing became faster, where nothing did."""
    old, new = _mapping(before.get("latency")), _mapping(after.get("latency"))
    old_p50, new_p50 = number(old.get("p50_ms")), number(new.get("p50_ms"))
    if new_p50 is None:
        return ""
    if old_p50 is not None and new_p50 < old_p50 and _apart(old, new):
        return ""
    note = "Masks keep every tensor at its shape, so zeros alone make nothing faster"
    small, large = number(after.get("bytes_packed")), number(before.get("bytes_packed"))
    if small is not None and large is not None and small < large:
        return f"{note}; the packed file is what got smaller."
    return f"{note}."


def _shortfall(metrics: Mapping[str, Any]) -> str:
    missing = number(metrics.get("shortfall"))
    if missing is None or abs(missing) < _ROUNDING:
        return ""
    currency, value = _budget(metrics)
    reached = number(_mapping(metrics.get("achieved")).get(currency))
    return (
        f"Asked for {currency} {text.short(value)}, reached {text.short(reached)}: "
        f"{text.short(abs(missing))} is missing."
    )


def _budget(metrics: Mapping[str, Any]) -> tuple[str, float | None]:
    budget = _mapping(metrics.get("budget"))
    return text.line(budget.get("currency") or "sparsity"), number(budget.get("value"))


def _tiles(metrics: Mapping[str, Any], after: Mapping[str, Any], rows: list[Row]) -> list[Tile]:
    currency, value = _budget(metrics)
    reached = number(_mapping(metrics.get("achieved")).get(currency))
    if reached is None and currency == "sparsity":
        reached = number(after.get("sparsity"))
    by_name = {row.name: row for row in rows}
    accuracy, packed = by_name["Accuracy"], by_name["File, packed"]
    latency = by_name["Latency, p50"]
    return [
        Tile("Accuracy", accuracy.after[0], _against(accuracy)),
        Tile(
            _TITLES.get(currency, f"{currency.capitalize()} left"),
            text.share(reached),
            () if value is None else (f"asked for {text.short(value)}",),
        ),
        Tile("Packed file", packed.after[0], _against(packed)),
        Tile("Latency, p50", latency.after[0], _against(latency)),
    ]


def _against(row: Row) -> tuple[str, ...]:
    return () if row.change == NOTHING else (row.change, f"{row.before[0]} before")


def _training_pictures(metrics: Mapping[str, Any]) -> list[Picture]:
    """Draw the schedule and the curves, each where something was recorded."""
    currency, _ = _budget(metrics)
    history = _mappings(metrics.get("history"))
    meaning = f"{currency}: {_MEANINGS[currency]}" if currency in _MEANINGS else currency
    ends = ", ".join(
        f"{key} ends at {text.short(_last(history, key))}" for key in ("target", "achieved")
    )
    label = f"Line chart of {meaning}, over training progress: {ends}."
    wide = plots.schedule_svg(history, meaning, label)
    narrow = plots.schedule_svg(history, meaning, label, width=plots.NARROW)
    pictures = [_picture("Schedule", wide, narrow)]

    curves = {run: _mappings(rows) for run, rows in _mapping(metrics.get("curves")).items()}
    for title, lines in (
        ("Loss", {"valid_loss": "validation", "train_loss": "training"}),
        ("Accuracy", {"valid_accuracy": ""}),
    ):
        key = next(iter(lines))
        ends = ", ".join(
            f"{run} ends at {text.short(_last(curves.get(run, []), key))}"
            for run in ("dense", "pruned")
        )
        words = f"validation {title.lower()}"
        label = f"Line chart of the {words} per epoch: {ends}."
        ylabel = "loss" if len(lines) > 1 else words
        pictures.append(_picture(title, plots.curves_svg(curves, lines, ylabel, label)))
    return [picture for picture in pictures if picture is not None]


def _layers_picture(layers: Sequence[Mapping[str, Any]]) -> Picture | None:
    shares = [
        (share, text.line(row.get("name")))
        for row in layers
        if (share := plots.kept_share(row)) is not None
    ]
    if not shares:
        return None
    (low, lowest), (high, highest) = min(shares), max(shares)
    label = (
        f"Bar chart of the share of weights that each layer keeps: "
        f"from {low:.3f} ({lowest}) to {high:.3f} ({highest})."
    )
    wide = plots.layers_svg(layers, label)
    return _picture(
        "Share of weights kept", wide, plots.layers_svg(layers, label, width=plots.NARROW)
    )


def _drawable(layers: Sequence[Mapping[str, Any]]) -> int:
    return sum(plots.kept_share(layer) is not None for layer in layers)


def _picture(title: str, wide: str | None, narrow: str | None = None) -> Picture | None:
    if wide is None:
        return None
    # The drawing is ours, and the parser that made it inline has escaped every text in it.
    return Picture(title, Markup(wide), None if narrow is None else Markup(narrow))


def _last(rows: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [value for row in rows if (value := number(row.get(key))) is not None]
    return known[-1] if known else None


def _layer_row(layer: Mapping[str, Any]) -> dict[str, str]:
    share = plots.kept_share(layer)
    units, kept = number(layer.get("units")), number(layer.get("units_kept"))
    shape = layer.get("shape")
    return {
        "name": text.line(layer.get("name")),
        "kind": text.line(layer.get("kind")),
        "shape": " × ".join(text.lines(shape)) or NOTHING,
        "weights": text.count(number(layer.get("weights"))),
        "kept": text.count(number(layer.get("kept"))),
        "share": text.share(share),
        "units": NOTHING
        if units is None or kept is None
        else f"{text.count(kept)} of {text.count(units)}",
        "remark": "nothing left" if share == 0 else "",
    }


def _settings(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    currency, value = _budget(metrics)
    budget = NOTHING if value is None else f"{currency} {text.short(value)}"
    if value is not None and currency in _MEANINGS:
        budget += f" ({_MEANINGS[currency]})"
    return [
        ("technique", text.line(metrics.get("technique"))),
        ("budget", budget),
        ("achieved", text.line(metrics.get("achieved"))),
        *((key, text.line(metrics.get(key))) for key in _SETTINGS),
    ]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
