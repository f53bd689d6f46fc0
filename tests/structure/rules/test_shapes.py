"""Views, joins and parts: every entry stays, and with it what it belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure.axes import check, data, look, weights
from torch import Tensor

Function = Callable[[Tensor], Tensor]

MOVED: dict[str, Function] = {
    "view": lambda h: h.view(2, -1, 2, h.shape[-1]).view(2, 4, h.shape[-1]),
    "reshape": lambda h: h.reshape(-1, h.shape[-1]).reshape(2, 4, -1),
    "flatten": lambda h: h.flatten(0, 1).unflatten(0, (2, 4)),
    "as another": lambda h: h.reshape_as(h.mT.mT).view_as(h),
    "permute": lambda h: h.permute(2, 0, 1).permute(1, 2, 0),
    "transpose": lambda h: h.transpose(0, 2).swapaxes(0, 2).swapdims(0, 1).transpose(1, 0),
    "adjoint": lambda h: h.mT.mH,
    "t": lambda h: h[0].t().t(),
    "all dimensions": lambda h: h[0].T.T,
    "movedim": lambda h: h.movedim(-1, 0).movedim([0, 1], [2, 0]),
    "unsqueeze": lambda h: h[:, None, ..., None].squeeze(-1).squeeze((1,)),
    "squeeze all": lambda h: h[:, None].squeeze(),
    "atleast": lambda h: torch.atleast_3d(torch.atleast_2d(h)),
    "slice": lambda h: h[:, 1:3],
    "slice with a step": lambda h: h[:, ::2],
    "nothing": lambda h: torch.cat([h, h[:, :0]], 1),
    "narrow": lambda h: h.narrow(1, 1, 2),
    "select": lambda h: h[:, 0],
    "split": lambda h: h.split(2, 1)[0] + h.split([1, 3], 1)[1][:, :2],
    "chunk": lambda h: h.chunk(2, 1)[1] * h.tensor_split(2, 1)[0],
    "unbind": lambda h: h.unbind(1)[2] + h.unbind(1)[0],
    "stack": lambda h: torch.stack([h, h * 2], 1).sum(1),
    "cat of rows": lambda h: torch.cat([h, h.relu()], 1),
    "hstack": lambda h: torch.hstack([h, h.relu()]),
    "vstack": lambda h: torch.vstack([h, h.relu()]),
    "concatenated": lambda h: torch.concat([h, torch.concatenate([h, h], 1)], 1).ravel().view(
        h.shape[0], -1, h.shape[2]),
    "vsplit": lambda h: h.vsplit(2)[0] + h.hsplit(2)[1].sum(1, keepdim=True),
    "roll of rows": lambda h: h.roll(1, 1),
    "flip of rows": lambda h: h.flip(1).flip(0),
    "flipud": lambda h: h.flipud(),
    "rot90 of rows": lambda h: h.rot90(1, (0, 1)),
    "expand": lambda h: h[:, :, None].expand(-1, -1, 3, -1).sum(2),
    "expand_as": lambda h: h[:1].expand_as(h),
    "broadcast_to": lambda h: h[:1].broadcast_to(3, 4, h.shape[-1]),
    "repeat of rows": lambda h: h.repeat(2, 3, 1),
    "tile": lambda h: h.tile(2, 1, 1),
    "repeat_interleave of rows": lambda h: h.repeat_interleave(3, 1),
    "pad of rows": lambda h: F.pad(h, (0, 0, 1, 2)),
    "real": lambda h: torch.view_as_real(torch.view_as_complex(torch.stack([h, h], -1)))[..., 0],
    "read as another type": lambda h: h.view(torch.int64).view(torch.float64),
    "diagonal of others": lambda h: h.diagonal(0, 0, 1).mT,
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_a_channel_is_followed_and_stays_zero(name: str) -> None:
    function = MOVED[name]
    check(lambda toy, x: function(x @ toy.made) @ toy.read,
          weights(made=(5, 6), read=(6, 3)), data(2, 4, 5), free=[6])  # fmt: skip
    check(lambda toy, x: function(x @ toy.made).sum(-1),
          weights(made=(5, 6)), data(2, 4, 5), free=[6])  # fmt: skip


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h[..., 2],
        lambda h: h.unbind(-1)[0],
        lambda h: h.roll(1, -1),
        lambda h: h.roll(1),
        lambda h: h.flip(-1),
        lambda h: h[0].fliplr(),
        lambda h: h.rot90(1, (1, 2)),
        lambda h: h[..., 1::4],
        lambda h: F.pad(h, (-1, -1)),
        lambda h: h.view(torch.int32),
    ],
)
def test_places_along_an_axis_pin_it(function: Function) -> None:
    seen = look(lambda toy, x: function(x @ toy.made), weights(made=(5, 6)), data(2, 4, 5))
    assert seen.written("made") == "!5 !6"


def test_a_view_splits_an_axis_and_joins_it_again() -> None:
    seen = check(
        lambda toy, x: (x @ toy.made).unflatten(-1, (3, 4)).transpose(1, 2).flatten(1) @ toy.read,
        weights(made=(5, 12), read=(12, 2)), data(2, 5), free=[3, 4], fits=False,
    )  # fmt: skip
    assert (seen.written("made"), seen.written("read")) == ("!5 (3 4)", "(4 3) !2")


def test_a_view_that_does_not_divide_pins() -> None:
    seen = look(lambda toy, x: (x @ toy.made).view(-1, 2, 6).mT.reshape(-1, 3, 4),
                weights(made=(5, 12)), data(2, 5))  # fmt: skip
    assert seen.sizes == []


def test_parts_of_a_concatenation() -> None:
    seen = check(
        lambda toy, x: torch.cat([x @ toy.one, x @ toy.two, x @ toy.one], -1) @ toy.read,
        weights(one=(5, 3), two=(5, 4), read=(10, 2)), data(2, 5), free=[3, 4],
    )  # fmt: skip
    assert seen.written("read") == "(3+4+3) !2"


def test_one_part_of_zeros_is_not_enough() -> None:
    check(lambda toy, x: torch.cat([x @ toy.made, (x @ toy.made).exp()]).sum(-1),
          weights(made=(5, 6)), data(2, 5), free=[6], inexact=[6])  # fmt: skip


@pytest.mark.parametrize("way", ["split", "slice", "from the end", "narrow", "unequal"])
def test_an_axis_is_parted(way: str) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        if way == "split":
            one, two = h.split([toy.one.shape[0], toy.two.shape[0]], -1)
        elif way == "narrow":
            one, two = h.narrow(-1, 0, len(toy.one)), h.narrow(-1, len(toy.one), len(toy.two))
        elif way == "from the end":
            one, two = h[..., : -len(toy.two)], h[..., -len(toy.two) :]
        elif way == "unequal":
            one, two = h.tensor_split([len(toy.one)], -1)
        else:
            one, two = h[..., : len(toy.one)], h[..., len(toy.one) :]
        return one @ toy.one * (two @ toy.two)

    seen = check(code, weights(made=(5, 7), one=(3, 2), two=(4, 2)), data(2, 5), free=[3, 4])
    assert seen.written("made") == "!5 (3+4)"


def test_pieces_that_meet_are_one_axis() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        value, gate = (x @ toy.made).chunk(2, -1)
        return value * gate.sigmoid() @ toy.read

    seen = check(code, weights(made=(5, 12), read=(6, 2)), data(2, 5), free=[6])
    assert seen.written("made") == "!5 (6+6)"
    seen = check(lambda toy, x: F.glu(x @ toy.made).sum(-1), weights(made=(5, 12)), data(2, 5),
                 free=[6])  # fmt: skip
    assert seen.written("made") == "!5 (6+6)"


def test_a_cut_within_a_group_pins() -> None:
    """A third of the channels cannot be half of the groups."""
    seen = look(lambda toy, x: (x @ toy.made).unflatten(-1, (4, 3)).flatten(-2)[..., :5],
                weights(made=(5, 12)), data(2, 5))  # fmt: skip
    assert seen.sizes == []


def test_shuffled_halves_are_one_axis() -> None:
    """Halves are joined, shuffled, halved again: a channel of either half is in both."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.cat([x @ toy.one, x @ toy.two], -1)
        h = h.unflatten(-1, (2, -1)).transpose(1, 2).flatten(1)
        return h @ toy.read

    seen = check(code, weights(one=(5, 6), two=(5, 6), read=(12, 2)), data(2, 5), free=[6])
    assert seen.written("read") == "(6 (1+1)) !2"


