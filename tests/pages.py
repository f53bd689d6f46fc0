"""A run's record to report on, and a reader of the page that comes of it."""

from __future__ import annotations

import contextlib
import copy
import re
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}


class Page(HTMLParser):
    """Reads a page: its elements, its text, and whether every element that opens also closes."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))

    def find(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(text for text in self.texts if text)


def sample() -> dict[str, Any]:
    def latency(p50: float) -> dict[str, Any]:
        spread = {"low_ms": p50 * 0.95, "high_ms": p50 * 1.05}
        return {"p50_ms": p50, "p95_ms": p50 * 1.3, **spread, "rounds": 7, "threads": 2, "batch": 1}

    def side(**values: Any) -> dict[str, Any]:
        return {"macs": 1_234_567, "bytes_dense": 393_768, **values}

    def curve(last: float) -> list[dict[str, Any]]:
        return [
            {"epoch": e, "train_loss": 2 / e, "valid_loss": 2.1 / e, "valid_accuracy": last * e / 3}
            for e in (1, 2, 3)
        ]

    return {
        "technique": "weight | global | magnitude | one_cycle",
        "technique_words": ["Single weights are removed.", "All layers compete."],
        "budget": {"currency": "sparsity", "value": 0.9},
        "model": "cnn",
        "data": "digits",
        "seed": 0,
        "epochs": 3,
        "command": "secateur compress --sparsity 0.9",
        "versions": {"torch": "2.6.0"},
        "hardware": {"cpu": "some processor", "threads": 2},
        "before": side(
            accuracy=0.9722,
            loss=0.1034,
            sparsity=0.0,
            params=98_442,
            bytes_packed=393_768,
            latency=latency(1.03),
        ),
        "after": side(
            accuracy=0.9639,
            loss=0.1193,
            sparsity=0.9,
            params=10_312,
            bytes_packed=53_554,
            latency=latency(1.02),
        ),
        "before_is": "the same network trained dense for the same epochs with the same seed",
        "achieved": {"sparsity": 0.9, "params": 0.105},
        "shortfall": 0.0,
        "notes": [],
        "history": [
            {"step": step, "progress": step / 4, "target": 0.9 * step / 4, "achieved": step / 5}
            for step in range(5)
        ],
        "curves": {"dense": curve(0.97), "pruned": curve(0.96)},
        "layers": [
            {
                "name": "conv1.weight",
                "kind": "Conv2d",
                "shape": [8, 1, 3, 3],
                "weights": 72,
                "kept": 30,
                "units": 72,
                "units_kept": 30,
            },
            {
                "name": "head.weight",
                "kind": "Linear",
                "shape": [10, 128],
                "weights": 1280,
                "kept": 64,
                "units": 1280,
                "units_kept": 64,
            },
        ],
    }


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*here, key))
        if isinstance(item, (dict, list)):
            found += paths(item, (*here, key))
    return found


def put(metrics: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Set a value deep inside, unless what holds it has been replaced before."""
    target: Any = metrics
    with contextlib.suppress(KeyError, IndexError, TypeError):
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = copy.deepcopy(value)


def row(page: str, name: str) -> str:
    """The text of a table's row."""
    found = re.search(rf'<th scope="row">(?:<code>)?{re.escape(name)}.*?</tr>', page, re.DOTALL)
    assert found is not None
    return Page(found[0].removesuffix("</tr>")).text
