"""Inference over whole blocks: attention in its forms, gates, shuffles, mixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure.axes import check, data, look, spelled, weights
from torch import Tensor, nn

from secateur.structure.infer import held_terms, infer
from secateur.structure.record import record
from secateur.structure.rules import Findings
from secateur.structure.terms import find


def heads_of(h: Tensor, way: str) -> list[Tensor]:
    """Part a fused projection into query, key and value, (batch, heads, places, width) each."""
    batch, places, _ = h.shape
    if way == "unbind":
        return list(h.reshape(batch, places, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0))
    if way == "index":
        h = h.reshape(batch, places, 3, 4, -1).permute(2, 0, 3, 1, 4)
        return [h[0], h[1], h[2]]
    if way == "chunk":
        return [each.unflatten(-1, (4, -1)).transpose(1, 2) for each in h.chunk(3, -1)]
    return list(h.unflatten(-1, (4, -1)).transpose(1, 2).chunk(3, -1))


@pytest.mark.parametrize("way", ["unbind", "index", "chunk", "heads first"])
def test_a_fused_projection_has_heads_and_a_width(way: str) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        q, k, v = heads_of(x @ toy.qkv + toy.shift, way)
        y = (q @ k.mT * 0.3).softmax(-1) @ v
        return y.transpose(1, 2).flatten(2) @ toy.read

    held = weights(qkv=(2, 60), shift=(60,), read=(20, 2))
    free = [4, 5] if way in ("unbind", "index") else [4, 5, 5]
    seen = check(code, held, data(2, 7, 2), free=free, fits=False)
    wanted = {"chunk": "((4 5)+(4 5)+(4 5))", "heads first": "(4 (5+5+5))"}
    assert seen.written("shift") == wanted.get(way, "(!3 4 5)")
    assert seen.written("read") == "(4 5) !2"


def test_a_class_token_and_a_table_of_positions_carry_the_channels() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        tokens = F.conv2d(x, toy.patch, stride=2).flatten(2).mT
        tokens = torch.cat([toy.token.expand(len(x), -1, -1), tokens], 1) + toy.places
        mixed = (tokens @ tokens.mT).softmax(-1) @ tokens
        return mixed[:, 0] @ toy.head

    held = weights(patch=(6, 3, 2, 2), token=(1, 1, 6), places=(1, 5, 6), head=(6, 2))
    seen = check(code, held, data(2, 3, 4, 4), free=[6])
    assert (seen.written("token"), seen.written("places")) == ("1 !1 6", "1 (!1+(!2 !2)) 6")


def test_shifted_windows_with_a_bias_for_every_head() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = (x @ toy.into).roll((1, 1), (1, 2))
        windows = h.unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3).reshape(8, 4, -1)
        q, k, v = heads_of(windows @ toy.qkv, "unbind")
        bias = toy.table[toy.places.view(-1)].view(4, 4, -1).permute(2, 0, 1)[None]
        scale = toy.scale.clamp(max=4.0).exp()
        y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * scale + bias).softmax(-1) @ v
        y = y.transpose(1, 2).reshape(8, 4, -1) @ toy.out
        y = y.view(2, 2, 2, 2, 2, -1).transpose(2, 3).reshape(2, 4, 4, -1).roll((-1, -1), (1, 2))
        return (h + y) @ toy.read

    held = weights(into=(3, 7), qkv=(7, 60), table=(9, 4), scale=(4, 1, 1), out=(20, 7),
                   read=(7, 2)) | {"places": torch.arange(16).view(4, 4) % 9}  # fmt: skip
    seen = check(code, held, data(2, 4, 4, 3), free=[4, 5, 7], fits=False)
    assert (seen.written("table"), seen.written("scale")) == ("!9 4", "4 1 1")


def test_talking_heads_read_heads_and_make_others() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        q, k = ((x @ w).unflatten(-1, (3, -1)).transpose(1, 2) for w in (toy.q, toy.k))
        v = (x @ toy.v).unflatten(-1, (6, -1)).transpose(1, 2)
        scores = torch.einsum("bhqk,hg->bgqk", q @ k.mT, toy.talk).softmax(-1)
        scores = F.conv2d(scores, toy.again[..., None, None])
        return (scores @ v).transpose(1, 2).flatten(2) @ toy.read

    held = weights(q=(2, 12), k=(2, 12), v=(2, 42), talk=(3, 5), again=(6, 5), read=(42, 2))
    seen = check(code, held, data(2, 8, 2), free=[3, 4, 5, 6, 7], fits=False)
    assert (seen.written("q"), seen.written("talk")) == ("!2 (3 4)", "3 5")
    assert (seen.written("again"), seen.written("v")) == ("6 5", "!2 (6 7)")


def test_linear_attention_over_channels() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnc,ce->bne", x, w) for w in (toy.q, toy.k, toy.v))
        context = torch.einsum("bnd,bne->bde", k.relu(), v)
        scale = 1 / (torch.einsum("bnd,bd->bn", q.relu(), k.relu().sum(1)) + 1)
        return torch.einsum("bnd,bde,bn->bne", q.relu(), context, scale) @ toy.read

    check(code, weights(q=(2, 6), k=(2, 6), v=(2, 7), read=(7, 2)), data(2, 4, 2), free=[6, 7])


def test_channels_attend_to_channels() -> None:
    """Cross-covariance attention: channels of the query are those of the result's rows."""

    def code(toy: Any, x: Tensor) -> Tensor:
        q, k, v = x @ toy.q, x @ toy.k, x @ toy.v
        scores = (q.mT @ k).softmax(-1)
        return (scores @ v.mT).mT @ toy.read

    check(code, weights(q=(2, 6), k=(2, 7), v=(2, 7), read=(6, 2)), data(2, 4, 2), free=[6, 7],
          inexact=[7])  # fmt: skip


