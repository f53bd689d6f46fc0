"""What a recording holds: operators as a graph, with the calls of modules that led to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx


@dataclass
class ModuleCall:
    """One call of a module: its path, the call it was made from, and what went in and came out.

    ``inputs`` and ``outputs`` hold nodes where the values are tensors.
    """

    path: str
    kind: str
    parent: int | None
    inputs: Any = None
    outputs: Any = None


@dataclass
class Recording:
    """A graph of operators; every node knows its call, its place and its shapes in ``meta``.

    ``failure`` says where and why the pass ended early, None where it ran to its end. ``real`` says
    that it ran on data, of which the code may have read anything, and ``looked`` where a pass
    without data came to its end. ``asked`` says that the code wanted to know whether it is being
    traced or compiled, and may take another way then. ``shared`` lists all paths of the modules
    that have several, by the first.
    """

    graph: fx.Graph
    calls: list[ModuleCall]
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: Any = None
    failure: Failure | None = None
    doubled: bool = False
    real: bool = False
    looked: str = ""
    asked: bool = False
    shared: dict[str, list[str]] = field(default_factory=dict)

    @property
    def steps(self) -> list[fx.Node]:
        """The operators in the order in which they ran."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    def within(self, number: int) -> list[fx.Node]:
        """Return the operators of one call of a module, with those of its children."""
        inside = {number}
        for place, call in enumerate(self.calls):
            if call.parent in inside:
                inside.add(place)
        return [node for node in self.steps if node.meta.get("call") in inside]

    def module(self, node: fx.Node) -> str:
        """Return the path of the module whose own code called an operator."""
        call = node.meta.get("call")
        return self.calls[call].path if call is not None else ""


@dataclass(frozen=True)
class Failure:
    """Where a pass ended early: the module and the place in its code, and what was raised."""

    module: str
    place: str
    error: BaseException
    call: int | None = None
