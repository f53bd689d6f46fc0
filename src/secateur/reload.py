"""Loading a saved model, built anew from what its file says or as the caller says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from secateur.errors import SecateurError
from secateur.structure.reload import DESCRIPTION, describe_saved
from secateur.structure.reload import load as load_into


def load(folder: str | Path, build: Callable[[], nn.Module] | nn.Module | None = None) -> nn.Module:
    """Build a saved model again: as small as it was saved, bit for bit.

    ``build`` makes the original architecture (a function, or the model itself). Without it, the
    file must say how: results of ``secateur compress`` do. Code that a file names is never run.
    Raises SecateurError where the architecture is another one or a file is damaged.
    """
    if build is None:
        saved = describe_saved(folder)
        how = saved.get("build")
        if not isinstance(how, dict) or not isinstance(how.get("spec"), str):
            raise SecateurError(
                f"'{Path(folder) / DESCRIPTION}' does not say how to build the original "
                f"{saved.get('model')}: pass build=, a function that returns it"
            )
        if ":" in how["spec"] and not how["spec"].startswith("timm:"):
            raise SecateurError(
                f"the original is built by '{how['spec']}', which a file may not call: pass build="
            )
        classes, channels = how.get("num_classes"), how.get("channels")
        if not isinstance(classes, int) or not isinstance(channels, int):
            raise SecateurError(f"'{Path(folder) / DESCRIPTION}' lacks num_classes or channels")
        from secateur.train.models import build_model

        build = build_model(how["spec"], num_classes=classes, channels=channels).model
    return load_into(folder, build)