def test_squeeze_and_excitation() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made).relu()
        gate = F.conv2d(h.mean((2, 3), keepdim=True), toy.squeeze).relu()
        h = h * F.conv2d(gate, toy.excite, toy.shift).sigmoid()
        return F.conv2d(h, toy.read)

    held = weights(made=(6, 3, 1, 1), squeeze=(4, 6, 1, 1), excite=(6, 4, 1, 1), shift=(6,),
                   read=(2, 6, 1, 1))  # fmt: skip
    check(code, held, data(2, 3, 4, 4), free=[4, 6])


def test_split_attention_chooses_between_parts_of_a_group() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made).relu().unflatten(1, (2, -1))
        gap = h.sum(1).mean((2, 3), keepdim=True)
        attention = F.conv2d(F.conv2d(gap, toy.one).relu(), toy.two)
        attention = attention.view(len(x), 1, 2, -1).transpose(1, 2).softmax(1).flatten(1)
        mixed = (h * attention.view(len(x), 2, -1, 1, 1)).sum(1)
        return F.conv2d(mixed, toy.read)

    held = weights(made=(12, 3, 1, 1), one=(4, 6, 1, 1), two=(12, 4, 1, 1), read=(2, 6, 1, 1))
    seen = look(code, held, data(2, 3, 4, 4))
    assert (seen.written("made"), seen.written("two")) == ("(2 6) !3 !1 !1", "(2 6) 4 !1 !1")


def test_selective_kernels_stack_their_branches() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        paths = torch.stack([F.conv2d(x, toy.one), F.conv2d(x, toy.two, padding=1)], 1)
        gate = F.conv2d(paths.sum(1).mean((2, 3), keepdim=True), toy.squeeze)
        gate = F.conv2d(gate, toy.select).view(len(x), 2, -1, 1, 1).softmax(1)
        return F.conv2d((paths * gate).sum(1), toy.read)

    held = weights(one=(6, 3, 1, 1), two=(6, 3, 3, 3), squeeze=(4, 6, 1, 1),
                   select=(12, 4, 1, 1), read=(2, 6, 1, 1))  # fmt: skip
    seen = check(code, held, data(2, 3, 4, 4), free=[4, 6])
    assert seen.written("select") == "(!2 6) 4 !1 !1"


