"""What every criterion must stand, whoever wrote it: ``CriterionTester``; and every removal.

A criterion gets all of it by being in the registry. The product of criteria, granularities,
contexts and dtypes is sampled so that every pair of values of any two of them occurs at least once
(``pairwise``); each case then runs on random and on constant weights, with empty, partial and full
budgets.

``RemovalTester`` shrinks a model and holds it against the masked one: outputs, tensors, gradients,
a step with momentum.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from secateur.errors import SecateurError
from secateur.sparsify.allocation import Layer, shares
from secateur.sparsify.plan import Choice, Entry, choose
from secateur.sparsify.scoring import score_units
from secateur.sparsify.units import Units
from secateur.structure import (
    PrunableWeight,
    ShrinkResult,
    Trace,
    find_weights,
    positions,
    shrink,
    trace,
)
from secateur.structure.terms import find
from secateur.technique import Criterion, Evidence, Technique
from secateur.technique.criteria import CRITERIA, MODIFIERS

GRANULARITIES = (
    "weight",
    "filter",
    "kernel",
    "shared_kernel",
    "row",
    "(o 3) (i 2)",
    "layer",
    "2:4(remainder=keep)",
)
CONTEXTS = ("local", "global", "row", "local(erk)", "isomorphic")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BUDGETS = (0.0, 0.37, 1.0)


def every_criterion() -> list[str]:
    """Every registered criterion, and every modifier in all its variants around one."""
    wrapped = [f"{record.name}(magnitude)" for record in MODIFIERS]
    variety = ["pairwise, similarity=distance", "candidates", "reweighted"]
    wrapped += [f"variety(magnitude, variant={variant})" for variant in variety]
    wrapped += ["negate(random)", "variety(negate(movement), normalize=rank)"]
    return [record.name for record in CRITERIA] + wrapped


def pairwise(
    axes: Sequence[Sequence[Any]], allowed: Callable[..., bool] = lambda *_: True
) -> list[tuple[Any, ...]]:
    """Sample a product so that every allowed pair of values of two axes occurs; deterministic.

    Candidates that cover the most new pairs are taken first.
    """
    product = [case for case in itertools.product(*axes) if allowed(*case)]
    # A stride coprime to the length keeps neighbours in the product apart.
    stride = next(n for n in range(101, 10_000) if _coprime(n, len(product)))
    product = [product[place * stride % len(product)] for place in range(len(product))]
    covered: set[tuple[Any, ...]] = set()
    taken = []
    for fresh in range(len(axes) * (len(axes) - 1) // 2, 0, -1):
        for case in product:
            new = pairs_of(case) - covered
            if len(new) >= fresh:
                covered |= new
                taken.append(case)
    return taken


def pairs_of(case: tuple[Any, ...]) -> set[tuple[Any, ...]]:
    """The pairs of values that a case covers."""
    return set(itertools.combinations(enumerate(case), 2))


def _coprime(first: int, second: int) -> bool:
    while second:
        first, second = second, first % second
    return first == 1


def tiny_model() -> nn.Sequential:
    """A plain, a grouped and a depthwise convolution, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(5, 6, (2, 1)),
        nn.Conv2d(6, 8, (2, 3), groups=2),
        nn.Conv2d(8, 8, (3, 1), groups=8),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def full_evidence(
    weight: PrunableWeight, dtype: torch.dtype, constant: bool = False, seed: int = 0
) -> Evidence:
    """Everything that can be known of a weight, made up; with ``constant``, all of it the same."""
    generator = torch.Generator().manual_seed(seed)
    groups, outputs, inputs, *kernel = weight.shape
    ones = [1] * len(kernel)

    def tensor(*shape: int) -> Tensor:
        values = torch.full(shape, 0.5) if constant else torch.randn(shape, generator=generator)
        return values.to(dtype)

    return Evidence(
        weight=tensor(*weight.shape),
        saved=tensor(*weight.shape),
        previous=tensor(*weight.shape),
        gradient=tensor(*weight.shape),
        fisher=tensor(*weight.shape).square(),
        hessian=tensor(*weight.shape),
        hessian_gradient=tensor(*weight.shape),
        synaptic_flow=tensor(*weight.shape).abs(),
        input_norm=tensor(groups, 1, inputs, *ones).abs(),
        output_taylor=tensor(groups, outputs, 1, *ones).abs(),
        output_active=tensor(groups, outputs, 1, *ones).abs(),
        output_rank=tensor(groups, outputs, 1, *ones).abs(),
        output_independence=tensor(groups, outputs, 1, *ones).abs(),
        input_spread=tensor(groups, 1, inputs, *ones).abs(),
        learned=tensor(*weight.shape),
        masked_gradient=tensor(*weight.shape),
        block_influence=tensor(1, 1, 1, *ones).abs(),
        removal_loss=tensor(1, 1, 1, *ones).abs(),
        scale_taylor=tensor(groups, outputs, 1, *ones).abs(),
        propagated=tensor(groups, outputs, 1, *ones).abs(),
        surgeon=tensor(*weight.shape),
        elimination=tensor(*weight.shape).abs(),
        greedy=tensor(groups, 1, inputs, *ones).abs(),
        lasso=tensor(groups, 1, inputs, *ones).abs(),
        fisher_surgeon=tensor(*weight.shape),
        network_elimination=tensor(*weight.shape).abs(),
        norm_scale=tensor(groups, outputs, 1, *ones),
        carried=tensor(*weight.shape).abs(),
        generator=generator,
    )


