"""Small functions of weights, and what inference says of them held against two oracles.

The first: an axis that nothing reads by position may be put in any order, in all that carries it at
once, and the result stays what it was. The second: where an axis is said to be exact, the function
of the weights with some of its channels set to zero is that of the weights without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.structure.infer import held_terms, infer
from secateur.structure.record import record
from secateur.structure.recording import Recording
from secateur.structure.rules import Findings
from secateur.structure.terms import Term, factors, find, leaves, summands
from secateur.structure.zeros import Zeros

Code = Callable[..., Any]


class Toy(nn.Module):
    """A function of weights and inputs; tensors that are no parameters become buffers."""

    def __init__(self, code: Code, held: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.code = code
        for name, tensor in held.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, *inputs: Tensor) -> Any:
        return self.code(self, *inputs)

    def held(self) -> dict[str, Tensor]:
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}


@dataclass
class Seen:
    """What inference has found of a toy."""

    toy: Toy
    recording: Recording
    findings: Findings
    terms: Mapping[str, list[Term]]

    @property
    def free(self) -> list[Term]:
        """The axes that are not pinned and that a parameter carries."""
        names = [name for name, _ in self.toy.named_parameters() if name in self.terms]
        found = {leaf: None for name in names for term in self.terms[name] for leaf in leaves(term)}
        return [leaf for leaf in found if leaf.pinned is None and leaf.size > 1]

    @property
    def sizes(self) -> list[int]:
        return sorted(leaf.size for leaf in self.free)

    @property
    def inexact(self) -> list[int]:
        return sorted(leaf.size for leaf in self.free if self.noticed(leaf))

    @property
    def reasons(self) -> set[str]:
        """Why dimensions of parameters are pinned."""
        return {
            leaf.pinned.reason
            for dims in self.terms.values()
            for term in dims
            for leaf in leaves(term)
            if leaf.pinned is not None
        }

    def noticed(self, leaf: Term) -> list[str]:
        names = [name for name, _ in self.toy.named_parameters()]
        found = Zeros([self.recording.graph], self.findings).noticed(leaf, names)
        return [reason for _, reason in found]

    def axis(self, size: int) -> Term:
        """The one free axis of a size."""
        (found,) = [leaf for leaf in self.free if leaf.size == size]
        return found

    def written(self, name: str) -> str:
        """How the dimensions of a parameter are made up; pinned axes have a mark."""
        return " ".join(map(spelled, self.terms[name]))


def spelled(term: Term) -> str:
    """Write a term with its products and sums opened, so that ways to nest them do not matter."""
    parts = summands(term)
    if len(parts) > 1:
        return "(" + "+".join(map(spelled, parts)) + ")"
    parts = factors(term)
    if len(parts) > 1:
        return "(" + " ".join(map(spelled, parts)) + ")"
    return repr(term)


def weights(**shapes: Sequence[int]) -> dict[str, Tensor]:
    """Return random parameters in double precision."""
    made = torch.Generator().manual_seed(len(shapes))
    return {name: nn.Parameter(torch.randn(*shape, generator=made, dtype=torch.float64))
            for name, shape in shapes.items()}  # fmt: skip


def data(*shape: int, seed: int = 7) -> Tensor:
    """Return a random input in double precision."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=made, dtype=torch.float64)


def look(code: Code, held: Mapping[str, Tensor], *inputs: Tensor, real: bool = False) -> Seen:
    """Record a toy and infer its axes."""
    toy = Toy(code, held)
    recording = record(toy, inputs, real=real)
    if recording.failure is not None:
        raise recording.failure.error
    findings = infer(recording)
    return Seen(toy, recording, findings, held_terms(recording, findings))


def check(
    code: Code,
    held: Mapping[str, Tensor],
    *inputs: Tensor,
    free: Iterable[int],
    inexact: Iterable[int] = (),
    fits: bool = True,
    real: bool = False,
) -> Seen:
    """Hold the inferred axes of a toy against both oracles, and their sizes against ``free``.

    ``inexact`` are those whose removal changes something. ``fits`` is false for code that has sizes
    written in, which cannot run on fewer channels.
    """
    seen = look(code, held, *inputs, real=real)
    assert seen.sizes == sorted(free)
    assert seen.inexact == sorted(inexact)
    assert seen.findings.unknown == {}
    assert_indifferent_to_order(seen, inputs)
    if fits:
        for leaf in seen.free:
            assert_removable(seen, leaf, inputs)
    return seen


