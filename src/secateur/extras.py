"""Optional libraries, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from secateur.errors import SecateurError


def need(module: str, extra: str, purpose: str) -> Any:
    """Import a module that belongs to an extra; raise SecateurError naming the extra if absent.

    >>> need("math", "vision", "counting").floor(2.5)
    2
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise SecateurError(
            f"{purpose} needs {library}, which cannot be imported ({error}); "
            f"install it with: pip install 'secateur[{extra}]'"
        ) from error
