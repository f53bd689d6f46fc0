"""The main job: trains or fine-tunes a network under a technique and leaves a folder behind."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import platform
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import accelerate
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateur.errors import SecateurError
from secateur.measure import compare_latency, file_bytes, pack
from secateur.report import render
from secateur.sparsify import Sparsifier
from secateur.structure import observe, shrink
from secateur.structure.reload import description, tensors_of
from secateur.train.checkpoint import NAME as CHECKPOINT
from secateur.train.checkpoint import load_checkpoint, save_checkpoint
from secateur.train.data import Data, ImageDataset, collate, load_data
from secateur.train.interrupt import Interrupted, StopRequest, stop_on_interrupt
from secateur.train.loop import Phase
from secateur.train.models import BuiltModel, build_model, load_weights, try_forward
from secateur.train.settings import Settings
from secateur.train.watch import Watcher

OUTPUTS = ("model.safetensors", "secateur.json", "metrics.json", "report.html")
_CALIBRATION_BATCHES = 4
_LATENCY_SECONDS = 0.5
_BRIEF_LATENCY_SECONDS = 0.15
# Marks of errors from PyTorch's writer of archives, which says nothing else about their kind.
_WRITERS = ("PytorchStreamWriter", "iostream error", "unexpected pos")


def compress(
    settings: Settings,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    command: str = "",
    data: Data | None = None,
    brief: bool = False,
) -> dict[str, Any]:
    """Carry the settings out and return the metrics; ``out`` then holds the four result files.

    Ctrl-C raises ``Interrupted`` after a checkpoint is written, which ``resume`` goes on from.
    ``data`` is what ``load_settings_data`` gave, where many runs share it. ``brief`` is for runs
    of which only the metrics count: it evaluates at the end alone, times for less long, and leaves
    no file behind.
    Raises SecateurError, before anything is written, for settings that cannot be carried out.
    """
    watcher = watcher or Watcher()
    folder = Path(out)
    _check_folder(folder, resume, overwrite)
    if data is None:
        data = load_settings_data(settings)
    accelerate.utils.set_seed(settings.seed)
    built = build_model(
        settings.model,
        num_classes=len(data.classes),
        channels=data.channels,
        pretrained=settings.pretrained,
    )
    data = data.with_channels(built.channels)
    if len(data.train) < 2:
        raise SecateurError(f"{settings.data} has {len(data.train)} training images: too few")
    if settings.weights:
        load_weights(built.model, settings.weights)
    for note in built.notes:
        watcher.note(note)
    example = data.valid[0][0][None]
    outputs = try_forward(built, example)
    if not isinstance(outputs, Tensor) or outputs.shape != (1, len(data.classes)):
        given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise SecateurError(
            f"the model '{built.spec}' gives {given} for one image: expected "
            f"[1, {len(data.classes)}] scores"
        )
    run = _Run(settings, data, built, example, folder, watcher, brief)
    saved = load_checkpoint(folder, run.fingerprint) if resume else None
    with stop_on_interrupt() as request:
        run.train(saved, request)
    metrics = run.metrics(command)
    if run.accelerator.is_main_process:
        with _told(folder):
            if brief:
                (folder / CHECKPOINT).unlink(missing_ok=True)
            else:
                _write(folder, run, metrics)
    return metrics


def load_settings_data(settings: Settings) -> Data:
    """Load the images that the settings ask for; equal for settings that differ elsewhere."""
    return load_data(settings.data, size=settings.size, limit=settings.limit, seed=settings.seed)


class _Run:
    """One run: its parts, its two phases, and what they measured."""

    def __init__(
        self,
        settings: Settings,
        data: Data,
        built: BuiltModel,
        example: Tensor,
        folder: Path,
        watcher: Watcher,
        brief: bool,
    ) -> None:
        self.settings, self.data, self.built, self.brief = settings, data, built, brief
        self.example, self.folder, self.watcher = example, folder, watcher
        self.accelerator = accelerate.Accelerator(
            # Else several processes on a machine without accelerator do not find each other.
            cpu=not torch.accelerator.is_available(),
            dataloader_config=accelerate.DataLoaderConfiguration(
                use_seedable_sampler=True, data_seed=settings.seed
            ),
        )
        self.fingerprint = settings.fingerprint(data.digest)
        self.dense = copy.deepcopy(built.model)
        self.scores: dict[str, dict[str, float]] = {}
        self.curves: dict[str, list[dict[str, float]]] = {}
        # Built at once, so that a request that cannot be carried out is refused before training.
        self.pruned = self._phase("pruned", copy.deepcopy(built.model), self._sparsifier)
        self.sparsifier: Sparsifier = _there(self.pruned.sparsifier)

    def _sparsifier(self, network: nn.Module) -> Sparsifier:
        device = next(network.parameters()).device
        return Sparsifier(
            network,
            self.settings.found_technique,
            include=self.settings.include or None,
            exclude=self.settings.exclude or None,
            example_inputs=(self.example.to(device),),
            data=_calibration(self.data.train, self.settings.batch_size),
            # Trained before, where nothing else was: it has something to teach by then.
            teacher=self.dense if self.settings.distils else None,
            round_to=self.settings.round_to,
            seed=self.settings.seed,
            **self.settings.budget(),  # type: ignore[arg-type]
        )

    def _phase(
        self,
        name: str,
        model: nn.Module,
        make: Callable[[nn.Module], Sparsifier] | None = None,
    ) -> Phase:
        watched = not self.brief
        return Phase(name, self.settings, self.data, model, self.accelerator, make, watched)

    def train(self, saved: Mapping[str, Any] | None, request: StopRequest) -> None:
        """Train the dense network where a comparison needs it, then the pruned one."""
        if saved is not None:
            self.scores, self.curves = dict(saved["scores"]), dict(saved["curves"])
            self.dense.load_state_dict(saved["dense"])
        trains_dense = self.settings.baseline and not self.settings.tunes
        if "dense" not in self.scores:
            dense = self._phase("dense", self.dense)
            if trains_dense:
                self._train(dense, saved, request)
                self.curves["dense"] = dense.progress.curves
            if trains_dense or self.settings.tunes:
                accuracy, loss = dense.evaluate()
                self.scores["dense"] = {"accuracy": accuracy, "loss": loss}
            self.dense = dense.network
            # Each phase starts from the seed, whether or not another ran before it.
            accelerate.utils.set_seed(self.settings.seed)
        self._train(self.pruned, saved, request)
        self.curves["pruned"] = self.pruned.progress.curves
        accuracy, loss = self.pruned.evaluate()
        self.scores["pruned"] = {"accuracy": accuracy, "loss": loss}

    def _train(self, phase: Phase, saved: Mapping[str, Any] | None, request: StopRequest) -> None:
        if saved is not None and saved["phase"]["name"] == phase.name:
            phase.load_state_dict(saved["phase"])
        for step in phase.run(self.watcher):
            ends_epoch = step % len(phase.train) == 0
            asked = self._anyone(request.asked)
            if asked or (ends_epoch and step < phase.total):
                path = self._save(phase)
                if asked:
                    raise Interrupted(path, step)

    def _anyone(self, asked: bool) -> bool:
        """Whether any process was asked to stop, so that all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return asked
        flag = torch.tensor(float(asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def _save(self, phase: Phase) -> Path:
        if self.accelerator.is_main_process:
            content = {
                "fingerprint": self.fingerprint,
                "phase": phase.state_dict(),
                "scores": self.scores,
                "curves": self.curves,
                "dense": {name: value.cpu() for name, value in self.dense.state_dict().items()},
            }
            with _told(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                save_checkpoint(self.folder, content)
        self.accelerator.wait_for_everyone()
        return self.folder / CHECKPOINT

    def metrics(self, command: str) -> dict[str, Any]:
        """Measure both networks and gather all that the report shows."""
        settings, report = self.settings, self.sparsifier.report()
        dense, pruned = self.dense.cpu().eval(), self.pruned.network.cpu().eval()
        self.sparsifier.apply()
        masks = {name: mask.cpu() for name, mask in self.sparsifier.masks.items()}
        last = self.sparsifier.last_result
        achieved = dict(report.achieved)
        before = _sizes(dense, {})
        shrunk, said = self._shrink(pruned)
        masks = {} if shrunk else masks
        latency = compare_latency(
            {"before": dense, "after": pruned},
            (self.example,),
            seconds=_BRIEF_LATENCY_SECONDS if self.brief else _LATENCY_SECONDS,
        )
        macs = observe(dense, lambda: dense(self.example)).macs
        return {
            "technique": report.technique,
            "technique_words": self.settings.found_technique.words(),
            "budget": self._budget(),
            "model": settings.model,
            "data": settings.data.partition(":")[0],
            "data_digest": self.data.digest,
            "augmentation": self.data.augment,
            "seed": settings.seed,
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.rate,
            "command": command,
            "versions": versions(),
            "hardware": hardware(),
            "before": {
                **self.scores.get("dense", {}),
                **before,
                "sparsity": 0.0,
                "macs": macs,
                "latency": latency["before"].to_dict(),
            },
            "before_is": self._before_is(),
            "after": {
                **self.scores["pruned"],
                **_sizes(pruned, masks),
                "sparsity": achieved["sparsity"],
                "macs": round(macs * achieved["macs"]),
                "latency": latency["after"].to_dict(),
            },
            "achieved": achieved,
            "shrunk": shrunk,
            "shortfall": last.shortfall if last else 0.0,
            "notes": [*self._notes(report.notes, report.passed_over, last), *said],
            "history": self.sparsifier.history,
            "curves": self.curves,
            "layers": [_plain(layer) for layer in report.to_dict()["layers"]],
        }

    def _shrink(self, network: nn.Module) -> tuple[bool, list[str]]:
        """Remove what whole channels have been masked, and say what became of it."""
        if not self.sparsifier.coupled:
            return False, []
        try:
            result = shrink(network, self.sparsifier, (self.example,))
        except SecateurError as error:
            return False, [f"the network was not shrunk: {error}"]
        before, after = result.before, result.after
        return True, [
            f"shrunk: {after.params:,} of {before.params:,} parameters and {after.macs:,} of "
            f"{before.macs:,} MACs are left; it differs from the masked network by "
            f"{result.difference:.1g} (relative)",
            *result.notes,
            *self._uneven(result.removed),
        ]

    def _uneven(self, removed: Mapping[str, Collection[int]]) -> list[str]:
        """Say where a width that was a multiple of 8 is none any more: that costs time."""
        structure = self.sparsifier.structure
        if structure is None or self.settings.found_technique.granularity.head:
            return []
        even = [axis for axis in structure.axes if axis.name in removed and axis.size % 8 == 0]
        count = sum((axis.size - len(removed[axis.name])) % 8 != 0 for axis in even)
        if not count:
            return []
        return [
            f"{count} of {len(even)} widths are no multiples of 8 any more, and runtimes such as "
            "ONNX Runtime are slower with those: round_to 8 or 16 (--round-to) keeps them even"
        ]

    def _budget(self) -> dict[str, Any] | None:
        budget = self.sparsifier.budget
        return {"currency": budget.currency, "value": budget.value} if budget else None

    def _before_is(self) -> str:
        if self.settings.tunes:
            return "the network with the weights it started from, before any pruning"
        if self.settings.baseline:
            return "the same network trained dense for the same epochs with the same seed"
        return "the same network, untrained (no baseline was asked for)"

    def _notes(
        self, notes: tuple[str, ...], passed_over: tuple[tuple[str, str], ...], last: Any
    ) -> list[str]:
        said = [*self.built.notes, *notes]
        if last is not None and last.reason:
            said.append(last.reason)
        if last is not None and last.emptied:
            what = "layers with one channel left" if self.sparsifier.coupled else (
                "layers without a weight left")  # fmt: skip
            said.append(
                f"{what}, behind which the network is almost blind: {', '.join(last.emptied)}; a "
                "context such as local, or global(keep=0.1), keeps a share of every layer"
            )
        return said + [f"{name} is not pruned: {reason}" for name, reason in passed_over]


def _sizes(network: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Count parameters left and the bytes of the network's file, dense and packed."""
    state = {name: value.detach() for name, value in network.state_dict().items()}
    removed = sum(int((~mask).sum()) for mask in masks.values())
    return {
        "params": sum(parameter.numel() for parameter in network.parameters()) - removed,
        "bytes_dense": file_bytes(state),
        "bytes_packed": file_bytes(pack(state, masks)),
    }


def _plain(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in layer.items()}


def _there(sparsifier: Sparsifier | None) -> Sparsifier:
    assert sparsifier is not None
    return sparsifier


def _calibration(train: ImageDataset, batch_size: int) -> list[Any]:
    """Take a few batches of training images, as they are, for criteria that ask for data."""
    still = ImageDataset(train.images, train.labels, train.mean, train.std)
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(still, batch_size, shuffle=True, generator=generator, collate_fn=collate)
    return list(itertools.islice(loader, _CALIBRATION_BATCHES))


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turn a failure to write (a full disk, say) into one line."""
    try:
        yield
    except OSError as error:
        raise SecateurError(f"{folder} cannot be written: {error}") from error
    except RuntimeError as error:
        # What torch.save raises where it cannot write; the reason is in the words only.
        if not any(mark in str(error) for mark in _WRITERS):
            raise
        reason = OSError(str(error).splitlines()[0])
        raise SecateurError(f"{folder} cannot be written, is the disk full? {reason}") from reason


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise SecateurError(f"--out {folder} cannot be written: {there} is not a writable folder")
    if resume or not folder.is_dir():
        return
    if (folder / CHECKPOINT).exists() and not overwrite:
        raise SecateurError(
            f"{folder} holds an interrupted run: go on with --resume, or start anew with "
            "--overwrite"
        )
    if any((folder / name).exists() for name in OUTPUTS) and not overwrite:
        raise SecateurError(f"{folder} holds results: choose another --out or pass --overwrite")


def _write(folder: Path, run: _Run, metrics: dict[str, Any]) -> None:
    """Write the four files beside their places, then move them there; drop the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    network = run.pruned.network
    saved = {
        **description(network, run.built.build),
        "technique": metrics["technique"],
        "budget": metrics["budget"],
        "achieved": metrics["achieved"],
        "classes": list(run.data.classes),
        "normalise": {"mean": list(run.data.mean), "std": list(run.data.std)},
        "image": {"channels": run.data.channels, "size": list(run.data.size)},
        "versions": metrics["versions"],
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        place = Path(partial)
        (place / OUTPUTS[0]).write_bytes(save(tensors_of(network), {"format": "pt"}))
        texts = (_json(saved), _json(metrics), render(metrics))
        for name, text in zip(OUTPUTS[1:], texts, strict=True):
            (place / name).write_text(text, encoding="utf-8")
        for name in OUTPUTS:
            (place / name).replace(folder / name)
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    names = ("secateur", "torch", "torchvision", "timm", "accelerate")
    installed = {each.name: each.version for each in metadata.distributions() if each.name in names}
    return {"python": platform.python_version(), **dict(sorted(installed.items()))}


def hardware() -> dict[str, Any]:
    """Return what the measurements ran on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
