"""Saving a shrunk model as tensors and plain values, and building it again from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.structure.codecheck import check_code
from secateur.structure.depth import delete_named
from secateur.structure.graft import install
from secateur.structure.history import history, inside, restore
from secateur.structure.selector import (
    are_selectors,
    check_kept,
    describe_selectors,
    install_selectors,
)
from secateur.structure.surgery import Holders, Undo, set_attributes, set_data

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "secateur.json"
_LARGEST_DESCRIPTION = 64 * 2**20


def save(model: nn.Module, folder: str | Path, build: Mapping[str, Any] | None = None) -> Path:
    """Write a model, shrunk or not, to ``model.safetensors`` and ``secateur.json`` in a folder.

    ``build`` may say in plain values how to build the original. No code and no pickle is
    written. Returns the folder.
    """
    if not isinstance(model, nn.Module):
        raise SecateurError(f"the model is a {type(model).__name__}: expected an nn.Module")
    path = Path(folder)
    try:
        text = json.dumps(description(model, build))
    except (TypeError, ValueError) as error:
        raise SecateurError(f"build={build!r} cannot be written as JSON: {error}") from error
    path.mkdir(parents=True, exist_ok=True)
    parts = path / f"{WEIGHTS}.part", path / f"{DESCRIPTION}.part"
    save_file(tensors_of(model), parts[0], {"format": "pt"})
    parts[1].write_text(text, encoding="utf-8")
    parts[0].replace(path / WEIGHTS)
    parts[1].replace(path / DESCRIPTION)
    return path


def description(model: nn.Module, build: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return in plain values what a model needs to be built again, beside its tensors."""
    noted = history(model)
    return {
        "format": FORMAT,
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "build": dict(build) if build else noted.get("build"),
        "versions": {"torch": torch.__version__},
        "shapes": noted.get("shapes") or _shapes(model),
        "attributes": {where: {name: _plain(value) for name, value in names.items()}
                       for where, names in noted.get("attributes", {}).items()},
        "removals": noted.get("removals", []),
        "grafts": noted.get("grafts", {}),
        "plain": noted.get("plain", []),
        "dropped": noted.get("dropped", []),
        "selectors": describe_selectors(model),
    }  # fmt: skip


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, tied ones once, each with its own memory."""
    return {
        name: tensor.detach().contiguous().clone()
        for name, tensor in _tensors(model, history(model).get("plain", ())).items()
    }


def _tensors(model: nn.Module, plain: Iterable[str]) -> dict[str, Tensor]:
    """Return parameters, buffers and those plain attributes that were made smaller."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    for name in plain:
        path, _, attribute = name.rpartition(".")
        found[name] = getattr(model.get_submodule(path), attribute)
    return found


def describe_saved(folder: str | Path) -> dict[str, Any]:
    """Read and check ``secateur.json`` of a saved model."""
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise SecateurError(f"'{folder}' holds no saved model: {DESCRIPTION} is not there")
    if path.stat().st_size > _LARGEST_DESCRIPTION:
        raise SecateurError(f"'{path}' is larger than {_LARGEST_DESCRIPTION >> 20} MiB")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise SecateurError(f"'{path}' cannot be read: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise SecateurError(f"'{path}' has the format {version}: this version reads {FORMAT}")
    found.setdefault("selectors", [])  # files of earlier versions have none
    for key, right in _RIGHT.items():
        if not right(found.get(key)):
            raise SecateurError(f"'{path}' lacks a right '{key}': it is no saved model, or damaged")
    return found


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _is_table(value: Any, right: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(right, value.values()))


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "shapes": lambda value: _is_table(value, _are_sizes),
    "attributes": lambda value: _is_table(value, lambda names: isinstance(names, dict)),
    "removals": lambda value: (
        isinstance(value, list) and all(_is_table(each, _are_sizes) for each in value)
    ),
    "grafts": lambda value: _is_table(value, lambda code: isinstance(code, dict)),
    "plain": lambda value: isinstance(value, list) and all(isinstance(e, str) for e in value),
    "dropped": lambda value: isinstance(value, list) and all(isinstance(e, str) for e in value),
    "selectors": are_selectors,
}
"""What the parts of a description must be."""


def load(folder: str | Path, build: Callable[[], nn.Module] | nn.Module) -> nn.Module:
    """Build a saved model again: the original from ``build``, made as small as it was saved.

    Raises SecateurError where the architecture is another one, or a file is damaged.
    """
    saved = describe_saved(folder)
    model = build if isinstance(build, nn.Module) else build()
    if not isinstance(model, nn.Module):
        raise SecateurError(f"build returned a {type(model).__name__}: expected an nn.Module")
    model = install_selectors(model, saved["selectors"])
    _check_architecture(model, saved)
    modules = dict(model.named_modules())
    attributes = _checked_attributes(modules, saved["attributes"])
    for path, code in saved["grafts"].items():
        if not path or path not in modules:
            raise SecateurError(f"the model that was built has no module '{path}'")
        check_code(code, modules[path])
    _check_dropped(model, saved["dropped"])
    targets = _targets(model, saved["plain"], saved["dropped"])
    tensors = _read_tensors(Path(folder) / WEIGHTS, targets, saved)
    check_kept(model, tensors)
    # From here on nothing can fail, so that a model that does not fit is left as it was.
    undo, holders = Undo(), Holders(model)
    for where, names in attributes.items():
        set_attributes(model, {(where, name): value for name, value in names.items()}, undo)
    for name, target in targets.items():
        tensor = tensors[name] if target.is_meta else tensors[name].to(target.device)
        if isinstance(target, nn.Parameter) and target.is_meta:
            holders.replace(target, nn.Parameter(tensor, target.requires_grad), undo)
        elif isinstance(target, nn.Parameter):
            set_data(target, tensor, None)
        else:
            holders.replace(target, tensor, undo)
    for path, code in saved["grafts"].items():
        install(model, path, code)
    for name in saved["dropped"]:
        delete_named(model, name)
    if saved["removals"]:
        keys = ("shapes", "removals", "build", "grafts", "plain", "dropped")
        kept = {key: saved.get(key) for key in keys}
        restore(model, {**kept, "attributes": attributes})
    return model


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in model.named_parameters()}


