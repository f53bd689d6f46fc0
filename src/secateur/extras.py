"""Optional libraries, imported where they are used."""

from __future__ import annotations

import importlib
import os
from typing import Any

from secateur.errors import SecateurError

SILENT = {"onnxruntime": "ORT_DISABLE_TELEMETRY"}
"""Libraries that tell their makers of their use, and the variable that keeps them from it."""


def need(module: str, extra: str, purpose: str) -> Any:
    """Import a module that belongs to an extra; raise SecateurError naming the extra if absent.

    A library that reports its use is told not to, unless the environment says otherwise.

    >>> need("math", "vision", "counting").floor(2.5)
    2
    """
    if (variable := SILENT.get(module.partition(".")[0])) is not None:
        os.environ.setdefault(variable, "1")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise SecateurError(
            f"{purpose} needs {library}, which cannot be imported ({error}); "
            f"install it with: pip install 'secateur[{extra}]'"
        ) from error
