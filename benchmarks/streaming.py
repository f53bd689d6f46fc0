"""A language model pruned from file to file by a process that may not hold it.

A LLaMA of random weights is written as shards, then a fresh process prunes it block by block, under
a limit on its memory that is below the model's size. What it held at most is measured beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import common
import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from secateur.stream import prune_stream
from secateur.stream.files import open_weights, write_shard

MEGABYTE = 1 << 20
TECHNIQUES = {
    "wanda": "weight | row | wanda | one_shot",
    "sparsegpt": "weight | local | obs | one_shot | compensate(sparsegpt)",
}


def architecture(layers: int, width: int) -> LlamaConfig:
    """Return a LLaMA with small embeddings, so that nearly all of it is blocks."""
    return LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, vocab_size=2000,
        max_position_embeddings=512,
    )  # fmt: skip


def write_random(folder: Path, layers: int, width: int) -> tuple[int, int]:
    """Write the model a block at a time; return its bytes and those of a block."""
    config = architecture(layers, width)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, dict[str, Any]] = {}
    for name, tensor in model.state_dict().items():
        number = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(number, {})[name] = tensor
    largest = 0
    for number, tensors in shards.items():
        drawn = {
            name: torch.ones(tensor.shape) if tensor.ndim == 1
            else torch.empty(tensor.shape).normal_(0, 0.02, generator=generator)
            for name, tensor in tensors.items()
        }  # fmt: skip
        largest = max(largest, sum(4 * tensor.numel() for tensor in drawn.values()))
        write_shard(folder / f"model-{number}.safetensors", drawn)
    return sum(each.end - each.start for each in open_weights(folder).values()), largest


def resident() -> dict[str, int]:
    """Return this process's memory in bytes: of its own, and of files."""
    found = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key in ("RssAnon", "RssFile", "VmData"):
            found[key] = int(value.split()[0]) * 1024
    return found


def watch(most: dict[str, int], stop: threading.Event) -> None:
    """Keep the most memory that was held at any time."""
    while not stop.wait(0.01):
        for key, value in resident().items():
            most[key] = max(most.get(key, 0), value)


def child(options: argparse.Namespace) -> None:
    """Prune under the limit, and print what was held."""
    torch.set_num_threads(1)
    config = architecture(options.layers, options.width)
    generator = torch.Generator().manual_seed(1)
    data = [
        {"input_ids": torch.randint(0, 2000, (4, 128), generator=generator)}
        for _ in range(options.batches)
    ]
    before = resident()
    if options.limit:
        allowed = before["VmData"] + options.limit
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    most: dict[str, int] = {}
    stop = threading.Event()
    threading.Thread(target=watch, args=(most, stop), daemon=True).start()
    started = time.perf_counter()
    result = prune_stream(
        lambda: LlamaForCausalLM(config), options.source, options.target,
        TECHNIQUES[options.technique], sparsity=0.5, data=data,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    stop.set()
    print(json.dumps({
        "before": before, "most": most, "seconds": seconds, "sparsity": result.sparsity,
        "blocks": [vars(block) for block in result.blocks],
    }))  # fmt: skip


def spawn(
    folder: Path, technique: str, layers: int, width: int, batches: int, limit: int
) -> dict[str, Any]:
    """Run the pruning in a process of its own."""
    target = folder / f"{technique}-{layers}"
    given = {"source": folder / f"dense-{layers}", "target": target, "technique": technique,
             "layers": layers, "width": width, "batches": batches, "limit": limit}  # fmt: skip
    command = [sys.executable, __file__, "--child"]
    command += [part for key, value in given.items() for part in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1",
                   "MALLOC_MMAP_THRESHOLD_": "1000000"}  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the run failed under its limit:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(found: dict[str, Any], size: int, block: int, limit: int) -> dict[str, Any]:
    """Return one run's figures: what it held beyond the libraries, beside model and block."""
    held = found["most"]["RssAnon"] - found["before"]["RssAnon"]
    return {
        "model_bytes": size, "block_bytes": block, "limit_bytes": limit, "held_bytes": held,
        "held_per_model": held / size, "held_per_block": held / block,
        "process_bytes": found["most"]["RssAnon"] + found["most"].get("RssFile", 0),
        "seconds": found["seconds"], "sparsity": found["sparsity"],
        "blocks": len(found["blocks"]), "errors": [each["error"] for each in found["blocks"]],
    }  # fmt: skip


def main() -> None:
    """Write models of several depths, prune each under the limit, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true")
    for name in ("source", "target"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--technique", default="sparsegpt")
    for name, default in (("layers", 0), ("width", 768), ("batches", 2), ("limit", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 20])
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    runs = [("sparsegpt", depth) for depth in options.depths] + [("wanda", options.depths[-1])]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as place:
        folder = Path(place)
        sizes = {}
        for depth in options.depths:
            (folder / f"dense-{depth}").mkdir()
            sizes[depth] = write_random(folder / f"dense-{depth}", depth, options.width)
        limit = options.limit or sizes[options.depths[-1]][0] // 2
        for technique, depth in runs:
            size, block = sizes[depth]
            found = spawn(folder, technique, depth, options.width, options.batches, limit)
            rows[f"{technique}, {depth} blocks"] = row(found, size, block, limit)
    table = Table("", "model MB", "limit MB", "held MB", "of a block", "seconds",
                  title="Memory of a streamed pruning", title_justify="left")  # fmt: skip
    for name, each in rows.items():
        table.add_row(
            name, f"{each['model_bytes'] / MEGABYTE:.0f}", f"{each['limit_bytes'] / MEGABYTE:.0f}",
            f"{each['held_bytes'] / MEGABYTE:.0f}", f"{each['held_per_block']:.2f}",
            f"{each['seconds']:.0f}",
        )  # fmt: skip
    Console().print(table)
    setting = {"width": options.width, "batches": options.batches, "tokens": [4, 128],
               "techniques": TECHNIQUES}  # fmt: skip
    common.write(options.json, {"title": "Memory of a streamed pruning", "setting": setting,
                                "rows": rows})  # fmt: skip


if __name__ == "__main__":
    main()
