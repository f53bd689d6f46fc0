"""The loss's second derivatives over all weights of a network together, as OBS asks for them.

What is prunable of a network is one vector of n weights here, one layer after another, and the
matrix between all its pairs [n, n] is in memory: this is for networks of some thousand weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import SecateurError
from secateur.sparsify.quadratic import damped, inverse, refit
from secateur.sparsify.ranks import over_ranks
from secateur.sparsify.setup import Prunable
from secateur.sparsify.statistics import Loss, _examples, _wanted, run_model, to_device
from secateur.structure.usage import evaluating

MOST_WEIGHTS = 4096
"""Weights whose pairs are looked at: 128 MiB of second derivatives."""

_COMPACTED = 128
"""Eliminations after which the matrix drops the rows of what is gone."""


def refuse_curvature(prunables: Sequence[Prunable], loss: Loss | None) -> None:
    """Raise SecateurError where pairs of all weights are too many, or a loss hides the answers."""
    total = sum(prunable.weight.numel for prunable in prunables)
    if total > MOST_WEIGHTS:
        raise SecateurError(
            f"the second derivatives between all pairs of {total} weights are too many (at most "
            f"{MOST_WEIGHTS} weights): leave layers out, or write woodfisher and "
            "compensate(fisher), which look at blocks of weights"
        )
    if loss is not None:
        raise SecateurError(
            "second derivatives of the whole network are those of its answers, which loss= hides: "
            "leave loss= out, or write woodfisher and compensate(fisher)"
        )


def curvature(
    model: nn.Module,
    prunables: Sequence[Prunable],
    batches: Iterable[Any],
    damping: float,
) -> Tensor:
    """Return the mean of J^T L J over single examples [n, n], in double precision and damped.

    J [answers, n] are the gradients of the network's answers, L the loss's second derivatives by
    the answers: 2 / answers for squared errors, diag(p) - p p^T for cross entropy. ``damping`` is
    added to the diagonal as a share of its mean.

    Raises SecateurError where a batch names its parts, or the answer is not one tensor.
    """
    weights = [prunable.weight for prunable in prunables]
    total = sum(weight.numel for weight in weights)
    names, tensors = _wanted(model, weights)
    summed = torch.zeros(total, total, dtype=torch.float64, device=tensors[0].device)
    count = 0
    with evaluating(model), torch.enable_grad():
        for example in _examples(batches):
            slopes = _slopes(model, tensors, example)
            rows = [dict(zip(names, each, strict=True)) for each in slopes]
            flat = torch.stack([joined(prunables, row).double() for row in rows])
            summed += flat.T @ flat
            count += 1
    return damped(over_ranks([summed / count])[0], damping)


def _slopes(model: nn.Module, tensors: Sequence[nn.Parameter], example: Any) -> list[list[Tensor]]:
    """Return rows R by parameter with R^T R = J^T L J of one example."""
    if isinstance(example, Mapping):
        raise SecateurError(
            "second derivatives of the whole network ask for batches (inputs, targets), not for "
            "mappings; or write woodfisher and compensate(fisher)"
        )
    answer = run_model(model, example)
    answer = getattr(answer, "logits", answer)
    target = to_device(example[1], model)
    if not isinstance(answer, Tensor) or not isinstance(target, Tensor):
        raise SecateurError("the model's output is not one tensor; write compensate(fisher)")

    def slope(value: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(tensor) if part is None else part
            for part, tensor in zip(found, tensors, strict=True)
        ]

    if target.is_floating_point():
        scale = (2 / answer.numel()) ** 0.5
        return [slope(value * scale) for value in answer.reshape(-1)]
    places = answer.movedim(1, -1).flatten(0, -2)
    found = []
    for logits in places:
        chances = logits.detach().softmax(0)
        mean = (chances * logits).sum()
        for chance, value in zip(chances, logits, strict=True):
            found.append(slope((value - mean) * (chance / len(places)).sqrt()))
    return found


def joined(prunables: Sequence[Prunable], parameters: Mapping[str, Tensor]) -> Tensor:
    """Return what belongs to the prunable weights as one vector [n]."""
    views = [each.weight.view(parameters[each.weight.parameter]) for each in prunables]
    return torch.cat([view.reshape(-1) for view in views])


def parted(prunables: Sequence[Prunable], vector: Tensor) -> dict[str, Tensor]:
    """Return the parts of a vector [n] by the weight's name, in its layout; undoes ``joined``."""
    parts = vector.split([each.weight.numel for each in prunables])
    return {
        each.weight.name: part.reshape(each.weight.shape)
        for each, part in zip(prunables, parts, strict=True)
    }


