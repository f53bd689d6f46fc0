"""From a model to the shrunk model beside Torch-Pruning 1.6.1, and what the shrinking is worth.

Seconds: ours from the constructor of the Sparsifier to the end of ``shrink`` (tracing, budget,
cutting, and the comparison with the masked network), Torch-Pruning's from its pruner's constructor
to the end of ``step``. Latency: dense, shrunk, and shrunk to widths that are multiples of 16, in
turns, by eager PyTorch, torch.compile, ONNX Runtime and OpenVINO, as far as they are installed;
MACs stand beside it. Every library works in a process of its own with a time limit.

    pip install torch-pruning==1.6.1 onnx onnxscript onnxruntime openvino
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
import torchvision
import zoo_models
import zoo_peer
from torch import nn

from secateur import Sparsifier, shrink
from secateur.extras import need
from secateur.train.job import hardware, versions

MODELS = ("resnet50", "densenet201", "vit_b_16", "convnext_tiny", "mobilenet_v3_large")
TECHNIQUE = "filter | local | magnitude | one_shot"
MACS = 0.5
EVEN = 16
LIBRARIES = ("secateur", "torch-pruning")


def example() -> torch.Tensor:
    """Return one image of the size that these models are made for."""
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    """Build a model with weights that are zero nowhere."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None).eval()
    zoo_models.perturb(model)
    return model


def shrunk(model: nn.Module, round_to: int = 1) -> Any:
    """Shrink a model to half of its MACs."""
    sparsifier = Sparsifier(
        model, TECHNIQUE, macs=MACS, example_inputs=example(), round_to=round_to
    )
    sparsifier.step(1.0)
    return shrink(model, sparsifier, example())


def seconds_of(library: str, name: str, rounds: int) -> dict[str, Any]:
    """Time a library on fresh copies of a model, after a first call on a small one."""
    model = build(name)
    if library == "secateur":
        call: Callable[[nn.Module], object] = shrunk
        shrunk(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    else:
        zoo_peer.warm_up(zoo_peer.prune)

        def call(model: nn.Module) -> object:
            zoo_peer.prune(model, (example(),))
            return model

    copies = [copy.deepcopy(model) for _ in range(rounds)]
    times = [common.timed(lambda each=each: call(each)) for each in copies]  # type: ignore[misc]
    left = sum(parameter.numel() for parameter in copies[0].parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    return {"seconds": statistics.median(times), "low": min(times), "high": max(times),
            "params_left": left / whole}  # fmt: skip


def runners(model: nn.Module, folder: Path, label: str) -> dict[str, Callable[[], object]]:
    """Return ways to run a model on the example, by runtime."""
    images = example()
    model = model.eval()

    def eager() -> object:
        with torch.inference_mode():
            return model(images)

    found: dict[str, Callable[[], object]] = {"eager": eager}
    compiled = torch.compile(model)

    def by_compile() -> object:
        with torch.inference_mode():
            return compiled(images)

    found["torch.compile"] = by_compile
    path = folder / f"{label}.onnx"
    if all(importlib.util.find_spec(each) for each in ("onnx", "onnxscript", "onnxruntime")):
        torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
        found["onnxruntime"] = _onnxruntime(path, images)
        if importlib.util.find_spec("openvino"):
            found["openvino"] = _openvino(path, images)
    return found


def _onnxruntime(path: Path, images: torch.Tensor) -> Callable[[], object]:
    onnxruntime = need("onnxruntime", "export", "timing an ONNX file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, feed)


def _openvino(path: Path, images: torch.Tensor) -> Callable[[], object]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda: compiled([images.numpy()])


def latency_of(name: str, rounds: int) -> dict[str, Any]:
    """Time dense, shrunk, and shrunk to even widths in turns, runtime by runtime."""
    networks = {"dense": build(name)}
    found: dict[str, Any] = {"runtimes": {}}
    for label, round_to in (("shrunk", 1), ("even", EVEN)):
        networks[label] = build(name)
        result = shrunk(networks[label], round_to)
        found[label] = {
            "macs_left": result.after.macs / result.before.macs,
            "params_left": result.after.params / result.before.params,
            "difference": result.difference,
        }
    with tempfile.TemporaryDirectory() as folder:
        ways = {label: runners(each, Path(folder), label) for label, each in networks.items()}
        for runtime in ways["dense"]:
            calls = {label: way[runtime] for label, way in ways.items()}
            for call in calls.values():
                call()
                call()
            taken = common.paired(
                {label: (lambda call=call: common.timed(call)) for label, call in calls.items()},  # type: ignore[misc]
                rounds,
            )
            ratios = common.ratios(taken, "dense")
            found["runtimes"][runtime] = {label: ratios[label] for label in ("shrunk", "even")}
    return found


def in_process(arguments: list[str], limit: float) -> dict[str, Any]:
    """Run this script once more for one measurement; say what went wrong where it does."""
    command = [sys.executable, __file__, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"did not end in {limit:g} s"}
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["it died"])[-1][:300]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def why(left: dict[str, Any], ratios: dict[str, Any]) -> str:
    """Say in one sentence why time falls less than MACs, where it does."""
    shrunk_to, even_to = (ratios[label]["ratio"] for label in ("shrunk", "even"))
    if shrunk_to <= left["shrunk"]["macs_left"] * 1.1:
        return "time falls as the MACs do"
    less = "norms, activations and memory traffic fall with the channels, not with their square"
    if even_to > shrunk_to * 0.95:
        return f"time falls less than MACs: {less}"
    if even_to <= left["even"]["macs_left"] * 1.1:
        return (
            f"uneven widths miss the fast kernels: with multiples of {EVEN} time falls as MACs do"
        )
    return f"uneven widths miss the fast kernels (multiples of {EVEN} are faster), and {less}"


def main() -> None:
    """Measure all models, print two tables and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="models, divided by commas")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each contender")
    parser.add_argument("--latency-rounds", type=int, default=31, help="paired calls of a network")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one measurement")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        what, name = given.worker
        measured = (
            latency_of(name, given.latency_rounds)
            if what == "latency"
            else seconds_of(what, name, given.rounds)
        )
        sys.stdout.write(json.dumps(measured) + "\n")
        return
    rows: dict[str, Any] = {}
    options = ["--rounds", str(given.rounds), "--latency-rounds", str(given.latency_rounds)]
    for name in given.only.split(",") if given.only else MODELS:
        row = {what: in_process(["--worker", what, name, *options], given.limit)
               for what in (*LIBRARIES, "latency")}  # fmt: skip
        ours, theirs = (row[each].get("seconds") for each in LIBRARIES)
        row["torch-pruning takes"] = {"ratio": theirs / ours if ours and theirs else None}
        for runtime in row["latency"].get("runtimes", {}).values():
            runtime["said"] = why(row["latency"], runtime)
        rows[name] = row
        sys.stderr.write(f"{name}: {json.dumps(row)}\n")
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            result = {"command": "python benchmarks/shrink.py", "hardware": hardware(),
                      "versions": versions(), "models": rows}  # fmt: skip
            given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
