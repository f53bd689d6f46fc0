"""What the user gives, as the sparsifier takes it: the arguments as a tuple."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from secateur.errors import SecateurError


def positional(example_inputs: Any) -> tuple[Any, ...] | None:
    """Return the model's positional arguments as a tuple, None where there are none."""
    if example_inputs is None or isinstance(example_inputs, tuple):
        return example_inputs
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, list):
        return tuple(example_inputs)
    raise SecateurError(
        f"example_inputs is a {type(example_inputs).__name__}: expected a tensor, or a tuple with "
        "the model's positional arguments"
    )
