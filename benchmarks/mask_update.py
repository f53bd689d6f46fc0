"""One mask update of ResNet-50, weight | global, 90 %, beside torch and FasterAI 0.4.1.

All three start from the same dense tensors and end with the masks and the weights set to zero.
FasterAI needs ``pip install fasterai==0.4.1``; without it its row is left out, and that is said.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import common
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from secateur import Sparsifier

SPARSITY = 0.9


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """Return what all contenders prune: the convolutions."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def secateur_update(network: nn.Module) -> Callable[[], float]:
    """Return a function that prunes a fresh copy and says how long the update took."""

    def run() -> float:
        gc.collect()
        sparsifier = Sparsifier(
            copy.deepcopy(network), "weight | global | magnitude | one_shot", sparsity=SPARSITY,
            exclude="fc",
        )  # fmt: skip
        return common.timed(lambda: sparsifier.step(1.0))

    return run


def torch_update(network: nn.Module) -> Callable[[], float]:
    """Return the same by torch.nn.utils.prune."""

    def run() -> float:
        gc.collect()
        pairs = [(module, "weight") for module in convolutions(copy.deepcopy(network))]
        return common.timed(
            lambda: prune.global_unstructured(
                pairs, pruning_method=prune.L1Unstructured, amount=SPARSITY
            )
        )

    return run


def fasterai_update(network: nn.Module) -> Callable[[], float] | None:
    """Return the same by FasterAI, None where it is not installed."""
    try:
        from fasterai.core.criteria import large_final
        from fasterai.sparse.sparsifier import Sparsifier as Theirs
    except ImportError:
        return None

    def run() -> float:
        gc.collect()
        theirs = Theirs(copy.deepcopy(network), "weight", "global", large_final)
        return common.timed(lambda: theirs.sparsify_model(SPARSITY))

    return run


def main() -> None:
    """Measure, print and write."""
    options = common.arguments(__doc__ or "")
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    contenders = {
        "secateur": secateur_update(network),
        "torch.nn.utils.prune": torch_update(network),
    }
    theirs = fasterai_update(network)
    if theirs is not None:
        contenders["fasterai 0.4.1"] = theirs
    else:
        print("fasterai is not installed: its row is left out")
    for run in contenders.values():
        run()
    seconds = common.paired(contenders, options.rounds)
    rows = common.ratios(seconds, "secateur")
    setting = {
        "network": "resnet50",
        "weights": sum(m.weight.numel() for m in convolutions(network)),
        "technique": "weight | global | magnitude",
        "sparsity": SPARSITY,
        "rounds": options.rounds,
    }
    common.publish("One mask update / secateur's", {"setting": setting, "seconds": seconds}, rows,
                   options.json)  # fmt: skip


if __name__ == "__main__":
    main()
