"""Checks of the code of grafts that comes from a file: what it names must exist and be allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from secateur.errors import SecateurError
from secateur.structure.graft import DTYPES, FORMATS, LAYOUTS, Step, operator_of
from secateur.structure.rules import has_rule

_OPERATOR = re.compile(r"[a-z]\w*\.\w+\.\w+")


def check_code(code: Any, module: nn.Module | None = None) -> None:
    """Refuse code from a file that is damaged, or calls anything but operators that have a rule.

    With ``module``, its children and tensors that the code names must be there. Raises
    SecateurError.
    """
    steps = code.get("steps") if isinstance(code, dict) else None
    count = code.get("inputs") if isinstance(code, dict) else None
    if not isinstance(steps, list) or not isinstance(count, int) or "result" not in code:
        raise SecateurError("a saved graft is damaged: it lacks its steps, inputs or result")
    known = {f"input {place}" for place in range(count)}
    for step in steps:
        if not isinstance(step, dict) or not isinstance(step.get("name"), str):
            raise SecateurError(f"a saved graft is damaged at {str(step)[:80]}")
        _check_call(step, module)
        args, kwargs = step.get("args"), step.get("kwargs")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise SecateurError(f"a saved graft is damaged at {step['name'][:80]!r}")
        for value in (*args, *kwargs.values()):
            _check_value(value, known, module)
        known.add(step["name"])
    _check_value(code["result"], known, module)


def _check_call(step: Step, module: nn.Module | None) -> None:
    kinds = {"operator", "module", "item"} & set(step)
    if len(kinds) != 1:
        raise SecateurError(f"a saved graft is damaged at {step['name'][:80]!r}: it calls nothing")
    if "operator" in step:
        name = step["operator"]
        if not isinstance(name, str) or not _OPERATOR.fullmatch(name) or not has_rule(name):
            raise SecateurError(f"a saved graft calls {str(name)[:80]!r}, which no rule covers")
        try:
            found = operator_of(name)
        except AttributeError:
            found = None
        if not isinstance(found, torch._ops.OpOverload):
            raise SecateurError(f"a saved graft calls {name[:80]!r}, which torch does not have")
    elif "module" in step:
        path = step["module"]
        names = {path: None}
        if module is not None:
            names = dict.fromkeys(name for name, _ in module.named_modules(remove_duplicate=False))
        if not isinstance(path, str) or not path or path not in names:
            raise SecateurError(
                f"a saved graft calls a child {str(path)[:80]!r}, which is not there"
            )
    elif not isinstance(step["item"], int) or len(step.get("args") or ()) != 1:
        raise SecateurError(f"a saved graft is damaged at {step['name'][:80]!r}")


def _check_value(value: Any, known: Collection[str], module: nn.Module | None) -> None:
    """Refuse what ``_decode`` could not turn into a value."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return
    if isinstance(value, list):
        for each in value:
            _check_value(each, known, module)
        return
    kind, held = next(iter(value.items())) if isinstance(value, dict) and value else ("", None)
    if kind in ("tuple", "product") and isinstance(held, list):
        _check_value(held, known, module)
        return
    if kind == "dict" and isinstance(held, dict):
        _check_value(list(held.values()), known, module)
        return
    tests: dict[str, Callable[[], bool]] = {
        "value": lambda: isinstance(held, str) and held in known,
        "held": lambda: isinstance(held, str) and (module is None or _holds(module, held)),
        "size": lambda: _is_size(held, known),
        "constant": lambda: value.get("dtype") in DTYPES and _is_numbers(held),
        "device": lambda: held == "here",
        "mode": lambda: held == "here",
        "torch": lambda: isinstance(held, str) and held in DTYPES | LAYOUTS | FORMATS,
    }
    if kind not in tests or not tests[kind]():
        raise SecateurError(f"a saved graft is damaged: it names {str(value)[:80]}")


def _holds(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_parameters(remove_duplicate=False)) or name in dict(
        module.named_buffers(remove_duplicate=False)
    )


def _is_size(held: Any, known: Collection[str]) -> bool:
    return (
        isinstance(held, list)
        and len(held) == 2
        and isinstance(held[0], str)
        and held[0] in known
        and isinstance(held[1], int)
    )


def _is_numbers(held: Any) -> bool:
    if isinstance(held, list):
        return all(map(_is_numbers, held))
    return isinstance(held, (bool, int, float))
