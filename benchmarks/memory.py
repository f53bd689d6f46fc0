"""What the sparsifier holds beside the model, in bytes per prunable weight of ResNet-50.

Counted over the storages of all tensors that the process holds before and after, so that nothing
can be overlooked; the peak during an update is read from the allocator through the profiler.
"""

from __future__ import annotations

import gc
import json

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

import common
from secateur import Sparsifier

TECHNIQUES = (
    "weight | global | magnitude | one_cycle",
    "weight | local(erk) | random | one_cycle",
    "filter | global | magnitude | one_cycle",
    "weight | global | movement | one_cycle",
)


def held() -> int:
    """Return the bytes of all tensor storages in the process, each counted once."""
    gc.collect()
    storages = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor) and item.device.type == "cpu":
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak(run: object) -> int:
    """Return the most bytes that were allocated at once above the start, during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()  # type: ignore[operator]
    level = top = 0
    for event in found.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            level += event.nbytes()
            top = max(top, level)
    return top


def main() -> None:
    """Measure, print and write."""
    options = common.arguments(__doc__ or "")
    rows = {}
    for technique in TECHNIQUES:
        network = torchvision.models.resnet50()
        before = held()
        sparsifier = Sparsifier(network, technique, sparsity=0.9)
        weights = sum(layer.weights for layer in sparsifier.report().layers)
        transient = peak(lambda: sparsifier.step(0.5))  # noqa: B023
        after = held()
        rows[technique] = {
            "weights": weights,
            "bytes_per_weight": (after - before) / weights,
            "peak_bytes_per_weight_during_update": transient / weights,
        }
        print(
            f"{technique}: holds {rows[technique]['bytes_per_weight']:.3f} bytes per prunable "
            f"weight, {rows[technique]['peak_bytes_per_weight_during_update']:.1f} at the peak of "
            "an update"
        )
        del sparsifier, network
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"title": "Memory beside the model", "rows": rows, "versions": common.versions()}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
