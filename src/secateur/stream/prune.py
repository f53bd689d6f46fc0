"""Pruning a model that is larger than memory: weights stream in and out, block by block."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify import Sparsifier
from secateur.stream.blocks import Calls, find_blocks, first_of, record_calls
from secateur.stream.checks import refuse_unstreamed
from secateur.stream.files import INDEX, Stored, open_weights, write_shard, write_text
from secateur.stream.lazy import Source, bare, empty, fill
from secateur.structure.usage import evaluating
from secateur.technique import Technique
from secateur.technique.catalogue import find_technique

STATE = "stream.json"
_LARGEST_COPY = 100_000_000


@dataclass(frozen=True)
class BlockDone:
    """One block that was pruned and written: its place from 0, how many there are, its name.

    ``sparsity`` is the share of its prunable weights removed, ``error`` the relative squared
    change of what it answers, and ``seconds`` what it took.
    """

    place: int
    of: int
    name: str
    sparsity: float
    error: float
    seconds: float


@dataclass(frozen=True)
class StreamResult:
    """All blocks of a model that was streamed, and where it was written."""

    target: Path
    blocks: tuple[BlockDone, ...]

    @property
    def sparsity(self) -> float:
        """The mean share removed, over the blocks."""
        return sum(block.sparsity for block in self.blocks) / len(self.blocks)


def prune_stream(
    build: Callable[[], nn.Module],
    source: str | Path,
    target: str | Path,
    technique: Technique | str,
    *,
    data: Iterable[Any],
    sparsity: float | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[BlockDone], None] | None = None,
    seed: int = 0,
) -> StreamResult:
    """Prune the repeated blocks of a model from safetensors to safetensors, one at a time.

    ``build`` makes the architecture; its parameters get no memory. ``source`` is a safetensors file
    or a folder with shards, ``target`` a folder for one shard per block. ``data`` are batches of
    the whole model: what enters a block is the answer of the pruned blocks before it. ``include``
    and ``exclude`` name layers within a block; ``dtype`` is what is computed in, by default what is
    stored. A run that was stopped goes on with the first block that is not written.

    Raises SecateurError for techniques that need more than one block at a time, or training.
    """
    source, target = Path(source), Path(target)
    technique = find_technique(technique) if isinstance(technique, str) else technique
    refuse_unstreamed(technique)
    weights = open_weights(source)
    model = empty(build)
    name, blocks = find_blocks(model)
    reader = Source.of(model, weights, dtype, torch.device(device))
    options = {"sparsity": sparsity, "include": include, "exclude": exclude, "seed": seed}
    asked = {"technique": str(technique), "blocks": len(blocks), "dtype": str(dtype),
             "options": repr(options), "source": _fingerprint(weights)}  # fmt: skip
    target.mkdir(parents=True, exist_ok=True)
    if target.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise SecateurError(f"{target} holds the source: write to another folder")
    with torch.no_grad(), evaluating(model), reader.lending(model, name):
        calls, states = record_calls(model, name, data, _first_answer(reader, name))
        calls, states = reader.converted(calls), reader.converted(states)
    done, states = _resumed(target, asked, states)
    for place in range(len(done), len(blocks)):
        started = time.perf_counter()
        block, prefix = blocks[place], f"{name}.{place}."
        fill(block, reader, prefix)
        states, share, error = _prune(block, technique, calls, place, states, options)
        write_shard(target / _shard(place, len(blocks)), reader.stored_again(block, prefix))
        bare(block)
        done.append(BlockDone(place, len(blocks), prefix[:-1], share, error,
                              time.perf_counter() - started))  # fmt: skip
        _note(target, asked, done, states)
        if progress is not None:
            progress(done[-1])
    _finish(source, target, reader, name, len(blocks))
    return StreamResult(target, tuple(done))


def _first_answer(reader: Source, name: str) -> Callable[[nn.Module, dict[str, Any]], Any]:
    def run(block: nn.Module, arguments: dict[str, Any]) -> Any:
        fill(block, reader, f"{name}.0.")
        try:
            return block(**reader.converted(arguments))
        finally:
            bare(block)

    return run


@torch.no_grad()
def _prune(
    block: nn.Module,
    technique: Technique,
    calls: Calls,
    place: int,
    states: list[Tensor],
    options: dict[str, Any],
) -> tuple[list[Tensor], float, float]:
    """Prune one block in place; return what it answers then, its sparsity, and its error."""
    batches = [calls.of(place, number, state) for number, state in enumerate(states)]
    with evaluating(block):
        dense = first_of(block(**batches[0]))
        sparsifier = Sparsifier(block, technique, data=batches, **options)
        result = sparsifier.step(1.0)
        answers = [first_of(block(**batch)) for batch in batches]
    change = (answers[0] - dense).double().square().sum()
    error = float(change / dense.double().square().sum().clamp(min=1e-30))
    return answers, result.achieved["sparsity"], error


def _shard(place: int, blocks: int) -> str:
    """Name the shard of a block; that of the rest of the model comes first, as number 1."""
    return f"model-{place + 2:05d}-of-{blocks + 1:05d}.safetensors"


def _fingerprint(weights: dict[str, Stored]) -> str:
    """Tell sources apart by their files' sizes and times and by where their tensors lie."""
    files = sorted({each.path for each in weights.values()})
    text = repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])
    text += repr([(name, each.start, each.end) for name, each in sorted(weights.items())])
    return hashlib.sha256(text.encode()).hexdigest()


