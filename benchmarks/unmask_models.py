"""The shipped networks of unmask in turns: one face, and a face of sixteen, on one thread.

Bytes in, numbers out by ONNX Runtime: the conversion of the pixels is counted, the search for the
face is not. Goals: the default network takes at most 15 % of the dense one's bytes, 25 % of its
multiply-accumulates and a third of its time, and keeps 98 % of its AUC on self-blended faces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import common
import numpy as np
from unmask import models

CALLS = 20


def caller(model: models.Model, faces: np.ndarray[Any, np.dtype[np.uint8]]) -> Callable[[], float]:
    """Return what calls a network some times, and says how many seconds one face took."""

    def call() -> float:
        seconds = common.timed(lambda: [model.scores(faces) for _ in range(CALLS)])
        return seconds / CALLS / len(faces)

    return call


def main() -> None:
    """Measure and publish."""
    given = common.arguments(__doc__ or "")
    infos = {info.name: info for info in models.available()}
    loaded = {name: models.Model(info) for name, info in infos.items()}
    random = np.random.default_rng(0)
    size = next(iter(infos.values())).size
    faces = random.integers(0, 256, (16, size, size, 3), np.uint8)
    rows = {}
    for title, batch in (("one face", faces[:1]), ("of sixteen", faces)):
        contenders = {name: caller(model, batch) for name, model in loaded.items()}
        for call in contenders.values():
            call()
        found = common.ratios(common.paired(contenders, given.rounds), "dense")
        rows.update({f"{name}, {title}": row for name, row in found.items()})
    dense = infos["dense"]
    sizes = {
        name: {
            "params": info.params, "macs": info.macs, "bytes": info.bytes,
            "macs_share": info.macs / dense.macs, "bytes_share": info.bytes / dense.bytes,
            "auc_share": info.figures["swap_auc"][0] / dense.figures["swap_auc"][0],
            "times_faster": 1 / rows[f"{name}, one face"]["ratio"],
            "times_faster_of_sixteen": 1 / rows[f"{name}, of sixteen"]["ratio"],
        }
        for name, info in infos.items()
    }  # fmt: skip
    title = "unmask: the networks on one thread, ratio to the dense one"
    common.publish(title, {"sizes": sizes}, rows, given.json)


if __name__ == "__main__":
    main()
