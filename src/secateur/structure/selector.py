"""Input features as an axis: a model keeps a list of those it reads, cut along with its weights.

After the abstract of Hubens et al. 2023, "Induced Feature Selection by Structured Pruning": zeros
in the weights are traced back to the input features that nothing else reads, and both are removed.
A selector looks features up by the positions in its buffer ``kept``; ``trace`` then finds one axis
that this buffer and the first weights carry, and ``shrink`` removes it like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import SecateurError
from secateur.structure.history import history

_MOST_FEATURES = 2**27


class Selector(nn.Module):
    """Holds which of ``features`` input features are read: int64 positions ``kept``, ascending."""

    kept: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        if type(features) is not int or not 1 <= features <= _MOST_FEATURES:
            raise SecateurError(f"features={features!r}: expected 1 to {_MOST_FEATURES:,}")
        self.features = features
        self.register_buffer("kept", torch.arange(features))

    @property
    def mask(self) -> Tensor:
        """A boolean vector [features], True where a feature is read."""
        found = torch.zeros(self.features, dtype=torch.bool)
        found[self.kept.cpu()] = True
        return found

    def extra_repr(self) -> str:
        """Say how many features are left."""
        return f"{len(self.kept)} of {self.features} features"


class InputSelector(Selector):
    """Passes on the kept features of a tensor, those along ``dim``.

    With ``flatten``, everything from ``dim`` on is one dimension, as pixels are to a perceptron.
    """

    def __init__(self, features: int, dim: int = 1, flatten: bool = False) -> None:
        super().__init__(features)
        if type(dim) is not int or not 0 <= dim <= 8 or not isinstance(flatten, bool):
            raise SecateurError(f"dim={dim!r}, flatten={flatten!r}: expected 0 to 8, and a truth "
                                "value")  # fmt: skip
        self.dim, self.flatten = dim, flatten

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the kept features."""
        if self.flatten:
            inputs = inputs.flatten(self.dim)
        return inputs.index_select(self.dim, self.kept)


class SelectedInputs(nn.Module):
    """A model behind a selector of its first input; ``select_inputs`` makes one."""

    def __init__(self, select: InputSelector, model: nn.Module) -> None:
        super().__init__()
        self.select, self.model = select, model

    def forward(self, inputs: Tensor, *rest: Any, **named: Any) -> Any:
        """Call the model with the features that are kept."""
        return self.model(self.select(inputs), *rest, **named)


