"""What the sparsifier holds beside the model, in bytes per prunable weight of ResNet-50.

Counted over the storages of all tensors that the process holds before and after, so that nothing
can be overlooked; the peak during an update is read from the allocator through the profiler.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import common
import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

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


def peak(run: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at once above the start, during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    level = top = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            top = max(top, level)
    return top


def measure(technique: str) -> dict[str, float]:
    """Return what one technique holds and needs for a moment, per prunable weight."""
    network = torchvision.models.resnet50()
    before = held()
    sparsifier = Sparsifier(network, technique, sparsity=0.9)
    weights = sum(layer.weights for layer in sparsifier.report().layers)
    transient = peak(lambda: sparsifier.step(0.5))
    return {
        "weights": weights,
        "bytes_per_weight": (held() - before) / weights,
        "peak_bytes_per_weight_during_update": transient / weights,
    }


def main() -> None:
    """Measure, print and write."""
    options = common.arguments(__doc__ or "")
    rows = {}
    for technique in TECHNIQUES:
        rows[technique] = measure(technique)
        print(
            f"{technique}: holds {rows[technique]['bytes_per_weight']:.3f} bytes per prunable "
            f"weight, {rows[technique]['peak_bytes_per_weight_during_update']:.1f} at the peak of "
            "an update"
        )
    common.write(options.json, {"title": "Memory beside the model", "rows": rows})


if __name__ == "__main__":
    main()
