"""Inputs for any model of the zoo, by the kind of its builder's module and by trial.

No model has a line of its own: the kind (images, clips, pairs, lists with targets, tokens) follows
from the module or the signature, the extents are the smallest on which the model runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from zoo_models import module_of

SIZES = (64, 96, 128, 160, 192, 224, 256, 299, 384, 512)
FRAMES = (8, 16, 32)
TOKENS = 16
BOX = (0.2, 0.25, 0.7, 0.8)
KEYPOINTS = 17

# The parameters of a forward that are given a value.
_FIELDS = ("pixel_values", "input_features", "input_ids", "decoder_input_ids")


@dataclass(frozen=True)
class Field:
    """One tensor without its batch: its extents, and the end of its range if it holds integers."""

    shape: tuple[int, ...]
    high: int | None = None

    def draw(self, batch: int, random: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Return random values: integers below ``high``, or normally distributed numbers."""
        shape = (batch, *self.shape)
        if self.high is not None:
            return torch.randint(0, self.high, shape, generator=random)
        return torch.randn(shape, generator=random).to(dtype)


@dataclass(frozen=True)
class Recipe:
    """How to make inputs: one field per positional argument, None where an argument is left out.

    With ``listed``, the one argument is a list of images (and targets while training), and what
    comes out has as many rows as things were found. ``trains`` says whether a batch of two goes
    through in training mode.
    """

    fields: tuple[Field | None, ...]
    listed: bool = False
    trains: bool = True

    def inputs(self, batch: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """Return a tuple of positional arguments."""
        random = torch.Generator().manual_seed(seed)
        drawn = [None if each is None else each.draw(batch, random, dtype) for each in self.fields]
        if self.listed:
            return (
                [image for images in drawn if images is not None for image in images.sigmoid()],
            )
        return tuple(drawn)

    def batch(self, seed: int = 2) -> Any:
        """Return arguments for training: a batch of two, with targets for detectors."""
        inputs = self.inputs(2, seed)
        return (*inputs, [target(image) for image in inputs[0]]) if self.listed else inputs


def target(image: Tensor) -> dict[str, Tensor]:
    """Return one thing to be found in an image, described in all the ways detectors ask for."""
    height, width = image.shape[-2:]
    left, top, right, bottom = BOX
    box = torch.tensor([[left * width, top * height, right * width, bottom * height]])
    points = torch.stack([box[0, :2], box[0, 2:]]).mean(0).expand(1, KEYPOINTS, 2)
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, int(box[0, 1]) : int(box[0, 3]), int(box[0, 0]) : int(box[0, 2])] = 1
    return {
        "boxes": box,
        "labels": torch.ones(1, dtype=torch.int64),
        "masks": mask,
        "keypoints": torch.cat([points, torch.ones(1, KEYPOINTS, 1)], dim=2),
    }


def find_recipe(name: str, model: nn.Module) -> Recipe:
    """Return inputs on which a model runs: the smallest that also train it, if there are any.

    Raises RuntimeError with the last refusal where it runs on none.
    """
    runs: Recipe | None = None
    refusal: Exception | None = None
    kept = {key: buffer.clone() for key, buffer in model.named_buffers()}
    for recipe in candidates(name, model):
        try:
            _call(model.eval(), recipe.inputs())
        except Exception as error:  # a model may raise anything on a size it cannot take
            refusal = error
            continue
        runs = runs or recipe
        with suppress(Exception):
            _call(model.train(), recipe.batch())
            break
    else:
        if runs is None:
            raise RuntimeError(f"{name} runs on none of the inputs tried: {refusal}")
        recipe = Recipe(runs.fields, runs.listed, trains=False)
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            buffer.copy_(kept[key])
    model.eval()
    return recipe


def candidates(name: str, model: nn.Module) -> Iterator[Recipe]:
    """Yield inputs to try, in order of size."""
    if name.startswith("transformers:"):
        yield Recipe(token_fields(model))
        return
    module = module_of(name)
    channels, own, fixed = _configured(model)
    sizes = [own] if fixed else sorted({(size, size) for size in SIZES} | {own})
    for size in sizes:
        if ".video" in module:
            for frames in FRAMES:
                yield Recipe((Field((channels, frames, *size)),))
        elif ".optical_flow" in module:
            yield Recipe((Field((channels, *size)), Field((channels, *size))))
        else:
            yield Recipe((Field((channels, *size)),), listed=".detection" in module)


def token_fields(model: nn.Module) -> tuple[Field | None, ...]:
    """Return the fields that a model of transformers needs, by its signature and configuration."""
    config: Any = model.config
    names = list(inspect.signature(model.forward).parameters)
    last = max(names.index(name) for name in _FIELDS if name in names)
    return tuple(_token_field(name, config) for name in names[: last + 1])


def _token_field(name: str, config: Any) -> Field | None:
    text = getattr(config, "text_config", config)
    vision = getattr(config, "vision_config", config)
    if name == "pixel_values":
        return Field((vision.num_channels, vision.image_size, vision.image_size))
    if name == "input_features":
        # The encoder halves the number of frames.
        return Field((config.num_mel_bins, 2 * config.max_source_positions))
    if name in ("input_ids", "decoder_input_ids"):
        return Field((TOKENS,), high=text.vocab_size)
    return None


def _configured(model: nn.Module) -> tuple[int, tuple[int, int], bool]:
    """Return channels, extents, and whether they are fixed, as far as a model states them."""
    stated: Mapping[str, Any] = getattr(model, "default_cfg", None) or {}
    if hasattr(stated, "to_dict"):
        stated = stated.to_dict()
    channels, height, width = stated.get("input_size") or (3, 224, 224)
    return channels, (height, width), bool(stated.get("fixed_input_size"))


def _call(model: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        model(*inputs)
