"""``shrink``: masked channels, heads and widths are removed for good, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from secateur.errors import SecateurError
from secateur.structure import verify
from secateur.structure.depth import Dropped, dead_branches, drop, forget
from secateur.structure.freed import plan
from secateur.structure.graft import Code
from secateur.structure.history import note
from secateur.structure.removal import Removal
from secateur.structure.repair import Repairs, repair
from secateur.structure.rewrite import as_graph as rewrite
from secateur.structure.rewrite import run_graph
from secateur.structure.surgery import Undo, cut, cut_optimizer, set_attributes
from secateur.structure.trace import Axis, Trace, followed_again, positional, trace
from secateur.structure.wrapping import check_examples, own_module


class Masked(Protocol):
    """What knows which entries of a model's parameters are kept: a Sparsifier."""

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name to boolean tensor, True where the entry is kept."""


@dataclass(frozen=True)
class Cost:
    """What a model costs: parameters, multiply-accumulates for the example, bytes of weights."""

    params: int
    macs: int
    bytes: int


@dataclass(frozen=True)
class ShrinkResult:
    """What a removal did.

    ``removed`` lists the indices that went, by axis, and ``dropped`` the modules and parameters
    that went whole, as branches that only added zeros; ``left`` gives axes of which masked indices
    had to stay, with the reason. ``attributes`` are the sizes that were set in modules, ``grafts``
    the modules whose code was replaced by recorded operators. ``difference`` is the largest
    relative difference between the masked and the shrunk network on the example; ``exact`` says
    that it counts as none. ``graph`` is the rewritten graph, where one was asked for.
    """

    before: Cost
    after: Cost
    removed: dict[str, list[int]]
    left: dict[str, str]
    attributes: dict[str, dict[str, Any]]
    grafts: dict[str, Code]
    difference: float
    exact: bool
    notes: tuple[str, ...] = field(default=())
    dropped: tuple[str, ...] = field(default=())
    graph: fx.GraphModule | None = field(default=None, repr=False)


def shrink(
    model: nn.Module,
    masks_or_sparsifier: Mapping[str, Tensor] | Masked,
    example_inputs: Any,
    optimizer: torch.optim.Optimizer | None = None,
    round_to: int = 1,
    as_graph: bool = False,
    graft: bool = True,
) -> ShrinkResult:
    """Remove what masks have freed, in place: the shrunk network computes what the masked one does.

    The masks are applied first. ``round_to`` keeps widths at multiples of a number. The optimiser's
    state is cut along with the parameters. With ``as_graph`` the model stays as it was, and
    ``ShrinkResult.graph`` is the network in evaluation mode as a smaller graph without the user's
    code. Raises SecateurError, with the model as it was, where nothing can be removed, or where the
    model's code does not follow.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> kept = (torch.arange(16) < 6)
    >>> masks = {"0.weight": kept[:, None].expand(16, 8), "0.bias": kept}
    >>> shrink(model, masks, torch.zeros(1, 8)).after.params
    82
    >>> model[0]
    Linear(in_features=8, out_features=6, bias=True)
    """
    masks: Mapping[str, Tensor] = getattr(masks_or_sparsifier, "masks", masks_or_sparsifier)  # type: ignore[arg-type]
    model = own_module(model)
    if optimizer is None:  # a sparsifier knows the one that it is attached to
        optimizer = getattr(masks_or_sparsifier, "optimizer", None)
    _check_arguments(model, optimizer, round_to)
    check_masks(model, masks)
    masks = _by_first_name(model, masks)
    inputs = positional(example_inputs)
    check_examples(inputs)
    structure = _known(model, masks_or_sparsifier, graft, as_graph)
    if structure is None:
        structure = trace(model, inputs, graft, in_code=not as_graph)
    work = _Work(model, structure, masks, inputs, optimizer, round_to, graft, as_graph)
    # A way through data may turn on rounding, which double precision all but rules out.
    single = not structure.runs[0].real
    result = (work.carry_out(double=False) if single else None) or work.carry_out(double=True)
    assert result is not None
    if as_graph:
        return result
    detach = getattr(masks_or_sparsifier, "detach", None)
    if detach is not None:
        detach()
    return result


@dataclass(frozen=True)
class _Work:
    """One removal, with all that it needs; it may be carried out again in double precision."""

    model: nn.Module
    structure: Trace
    masks: Mapping[str, Tensor]
    inputs: tuple[Any, ...]
    optimizer: torch.optim.Optimizer | None
    round_to: int
    graft: bool
    as_graph: bool

    def carry_out(self, double: bool) -> ShrinkResult | None:
        """Remove and compare; None, with the model as it was, where single precision is in doubt.

        Whatever is raised, the model is put back first; so it is for a graph, which stands alone.
        """
        model, undo, done = self.model, Undo(), False
        try:
            _apply(model, self.masks, undo)
            cost = _cost(self.structure, Removal({}), model)
            before = _masked_outputs(model, self.inputs, double, self.structure.runs[0].real)
            structure, dropped = self._masked_structure(undo)
            removal, left = plan(model, structure, _present(model, self.masks), self.round_to)
            left = {**left, **dropped.left}
            if not removal and not dropped.grafts:
                raise SecateurError(_nothing(left))
            graph = _graph(model, structure, removal) if self.as_graph else None
            repairs = Repairs()
            if graph is None and removal:
                repairs = remove(model, structure, removal, undo, self.optimizer, self.graft)
            repairs.grafts = {**dropped.grafts, **repairs.grafts}
            gap, notes = self._difference(before, graph, double)
            exact = gap <= verify.tolerance(before)
            inexact = [axis for axis in structure.removable
                       if axis.inexact and structure.leaves[axis.name] in removal.kept]  # fmt: skip
            if not exact and not inexact:
                if before.dtype is not torch.float64 and not double:
                    return None
                undo.run()
                raise SecateurError(
                    f"the shrunk network differs from the masked one by {gap:.2g} (relative), so "
                    f"the model was left as it was{self._if_random(before)}"
                )
            notes += _notes(inexact, dropped, repairs)
            result = ShrinkResult(
                cost, _cost(structure, removal, model), _removed(structure, removal), left,
                _by_module(repairs), repairs.grafts, gap, exact, notes, dropped.names, graph,
            )  # fmt: skip
            done = graph is None
            if done:
                note(model, self.structure, structure, result)
            return result
        finally:
            if not done:
                undo.run()

    def _difference(
        self, before: verify.Outputs, graph: fx.GraphModule | None, double: bool
    ) -> tuple[float, tuple[str, ...]]:
        """Compare with the masked network: what comes out, else what its modules make of the same.

        What a network chooses by its data, such as the best boxes, may turn on rounding.
        """
        inside = bool(before.calls) and graph is None
        if graph is not None:
            after = run_graph(graph, self.inputs, double)
        else:
            after = verify.run(self.model, self.inputs, double, inside=inside)
        gap = verify.difference(before, after)
        if gap > verify.tolerance(before) and inside:
            within = verify.difference_inside(before, after)
            if within <= verify.tolerance(before):
                said = "its outputs differ by what its own code chooses among near-equal values"
                return within, (f"all modules agree with the masked network's; {said}",)
        return gap, ()

    def _if_random(self, before: verify.Outputs) -> str:
        """Say so where the model, as it was, gives something else with another seed."""
        double = before.dtype is torch.float64
        one, other = (verify.run(self.model, self.inputs, double, seed=seed) for seed in (0, 1))
        if verify.difference(one, other) <= verify.tolerance(one):
            return ""
        return (": its forward pass draws random numbers in evaluation mode too, which cannot be "
                "compared; switch that off")  # fmt: skip

    def _masked_structure(self, undo: Undo) -> tuple[Trace, Dropped]:
        """Take dead branches out; return the structure of what is left, with its masks."""
        if self.structure.runs[0].real:
            return followed_again(self.model, self.structure, self.graft), Dropped()
        branches = dead_branches(self.model, self.structure, self.masks) if self.graft else []
        if not branches:
            return self.structure, Dropped()
        parameters = dict(self.model.named_parameters())
        dropped = drop(self.model, self.structure, branches, undo)
        if not dropped.grafts:
            return self.structure, dropped
        if self.optimizer is not None and not self.as_graph:
            present = {id(each) for each in self.model.parameters()}
            gone = [each for each in parameters.values() if id(each) not in present]
            forget(self.optimizer, gone, undo)
        return trace(self.model, self.inputs, True, in_code=not self.as_graph), dropped


def _present(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name for name, _ in model.named_parameters()}
    return {name: mask for name, mask in masks.items() if name in names}


def _known(model: nn.Module, sparsifier: Any, graft: bool, as_graph: bool) -> Trace | None:
    """Return the structure that a sparsifier of this model has traced already, if it is that."""
    structure = getattr(sparsifier, "structure", None)
    if as_graph or not graft or not isinstance(structure, Trace):
        return None
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    traced = {name: tuple(term.size for term in structure.held[name])
              for name in structure.parameters}  # fmt: skip
    return structure if shapes == traced else None


def _graph(model: nn.Module, structure: Trace, removal: Removal) -> fx.GraphModule:
    return rewrite(model, structure.runs[0], structure.findings, structure.held, removal)


def _masked_outputs(
    model: nn.Module, inputs: tuple[Any, ...], double: bool, inside: bool
) -> verify.Outputs:
    try:
        return verify.run(model, inputs, double, inside=inside)
    except Exception as error:  # the user's model may raise anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise SecateurError(f"the model cannot run on the example inputs: {said}") from error


def _check_arguments(model: nn.Module, optimizer: Any, round_to: Any) -> None:
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise SecateurError(
            f"the optimizer is a {type(optimizer).__name__}: expected a torch.optim.Optimizer"
        )
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(each) in own for group in optimizer.param_groups for each in group["params"]):
            raise SecateurError(
                "the optimizer holds none of the model's parameters: give the one that trains it"
            )
    if not isinstance(round_to, int) or isinstance(round_to, bool) or round_to < 1:
        raise SecateurError(f"round_to={round_to!r}: expected a whole number of at least 1")


def check_masks(model: nn.Module, masks: Any) -> None:
    """Refuse masks that do not belong to a model."""
    if not isinstance(masks, Mapping):
        raise SecateurError(
            f"the masks are a {type(masks).__name__}: expected a Sparsifier, or a mapping of "
            "parameter names to boolean tensors"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise SecateurError(f"the mask of '{name}' belongs to another model: it has no such "
                                "parameter")  # fmt: skip
        if not isinstance(mask, Tensor) or mask.shape != parameters[name].shape:
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise SecateurError(
                f"the mask of '{name}' is {shape} and the parameter "
                f"{tuple(parameters[name].shape)}: it belongs to another model"
            )
        if mask.dtype != torch.bool:
            raise SecateurError(
                f"the mask of '{name}' is of {mask.dtype}: expected booleans, True where an entry "
                "is kept"
            )


def _by_first_name(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the masks of tied parameters as the structure does; what one of them clears is clear."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in masks:
            known = found.get(first[id(parameter)])
            found[first[id(parameter)]] = masks[name] if known is None else known & masks[name]
    return found


def _apply(model: nn.Module, masks: Mapping[str, Tensor], undo: Undo) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        parameter = parameters[name]
        data, kept = parameter.data, mask.to(parameter.device, torch.bool)
        if bool(((data != 0) > kept).any()):
            masked = data.masked_fill(~kept, 0)
            undo.add(lambda parameter=parameter, data=data: setattr(parameter, "data", data))  # type: ignore[misc]
            parameter.data = masked


def remove(
    model: nn.Module,
    structure: Trace,
    removal: Removal,
    undo: Undo,
    optimizer: torch.optim.Optimizer | None = None,
    graft: bool = True,
) -> Repairs:
    """Cut a model and repair its attributes; return what was set and replaced.

    Raises SecateurError with the place where the code does not follow; the caller runs ``undo``.
    """
    done = cut(model, structure.held, removal, undo)
    repairs = repair(model, structure.runs, structure.findings, removal, undo, graft)
    if repairs.fault is not None:
        fault = repairs.fault
        place = fault.node.meta.get("place", "")
        module = fault.run.recording.module(fault.node)
        raise SecateurError(f"the code of '{module}' cannot follow ({place}): {fault.reason}")
    if optimizer is not None:
        cut_optimizer(optimizer, done, removal, undo)
    return repairs


def _nothing(left: Mapping[str, str]) -> str:
    reasons = [f"{name}: {reason}" for name, reason in list(left.items())[:3]]
    if not reasons:
        reasons = ["the masks free no whole channel, head or width"]
    return f"nothing can be removed: {'; '.join(reasons)}"


def _removed(structure: Trace, removal: Removal) -> dict[str, list[int]]:
    return {
        name: (~removal.kept[leaf]).nonzero().flatten().tolist()
        for name, leaf in structure.leaves.items()
        if leaf in removal.kept
    }


def _notes(inexact: list[Axis], dropped: Dropped, repairs: Repairs) -> tuple[str, ...]:
    notes = [f"{axis.name}: {axis.inexact}, so the result is not the masked network's"
             for axis in inexact]  # fmt: skip
    for path in repairs.grafts:
        why = "a branch of it is gone" if path in dropped.grafts else (
            "its own code cannot express the new sizes")  # fmt: skip
        notes.append(f"{path} runs its recorded operators, as {why}")
    return tuple(notes)


def _by_module(repairs: Repairs) -> dict[str, dict[str, Any]]:
    attributes: dict[str, dict[str, Any]] = {}
    for (path, name), value in repairs.changes.items():
        attributes.setdefault(path, {})[name] = value
    return attributes


def _cost(structure: Trace, removal: Removal, model: nn.Module) -> Cost:
    params, macs = structure.count(removal)
    tensors: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    total = 0
    for name, tensor in tensors.items():
        dims = structure.held.get(name)
        shape = tensor.shape if dims is None else torch.Size(removal.shape(dims))
        total += tensor.element_size() * shape.numel()
    return Cost(params, macs, total)


__all__ = ["Cost", "Masked", "ShrinkResult", "check_masks", "plan", "remove", "set_attributes",
           "shrink"]  # fmt: skip
