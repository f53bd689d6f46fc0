"""Every registered criterion through the CriterionTester, and once through the engine."""

from __future__ import annotations

import itertools

import pytest
import torch
from testers import CONTEXTS, DTYPES, GRANULARITIES, CriterionTester, every_criterion, pairs_of
from torch import Tensor, nn

from secateur import Sparsifier, Technique
from secateur.technique.criteria import CRITERIA, MODIFIERS, criterion

TESTER = CriterionTester()
CASES = CriterionTester.cases()


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: " | ".join(str(part).removeprefix("torch.") for part in case)
)
def test_criterion(case: tuple[str, str, str, torch.dtype]) -> None:
    TESTER.check(*case)


def test_the_cases_cover_every_pair() -> None:
    covered = set().union(*(pairs_of(case) for case in CASES))
    no_rows = {"filter", "shared_kernel", "layer", "(o 3) (i 2)"}
    for place, values in enumerate((every_criterion(), GRANULARITIES, CONTEXTS, DTYPES)):
        assert {case[place] for case in CASES} == set(values)
    for name, granularity in itertools.product(every_criterion(), GRANULARITIES):
        assert ((0, name), (1, granularity)) in covered
    for name, context in itertools.product(every_criterion(), CONTEXTS):
        assert ((0, name), (2, context)) in covered
    for granularity, context in itertools.product(GRANULARITIES, CONTEXTS):
        possible = not (context == "row" and granularity in no_rows)
        assert (((1, granularity), (2, context)) in covered) == possible


def test_a_new_criterion_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_records", dict(CRITERIA._records))
    monkeypatch.setattr(CRITERIA, "_names", dict(CRITERIA._names))

    @criterion("cube", summary="|w|^3")
    def cube(evidence: object) -> Tensor:
        return evidence.weight.abs() ** 3  # type: ignore[attr-defined,no-any-return]

    cases = CriterionTester.cases()
    mine = [case for case in cases if case[0] == "cube"]
    assert {case[1] for case in mine} == set(GRANULARITIES)
    TESTER.check(*mine[0])


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (lambda evidence: evidence.weight.mul_(0.5).abs(), "changed its weight"),
        (lambda evidence: torch.rand(evidence.weight.shape), "the same twice"),
        (lambda evidence: evidence.weight.abs() / 0, "not finite"),
        (lambda evidence: evidence.get("gradient"), "without declaring"),
    ],
    ids=["mutates", "unrepeatable", "infinite", "undeclared"],
)
def test_the_tester_finds_broken_criteria(
    broken: object, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CRITERIA, "_records", dict(CRITERIA._records))
    monkeypatch.setattr(CRITERIA, "_names", dict(CRITERIA._names))
    criterion("broken", summary="a criterion that must not pass")(broken)  # type: ignore[arg-type]
    with pytest.raises((AssertionError, LookupError), match=complaint):
        TESTER.check("broken", "kernel", "local", torch.float32)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


@pytest.mark.parametrize("granularity", ["weight", "filter"])
@pytest.mark.parametrize("name", every_criterion())
def test_criterion_through_the_engine(name: str, granularity: str) -> None:
    """The engine supplies what a criterion declares, and removes exactly what was asked."""
    model = network()
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    technique = Technique(granularity, "local", name, "one_shot")
    torch.manual_seed(1)
    data = [(torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 2]))]
    sparsifier = Sparsifier(model, technique, sparsity=0.5, exclude="10", data=data)
    result = sparsifier.step(1.0)
    assert result.shortfall == 0
    weights = [(place, model[place].weight) for place in (0, 3, 6)]
    for place, weight in weights:
        mask = sparsifier.masks[f"{place}.weight"]
        assert int((~mask).sum()) == weight.numel() // 2
        assert bool((weight[~mask] == 0).all())
        if granularity == "filter":
            assert int(mask.flatten(1).any(1).sum()) == len(weight) // 2


def test_every_modifier_is_among_the_cases() -> None:
    for record in MODIFIERS:
        assert any(name.startswith(f"{record.name}(") for name in every_criterion())
