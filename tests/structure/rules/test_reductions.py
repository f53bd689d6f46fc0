"""Sums, means, norms: what is taken together, and whether zeros in it go unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure.axes import check, data, look, weights
from torch import Tensor

Function = Callable[[Tensor], Tensor]

UNNOTICED: dict[str, Function] = {
    "sum": lambda h: h.sum(-1),
    "sum of all": lambda h: h.sum(),
    "sum kept": lambda h: h.sum(1, keepdim=True),
    "sum of nothing odd": lambda h: h.nansum(-1),
    "norm": lambda h: h.norm(dim=-1),
    "norm 1": lambda h: torch.linalg.vector_norm(h, 1, dim=-1),
    "norm 3": lambda h: h.norm(3, dim=-1),
    "largest": lambda h: torch.linalg.vector_norm(h, float("inf"), dim=-1),
    "how many": lambda h: torch.linalg.vector_norm(h, 0, dim=-1),
    "frobenius": torch.linalg.matrix_norm,
    "of all": torch.linalg.norm,
    "of columns": lambda h: torch.linalg.norm(h, 1, dim=1),
    "nuclear": lambda h: torch.linalg.norm(h, "nuc"),
    "any": lambda h: h.any(-1),
    "count": lambda h: h.count_nonzero(-1),
    "normalised": lambda h: F.normalize(h, dim=-1).sum(-1),
    "alike": lambda h: F.cosine_similarity(h, h.tanh(), dim=-1),
    "far": lambda h: torch.cdist(h, h.tanh()),
    "added up": lambda h: h.t().cumsum(1).sum(0),
    "products on the way": lambda h: h.t().cumprod(1).sum(0),
    "greatest on the way": lambda h: h.t().cummax(1)[0].sum(0),
    "least on the way": lambda h: h.t().cummin(1)[0].sum(0),
    "mean of others": lambda h: h.mean(0).sum(),
    "greatest of others": lambda h: h.amax(0).sum(),
    "middle of others": lambda h: h.median(0)[0].sum(),
    "spread of others": lambda h: h.std(0).sum(),
    "spread and mean of others": lambda h: torch.stack([e.sum() for e in torch.var_mean(h, 0)]),
    "product of others": lambda h: h.prod(0).sum(),
}
NOTICED: dict[str, Function] = {
    "mean": lambda h: h.mean(-1),
    "mean of all": lambda h: h.mean(),
    "greatest": lambda h: h.amax(-1),
    "least": lambda h: h.amin(-1),
    "both": lambda h: torch.stack(torch.aminmax(h, dim=-1)),
    "greatest and where": lambda h: h.max(-1)[0],
    "greatest of all": lambda h: h.max(),
    "middle": lambda h: h.median(-1)[0],
    "middle but for nan": lambda h: h.nanmedian(-1)[0],
    "most frequent": lambda h: h.mode(-1)[0],
    "least and where": lambda h: h.min(-1)[0],
    "mean but for nan": lambda h: h.nanmean(-1),
    "product": lambda h: h.prod(-1),
    "spread": lambda h: h.std(-1),
    "variance": lambda h: h.var(-1),
    "norm -1": lambda h: torch.linalg.vector_norm(h, -1, dim=-1),
    "smallest": lambda h: torch.linalg.vector_norm(h, -float("inf"), dim=-1),
    "all": lambda h: h.all(-1),
    "log of sum of exp": lambda h: h.logsumexp(-1),
    "log of sum of exp of others": lambda h: h.logsumexp(0).sum(),
    "third": lambda h: h.kthvalue(3, -1)[0],
    "log of sum of exp on the way": lambda h: h.t().logcumsumexp(1).sum(0),
    "softmax of others": lambda h: h.softmax(0).sum(1),
}  # fmt: skip


@pytest.mark.parametrize("name", UNNOTICED)
def test_zeros_go_unnoticed(name: str) -> None:
    function = UNNOTICED[name]
    check(lambda toy, x: function(x @ toy.made), weights(made=(5, 6)), data(4, 5), free=[6])


@pytest.mark.parametrize("name", NOTICED)
def test_zeros_are_noticed(name: str) -> None:
    function = NOTICED[name]
    check(lambda toy, x: function(x @ toy.made), weights(made=(5, 6)), data(4, 5), free=[6],
          inexact=[6])  # fmt: skip


@pytest.mark.parametrize("function", [Tensor.argmax, Tensor.argmin])
def test_where_the_greatest_is_hangs_on_places(function: Any) -> None:
    seen = look(lambda toy, x: function(x @ toy.made, -1), weights(made=(5, 6)), data(4, 5))
    assert seen.inexact == [6]


@pytest.mark.parametrize("function", [torch.softmax, torch.log_softmax])
def test_softmax(function: Any) -> None:
    check(lambda toy, x: function(x @ toy.made, -1) @ toy.read,
          weights(made=(5, 6), read=(6, 3)), data(4, 5), free=[6], inexact=[6])  # fmt: skip
    check(lambda toy, x: function(x @ toy.made, 0) @ toy.read,
          weights(made=(5, 6), read=(6, 3)), data(4, 5), free=[6])  # fmt: skip


@pytest.mark.parametrize("name", ["cumsum", "cumprod", "logcumsumexp"])
def test_running_along_an_axis_pins_it(name: str) -> None:
    seen = look(lambda toy, x: getattr(torch, name)(x @ toy.made, -1) @ toy.read,
                weights(made=(5, 6), read=(6, 3)), data(4, 5))  # fmt: skip
    assert seen.sizes == []
    assert f"{name} along it" in seen.reasons


def statistics(width: int = 6) -> dict[str, Tensor]:
    return {"mean": data(width), "var": data(width, seed=3).abs() + 0.5}


NORM = {"scale": (6,), "shift": (6,)}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_batch_norm_carries_the_channels(rank: int) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.einsum("ni...,ic->nc...", x, toy.made)
        return F.batch_norm(h, toy.mean, toy.var, toy.scale, toy.shift).relu().sum(1)

    seen = check(
        code, weights(made=(5, 6), **NORM) | statistics(), data(4, 5, *[3] * rank), free=[6]
    )
    assert seen.written("mean") == "6"


def test_batch_norm_without_a_scale_moves_zeros() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        return F.batch_norm(x @ toy.made, toy.mean, toy.var).sum(1)

    check(code, weights(made=(5, 6)) | statistics(), data(4, 5), free=[6], inexact=[6])


def test_statistics_of_the_batch_leave_zeros_where_they_are() -> None:
    check(lambda toy, x: F.batch_norm(x @ toy.made, None, None, training=True).sum(1),
          weights(made=(5, 6)), data(4, 5), free=[6])  # fmt: skip
    check(lambda toy, x: F.batch_norm(x @ toy.made, None, None, None, toy.shift, True).sum(1),
          weights(made=(5, 6), shift=(6,)), data(4, 5), free=[6], inexact=[6])  # fmt: skip


def test_instance_norm() -> None:
    def code(toy: Any, x: Tensor, *scale: Tensor) -> Tensor:
        h = torch.einsum("ni...,ic->nc...", x, toy.made)
        return F.instance_norm(h, None, None, *scale).sum(1)

    x = data(4, 5, 7)
    check(code, weights(made=(5, 6)), x, free=[6])
    check(lambda toy, x: code(toy, x, toy.scale, toy.shift), weights(made=(5, 6), **NORM), x,
          free=[6])  # fmt: skip

    def stored(toy: Any, x: Tensor) -> Tensor:
        h = torch.einsum("ni...,ic->nc...", x, toy.made)
        return F.instance_norm(h, toy.mean, toy.var, use_input_stats=False).sum(1)

    check(stored, weights(made=(5, 6)) | statistics(), x, free=[6], inexact=[6])


def test_group_norm_has_groups_that_go_whole() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.einsum("ni...,ic->nc...", x, toy.made)
        groups = toy.scale.shape[0] // 4
        return F.group_norm(h, groups, toy.scale, toy.shift).sum(1)

    held = weights(made=(5, 12), scale=(12,), shift=(12,))
    seen = check(code, held, data(2, 5, 7), free=[3, 4], inexact=[4], fits=False)
    assert seen.written("scale") == "(3 4)"
    assert seen.noticed(seen.axis(4)) == ["a norm averages over it"]


@pytest.mark.parametrize(("groups", "inexact"), [(1, [6]), (6, [])])
def test_group_norm_with_one_group_and_with_all(groups: int, inexact: list[int]) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.einsum("ni...,ic->nc...", x, toy.made)
        count = 1 if groups == 1 else len(toy.scale)
        return F.group_norm(h, count, toy.scale, toy.shift).sum(1)

    check(code, weights(made=(5, 6), **NORM), data(2, 5, 7), free=[6], inexact=inexact)


def test_group_norm_without_a_scale_moves_zeros() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        return F.group_norm(torch.einsum("nil,ic->ncl", x, toy.made), 3).sum(1)

    check(code, weights(made=(5, 12)), data(2, 5, 7), free=[3, 4], inexact=[3, 4], fits=False)


@pytest.mark.parametrize("scaled", [True, False])
def test_layer_norm_averages_over_the_channels(scaled: bool) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        given = (toy.scale, toy.shift) if scaled else ()
        return F.layer_norm(h, h.shape[-1:], *given) @ toy.read

    held = weights(made=(5, 6), read=(6, 3), **NORM)
    seen = check(code, held, data(2, 4, 5), free=[6], inexact=[6])
    assert seen.noticed(seen.axis(6)) == ["a norm averages over it"]


def test_layer_norm_of_others_keeps_zeros_only_where_it_is_not_shifted() -> None:
    def code(toy: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return F.layer_norm((x @ toy.made).mT, (4,), scale, shift).sum(1)

    held = weights(made=(5, 6), scale=(4,), shift=(4,))
    x = data(2, 4, 5)
    check(lambda toy, x: code(toy, x, toy.scale, None), held, x, free=[6])
    check(lambda toy, x: code(toy, x, toy.scale, toy.shift), held, x, free=[6], inexact=[6])


def test_rms_norm_is_the_same_but_for_its_size() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        return F.rms_norm(h, h.shape[-1:], toy.scale) @ toy.read

    check(code, weights(made=(5, 6), scale=(6,), read=(6, 3)), data(2, 4, 5), free=[6],
          inexact=[6])  # fmt: skip
    check(lambda toy, x: F.rms_norm((x @ toy.made).mT, (4,)).sum(1), weights(made=(5, 6)),
          data(2, 4, 5), free=[6])  # fmt: skip


def test_two_dimensions_are_normed_together() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.einsum("nab,ac,bd->ncd", x, toy.left, toy.right)
        h = F.layer_norm(h, h.shape[1:], toy.scale, toy.shift)
        return h.flatten(1) @ toy.read

    held = weights(left=(3, 5), right=(4, 6), scale=(5, 6), shift=(5, 6), read=(30, 2))
    check(code, held, data(2, 3, 4), free=[5, 6], inexact=[5, 6])


@pytest.mark.parametrize(
    "distance", [F.pairwise_distance, lambda a, b: F.local_response_norm(a, 3)]
)
def test_neighbours_and_small_constants_pin(distance: Any) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        return distance(h, h.tanh())

    assert look(code, weights(made=(5, 6)), data(2, 4, 5)).sizes == []