def only_what_it_needs(evidence: Evidence, needs: Sequence[str]) -> Evidence:
    """Drop all evidence that was not declared, as the engine does."""
    always = ("weight", "generator")
    kept = {name: getattr(evidence, name) for name in (*always, *needs)}
    return Evidence(**kept)


class CriterionTester:
    """Runs a criterion over granularities, contexts, dtypes, ties and budgets."""

    def __init__(self) -> None:
        self.weights = find_weights(tiny_model()).weights

    @staticmethod
    def cases(criteria: Sequence[str] | None = None) -> list[tuple[Any, ...]]:
        """(criterion, granularity, context, dtype), every allowed pair at least once."""

        def allowed(criterion: str, granularity: str, context: str, dtype: torch.dtype) -> bool:
            try:
                Technique(granularity, context, criterion, "one_shot")
            except SecateurError:
                return False
            return True

        return pairwise([criteria or every_criterion(), GRANULARITIES, CONTEXTS, DTYPES], allowed)

    def check(self, criterion: str, granularity: str, context: str, dtype: torch.dtype) -> None:
        """Check all promises on random and on constant weights."""
        technique = Technique(granularity, context, criterion, "one_shot")
        for constant in (False, True):
            for share in BUDGETS:
                self._check_budget(technique, dtype, constant, share)

    def _check_budget(
        self, technique: Technique, dtype: torch.dtype, constant: bool, share: float
    ) -> None:
        entries = self.entries(technique, dtype, constant, share)
        for entry, again in zip(
            entries, self.entries(technique, dtype, constant, share), strict=True
        ):
            assert torch.equal(entry.scores, again.scores), "the same twice must give the same"
        amount = share * sum(weight.numel for weight in self.weights)
        choice = choose(technique, entries, amount, 1.0, exact_total=False)
        for entry, kept in zip(entries, choice.kept, strict=True):
            assert kept.dtype == torch.bool and kept.shape == (entry.units.count,)
        if share == 0:
            assert all(bool(kept.all()) for kept in choice.kept)
        elif technique.granularity.block is not None:
            self._check_blocks(technique, entries, choice)
        elif share == 1:
            assert not any(bool(kept.any()) for kept in choice.kept)
        for pool in self._pools(technique, entries):
            check_lowest_go(technique, [entries[p] for p in pool], [choice.kept[p] for p in pool])

    def entries(
        self, technique: Technique, dtype: torch.dtype, constant: bool, share: float
    ) -> list[Entry]:
        """Score every weight, checking what holds for scores alone."""
        all_units = [Units.of(weight, technique.granularity) for weight in self.weights]
        layers = [Layer(weight, float(weight.numel)) for weight in self.weights]
        amount = share * sum(layer.cost for layer in layers)
        divided = shares(technique.context, layers, amount)
        made = []
        for weight, units, part in zip(self.weights, all_units, divided, strict=True):
            scores = self.scores(technique.criteria, weight, units, dtype, constant, part)
            removed = torch.zeros(units.count, dtype=torch.bool)
            made.append(Entry(weight, units, float(units.largest), scores, removed, part))
        return made

    @staticmethod
    def scores(
        criterion: Criterion,
        weight: PrunableWeight,
        units: Units,
        dtype: torch.dtype,
        constant: bool,
        share: float,
    ) -> Tensor:
        """Return the scores, having checked that they are finite and leave the evidence alone."""
        evidence = only_what_it_needs(full_evidence(weight, dtype, constant), criterion.needs)
        before = {
            field.name: value.clone()
            for field in dataclasses.fields(evidence)
            if isinstance(value := getattr(evidence, field.name), Tensor)
        }
        scores = score_units(criterion, evidence, units, round(share * units.count))
        for name, value in before.items():
            assert torch.equal(getattr(evidence, name), value), f"{criterion} changed its {name}"
        assert scores.shape == (units.count,)
        assert scores.dtype in (torch.float32, torch.float64)
        assert bool(torch.isfinite(scores).all()), f"{criterion} gives scores that are not finite"
        return scores

    @staticmethod
    def _check_blocks(technique: Technique, entries: Sequence[Entry], choice: Choice) -> None:
        granularity = technique.granularity
        assert granularity.block is not None and granularity.kept is not None
        for entry, kept in zip(entries, choice.kept, strict=True):
            layout = kept.reshape(entry.weight.shape).movedim(2, -1).flatten(0, -2)
            for block in layout.split(granularity.block, dim=1):
                complete = block.shape[1] == granularity.block
                least = granularity.kept if complete else block.shape[1]
                assert int(block.sum(1).min()) >= least

    @staticmethod
    def _pools(technique: Technique, entries: Sequence[Entry]) -> Iterator[list[int]]:
        """The pools, told from the words of the contexts."""
        pool = technique.context.pool
        if pool == "global":
            yield list(range(len(entries)))
        elif pool == "isomorphic":
            kinds = {(entry.weight.kind, entry.units.largest) for entry in entries}
            for kind in kinds:
                yield [
                    place
                    for place, entry in enumerate(entries)
                    if (entry.weight.kind, entry.units.largest) == kind
                ]
        else:
            yield from ([place] for place in range(len(entries)))


