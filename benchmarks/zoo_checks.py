"""The marks of the zoo that ask whether a pruned model is still a model: points 5 to 8.

They need nothing of the library that pruned it. Where the dense model fails in the same way a
point does not apply, and the row says so.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_inputs import Recipe
from zoo_marks import Row, misshapen, outputs, relative_error, short, tensors

from secateur.extras import need

AGREE = 1e-3
EXPORTERS = ("onnx", "onnxscript", "onnxruntime")
RATE = 1e-2
RELOAD = Path(__file__).with_name("zoo_judge.py")

Load = Callable[[Path], nn.Module]


def random_loss(output: Any, seed: int = 3) -> Tensor:
    """Return the mean of every output weighted at random, summed: it depends on all of them.

    Raises ValueError where no output has a gradient.
    """
    random = torch.Generator().manual_seed(seed)
    learning = [each for each in tensors(output) if each.requires_grad and each.numel()]
    if not learning:
        raise ValueError("no output has a gradient")
    weights = [torch.randn(each.shape, generator=random).to(each) for each in learning]
    return torch.stack(
        [(each * w).mean().double() for each, w in zip(learning, weights, strict=True)]
    ).sum()


def backward(model: nn.Module, batch: Any) -> None:
    """Leave the gradients of a random loss in a model, in training mode; it ends in eval mode.

    Raises whatever the model raises, and ValueError where a gradient is not finite.
    """
    torch.manual_seed(0)
    model.zero_grad()
    try:
        random_loss(model.train()(*batch)).backward()
    finally:
        model.eval()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise ValueError(f"the gradient of {name} is not finite")


def warmed_optimizer(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.SGD, str | None]:
    """Return an optimiser that has moments but moved nothing, and why it has none if it has not."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    if not recipe.trains:
        return optimizer, "the dense model does not run in train mode"
    try:
        backward(model, recipe.batch())
        optimizer.step()
    except Exception as error:  # a model may raise anything
        return optimizer, f"the dense model cannot take a step: {short(error)}"
    finally:
        model.zero_grad()
    return optimizer, None


def unchanged_by_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> str | None:
    """Take a step and return which parameter it should have changed and did not, or None.

    A parameter counts where it has a gradient that is not zero and the step is large enough to
    change a number of its precision.
    """
    backward(model, batch)
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = RATE
    optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            continue
        if id(parameter) not in held:
            return f"{name} has a gradient and is not in the optimiser"
        moment = optimizer.state[parameter].get("momentum_buffer", parameter.grad)
        expected = before[name] - RATE * moment
        if torch.equal(before[name], parameter) and not torch.equal(before[name], expected):
            return f"the step left {name} as it was"
    return None


def check_step(row: Row, model: nn.Module, optimizer: Any, recipe: Recipe, no: str | None) -> None:
    """Judge point 5; ``no`` says why the dense model cannot."""
    if no is not None:
        row.judge(5, None, no)
        return
    with row.stage("step"):
        try:
            fault = unchanged_by_step(model, optimizer, recipe.batch())
            row.judge(5, fault is None, fault or "")
        except Exception as error:  # a model may raise anything
            row.judge(5, False, short(error))


def check_modes(
    row: Row, model: nn.Module, recipe: Recipe, expected: list[Tensor]
) -> list[Tensor] | None:
    """Judge points 3 and 8 and return what the model gives in eval mode, None if nothing."""
    with row.stage("modes"):
        try:
            found = outputs(model, recipe.inputs())
            fault = misshapen(expected, found, recipe.listed)
            row.judge(3, fault is None, fault or "")
        except Exception as error:  # a model may raise anything
            row.judge(3, False, short(error))
            row.judge(8, False)
            return None
        if not recipe.trains:
            row.judge(8, None, "the dense model does not run in train mode")
            return found
        kept = copy.deepcopy(dict(model.named_buffers()))
        try:
            with torch.no_grad():
                model.train()(*recipe.batch())
            row.judge(8, True)
        except Exception as error:  # a model may raise anything
            row.judge(8, False, f"in train mode: {short(error)}")
        model.eval()
        # Running statistics have moved; what follows compares with what was found above.
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
    return found


