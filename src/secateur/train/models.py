"""Model specs: from a name such as `resnet18` to a network, and weights into it."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.extras import need

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_ACCEPTED = "cnn, a torchvision classification model, timm:NAME or package.module:function"
_IMAGENET = 1000

# In training, these two return the outputs of helper classifiers beside their own unless told not
# to, and without init_weights they warn that its default will change.
_TORCHVISION_OPTIONS = {
    name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")
}


@dataclass(frozen=True)
class BuiltModel:
    """A network, the image channels it takes, and how it came about.

    `build` holds the arguments that make `build_model` build the same architecture again, fit for
    JSON; `notes` are sentences for the user.
    """

    model: nn.Module
    spec: str
    channels: int
    build: dict[str, str | int]
    notes: tuple[str, ...] = ()


class SmallCNN(nn.Module):
    """Four blocks of convolution, batch norm and ReLU, average pooling, and a linear classifier.

    Takes [B, channels, H, W] with H and W at least 8; it has about 65,000 parameters.

    >>> import torch
    >>> SmallCNN(num_classes=10, channels=1)(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(channels, 32, stride=1),
            *_block(32, 32, stride=1),
            *_block(32, 64, stride=2),
            *_block(64, 64, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, num_classes]."""
        logits: Tensor = self.classifier(self.pool(self.features(images)).flatten(1))
        return logits


def _block(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def build_model(
    spec: str, *, num_classes: int, channels: int, pretrained: bool = False
) -> BuiltModel:
    """Build the network that a spec names, for images with this many channels.

    `spec` is `cnn`, a torchvision classification model, `timm:NAME`, or `package.module:function`,
    which is called with `num_classes` and `channels` as far as it accepts them. The packages of
    the current directory can be imported, as `python -m` does. `pretrained` takes the published
    weights, for torchvision all whose shapes agree where `num_classes` is not 1000.

    torchvision's models take 3 channels: for grey images build one and repeat the images
    (`Data.with_channels(built.channels)`). Raises SecateurError for unknown names, for what a
    model does not offer, and if building it fails.

    >>> built = build_model("cnn", num_classes=10, channels=1)
    >>> built.build
    {'spec': 'cnn', 'num_classes': 10, 'channels': 1}
    """
    if num_classes < 2 or channels < 1:
        raise SecateurError(
            f"a model with {num_classes} classes and {channels} channels cannot be trained; "
            "give at least 2 classes and 1 channel"
        )
    if spec == "cnn":
        if pretrained:
            raise SecateurError("cnn has no pretrained weights; choose another model")
        model: nn.Module = SmallCNN(num_classes, channels)
        notes: tuple[str, ...] = ()
    elif spec.startswith("timm:"):
        model, notes = _timm(spec, num_classes, channels, pretrained), ()
    elif _FUNCTION.fullmatch(spec):
        model, notes = _imported(spec, num_classes, channels, pretrained)
    else:
        model, notes = _torchvision(spec, num_classes, channels, pretrained)
        channels = 3
    build: dict[str, str | int] = {"spec": spec, "num_classes": num_classes, "channels": channels}
    return BuiltModel(model, spec, channels, build, notes)


def _torchvision(
    name: str, num_classes: int, channels: int, pretrained: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    if not name.isidentifier():
        raise SecateurError(f"unknown model '{name}': accepted are {_ACCEPTED}")
    models = need("torchvision.models", "vision", f"model '{name}'")
    known = models.list_models(module=models)
    if name not in known:
        raise SecateurError(f"unknown model '{name}': {_close(name, ['cnn', *known])}")
    if channels not in (1, 3):
        raise SecateurError(
            f"{name} of torchvision takes images with 3 channels, not {channels}; "
            f"timm:{name} may take them"
        )
    notes = [f"{name} takes 3 channels, so grey images are repeated"] if channels == 1 else []
    options = _TORCHVISION_OPTIONS.get(name, {})
    with _reported(f"model {name}"):
        if not pretrained:
            model: nn.Module = models.get_model(
                name, weights=None, num_classes=num_classes, **options
            )
        elif num_classes == _IMAGENET:
            model = models.get_model(name, weights="DEFAULT", progress=False)
        else:
            model = models.get_model(name, weights=None, num_classes=num_classes, **options)
            weights = models.get_model_weights(name).DEFAULT
            donor = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            notes += _adopt(model, donor)
    return model, tuple(notes)


def _adopt(model: nn.Module, donor: dict[str, Tensor]) -> list[str]:
    """Copy the tensors whose names and shapes agree, and say which of the model's do not."""
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in donor.items()
        if name in own and own[name].shape == tensor.shape
    }
    model.load_state_dict(fitting, strict=False)
    left = [name for name in own if name not in fitting]
    return [f"not taken from the pretrained weights: {', '.join(left)}"] if left else []