def test_zeros_in_the_place_of_channels_are_channels() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        after = toy.wide.shape[1] - h.shape[1] - 2
        return (F.pad(h, (2, after)) + x @ toy.wide).sum(-1)

    seen = check(code, weights(made=(5, 4), wide=(5, 9)), data(2, 5), free=[2, 3, 4], fits=False)
    assert seen.written("wide") == "!5 (2+4+3)"


def test_ones_in_the_place_of_channels_have_their_own_place() -> None:
    """Linear attention: a row of ones under the values gives what to divide by."""

    def code(toy: Any, x: Tensor) -> Tensor:
        v = F.pad(x @ toy.v, (0, 1), value=1.0)
        k = (x @ toy.k).relu()
        y = k @ (k.mT @ v)
        return y[..., :-1] / (y[..., -1:] + 1) @ toy.read

    seen = check(code, weights(v=(5, 6), k=(5, 4), read=(6, 2)), data(2, 3, 5), free=[4, 6])
    assert seen.written("v") == "!5 6"


def test_an_axis_that_comes_with_an_expansion_is_not_zero() -> None:
    """A single value, expanded to all channels, is no zero for any of them."""

    def code(toy: Any, x: Tensor) -> Tensor:
        return (x @ toy.made + toy.one.expand(toy.made.shape[1])).sum(-1)

    check(code, weights(made=(5, 6), one=(1,)), data(2, 5), free=[6], inexact=[6])
    other = weights(made=(5, 6)) | {"one": data(1)}
    for function in (
        lambda h, one: one.expand_as(h), lambda h, one: one.repeat(h.shape[-1]),
        lambda h, one: one.repeat_interleave(h.shape[-1]),
    ):  # fmt: skip
        check(lambda toy, x, f=function: (x @ toy.made + f(x @ toy.made, toy.one)).sum(-1),
              other, data(2, 5), free=[6], inexact=[6])  # fmt: skip