def check_lowest_go(technique: Technique, members: Sequence[Entry], kept: Sequence[Tensor]) -> None:
    """Check with plain loops that the lowest went, ties by position, and as many as was asked."""
    if technique.context.pool == "row":
        entry = members[0]
        rows = entry.weight.outputs
        scores, marks = entry.scores.reshape(rows, -1), kept[0].reshape(rows, -1)
        wanted = round(entry.share * scores.shape[1])
        for row, marked in zip(scores.tolist(), marks.tolist(), strict=True):
            if technique.granularity.block is None:
                assert marked.count(False) == wanted
                assert gone(marked) == lowest(row, wanted)
        assert len({row.count(False) for row in marks.tolist()}) == 1
        return
    scores = [score for entry in members for score in entry.scores.tolist()]
    costs = [float(cost) for entry in members for cost in entry.units.sizes()]
    marks = [mark for part in kept for mark in part.tolist()]
    claim = sum(entry.share * entry.weight.numel for entry in members)
    spent = sum(cost for cost, mark in zip(costs, marks, strict=True) if not mark)
    if technique.granularity.block is not None:
        assert spent <= claim + 0.5
        return
    assert gone(marks) == lowest(scores, marks.count(False))
    distance = abs(spent - claim)
    running, best = 0.0, abs(claim)
    for place in sorted(range(len(scores)), key=lambda unit: (scores[unit], unit)):
        running += costs[place]
        best = min(best, abs(running - claim))
    assert distance <= best + 1e-6 * max(1.0, claim), "another number of units comes nearer"