@torch.no_grad()
def assert_indifferent_to_order(seen: Seen, inputs: Sequence[Tensor]) -> None:
    """The first oracle, for every free axis by itself."""
    plain = seen.toy(*inputs)
    for leaf in seen.free:
        order = torch.arange(leaf.size).roll(1)
        same(_with(seen, {leaf: order})(*inputs), plain)


@torch.no_grad()
def assert_removable(seen: Seen, leaf: Term, inputs: Sequence[Tensor]) -> None:
    """The second oracle: zeros against no channels at all, where the axis is said to be exact."""
    gone = {1, leaf.size - 1}
    kept = torch.tensor([place for place in range(leaf.size) if place not in gone])
    with_zeros = _masked(seen, leaf, gone)(*inputs)
    without = _with(seen, {leaf: kept})(*inputs)
    if not seen.noticed(leaf):
        same(without, with_zeros)


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def _with(seen: Seen, chosen: Mapping[Term, Tensor]) -> Toy:
    """Return the toy with some indices of axes, in some order, in all tensors that carry them."""
    held = {}
    for name, tensor in seen.toy.held().items():
        made = taken(tensor.detach(), seen.terms.get(name, ()), chosen)
        held[name] = nn.Parameter(made) if isinstance(tensor, nn.Parameter) else made
    return Toy(seen.toy.code, held)


def _masked(seen: Seen, leaf: Term, gone: Iterable[int]) -> Toy:
    """Return the toy with zeros for some indices of an axis in all parameters that carry it."""
    held = {}
    for name, tensor in seen.toy.held().items():
        dims = seen.terms.get(name, ())
        parameter = isinstance(tensor, nn.Parameter)
        held[name] = (
            nn.Parameter(masked(tensor.detach(), dims, leaf, gone)) if parameter else tensor
        )
    return Toy(seen.toy.code, held)


def taken(tensor: Tensor, dims: Sequence[Term], chosen: Mapping[Term, Tensor]) -> Tensor:
    """Return some indices of axes of a tensor, in their order."""
    for place, term in enumerate(dims):
        if set(leaves(term)) & set(chosen):
            tensor = tensor.index_select(place, indices(term, chosen))
    return tensor


def masked(tensor: Tensor, dims: Sequence[Term], leaf: Term, gone: Iterable[int]) -> Tensor:
    """Return a tensor with zeros for some indices of one of its axes."""
    marks = torch.zeros(leaf.size, dtype=torch.bool)
    marks[list(gone)] = True
    for place, term in enumerate(dims):
        shape = [-1 if at == place else 1 for at in range(tensor.dim())]
        tensor = tensor * ~_carried(term, leaf, marks).reshape(shape)
    return tensor


def indices(term: Term, chosen: Mapping[Term, Tensor]) -> Tensor:
    """Return the positions along a term that some indices of its axes make, in their order."""
    term = find(term)
    if term.kind == "leaf":
        return chosen.get(term, torch.arange(term.size))
    if term.kind == "sum":
        start, parts = 0, []
        for part in term.parts:
            parts.append(start + indices(part, chosen))
            start += part.size
        return torch.cat(parts)
    whole = torch.zeros(1, dtype=torch.long)
    for part in term.parts:
        whole = (whole[:, None] * part.size + indices(part, chosen)[None]).flatten()
    return whole


def _carried(term: Term, leaf: Term, gone: Tensor) -> Tensor:
    """Return which positions along a term lie in one of the indices that are gone."""
    term = find(term)
    if term.kind == "leaf":
        return gone if term is leaf else torch.zeros(term.size, dtype=torch.bool)
    parts = [_carried(part, leaf, gone) for part in term.parts]
    if term.kind == "sum":
        return torch.cat(parts)
    whole = parts[0]
    for part in parts[1:]:
        whole = (whole[:, None] | part[None]).flatten()
    return whole