def test_repeats_are_factors() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        return h.repeat(1, 2) @ toy.one + h.repeat_interleave(4, 1) @ toy.two

    seen = check(code, weights(made=(5, 6), one=(12, 2), two=(24, 2)), data(2, 5),
                 free=[2, 4, 6], fits=False)  # fmt: skip
    assert (seen.written("one"), seen.written("two")) == ("(2 6) !2", "(6 4) !2")


def test_repeats_by_a_tensor_pin() -> None:
    seen = look(lambda toy, x: (x @ toy.made).repeat_interleave(torch.tensor([1, 2, 1]), 1),
                weights(made=(5, 3)), data(2, 5), real=True)  # fmt: skip
    assert "repeated by a tensor" in seen.reasons


def test_grids_of_coordinates() -> None:
    def code(toy: Any, x: Tensor, indexing: str) -> Tensor:
        one, two = torch.meshgrid(toy.rows, toy.columns, indexing=indexing)
        wide = one * two if indexing == "ij" else (one * two).t()
        return (x @ toy.made).unflatten(-1, wide.shape).mul(wide).flatten(1) @ toy.read

    held = weights(rows=(3,), columns=(4,), made=(5, 12), read=(12, 2))
    for indexing in ("ij", "xy"):
        seen = check(lambda toy, x, i=indexing: code(toy, x, i), held, data(2, 5), free=[3, 4],
                     fits=False)  # fmt: skip
        assert seen.written("read") == "(3 4) !2"


def test_broadcast_tensors() -> None:
    check(lambda toy, x: torch.broadcast_tensors(toy.scale, x @ toy.made)[1].sum(-1),
          weights(made=(5, 6), scale=(6,)), data(2, 5), free=[6], inexact=[6])  # fmt: skip


@pytest.mark.parametrize("way", ["halves", "pairs"])
def test_rotary_positions_turn_pairs_of_channels(way: str) -> None:
    def turn(h: Tensor, angles: Tensor) -> Tensor:
        if way == "halves":
            one, two = h.chunk(2, -1)
            angles, turned = torch.cat([angles, angles], -1), torch.cat([-two, one], -1)
        else:
            turned = torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2)
            angles = angles.repeat_interleave(2, -1)
        return h * angles.cos() + turned * angles.sin()

    def code(toy: Any, x: Tensor) -> Tensor:
        angles = torch.arange(4, dtype=x.dtype)[:, None] * toy.frequency
        q, k = turn(x @ toy.q, angles), turn(x @ toy.k, angles)
        return q @ k.mT @ x @ toy.read

    held = weights(q=(5, 14), k=(5, 14), read=(5, 3)) | {"frequency": data(7)}
    seen = check(code, held, data(2, 4, 5), free=[7])
    assert seen.written("q") == ("!5 (7+7)" if way == "halves" else "!5 (7 !2)")
    assert seen.written("frequency") == "7"


def test_a_slice_is_written_to() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.slice_scatter(x @ toy.wide, x @ toy.made, -1, 0, toy.made.shape[1])
        return torch.select_scatter(h, h[:, 1], 1, 0).sum(-1)

    seen = check(code, weights(wide=(5, 7), made=(5, 3)), data(2, 4, 5), free=[3, 4])
    assert seen.written("wide") == "!5 (3+4)"
