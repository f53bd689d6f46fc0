"""Torch-Pruning on the bench of the zoo: one script for every model, as its documentation has it.

It is told which layers to leave alone, which it cannot know: those that make the model's outputs.
They are found from the gradients' graph, so that no model needs a line of its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from zoo_marks import tensors

RATIO = 0.5
_TURNS = ("TBackward", "PermuteBackward", "ViewBackward", "TransposeBackward", "ExpandBackward")


def prune(model: nn.Module, inputs: Any) -> None:
    """Prune half of the channels in place by magnitude; raises whatever the library raises."""
    library: Any = importlib.import_module("torch_pruning")
    pruner = library.pruner.MagnitudePruner(
        model,
        inputs,
        importance=library.importance.MagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=last_layers(model, inputs),
    )
    pruner.step()


def warm_up(prune: Callable[[nn.Module, Any], object]) -> None:
    """Do what a library does only once, so that it is not part of any model's time."""
    prune(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), (torch.zeros(1, 3, 4, 4),))


def last_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Return the convolutions and linear layers nearest to each output: the classifiers."""
    with torch.enable_grad():
        found = tensors(model.eval()(*inputs))
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    layers: dict[int, nn.Module] = {}
    seen: set[Any] = set()
    waiting: list[Any] = [each.grad_fn for each in found if each.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        reached = [_parameter(each) for each, _ in node.next_functions]
        own = [owners[id(each)] for each in reached if each is not None and id(each) in owners]
        last = [each for each in own if isinstance(each, (nn.modules.conv._ConvNd, nn.Linear))]
        layers.update((id(module), module) for module in last)
        if not last:
            waiting.extend(each for each, _ in node.next_functions if each is not None)
    return list(layers.values())


def _parameter(node: Any) -> Any:
    """Return the parameter that a node hands on, turned at most; None if it hands on another."""
    while node is not None:
        if hasattr(node, "variable"):
            return node.variable
        if not node.name().startswith(_TURNS):
            return None
        node = node.next_functions[0][0]
    return None


def save(model: nn.Module, path: Path) -> None:
    """Save as the library's documentation says: the whole model, pickled."""
    torch.save(model, path)


def load(path: Path) -> nn.Module:
    """Load as the mark asks: without unpickling code."""
    model: nn.Module = torch.load(path, weights_only=True)
    return model


def load_pickle(path: Path) -> nn.Module:
    """Load as the library's documentation says, noted beside the mark."""
    model: nn.Module = torch.load(path, weights_only=False)
    return model