def _entering(states: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for state in states:
        flat = state.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(flat.numpy().data)
    return digest.hexdigest()


def _resumed(
    target: Path, asked: dict[str, Any], states: list[Tensor]
) -> tuple[list[BlockDone], list[Tensor]]:
    """Return the blocks that an earlier run has written, and the states that enter the next."""
    asked["data"] = _entering(states)
    note = target / STATE
    if not note.is_file():
        # What an interrupted first block may have left is overwritten; a whole model is not.
        if (target / INDEX).exists():
            raise SecateurError(f"{target} holds a model already: write to another folder")
        return [], states
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
        done = [BlockDone(**row) for row in found["done"]]
        same = found["asked"]
    except (ValueError, KeyError, TypeError) as error:
        raise SecateurError(f"{note} is damaged: delete {target} and begin anew") from error
    for key, value in asked.items():
        if same.get(key) != value:
            raise SecateurError(
                f"{target} holds a part of another run (its {key} differs): delete it, or write to "
                "another folder"
            )
    if not done or len(done) == asked["blocks"]:
        return done, states
    carried = open_weights(target / _carried(len(done)))
    if sorted(carried, key=int) != [str(number) for number in range(len(states))]:
        raise SecateurError(f"{target} is damaged: delete it and begin anew")
    return done, [carried[str(number)].read().to(states[0].device) for number in range(len(states))]


def _carried(place: int) -> str:
    """Name the file of the states that enter a block."""
    return f"stream.carried-{place:05d}.safetensors"


def _note(target: Path, asked: dict[str, Any], done: list[BlockDone], states: list[Tensor]) -> None:
    """Note what is written, so that a later run can go on: the states first, the note for good."""
    place = len(done)
    if place < asked["blocks"]:
        states_by_name = {str(number): state for number, state in enumerate(states)}
        write_shard(target / _carried(place), states_by_name)
    rows = [asdict(block) for block in done]
    write_text(target / STATE, json.dumps({"asked": asked, "done": rows}, indent=1))
    (target / _carried(place - 1)).unlink(missing_ok=True)


def _finish(source: Path, target: Path, reader: Source, name: str, blocks: int) -> None:
    """Write what lies outside of the blocks, the index and the small files of the source."""
    rest = reader.outside(f"{name}.")
    first = f"model-00001-of-{blocks + 1:05d}.safetensors"
    write_shard(target / first, rest)
    names = [first, *(_shard(place, blocks) for place in range(blocks))]
    found = {file: open_weights(target / file) for file in names}
    places = {key: file for file, tensors in found.items() for key in tensors}
    size = sum(each.end - each.start for tensors in found.values() for each in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    write_text(target / INDEX, json.dumps(index, indent=2))
    for path in sorted(source.iterdir()) if source.is_dir() else ():
        plain = path.suffix in (".json", ".txt", ".model") and path.name != INDEX
        if plain and path.is_file() and path.stat().st_size <= _LARGEST_COPY:
            shutil.copyfile(path, target / path.name)
