"""Judges one model of the zoo by the nine points; ``zoo.py`` runs it in a process of its own.

python benchmarks/zoo_judge.py LIBRARY NAME FILE [--quick]
python benchmarks/zoo_judge.py --reload LIBRARY NAME FOLDER
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import math
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import zoo_peer
from torch import Tensor, nn
from zoo_checks import (
    check_export,
    check_modes,
    check_reload,
    check_step,
    reload,
    threads,
    warmed_optimizer,
)
from zoo_inputs import Recipe, find_recipe
from zoo_marks import (
    BUDGETS,
    EXACT,
    Row,
    alignment_unit,
    count_macs,
    count_params,
    counted,
    double_precision,
    inner_error,
    misshapen,
    outputs,
    relative_error,
    sampled_by_module,
    short,
)
from zoo_models import build, perturb

LIBRARIES = ("secateur", "torch-pruning")
TECHNIQUE = "filter | global | magnitude | one_shot"
# The currency and the share that goes; the first is the one that is timed and judged in full.
REACH = 0.95
WITHIN = 0.01


@dataclass
class Seen:
    """What a model gives in double precision, also inside where that was asked, or why nothing."""

    outputs: list[Tensor]
    inside: dict[str, tuple[Any, list[Tensor]]] | None = None
    fault: str | None = None


class Subject:
    """A model of the zoo with its inputs: ``fresh`` gives copies of the dense model."""

    def __init__(self, row: Row) -> None:
        with row.stage("build"):
            self.name = row.name
            self._dense = build(row.name)
            self.recipe: Recipe = find_recipe(row.name, self._dense)
            perturb(self._dense)
            self.inputs = self.recipe.inputs()
            row.params[0] = count_params(self._dense)
            row.macs[0] = count_macs(self._dense, self.inputs)
            row.detail["inputs"] = [each and list(each.shape) for each in self.recipe.fields]

    def fresh(self) -> nn.Module:
        """Return a copy of the dense model in eval mode."""
        try:
            return copy.deepcopy(self._dense)
        except RuntimeError:  # a tensor that is not a leaf cannot be copied
            model = build(self.name)
            perturb(model)
            return model


def judge_secateur(row: Row, quick: bool = False) -> None:
    """Fill the row of a model pruned by secateur."""
    library: Any = importlib.import_module("secateur")
    subject = Subject(row)
    with row.stage("trace"):
        traced = library.trace(subject.fresh(), subject.inputs)
        judge_plan(row, traced)
        units = alignment_unit(subject.fresh(), subject.inputs, traced.axes)
        row.detail["unit"] = units
    seen = "judged at" in row.detail
    row.seconds = None
    zoo_peer.warm_up(lambda model, inputs: secateur_prune(library, model, inputs))
    for currency, gone in BUDGETS[:1] if quick else BUDGETS:
        asked = f"{currency} {gone}"
        try:
            shrunk = shrink_to(row, subject, currency, gone, traced.axes, units[currency])
        except Exception as error:  # the other budgets may still pass
            broken = row.points[2] is False
            row.judge(2, False, "" if broken else f"{asked}: {short(error)}")
            row.detail.setdefault("budgets", {})[asked] = {"fault": short(error)}
        else:
            if not seen:
                seen = True
                row.detail["judged at"] = asked
                judge_model(row, subject, *shrunk, save=library.save)
        row.save()
    if not seen:
        for point in (3, 4, 5, 6, 7, 8):
            row.judge(point, False)


def secateur_prune(library: Any, model: nn.Module, inputs: Any) -> None:
    """Prune a model as every model of the bench is pruned."""
    sparsifier = library.Sparsifier(model, TECHNIQUE, params=0.5, example_inputs=inputs)
    sparsifier.step(1.0)
    library.shrink(model, sparsifier, inputs)


def judge_plan(row: Row, traced: Any) -> None:
    """Judge point 1: the reach, or a reason for all that is out of reach."""
    reach = {key: round(float(traced.reach[key]), 4) for key in ("params", "macs")}
    why = [short(reason) for _, reason in traced.pinned if reason]
    row.detail["reach"] = reach
    row.detail["axes"] = len(traced.axes)
    row.detail["pinned"] = dict(sorted({each: why.count(each) for each in set(why)}.items()))
    silent = reach["macs"] < REACH and not (why and len(why) == len(traced.pinned))
    row.judge(1, not silent, f"reaches {reach['macs']:.1%} of the MACs and does not say why")


def shrink_to(
    row: Row, subject: Subject, currency: str, gone: float, axes: Any, unit: float
) -> tuple[nn.Module, Any, list[Tensor], str | None]:
    """Mask and shrink a copy to a budget, and judge points 2, 3 and 4 on it.

    Returns the model, its optimiser, the masked model's outputs, and why it cannot be trained.
    """
    library: Any = importlib.import_module("secateur")
    asked = f"{currency} {gone}"
    first = row.seconds is None
    model = subject.fresh()
    optimizer, no = warmed_optimizer(model, subject.recipe) if first else (None, None)
    with row.timed(f"shrink {asked}") as masking:
        sparsifier = sparsifier_for(model, subject, currency, gone)
        sparsifier.step(1.0)
    with row.stage("compare"):
        plain, macs = counted(model, subject.inputs)
        before = {"params": count_params(model), "macs": macs}
        masked = look(model, subject, subject.recipe.listed)
    with row.timed(f"shrink {asked}") as removing:
        result = library.shrink(model, sparsifier, subject.inputs, optimizer=optimizer)
    seconds, busy = (round(sum(pair), 3) for pair in zip(masking, removing, strict=True))
    try:
        outcome, macs = counted(model, subject.inputs)
    except Exception as error:
        row.judge(3, False, f"{asked}: {short(error)}")
        raise
    after = {"params": count_params(model), "macs": macs}
    achieved = 1 - after[currency] / max(1, before[currency])
    found: dict[str, Any] = {
        "achieved": round(achieved, 5), "seconds": seconds, "cpu": busy, "after": after,
        "stated": {key: getattr(result.after, key) for key in after},
    }  # fmt: skip
    row.detail.setdefault("budgets", {})[asked] = found
    if first:
        row.seconds, row.detail["cpu"] = seconds, busy
        row.params[1], row.macs[1] = after["params"], after["macs"]
    off = abs(achieved - gone)
    row.judge(2, off <= max(WITHIN, unit), f"{asked}: {achieved:.4f} gone")
    with row.stage("compare"):
        inexact = {
            axis.name: axis.inexact for axis in axes if axis.inexact and axis.name in result.removed
        }
        judge_exactness(
            row, asked, found, masked, lambda inside: look(model, subject, inside), inexact
        )
        fault = misshapen(plain, outcome, subject.recipe.listed)
        row.judge(3, fault is None, f"{asked}: {fault}")
    return model, optimizer, plain, no


def sparsifier_for(model: nn.Module, subject: Subject, currency: str, gone: float) -> Any:
    """Return a sparsifier over exact axes; over inexact ones too where those cannot meet a budget.

    What is inexact is stated by the library, and point 4 does not apply to it.
    """
    library: Any = importlib.import_module("secateur")
    budget = {currency: 1 - gone, "example_inputs": subject.inputs}
    try:
        return library.Sparsifier(model, TECHNIQUE, **budget)
    except library.SecateurError:
        return library.Sparsifier(model, TECHNIQUE, **budget, inexact=True)


def look(model: nn.Module, subject: Subject, inside: bool = False) -> Seen:
    """Run a copy of a model in double precision.

    What its modules give is kept too on demand, and where nothing comes out of the whole: a
    detector that finds nothing shows nothing.
    """
    inputs = subject.recipe.inputs(dtype=torch.float64)
    with double_precision():
        double = copy.deepcopy(model).double()
        try:
            found = outputs(double, inputs)
            if inside or any(not each.numel() for each in found):
                return Seen(found, sampled_by_module(double, inputs))
        except Exception as error:  # a model may raise anything
            return Seen([], fault=short(error))
    return Seen(found)


def judge_exactness(
    row: Row,
    asked: str,
    found: dict[str, Any],
    masked: Seen,
    shrunk: Callable[[bool], Seen],
    inexact: dict[str, str],
) -> None:
    """Judge point 4: null where a removed axis is stated to be inexact and turns out so."""
    if masked.fault is not None:
        row.judge(4, None, f"the dense model does not run in float64: {masked.fault}")
        return
    seen = shrunk(masked.inside is not None)
    if seen.fault is not None:
        row.judge(4, False, f"{asked}: {seen.fault}")
        return
    error = relative_error(masked.outputs, seen.outputs)
    if masked.inside is not None and seen.inside is not None:
        inner = inner_error(masked.inside, seen.inside)
        # Which boxes come out may turn on rounding; what the layers compute does not.
        error = inner if error > EXACT else max(error, inner)
    found |= {"error": float(f"{error:.3g}") if math.isfinite(error) else None, "inexact": inexact}
    why = f"{asked}: masked and shrunk differ by {error:.2g}"
    if error <= EXACT:
        row.judge(4, True)
    elif inexact:
        row.judge(4, None, f"{why}, as stated: {next(iter(inexact.values()))}")
    else:
        row.judge(4, False, why)


def judge_model(
    row: Row,
    subject: Subject,
    model: nn.Module,
    optimizer: Any,
    expected: list[Tensor],
    no: str | None,
    save: Callable[[nn.Module, Path], object],
) -> None:
    """Judge points 3 and 5 to 8 on a pruned model."""
    found = check_modes(row, model, subject.recipe, expected)
    if found is None:
        for point in (5, 6, 7):
            row.judge(point, False)
        return
    check_reload(row, model, subject.recipe, found, save)
    check_export(row, model, subject.recipe, found, subject.fresh)
    check_step(row, model, optimizer, subject.recipe, no)


def judge_peer(row: Row) -> None:
    """Fill the row of a model pruned by Torch-Pruning; points 1 and 4 have nothing to look at."""
    subject = Subject(row)
    row.judge(1, None, "the library states no reach")
    row.judge(4, None, "the library has no masks to compare with")
    model = subject.fresh()
    _, no = warmed_optimizer(subject.fresh(), subject.recipe)
    expected = outputs(model, subject.inputs)
    zoo_peer.warm_up(zoo_peer.prune)
    try:
        with row.timed("shrink") as seconds:
            zoo_peer.prune(model, subject.inputs)
        row.seconds, row.detail["cpu"] = (round(each, 3) for each in seconds)
        left = count_params(model)
        row.params[1] = left
        row.judge(2, left < count_params(subject.fresh()), "nothing was removed")
        row.macs[1] = count_macs(model, subject.inputs)
    except Exception as error:  # a library may raise anything
        point = 2 if row.params[1] is None else 3
        row.judge(point, False, short(error))
        for other in (3, 5, 6, 7, 8):
            row.judge(other, False)
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    judge_model(row, subject, model, optimizer, expected, no, save=zoo_peer.save)


def load_again(library: str, name: str, folder: Path) -> dict[str, Any]:
    """Return what a fresh process finds: point 6's fault, or None."""
    if library == "torch-pruning":
        fault = reload(folder, zoo_peer.load)
        return {"fault": fault, "detail": {"by pickle": reload(folder, zoo_peer.load_pickle)}}
    load = importlib.import_module("secateur").load
    return {"fault": reload(folder, lambda path: load(path, build=lambda: build(name)))}


def main() -> None:
    """Judge, or load again; the row ends in the file, the answer on standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("name")
    parser.add_argument("path", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--reload", action="store_true")
    parser.add_argument("--memory", type=float, help="GB that the process may hold")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads())
    if options.memory:
        most = int(options.memory * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if options.reload:
        print(json.dumps(load_again(options.library, options.name, options.path)))
        return
    row = Row(options.name, options.library, path=options.path)
    if options.path.exists():
        vars(row).update(json.loads(options.path.read_text(encoding="utf-8")))
    try:
        if options.library == "secateur":
            judge_secateur(row, options.quick)
        else:
            judge_peer(row)
        row.detail["stage"] = "done"
    except BaseException as error:
        stage = row.detail.get("stage")
        row.reason = "; ".join(filter(None, (row.reason, f"{stage}: {short(error)}")))
        if stage != "build":  # else the model is at fault, not the library
            stated = row.detail.get("null", {})
            open_ = [point for point in range(1, 9) if row.points[point - 1] is None]
            for point in open_:
                row.points[point - 1] = None if str(point) in stated else False
        if not isinstance(error, Exception):
            raise
    finally:
        row.save()
    sys.stdout.flush()


if __name__ == "__main__":
    main()