def check_reload(
    row: Row, model: nn.Module, recipe: Recipe, expected: list[Tensor], save: Any
) -> None:
    """Judge point 6: a fresh process loads what ``save(model, folder)`` wrote and runs it."""
    with row.stage("reload"), tempfile.TemporaryDirectory() as folder:
        try:
            save(model, Path(folder) / "model")
            torch.save({"inputs": recipe.inputs(), "expected": expected}, f"{folder}/case.pt")
        except Exception as error:  # a library may raise anything
            row.judge(6, False, f"saving: {short(error)}")
            return
        answer = subprocess.run(
            [sys.executable, str(RELOAD), "--reload", row.library, row.name, folder],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        try:
            found = json.loads(answer.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError):
            last = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
            found = {"fault": f"the fresh process ended with {answer.returncode}: {last}"}
        row.detail.update(found.get("detail", {}))
        row.judge(6, found["fault"] is None, found["fault"] or "")


def reload(folder: Path, load: Load) -> str | None:
    """Load a model and run it: return how its outputs differ in any bit, None if they do not."""
    case = torch.load(folder / "case.pt", weights_only=True)
    try:
        model = load(folder / "model")
    except Exception as error:  # a library may raise anything
        return f"loading: {short(error)}"
    found = outputs(model, case["inputs"])
    if len(found) == len(case["expected"]) and all(map(torch.equal, found, case["expected"])):
        return None
    return f"differs by {relative_error(case['expected'], found):.2g} (relative)"


def check_export(
    row: Row, model: nn.Module, recipe: Recipe, expected: list[Tensor], dense: Any
) -> None:
    """Judge point 7; ``dense()`` gives the dense model, asked only where the pruned one fails."""
    missing = [each for each in EXPORTERS if importlib.util.find_spec(each) is None]
    if missing:
        row.judge(7, None, f"not installed: {', '.join(missing)}")
        return
    with row.stage("export"):
        failed, fault = export_fault(model, recipe, expected)
    if fault is None:
        row.judge(7, True)
        return
    with row.stage("export dense"):
        original = dense()
        same, why = export_fault(original, recipe, outputs(original, recipe.inputs()))
    if why is not None and same <= failed:
        row.judge(7, None, f"the dense model: {why}")
        if failed > same:
            row.detail["export"] = fault
    else:
        row.judge(7, False, fault)


def export_fault(
    model: nn.Module, recipe: Recipe, expected: list[Tensor]
) -> tuple[int, str | None]:
    """Export a model and run what comes out: the number of the step that failed, and how."""
    inputs = recipe.inputs()
    step = ("torch.export", "running the export", "ONNX", "ONNX Runtime")
    done = 0
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        try:
            program = torch.export.export(model.eval(), inputs)
            done = 1
            _compare(expected, tensors(program.module()(*inputs)))
            done = 2
            path = f"{folder}/model.onnx"
            onnx = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False)
            assert onnx is not None
            onnx.save(path, external_data=True)
            done = 3
            _compare(expected, run_onnx(path, inputs))
        except Exception as error:  # exporters may raise anything
            return done, f"{step[done]}: {short(error)}"
    return len(step), None


def run_onnx(path: str, inputs: Any) -> list[Tensor]:
    """Return what ONNX Runtime gives for the tensors among the inputs, in order."""
    runtime: Any = need("onnxruntime", "export", "checking an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    values = [tensor.numpy() for tensor in tensors(inputs)]
    return [
        torch.as_tensor(each) for each in session.run(None, dict(zip(names, values, strict=True)))
    ]


def _compare(expected: list[Tensor], found: list[Tensor]) -> None:
    error = relative_error(expected, found)
    if error > AGREE:
        raise ValueError(f"differs by {error:.2g} (relative)")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters from writing to the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def threads() -> int:
    """Return how many threads a model's process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))