def lowest(scores: Sequence[float], count: int) -> set[int]:
    """The places of the lowest scores, the first of equal ones first."""
    return set(sorted(range(len(scores)), key=lambda place: (scores[place], place))[:count])


def gone(marks: Sequence[bool]) -> set[int]:
    """The places that are not kept."""
    return {place for place, mark in enumerate(marks) if not mark}


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Indices of axes to remove, by the names of the axes, and the structure they belong to."""

    structure: Trace
    gone: dict[str, list[int]]

    def positions(self, name: str) -> dict[int, list[int]]:
        """Return, by dimension, the positions along a parameter or buffer that go."""
        found: dict[int, set[int]] = {}
        for axis in self.structure.axes:
            for carrier, dim in axis.carriers:
                if carrier == name and axis.name in self.gone:
                    term, leaf = self.structure.held[name][dim], self.structure.leaves[axis.name]
                    indices = positions(term, leaf).tolist()
                    lost = [place for place, index in enumerate(indices)
                            if index in self.gone[axis.name]]  # fmt: skip
                    found.setdefault(dim, set()).update(lost)
        return {dim: sorted(lost) for dim, lost in found.items()}

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Return masks that clear everything that carries an index that goes."""
        made = {}
        for name, parameter in model.named_parameters():
            mask = torch.ones(parameter.shape, dtype=torch.bool)
            for dim, lost in self.positions(name).items():
                if dim == 0 and name.endswith(".parametrizations.weight.original1"):
                    # A direction of length zero is no number: weight norm is cleared by its length.
                    continue
                mask.index_fill_(dim, torch.tensor(lost, dtype=torch.long), False)
            if not bool(mask.all()):
                made[name] = mask
        return made

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """Return what must be left of a tensor that lies along a parameter or buffer."""
        for dim, lost in self.positions(name).items():
            stays = [place for place in range(tensor.shape[dim]) if place not in set(lost)]
            tensor = tensor.index_select(dim, torch.tensor(stays, dtype=torch.long))
        return tensor


def choose_axes(model: nn.Module, inputs: Any, seed: int = 0, share: float = 0.4) -> Chosen:
    """Choose random indices on random removable axes whose removal is exact; never all of one."""
    structure = trace(model, inputs)
    source = random.Random(seed)
    exact = [axis for axis in structure.removable if axis.inexact is None]
    taken = [axis for axis in exact if source.random() < 0.7] or exact[:1]
    gone = {}
    for axis in taken:
        count = min(axis.size - 1, max(1, round(share * axis.size)))
        gone[axis.name] = sorted(source.sample(range(axis.size), count))
    for hidden in _widths_that_projections_need(structure, gone):
        del gone[hidden]
    return Chosen(structure, gone)


def _widths_that_projections_need(structure: Trace, gone: dict[str, list[int]]) -> set[str]:
    """Return the axes of LSTMs' hidden states that would get as narrow as their projections."""
    names = {find(leaf): axis for axis, leaf in structure.leaves.items()}
    found = set()
    for name, dims in structure.held.items():
        if "weight_hr_l" not in name:
            continue
        needed, left = (term.size - len(gone.get(names.get(find(term), ""), ())) for term in dims)
        hidden = names.get(find(dims[1]), "")
        if hidden in gone and left <= needed:
            found.add(hidden)
    return found


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a model's output, in order."""
    return [each for each in tree_flatten(value)[0] if isinstance(each, Tensor)]