def unit_columns(prunables: Sequence[Prunable]) -> list[Tensor]:
    """Return which of all weights each unit of a layer holds [units, weights of a unit].

    Raises SecateurError where a layer's units differ in size.
    """
    found, first = [], 0
    for each in prunables:
        if not each.units.equal:
            raise SecateurError(
                "the tile does not divide every layer, so its units are not all alike"
            )
        places = torch.arange(first, first + each.weight.numel)
        found.append(each.units.rows(places.reshape(each.weight.shape))[0])
        first += each.weight.numel
    return found


def network_elimination(weights: Tensor, matrix: Tensor, units: Sequence[Tensor]) -> list[Tensor]:
    """Return each unit's place as they go one by one and all other weights make up for each.

    ``units`` holds the columns of each layer's units [units, weights of a unit]. The next to go is
    always the Q of least w_Q^T (H^-1[Q, Q])^-1 w_Q / 2, H that of the weights [n] that are left:
    for a single weight w^2 / 2 H^-1[q, q] (Hassibi and Stork 1992).

    >>> single = [torch.tensor([[0], [1], [2]])]
    >>> network_elimination(torch.tensor([3.0, 1.0, 2.0]), torch.eye(3), single)
    [tensor([2., 0., 1.])]
    """
    every = [unit for layer in units for unit in layer]
    places = torch.zeros(len(every), dtype=weights.dtype, device=weights.device)
    there = torch.ones_like(places, dtype=torch.bool)
    alive = torch.ones_like(weights, dtype=torch.bool)
    has = torch.arange(len(weights), device=weights.device)  # the weights that the matrix still has
    moved = has.clone()
    backwards, values = inverse(matrix[None])[0], weights.clone()
    for number in range(len(every)):
        still = there.split([len(layer) for layer in units])
        costs = [
            _unit_costs(values, backwards, moved[layer], each)
            for layer, each in zip(units, still, strict=True)
        ]
        next_ = int(torch.cat(costs).masked_fill_(~there, torch.inf).argmin())
        places[next_], there[next_], alive[every[next_]] = number, False, False
        _eliminate(values, backwards, moved[every[next_]])
        stays = alive[has]
        if len(has) - int(stays.sum()) >= _COMPACTED:
            has, values, backwards = has[stays], values[stays], backwards[stays][:, stays]
            moved.zero_()[has] = torch.arange(len(has), device=has.device)
    return list(places.split([len(layer) for layer in units]))


def _unit_costs(values: Tensor, backwards: Tensor, columns: Tensor, there: Tensor) -> Tensor:
    """Return what each unit [units, weights of a unit] costs; anything for those not ``there``."""
    own = values[columns]
    if columns.shape[1] == 1:
        return own[:, 0].square() / backwards.diagonal()[columns[:, 0]] / 2
    inside = backwards[columns[:, :, None], columns[:, None, :]]
    ones = torch.eye(columns.shape[1], dtype=inside.dtype, device=inside.device)
    inside = torch.where(there[:, None, None], inside, ones)
    solved: Tensor = torch.linalg.solve(inside, own[:, :, None])[:, :, 0]
    return (solved * own).sum(1) / 2


def _eliminate(values: Tensor, backwards: Tensor, columns: Tensor) -> None:
    """Set the columns' weights to zero and let the others make up for them, in place."""
    across = backwards[columns]
    shares = torch.linalg.solve(across[:, columns], across)
    values -= values[columns] @ shares
    backwards.addmm_(across.T, shares, alpha=-1)


def network_refit(weights: Tensor, kept: Tensor, matrix: Tensor) -> Tensor:
    """Return the weights [n] at the least of the quadratic model, zero where nothing is kept."""
    return refit(matrix[None], weights[None, None].double(), kept[None, None])[0, 0]