def _timm(spec: str, num_classes: int, channels: int, pretrained: bool) -> nn.Module:
    timm = need("timm", "vision", f"model '{spec}'")
    name = spec.removeprefix("timm:")
    # What follows the dot names a set of weights; other sources, such as hf-hub:, are not names.
    if not timm.is_model(name) or ":" in name or "/" in name:
        raise SecateurError(
            f"unknown model '{spec}': {_close(name, timm.list_models(), prefix='timm:')}"
        )
    with _reported(f"model {spec}"):
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=channels
        )
    return model


def _imported(
    spec: str, num_classes: int, channels: int, pretrained: bool
) -> tuple[nn.Module, tuple[str, ...]]:
    module_name, function_name = spec.split(":")
    with _current_directory_importable():
        with _reported(f"model '{spec}': importing {module_name}"):
            module = importlib.import_module(module_name)
        function = getattr(module, function_name, None)
        if not callable(function):
            public = [name for name, value in vars(module).items() if callable(value)]
            raise SecateurError(
                f"model '{spec}': {module_name} has no function {function_name}; "
                f"{_close(function_name, public, others='a function that returns the model')}"
            )
        given = {"num_classes": num_classes, "channels": channels}
        if pretrained:
            given["pretrained"] = True
        accepted = {name: value for name, value in given.items() if _accepts(function, name)}
        if pretrained and "pretrained" not in accepted:
            raise SecateurError(
                f"model '{spec}': {function_name} takes no argument pretrained, so pretrained "
                "weights cannot be asked of it; load them in the function"
            )
        with _reported(f"model '{spec}'"):
            model = function(**accepted)
    if not isinstance(model, nn.Module):
        raise SecateurError(
            f"model '{spec}' returned a {type(model).__name__}; it should return a torch.nn.Module"
        )
    ignored = [name for name in given if name not in accepted]
    return model, tuple(f"{function_name} takes no argument {name}" for name in ignored)


def _accepts(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return False
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return True
    found = parameters.get(name)
    return found is not None and found.kind is not found.POSITIONAL_ONLY


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn whatever building a model raises into one line."""
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise SecateurError(f"{what} failed ({type(error).__name__}: {reason})") from error


def _close(name: str, known: Iterable[str], prefix: str = "", others: str = _ACCEPTED) -> str:
    """Name the closest of many known names; listing them all would bury the message."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(prefix + one for one in near)}? " if near else ""
    return f"{hint}Accepted: {others}"


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file into a model, entirely or not at all.

    Missing `num_batches_tracked` counters, and names that share a tensor with one in the file, are
    no fault. Raises SecateurError for other formats, damaged files, and tensors that are missing,
    unexpected or of another shape; the model is then as it was.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise SecateurError(
            f"weights '{path}' should be a .safetensors file; other formats are pickles, which "
            "can run any code when they are read: convert with safetensors.torch.save_file"
        )
    if not path.is_file():
        raise SecateurError(f"weights '{path}' do not exist")
    tensors = _read(path)
    own = {name: one for name, one in model.state_dict().items() if isinstance(one, Tensor)}
    # Empty tensors and those without storage all have the address 0.
    present = {own[name].data_ptr() for name in tensors if name in own} - {0}
    problems = [
        _listed(
            "missing",
            [
                name
                for name, one in own.items()
                if name not in tensors
                and name.rpartition(".")[2] != "num_batches_tracked"
                and one.data_ptr() not in present
            ],
        ),
        _listed("unexpected", [name for name in tensors if name not in own]),
        _listed(
            "of another shape or kind",
            [
                f"{name} {_kind(one)} instead of {_kind(own[name])}"
                for name, one in tensors.items()
                if name in own and _kind(one) != _kind(own[name])
            ],
        ),
    ]
    if any(problems):
        raise SecateurError(
            f"weights '{path}' do not fit the model: {'; '.join(filter(None, problems))}"
        )
    model.load_state_dict(tensors, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise SecateurError(
            f"weights '{path}' are damaged or cut short ({reason}); fetch or save them again"
        ) from error


def _kind(tensor: Tensor) -> str:
    """Shape and, where numbers are no floats, their type: floats convert without harm."""
    shape = str(list(tensor.shape))
    return shape if tensor.dtype.is_floating_point else f"{shape} {tensor.dtype}"


def _listed(what: str, names: list[str], most: int = 4) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what} ({', '.join(names[:most])}{more})"


def try_forward(built: BuiltModel, images: Tensor) -> Any:
    """Return what the model gives for images [B, C, H, W], in eval mode, and leave it in training.

    Raises SecateurError where the model cannot take them.
    """
    model = built.model.eval()
    try:
        with torch.no_grad():
            return model(images)
    except Exception as error:  # the user's own model may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SecateurError(
            f"the model '{built.spec}' cannot take images of {list(images.shape[1:])}: {reason}; "
            "try another --size"
        ) from error
    finally:
        model.train()