def _check_architecture(model: nn.Module, saved: Mapping[str, Any]) -> None:
    built, shapes = _shapes(model), saved["shapes"]
    kind = type(model).__name__
    for name in shapes:
        if name not in built:
            raise SecateurError(
                f"the saved model is a {saved.get('model')}, and the {kind} that was built has no "
                f"parameter '{name}'"
            )
        if built[name] != shapes[name]:
            raise SecateurError(
                f"'{name}' was {shapes[name]} in the original of the saved model and is "
                f"{built[name]} in the {kind} that was built: build the same architecture"
            )
    extra = next((name for name in built if name not in shapes), None)
    if extra is not None:
        raise SecateurError(
            f"the {kind} that was built has a parameter '{extra}' that the saved model lacks"
        )


def _checked_attributes(
    modules: Mapping[str, nn.Module], attributes: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return sizes to set; each must be in the module already, as a size."""
    found: dict[str, dict[str, Any]] = {}
    for path, names in attributes.items():
        own = vars(modules[path]) if path in modules else {}
        for name, value in names.items():
            there, wanted = own.get(name), _unplain(value)
            if not _alike(there, wanted):
                raise SecateurError(f"the model that was built has no size '{name}' in '{path}'")
            found.setdefault(path, {})[name] = wanted
    return found


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are both a whole number, or both as many of them."""
    if isinstance(one, (tuple, list)):
        return isinstance(other, (tuple, list)) and len(one) == len(other)
    return type(one) is int and isinstance(other, int)


def _check_dropped(model: nn.Module, dropped: Iterable[str]) -> None:
    """Refuse names of which nothing can be dropped, so that nothing fails half-way."""
    names = {path for path, _ in model.named_modules() if path}
    names |= {name for name, _ in model.named_parameters(remove_duplicate=False)}
    seen: list[str] = []
    for name in dropped:
        if name not in names or inside(name, seen):
            raise SecateurError(f"the model that was built has no '{name}' to drop")
        seen.append(name)


def _targets(model: nn.Module, plain: Iterable[str], dropped: Collection[str]) -> dict[str, Tensor]:
    try:
        found = {name: each for name, each in _tensors(model, plain).items()
                 if not inside(name, dropped)}  # fmt: skip
    except AttributeError as error:
        raise SecateurError(f"the model that was built lacks a tensor: {error}") from error
    wrong = next((name for name, each in found.items() if not isinstance(each, Tensor)), None)
    if wrong is not None:
        raise SecateurError(f"'{wrong}' of the model that was built is no tensor")
    return found


def _read_tensors(
    path: Path, targets: Mapping[str, Tensor], saved: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Read the tensors for all targets; where nothing was removed they have the targets' shapes."""
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            missing = sorted(set(targets) - names) or sorted(names - set(targets))
            if missing:
                raise SecateurError(f"'{path}' and the model differ in '{missing[0]}'")
            for name, target in targets.items():
                shape = file.get_slice(name).get_shape()
                if not _fits(shape, target, bool(saved["removals"])):
                    raise SecateurError(
                        f"'{name}' in '{path}' has the shape {shape}, and {list(target.shape)} in "
                        "the model that was built: build the same architecture"
                    )
                found[name] = file.get_tensor(name)
                if found[name].is_floating_point() != target.is_floating_point():
                    raise SecateurError(f"'{name}' in '{path}' holds {found[name].dtype}")
    except (SafetensorError, OSError) as error:
        raise SecateurError(f"'{path}' cannot be read: {error}") from error
    return found


def _fits(shape: list[int], target: Tensor, removed: bool) -> bool:
    original = list(target.shape)
    if not isinstance(target, nn.Parameter):
        # What the code works out for its inputs, such as a table of positions, may have grown.
        return len(shape) == len(original)
    if not removed:
        return shape == original
    return len(shape) == len(original) and all(
        0 < size <= whole or size == whole for size, whole in zip(shape, original, strict=True)
    )


def _plain(value: Any) -> Any:
    return {"tuple": list(value)} if isinstance(value, tuple) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"tuple"} and isinstance(value["tuple"], list):
        value = tuple(value["tuple"])
    parts = value if isinstance(value, (tuple, list)) else [value]
    if not all(isinstance(part, int) and not isinstance(part, bool) for part in parts):
        raise SecateurError(f"a saved size is {value!r}: expected whole numbers")
    return value