def test_tokens_are_mixed_by_place() -> None:
    """A mixer: the hidden width is free, the places are the data's."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.into
        h = h + F.linear(F.linear(h.mT, toy.up, toy.shift).relu(), toy.down).mT
        return h.mean(1) @ toy.read

    held = weights(into=(3, 6), up=(7, 4), shift=(7,), down=(4, 7), read=(6, 2))
    seen = check(code, held, data(2, 4, 3), free=[6, 7], inexact=[])
    assert (seen.written("up"), seen.written("down")) == ("7 !4", "!4 7")


def test_parts_of_many_widths_meet_a_grouped_layer() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = torch.cat([F.conv2d(x, toy.one), F.conv2d(x, toy.two)], 1)
        h = F.group_norm(h, 5)
        return F.conv2d(F.conv2d(h, toy.grouped, groups=5), toy.read)

    held = weights(one=(6, 3, 1, 1), two=(9, 3, 1, 1), grouped=(20, 3, 1, 1), read=(2, 20, 1, 1))
    seen = look(code, held, data(2, 3, 4, 4))
    assert (seen.written("one"), seen.written("two")) == ("(2 3) !3 !1 !1", "(3 3) !3 !1 !1")
    assert seen.written("grouped") == "((2+3) 4) 3 !1 !1"


def test_what_comes_out_and_what_goes_in_is_pinned() -> None:
    seen = look(lambda toy, x: {"one": [x @ toy.one], "two": (x @ toy.two @ toy.three,)},
                weights(one=(5, 6), two=(5, 7), three=(7, 2)), data(2, 5))  # fmt: skip
    assert seen.sizes == [7]
    assert [leaf.pinned and leaf.pinned.reason for leaf in seen.terms["one"]] == [
        "the model's input", "the model's output",
    ]  # fmt: skip


def test_constants_in_the_code_are_pinned() -> None:
    constant = torch.ones(6, dtype=torch.float64)
    seen = look(lambda toy, x: (x @ toy.made * constant).sum(-1), weights(made=(5, 6)), data(2, 5))
    assert "a constant in the code" in seen.reasons


def test_what_only_gives_a_shape_pins_nothing() -> None:
    """One channel is picked to count the places; its values are not read."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        count = h[..., -1].sort(-1)[0].shape[-1]
        return (h / count) @ toy.read

    check(code, weights(made=(5, 6), read=(6, 2)), data(2, 4, 5), free=[6])
    # On data the code may have looked at anything.
    assert look(code, weights(made=(5, 6), read=(6, 2)), data(2, 4, 5), real=True).sizes == []


def test_what_is_written_to_and_not_read_still_pins() -> None:
    """A view is zeroed: what it was taken from has changed."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        h[..., 0].zero_()
        return h @ toy.read

    seen = look(code, weights(made=(5, 6), read=(6, 2)), data(2, 4, 5))
    assert "one of it is picked by position" in seen.reasons


@dataclass
class Answer:
    logits: Tensor
    hidden: list[Tensor]


class Hidden:
    """Holds a tensor where nobody finds it."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_outputs_in_a_data_class_are_seen_and_where_none_are_all_is_pinned() -> None:
    held = weights(one=(5, 6), two=(6, 7), three=(7, 2))

    def code(toy: Any, x: Tensor, kind: Any) -> Any:
        h = x @ toy.one
        return kind(h @ toy.two @ toy.three, [h]) if kind is Answer else kind(h)

    assert look(lambda toy, x: code(toy, x, Answer), held, data(2, 5)).sizes == [7]
    assert look(lambda toy, x: code(toy, x, Hidden), held, data(2, 5)).sizes == []


class Heads(nn.Module):
    """A second head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.main, self.extra = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return (self.main(h), self.extra(h)) if self.training else self.main(h)


def test_several_recordings_share_what_the_model_holds() -> None:
    model, x = Heads(), (torch.zeros(2, 5),)
    findings, held = Findings(), {}
    infer(record(model, x), findings, held)
    assert set(held) == {"body.weight", "body.bias", "main.weight", "main.bias"}
    infer(record(model, x, training=True), findings, held)
    assert spelled(held["extra.weight"][1]) == "6"
    assert find(held["extra.weight"][1]) is find(held["body.weight"][0])


def test_terms_by_name() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    recording = record(model, (torch.zeros(2, 5),))
    held = held_terms(recording, infer(recording))
    assert set(held) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean",
                         "1.running_var", "2.weight", "2.bias"}  # fmt: skip
    assert spelled(held["1.running_var"][0]) == "6"


def test_a_batch_of_one_is_told_from_dimensions_of_one() -> None:
    """Recorded as it is, a batch of one would fit wherever there is a one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 6), nn.Linear(6, 3))
    recording = record(model, (torch.zeros(1, 5),))
    assert recording.doubled
    terms = held_terms(recording, infer(recording))
    assert spelled(terms["1.weight"][0]) == "6"
