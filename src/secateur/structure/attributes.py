"""Sizes that modules have written down in their attributes, and what a removal makes of them.

A module's own code takes sizes from its attributes (``num_heads``, ``split_size``). Which attribute
holds which size is found by value: the sizes that change where its code runs are known, with what
they become. Where two sizes have one value, the ways to read it are tried in turn.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn
from torch.utils._pytree import tree_flatten

from secateur.structure.recording import Recording
from secateur.structure.removal import Removal, resized
from secateur.structure.rules import Findings, arguments_of
from secateur.structure.terms import Term, factors, find, flat_terms, summands

Changes = dict[tuple[str, str], Any]
"""New values by module path and attribute name."""

_NO_SIZES = ("training", "kernel_size", "stride", "padding", "dilation", "output_padding",
             "_reversed_padding_repeated_twice", "num_layers")  # fmt: skip
"""Attributes of torch's own layers that count something else than entries."""


def own_changes(
    recording: Recording, findings: Findings, removal: Removal
) -> dict[str, dict[int, set[int]]]:
    """Return, by module path, what the sizes that change in its own code become: old to new."""
    found: dict[str, dict[int, set[int]]] = {}
    known: dict[Term, set[tuple[int, int]]] = {}
    for node in recording.steps:
        pairs = _changes(node, findings, removal, known)
        if pairs:
            sizes = found.setdefault(recording.module(node), {})
            for old, new in pairs:
                sizes.setdefault(old, set()).add(new)
    return found


def own_groups(recording: Recording, findings: Findings, removal: Removal) -> dict[str, int]:
    """Return, by module path, the number of groups that its operator has after a removal."""
    found: dict[str, int] = {}
    for node in recording.steps:
        arguments = arguments_of(node)
        for name in ("groups", "num_groups"):
            if name in arguments:
                changed = resized(node, findings, removal)
                found[recording.module(node)] = changed.get(name, arguments[name])
    return found


def _changes(
    node: fx.Node, findings: Findings, removal: Removal, known: dict[Term, set[tuple[int, int]]]
) -> set[tuple[int, int]]:
    """Return the sizes that change at one operator: in its dimensions, and as it was written."""
    pairs: set[tuple[int, int]] = set()
    for each in (node, *node.all_input_nodes):
        for term in flat_terms(findings.dims.get(each)):
            root = find(term)
            if root not in known:
                known[root] = {pair for pair in _within(root, removal) if pair[0] != pair[1]}
            pairs |= known[root]
    if pairs:
        arguments = arguments_of(node)
        for name, value in resized(node, findings, removal).items():
            old, new = tree_flatten(arguments[name])[0], tree_flatten(value)[0]
            pairs |= {pair for pair in zip(old, new, strict=True)
                      if isinstance(pair[0], int) and pair[0] != pair[1]}  # fmt: skip
    return pairs


def _within(term: Term, removal: Removal) -> Iterator[tuple[int, int]]:
    """Give the sizes of a term, of its parts, and of every run of its factors."""
    yield term.size, removal.size(term)
    for part in summands(term):
        parts = factors(part)
        for start, stop in itertools.combinations(range(len(parts) + 1), 2):
            run = parts[start:stop]
            yield math.prod(each.size for each in run), math.prod(map(removal.size, run))


def readings(
    module: nn.Module, path: str, sizes: Mapping[int, set[int]], groups: int | None
) -> tuple[Changes, dict[str, list[Any]]]:
    """Return what a module's attributes must be after a removal, and what others may become.

    ``groups`` is the number of groups that a grouped convolution or norm must have.
    """
    fixed = _standard(module, path, groups)
    if fixed and type(module).__module__.startswith("torch.nn."):
        return fixed, {}
    options: dict[str, list[Any]] = {}
    for name, value in vars(module).items():
        if (path, name) not in fixed and name not in _NO_SIZES:
            made = [each for each in _made_of(value, sizes) if each != value]
            if made:
                options[name] = made
    return fixed, options


def _made_of(value: Any, sizes: Mapping[int, set[int]]) -> Iterator[Any]:
    """Give what an attribute may become: changed sizes first, then the value as it is."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        if value < 2:
            yield value
            return
        yield from sorted(sizes.get(value, ()))
        yield value
    elif isinstance(value, (tuple, list)) and 0 < len(value) <= 8:
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in value):
            return
        kinds = [list(_made_of(each, sizes)) for each in value]
        if any(kind != [each] for kind, each in zip(kinds, value, strict=True)):
            for chosen in itertools.islice(itertools.product(*kinds), 16):
                yield type(value)(chosen)


def _standard(module: nn.Module, path: str, groups: int | None) -> Changes:
    """Return what the attributes of torch's own layers must be, read off their parameters."""
    # Reading a weight that others make may change those: spectral norms count their reads.
    made = module._modules.get("parametrizations", nn.Module())
    weight = getattr(getattr(made, "weight", None), "original", None)
    weight = getattr(module, "weight", None) if weight is None else weight
    shape = tuple(weight.shape) if weight is not None and hasattr(weight, "shape") else ()
    found: dict[str, Any] = {}
    if isinstance(module, nn.modules.conv._ConvNd) and len(shape) > 2:
        found = _channels(module, module.groups if groups is None else groups)
    elif isinstance(module, nn.Linear) and len(shape) == 2:
        found = {"out_features": shape[0], "in_features": shape[1]}
    elif isinstance(module, nn.Embedding) and len(shape) == 2:
        found = {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    elif isinstance(module, nn.LayerNorm) and shape:
        found = {"normalized_shape": shape}
    elif isinstance(module, (nn.modules.batchnorm._NormBase,)) and shape:
        found = {"num_features": shape[0]}
    elif isinstance(module, nn.GroupNorm) and shape:
        found = {"num_channels": shape[0], "num_groups": groups or module.num_groups}
    elif isinstance(module, nn.PReLU) and shape:
        found = {"num_parameters": shape[0]}
    elif isinstance(module, nn.EmbeddingBag) and len(shape) == 2:
        found = {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    elif isinstance(module, nn.Bilinear) and len(shape) == 3:
        found = {"out_features": shape[0], "in1_features": shape[1], "in2_features": shape[2]}
    elif isinstance(module, nn.RNNBase):
        found = _recurrent(module)
    elif isinstance(module, nn.RNNCellBase):
        found = {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    return {(path, name): value for name, value in found.items() if hasattr(module, name)}


def _recurrent(module: nn.RNNBase) -> dict[str, Any]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    first = dict(module.named_parameters(recurse=False))
    rows, inputs = first["weight_ih_l0"].shape
    sizes = {"hidden_size": rows // gates, "input_size": inputs}
    if module.proj_size:
        sizes["proj_size"] = first["weight_hr_l0"].shape[0]
    return sizes


def _channels(module: nn.modules.conv._ConvNd, groups: int) -> dict[str, int]:
    one, other = module.weight.shape[:2]
    if module.transposed:
        return {"in_channels": one, "out_channels": other * groups, "groups": groups}
    return {"in_channels": other * groups, "out_channels": one, "groups": groups}
