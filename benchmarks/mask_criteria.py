"""One mask update of 100 million weights by every data-free criterion, beside torch.kthvalue.

Both look at the same tensor, a linear layer of 10,000 x 10,000: ours scores, chooses one half,
writes the mask and sets the weights to zero; ``kthvalue`` finds the middle of the tensor's values.
LAMP, whose scores need nothing but the order within one layer, is also measured on four layers.
Seconds are those of the processor, as other work on the machine would otherwise be measured too.
"""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable

import common
import torch
from torch import nn

from secateur import Sparsifier
from secateur.technique.criteria import CRITERIA

SIDE = 10_000
KNOWN = {"saved", "previous"}


def criteria() -> list[str]:
    """Return the criteria that need no data and score single weights."""
    return [
        record.name
        for record in CRITERIA
        if not set(record.needs) - KNOWN and record.name != "geometric_median"
    ]


def processor_seconds(function: Callable[[], object]) -> float:
    """Return the processor's seconds that one call takes."""
    gc.collect()
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Measure, print and write."""
    options = common.arguments(__doc__ or "")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SIDE, SIDE, generator=generator)

    def updating(name: str, layers: int = 1) -> float:
        model = nn.Sequential(
            *(nn.Linear(SIDE, SIDE // layers, bias=False, device="meta") for _ in range(layers))
        ).to_empty(device="cpu")
        with torch.no_grad():
            for parameter, part in zip(model.parameters(), values.chunk(layers), strict=True):
                parameter.copy_(part)
        sparsifier = Sparsifier(model, f"weight | global | {name} | one_shot", sparsity=0.5)
        if set(CRITERIA.get(name).needs) & KNOWN:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.01).add_(0.01)
        return processor_seconds(lambda: sparsifier.step(1.0))

    contenders: dict[str, Callable[[], float]] = {
        name: functools.partial(updating, name) for name in criteria()
    }
    contenders["lamp, 4 layers"] = functools.partial(updating, "lamp", 4)
    contenders["kthvalue"] = lambda: processor_seconds(
        lambda: values.view(-1).kthvalue(SIDE * SIDE // 2)
    )
    updating("magnitude")  # a process pays for its first gigabytes of memory, whatever they are for
    seconds = common.paired(contenders, max(2, options.rounds))
    rows = common.ratios(seconds, "kthvalue")
    setting = {"weights": SIDE * SIDE, "sparsity": 0.5, "technique": "weight | global",
               "rounds": max(2, options.rounds), "clock": "processor", "threads": 1}  # fmt: skip
    common.publish("One mask update / torch.kthvalue", {"setting": setting, "seconds": seconds},
                   rows, options.json)  # fmt: skip


if __name__ == "__main__":
    main()
