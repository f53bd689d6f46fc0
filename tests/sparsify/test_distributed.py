"""Two processes with different data end with the same masks.

The processes run this file as a script, once for all cases.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur import Sparsifier

CASES: dict[str, str] = {
    "magnitude": "weight | global | magnitude | linear",
    "gradient": "weight | global | taylor | linear",
    "gradient_without_ddp": "filter | local | snip | linear",
    "random": "weight | global | random | linear",
    "ties": "weight | global | magnitude | one_shot",
    "regrown": "weight | local | magnitude | constant(mask=regrown(by=gradient), every=2)",
    "wanda": "weight | row | wanda | one_shot(start=0.5)",
    "fisher": "weight | global | fisher | one_shot(start=0.5)",
    "hessian": "weight | global | hessian | one_shot(start=0.5)",
    "taylor_2016": "filter | local | taylor_2016 | one_shot(start=0.5)",
    "sensitivity": "weight | local(sensitivity) | magnitude | one_shot(start=0.5)",
    "reinitialise": "weight | global | magnitude | linear(every=2) | reinitialise",
    "coupled": "filter | global | magnitude | linear",
    "coupled_random": "filter | local | random | linear(mask=reselected)",
    "coupled_gradient": "filter | global | snip | linear",
    "coupled_regrown": "filter | local | magnitude | constant(mask=regrown(by=random), every=2)",
    "distillation": "filter | local | magnitude | linear | keep | distillation",
    "group_lasso": "kernel | global | magnitude | linear | keep | group_lasso(0.1)",
    "growing_l2": "weight | global | random | one_shot(start=0.9) | keep | growing_l2",
    "coupled_growing_l2": "filter | local | taylor | one_shot(start=0.9) | keep | growing_l2",
}
WITHOUT_DDP = ("gradient_without_ddp", "coupled_gradient")
FROM_DATA = ("wanda", "fisher", "hessian", "taylor_2016", "sensitivity")
STEPS = 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    inputs = torch.randn(5, 1, 8, 8, generator=generator) * (1 + rank)
    return inputs, torch.randint(4, (5,), generator=generator)


def run_case(name: str, rank: int) -> dict[str, Any]:
    model = network()
    if name == "ties":
        for parameter in model.parameters():
            parameter.data.fill_(0.1)
    used = model
    if name not in WITHOUT_DDP:
        used = nn.parallel.DistributedDataParallel(model)
    data = [batch(rank, 50), batch(rank, 51)] if name in FROM_DATA else None
    # Seeds differ on purpose: rank 0 decides.
    inputs = batch(rank, 0)[0] if name.startswith("coupled") else None
    sparsifier = Sparsifier(
        used, CASES[name], sparsity=0.5, data=data, seed=rank, example_inputs=inputs
    )
    optimizer = torch.optim.SGD(used.parameters(), lr=0.1)
    sparsifier.attach(optimizer, STEPS)
    for step in range(STEPS):
        inputs, targets = batch(rank, step)
        outputs = used(inputs)
        loss = F.cross_entropy(outputs, targets) + sparsifier.objective_loss(outputs, inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {
        "masks": {key: mask.clone() for key, mask in sparsifier.masks.items()},
        "weights": {key: p.detach().clone() for key, p in model.named_parameters()},
    }


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    results = {}
    for name in CASES:
        try:
            results[name] = run_case(name, rank)
        except Exception as error:  # noqa: PERF203  # one case must not hide the others
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), said
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_hold_the_same_masks(results: list[dict[str, Any]], case: str) -> None:
    first, second = (result[case] for result in results)
    assert "error" not in first, first["error"]
    assert "error" not in second, second["error"]
    gone = sum(int((~mask).sum()) for mask in first["masks"].values())
    assert gone > 0
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name]), name
        for result in (first, second):
            assert bool((result["weights"][name][~mask] == 0).all())


@pytest.mark.parametrize("case", [case for case in CASES if case not in WITHOUT_DDP])
def test_both_ranks_hold_the_same_weights(results: list[dict[str, Any]], case: str) -> None:
    first, second = (result[case].get("weights", {}) for result in results)
    assert first
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=0, atol=0, msg=name)


def test_statistics_are_those_of_all_ranks_together(results: list[dict[str, Any]]) -> None:
    """Wanda over both ranks' batches equals wanda in one process that has all of them."""
    for name in ("wanda", "fisher"):
        shared = results[0][name]
        model = network()
        sparsifier = Sparsifier(
            model, CASES[name], sparsity=0.5,
            data=[batch(rank, step) for rank in range(2) for step in (50, 51)],
        )  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier.attach(optimizer, STEPS)
        for step in range(STEPS):
            optimizer.zero_grad()
            losses = [
                F.cross_entropy(model(inputs), targets)
                for inputs, targets in (batch(rank, step) for rank in range(2))
            ]
            (sum(losses) / 2).backward()
            optimizer.step()
        for key, mask in sparsifier.masks.items():
            agree = (mask == shared["masks"][key]).float().mean()
            assert float(agree) > 0.99, (name, key)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
