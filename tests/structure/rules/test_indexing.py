"""Picking, placing and ordering: what is looked along is pinned, the rest goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from structure.axes import check, data, look, weights
from torch import Tensor

Function = Callable[[Tensor], Tensor]
ROWS = torch.tensor([2, 0, 0])

OTHERS: dict[str, Function] = {
    "index": lambda h: h[:, ROWS],
    "index by two": lambda h: h[torch.tensor([0, 1, 1]), ROWS],
    "index by a column and a row": lambda h: h[torch.tensor([[0], [1]]), ROWS],
    "index_select": lambda h: h.index_select(1, ROWS),
    "gather": lambda h: h.gather(1, ROWS[None, :, None].expand(2, -1, h.shape[-1])),
    "take_along_dim": lambda h: h.take_along_dim(ROWS[None, :, None], 1),
    "index_add": lambda h: h.index_add(1, ROWS, h[:, :3]),
    "index_copy": lambda h: h.index_copy(1, torch.tensor([1, 0]), h[:, 2:]),
    "tril of rows": lambda h: h.permute(2, 0, 1).tril().permute(1, 2, 0),
    "fft of rows": lambda h: torch.fft.fft(h, dim=1).real,
    "fft of images": lambda h: torch.fft.irfft2(torch.fft.rfft2(h, dim=(0, 1)), dim=(0, 1)),
    "differences of rows": lambda h: h.diff(dim=1),
    "shifted spectrum": lambda h: torch.fft.fftshift(h, 1),
}  # fmt: skip
ORDERED: dict[str, Function] = {
    "topk of rows": lambda h: h.topk(2, 1)[0],
    "sort of rows": lambda h: h.sort(1)[0],
    "msort": lambda h: h.msort(),
    "scatter of rows": lambda h: torch.zeros_like(h).scatter(
        1, h.argsort(1), h),
    "scatter_add of rows": lambda h: torch.zeros_like(h).scatter_add(1, h.argsort(1), h),
    "scatter_reduce of rows": lambda h: h.scatter_reduce(1, h.argsort(1), h, "sum"),
    "index_fill": lambda h: h.index_fill(1, ROWS, 1.0),
    "index_put": lambda h: h.index_put((torch.tensor([1]), torch.tensor([2])), h[:1, 0]),
}  # fmt: skip
PINNED: dict[str, Function] = {
    "index": lambda h: h[..., ROWS],
    "index_select": lambda h: h.index_select(-1, ROWS),
    "gather": lambda h: h.gather(-1, torch.zeros(2, 4, 1, dtype=torch.long)),
    "index_add": lambda h: h.index_add(-1, ROWS, h[..., :3]),
    "scatter": lambda h: h.scatter(-1, torch.zeros(2, 4, 6, dtype=torch.long), h),
    "topk": lambda h: h.topk(2)[0],
    "sort": lambda h: h.sort()[0],
    "argsort": lambda h: h.argsort(),
    "tril": lambda h: h.tril(),
    "diagonal": lambda h: h.diagonal(0, 1, 2),
    "fft": torch.fft.fft,
    "fft of all": torch.fft.fftn,
    "differences": lambda h: h.diff(),
    "cross product": lambda h: torch.linalg.cross(h[..., :3], h[..., 3:]),
    "histogram": lambda h: h.histc(3),
    "searched": lambda h: torch.searchsorted(h.cumsum(-1), h),
    "diagonal matrix": lambda h: h.diag_embed(),
    "taken": lambda h: h.take(ROWS),
    "trace": lambda h: h[0].trace(),
    "diagonal of a matrix": lambda h: h[0].diag(),
    "upper": lambda h: h.triu(),
    "buckets": lambda h: torch.bucketize(h, h[0, 0].cumsum(-1)),
    "drawn": lambda h: h.exp()[0].multinomial(2),
    "along blocks": lambda h: torch.block_diag(h[0], h[1]),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_channel_is_followed_and_stays_zero(name: str) -> None:
    function = OTHERS[name]
    check(lambda toy, x: function(x @ toy.made).sum(-1), weights(made=(5, 6)), data(2, 4, 5),
          free=[6])  # fmt: skip


@pytest.mark.parametrize("name", ORDERED)
def test_a_channel_is_followed_where_zeros_are_not(name: str) -> None:
    function = ORDERED[name]
    check(lambda toy, x: function(x @ toy.made) @ toy.read, weights(made=(5, 6), read=(6, 3)),
          data(2, 4, 5), free=[6])  # fmt: skip


@pytest.mark.parametrize("name", ORDERED)
def test_what_is_placed_may_be_something_else_than_zero(name: str) -> None:
    function = ORDERED[name]
    seen = look(lambda toy, x: function(x @ toy.made).sum(-1), weights(made=(5, 6)), data(2, 4, 5))
    assert seen.inexact == [6]


@pytest.mark.parametrize("name", PINNED)
def test_what_is_looked_along_is_pinned(name: str) -> None:
    function = PINNED[name]
    seen = look(lambda toy, x: function(x @ toy.made), weights(made=(5, 6)), data(2, 4, 5))
    assert seen.sizes == []
    assert seen.findings.unknown == {}


def test_the_rows_of_an_index_tensor_are_those_of_the_result() -> None:
    """As a table of positions that a buffer looks up, for every head."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = (x @ toy.made).unflatten(-1, (3, 4)).transpose(1, 2)
        bias = toy.table[toy.places.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        return ((h @ h.mT + bias).softmax(-1) @ h).transpose(1, 2).flatten(2) @ toy.read

    places = torch.arange(25).view(5, 5) % 9
    held = weights(made=(2, 12), table=(9, 3), read=(12, 2)) | {"places": places}
    seen = check(code, held, data(2, 5, 2), free=[3, 4], fits=False)
    assert seen.written("table") == "!9 3"
    assert seen.written("places") == "!5 !5"


def test_an_index_tensor_with_a_free_axis_goes_along() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        return (x @ toy.made + toy.table[toy.places]) @ toy.read

    held = weights(made=(5, 6), table=(9,), read=(6, 2)) | {"places": torch.arange(6)}
    seen = check(code, held, data(2, 5), free=[6])
    assert seen.written("places") == "6"


def test_a_mask_pins_what_it_picks_from() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        return (x @ toy.made)[torch.tensor([[True, False], [True, True]])] @ toy.read

    check(code, weights(made=(5, 6), read=(6, 3)), data(2, 2, 5), free=[6], real=True)
    seen = look(lambda toy, x: (x @ toy.made)[:, toy.kept], weights(made=(5, 6))
                | {"kept": torch.arange(6) > 2}, data(2, 5), real=True)  # fmt: skip
    assert (seen.written("made"), seen.written("kept")) == ("!5 !6", "!6")


def test_places_found_in_data_pin_what_they_are_found_in() -> None:
    seen = look(
        lambda toy, x: (x @ toy.made).nonzero(), weights(made=(5, 6)), data(2, 5), real=True
    )
    assert "nonzero picks entries by position" in seen.reasons


def test_one_hot_keeps_where_it_was_asked() -> None:
    classes = torch.randint(0, 9, (2, 4))
    seen = check(
        lambda toy, x: torch.nn.functional.one_hot(x, 9).double() @ toy.table @ toy.read,
        weights(table=(9, 6), read=(6, 3)), classes, free=[6], real=True,
    )  # fmt: skip
    assert seen.written("table") == "!9 6"