class PatchSelector(Selector):
    """A patch embedding [B, C, H, W] to [B, E, H / p, W / q] that reads some entries of a patch.

    Made from a convolution whose stride is its kernel, and equal to it as long as all are kept. The
    features are the entries of a patch, ordered by channel, row, column.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        fault = _no_patches(conv)
        if fault:
            raise SecateurError(f"{conv} embeds no patches: {fault}")
        height, width = conv.kernel_size
        super().__init__(conv.in_channels * height * width)
        self.patch = (height, width)
        like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        self.project = nn.Linear(
            self.features, conv.out_channels, bias=conv.bias is not None, **like
        )
        self.to(conv.weight.device)
        with torch.no_grad():
            self.project.weight.copy_(conv.weight.flatten(1))
            if conv.bias is not None:
                self.project.bias.copy_(conv.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Embed the patches of images."""
        patches = functional.unfold(images, self.patch, stride=self.patch)
        embedded = self.project(patches.index_select(1, self.kept).transpose(1, 2)).transpose(1, 2)
        rows, columns = (size // p for size, p in zip(images.shape[2:], self.patch, strict=True))
        made: Tensor = embedded.unflatten(2, (rows, columns))
        return made


def _no_patches(conv: Any) -> str:
    """Say why a module is not a convolution over patches side by side; empty where it is."""
    if not isinstance(conv, nn.Conv2d):
        return "expected an nn.Conv2d"
    if conv.stride != conv.kernel_size:
        return f"its stride {conv.stride} is not its kernel {conv.kernel_size}"
    if conv.groups != 1 or conv.dilation != (1, 1) or conv.padding not in (0, (0, 0), "valid"):
        return "it has groups, dilation or padding"
    return ""


def select_inputs(
    model: nn.Module, features: int, *, dim: int = 1, flatten: bool = False
) -> SelectedInputs:
    """Return the model behind a selector, so that its input features can be pruned.

    The features lie along ``dim`` of the first input; with ``flatten`` they are all entries from
    ``dim`` on, and the model gets them in one dimension. Select before anything is removed; raises
    SecateurError otherwise.

    >>> from secateur import Sparsifier, shrink
    >>> model = select_inputs(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), 8)
    >>> technique = "shared_kernel | local | magnitude | one_shot"
    >>> sparsifier = Sparsifier(model, technique, sparsity=0.5, example_inputs=torch.zeros(1, 8))
    >>> _ = sparsifier.step(1.0)
    >>> _ = shrink(model, sparsifier, torch.zeros(1, 8))
    >>> len(model.select.kept) == model.model[0].in_features < 8
    True
    """
    _check_whole(model)
    return SelectedInputs(InputSelector(features, dim, flatten), model)


def select_patches(model: nn.Module, module: str) -> PatchSelector:
    """Replace a model's patch embedding, in place, by one whose inputs can be pruned; return it.

    ``module`` names a convolution whose stride is its kernel. Raises SecateurError where it is
    another, or where something was removed from the model already.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(), nn.Linear(32, 2))
    >>> select_patches(model, "0").features
    48
    """
    _check_whole(model)
    found = dict(model.named_modules()).get(module)
    if found is None or not module:
        raise SecateurError(f"the model has no module '{module}'")
    fault = _no_patches(found)
    if fault:
        raise SecateurError(f"'{module}' embeds no patches: {fault}")
    assert isinstance(found, nn.Conv2d)
    selector = PatchSelector(found).train(found.training)
    parent, _, name = module.rpartition(".")
    setattr(model.get_submodule(parent), name, selector)
    return selector


def _check_whole(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise SecateurError(f"the model is a {type(model).__name__}: expected an nn.Module")
    if history(model):
        raise SecateurError("something was removed from this model already: select its inputs "
                            "before it is shrunk")  # fmt: skip


def describe_selectors(model: nn.Module) -> list[dict[str, Any]]:
    """Return in plain values the selectors that a model was given."""
    found: list[dict[str, Any]] = []
    if isinstance(model, SelectedInputs):
        select = model.select
        found.append({"inputs": select.features, "dim": select.dim, "flatten": select.flatten})
    found += [
        {"patches": path}
        for path, module in model.named_modules()
        if path and isinstance(module, PatchSelector)
    ]
    return found


def are_selectors(value: Any) -> bool:
    """Whether a value is what ``describe_selectors`` returns."""
    return isinstance(value, list) and all(
        isinstance(each, dict)
        and (set(each) == {"inputs", "dim", "flatten"}
             or (set(each) == {"patches"} and isinstance(each["patches"], str)))
        for each in value
    )  # fmt: skip


def install_selectors(model: nn.Module, selectors: Iterable[Mapping[str, Any]]) -> nn.Module:
    """Give a model that was built the selectors that it lacks."""
    for each in selectors:
        if "inputs" in each:
            if not isinstance(model, SelectedInputs):
                model = select_inputs(
                    model, each["inputs"], dim=each["dim"], flatten=each["flatten"]
                )
            continue
        path = each["patches"]
        there = dict(model.named_modules()).get(path)
        if not isinstance(there, PatchSelector):
            select_patches(model, path)
    return model


def check_kept(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors in which a selector's positions are not ascending positions of features."""
    for path, module in model.named_modules():
        if isinstance(module, Selector):
            kept = tensors.get(f"{path}.kept" if path else "kept")
            if kept is None:
                continue
            ends = torch.tensor([-1, module.features])
            line = torch.cat([ends[:1], kept.cpu().long().flatten(), ends[1:]])
            if kept.dim() != 1 or not bool((line.diff() > 0).all()):
                raise SecateurError(f"'{path}.kept' does not hold ascending positions of "
                                    f"{module.features} features: the file is damaged")  # fmt: skip


def feature_map(selector: Selector, shape: tuple[int, ...]) -> Tensor:
    """Return which features are read, as booleans in the shape that they have as data.

    >>> feature_map(InputSelector(6), (2, 3)).shape
    torch.Size([2, 3])
    """
    if math.prod(shape) != selector.features:
        raise SecateurError(f"{selector.features} features do not fill the shape {shape}")
    return selector.mask.reshape(shape)