class RemovalTester:
    """Removes indices from a model in double precision and checks everything that is promised.

    The oracle is the masked model, which never shrinks: a copy with zeros, run and trained beside
    the shrunk one. ``others`` are further inputs (another batch size) on which both must agree.
    """

    tolerance = 1e-6

    def check(
        self, model: nn.Module, inputs: tuple[Any, ...], chosen: Chosen, others: Sequence[Any] = ()
    ) -> ShrinkResult:
        """Shrink the model in place by a chosen; every assertion is about the result."""
        model.eval()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        loss = self._backward(model, inputs)
        assert float(loss.detach()) > 0, "the network gives nothing but zeros"
        optimizer.step()
        masks = chosen.masks(model)
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask)
        masked, masked_optimizer = copy.deepcopy((model, optimizer))
        keys, kinds = list(model.state_dict()), [type(each) for each in model.modules()]

        result = shrink(model, masks, inputs, optimizer)

        assert result.exact and result.difference <= self.tolerance
        assert result.removed == chosen.gone
        assert not result.left
        assert list(model.state_dict()) == keys
        assert result.grafts or [type(each) for each in model.modules()] == kinds
        self._check_tensors(model, masked, chosen)
        self._check_counts(model, inputs, result)
        for each in (inputs, *others):
            self.check_same(masked, model, each)
        self.check_same(model, copy.deepcopy(model), inputs, exactly=True)
        self._check_training(model, masked, optimizer, masked_optimizer, chosen, inputs)
        del loss  # kept until here: a graph from before must not be in the way
        return result

    def check_same(
        self, one: nn.Module, other: nn.Module, inputs: tuple[Any, ...], exactly: bool = False
    ) -> None:
        """Check that two models give the same for the same inputs."""
        with torch.no_grad():
            left, right = tensors_of(one(*inputs)), tensors_of(other(*inputs))
        assert len(left) == len(right) > 0
        for wanted, found in zip(left, right, strict=True):
            assert wanted.shape == found.shape
            assert bool(wanted.isfinite().all()), "the masked network gives no finite numbers"
            scale = 0.0 if exactly else self.tolerance * float(wanted.abs().max())
            gap = float((wanted - found).abs().max())
            assert gap <= scale, f"the outputs differ by {gap:.3g}"

    def _check_tensors(self, model: nn.Module, masked: nn.Module, chosen: Chosen) -> None:
        before = dict(masked.named_parameters()) | dict(masked.named_buffers())
        after = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, tensor in before.items():
            wanted = chosen.cut(name, tensor.detach())
            assert torch.equal(after[name].detach(), wanted), f"{name} is not what must be left"
            assert after[name].requires_grad == tensor.requires_grad
            if isinstance(tensor, nn.Parameter) and tensor.grad is not None:
                assert torch.equal(after[name].grad, chosen.cut(name, tensor.grad)), name

    @staticmethod
    def _check_counts(model: nn.Module, inputs: tuple[Any, ...], result: ShrinkResult) -> None:
        assert result.after.params == sum(each.numel() for each in model.parameters())
        assert result.after.params < result.before.params
        assert result.after.macs <= result.before.macs
        again = trace(model, inputs)
        assert (again.params, again.macs) == (result.after.params, result.after.macs)

    def _check_training(
        self,
        model: nn.Module,
        masked: nn.Module,
        optimizer: torch.optim.Optimizer,
        masked_optimizer: torch.optim.Optimizer,
        chosen: Chosen,
        inputs: tuple[Any, ...],
    ) -> None:
        """Check gradients, and one step with momentum, against those of the masked model."""
        optimizer.zero_grad()
        masked_optimizer.zero_grad()
        self._backward(model, inputs)
        self._backward(masked, inputs)
        found = dict(model.named_parameters())
        wanted = {name: each.grad for name, each in masked.named_parameters()}
        largest = max(float(each.abs().max()) for each in wanted.values() if each is not None)
        for name, gradient in wanted.items():
            mine = found[name].grad
            assert (mine is None) == (gradient is None), f"{name} gets no gradient"
            if gradient is not None:
                gap = (mine - chosen.cut(name, gradient)).abs().max()
                assert float(gap) <= self.tolerance * largest, f"the gradient of {name} differs"
        optimizer.step()
        masked_optimizer.step()
        for name, parameter in masked.named_parameters():
            stays = chosen.cut(name, parameter.detach())
            near = torch.allclose(found[name].detach(), stays, rtol=1e-6, atol=1e-9 * largest)
            assert near, f"a step with momentum takes {name} elsewhere"

    @staticmethod
    def _backward(model: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        squares = [each.square().mean() for each in tensors_of(model(*inputs))]
        # Every output weighs the same, so that steps stay small whatever the network gives.
        loss = sum(each / each.detach().clamp(min=1e-9) for each in squares)
        loss.backward()
        return loss
