"""Layers: what they read is added up, what they make is new; groups stay whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from structure.axes import check, data, look, weights
from torch import Tensor

CONVS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def image(channels: int, rank: int = 2, extent: int = 5) -> Tensor:
    return data(2, channels, *[extent] * rank)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution(rank: int) -> None:
    k = [3] * rank
    seen = check(
        lambda toy, x: CONVS[rank - 1](
            F.relu(CONVS[rank - 1](x, toy.made, toy.shift, padding=1)), toy.read, stride=2
        ),
        weights(made=(6, 4, *k), shift=(6,), read=(3, 6, *k)), image(4, rank), free=[6],
    )  # fmt: skip
    assert seen.reasons == {"a kernel's extent", "the model's input", "the model's output"}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution(rank: int) -> None:
    k = [2] * rank
    check(lambda toy, x: TRANSPOSED[rank - 1](
              F.relu(TRANSPOSED[rank - 1](x, toy.made, toy.shift)), toy.read),
          weights(made=(4, 6, *k), shift=(6,), read=(6, 3, *k)), image(4, rank, 3), free=[6],
    )  # fmt: skip


def test_a_convolution_with_a_bias_reads_what_the_last_one_made() -> None:
    """A bias that is no parameter lets a constant through, which the next layer does not read."""
    held = weights(made=(6, 4, 1, 1), read=(3, 6, 1, 1)) | {"shift": data(6)}
    check(lambda toy, x: F.conv2d(F.conv2d(x, toy.made, toy.shift), toy.read),
          held, image(4), free=[6])  # fmt: skip
    check(lambda toy, x: F.conv2d(x, toy.made, toy.shift).sum(1), held, image(4), free=[6],
          inexact=[6])  # fmt: skip


def test_depthwise_convolution_passes_the_axis_on() -> None:
    check(lambda toy, x: F.conv2d(
              F.conv2d(F.conv2d(x, toy.made), toy.each, groups=len(toy.each)), toy.read),
          weights(made=(6, 4, 1, 1), each=(6, 1, 3, 3), read=(3, 6, 1, 1)), image(4), free=[6],
    )  # fmt: skip


def test_depthwise_convolution_with_several_outputs_makes_products() -> None:
    seen = check(
        lambda toy, x: F.conv2d(
            F.conv2d(F.conv2d(x, toy.made), toy.each, toy.shift, groups=len(toy.made)), toy.read),
        weights(made=(6, 4, 1, 1), each=(18, 1, 3, 3), shift=(18,), read=(2, 18, 1, 1)), image(4),
        free=[3, 6],
    )  # fmt: skip
    assert seen.written("shift") == "(6 3)"


def test_grouped_convolution_has_three_axes() -> None:
    """Groups go whole; within them what is read and what is made go by themselves."""
    seen = check(
        lambda toy, x: F.conv2d(
            F.conv2d(F.conv2d(x, toy.made), toy.grouped,
                     groups=len(toy.made) // toy.grouped.shape[1]), toy.read),
        weights(made=(12, 4, 1, 1), grouped=(20, 3, 3, 3), read=(2, 20, 1, 1)), image(4),
        free=[3, 4, 5],
    )  # fmt: skip
    assert (seen.written("made"), seen.written("read")) == ("(4 3) !4 !1 !1", "!2 (4 5) !1 !1")


def test_grouped_transposed_convolution_has_three_axes() -> None:
    check(
        lambda toy, x: F.conv2d(
            F.conv_transpose2d(F.conv2d(x, toy.made), toy.grouped, toy.shift,
                               groups=toy.read.shape[1] // toy.grouped.shape[1]), toy.read),
        weights(made=(12, 4, 1, 1), grouped=(12, 5, 2, 2), shift=(20,), read=(2, 20, 1, 1)),
        image(4), free=[3, 4, 5],
    )  # fmt: skip


def test_channels_as_positions_pass_through_single_entries_only() -> None:
    """Three branches are stacked and joined by a convolution over channels as if in time."""

    def code(toy: Any, x: Tensor) -> Tensor:
        branches = torch.stack([x @ toy.one, x @ toy.two], 1)
        return F.conv1d(branches, toy.join).squeeze(1) @ toy.read

    held = weights(one=(5, 6), two=(5, 6), read=(6, 3))
    check(code, held | weights(join=(1, 2, 1)), data(2, 5), free=[6])
    seen = look(lambda toy, x: F.conv1d((x @ toy.one)[:, None], toy.join, padding=1)[:, 0]
                @ toy.read, held | weights(join=(1, 1, 3)), data(2, 5))  # fmt: skip
    assert seen.sizes == []
    assert "windows slide along it" in seen.reasons


def test_channel_attention_over_neighbours_pins_the_channels() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made)
        gate = F.conv1d(h.mean((2, 3))[:, None], toy.near, padding=1).sigmoid()
        return F.conv2d(h * gate.transpose(1, 2)[..., None], toy.read)

    held = weights(made=(6, 4, 1, 1), near=(1, 1, 3), read=(3, 6, 1, 1))
    assert look(code, held, image(4)).sizes == []


def test_an_image_that_is_a_parameter_has_pinned_extents() -> None:
    held = weights(table=(1, 4, 5, 5), read=(3, 4, 3, 3))
    seen = check(lambda toy, x: F.conv2d(x + toy.table, toy.read), held, image(4), free=[])
    assert seen.written("table") == "1 !4 !5 !5"


def test_a_patch_embedding_and_a_flat_head_read_images() -> None:
    check(lambda toy, x: F.linear(
              F.conv2d(x, toy.patch, stride=4).flatten(1), toy.read),
          weights(patch=(6, 3, 4, 4), read=(5, 24)), data(2, 3, 8, 8), free=[6],
    )  # fmt: skip


def test_weights_made_from_weights() -> None:
    """A standardised weight: its inputs are averaged over, so that they cannot go unnoticed."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.relu(F.conv2d(x, toy.first))
        own = F.batch_norm(toy.second.reshape(1, len(toy.second), -1), None, None,
                           toy.gain.flatten(), training=True, momentum=0.0)  # fmt: skip
        return F.conv2d(F.conv2d(h, own.reshape_as(toy.second), toy.shift), toy.third)

    seen = check(
        code, weights(first=(5, 4, 1, 1), second=(6, 5, 3, 3), gain=(6, 1, 1, 1), shift=(6,),
                      third=(3, 6, 1, 1)), image(4), free=[5, 6], inexact=[5],
    )  # fmt: skip
    assert seen.noticed(seen.axis(5)) == ["a norm averages over it"]


def test_weight_norm() -> None:
    check(lambda toy, x: F.linear(
              F.linear(x, torch._weight_norm(toy.v, toy.g, 0), toy.shift).relu(),
              torch._weight_norm(toy.w, toy.h, 0)),
          weights(v=(6, 5), g=(6, 1), shift=(6,), w=(3, 6), h=(3, 1)), data(2, 5),
          free=[6], fits=False)  # a direction of zeros has no length  # fmt: skip


def test_a_weight_chosen_by_the_input() -> None:
    """Experts are mixed: the weights' own axis of experts is met by what routes."""

    def code(toy: Any, x: Tensor) -> Tensor:
        share = (x @ toy.route).sigmoid()
        mixed = (share @ toy.experts.flatten(1)).unflatten(1, toy.experts.shape[1:])
        return torch.einsum("bi,bio->bo", x, mixed) @ toy.read

    held = weights(route=(5, 4), experts=(4, 5, 6), read=(6, 3))
    check(code, held, data(2, 5), free=[4, 6])


def test_one_weight_used_twice_and_in_slices() -> None:
    check(lambda toy, x: F.linear(F.linear(x, toy.w).relu(), toy.w.t()),
          weights(w=(6, 5)), data(2, 5), free=[6])  # fmt: skip
    seen = check(
        lambda toy, x: F.linear(F.linear(x, toy.w[:4]).relu(), toy.read[:, :4])
        + F.linear(F.linear(x, toy.w[4:]).tanh(), toy.read[:, 4:]),
        weights(w=(7, 5), read=(2, 7)), data(2, 5), free=[3, 4], fits=False,
    )  # fmt: skip
    assert (seen.written("w"), seen.written("read")) == ("(4+3) !5", "!2 (4+3)")


def test_a_tied_embedding_keeps_its_words_and_loses_channels() -> None:
    words = torch.randint(0, 9, (2, 4))
    seen = check(lambda toy, x: F.linear(
                     F.linear(F.embedding(x, toy.table), toy.made), toy.table),
                 weights(table=(9, 6), made=(6, 6)), words, free=[6])  # fmt: skip
    assert seen.written("table") == "!9 6"


def test_a_channel_of_zeros_in_a_table_is_zero() -> None:
    words = torch.randint(0, 9, (2, 4))
    check(lambda toy, x: F.embedding(x, toy.table).sum(-1), weights(table=(9, 6)), words, free=[6])


def test_a_table_looked_up_in_bags() -> None:
    words = torch.randint(0, 9, (2, 4))
    seen = check(lambda toy, x: F.embedding_bag(x, toy.table) @ toy.read,
                 weights(table=(9, 6), read=(6, 3)), words, free=[6])  # fmt: skip
    assert "looked up by index" in seen.reasons


def test_bilinear() -> None:
    check(lambda toy, x: F.linear(
              F.bilinear(x @ toy.one, x @ toy.two, toy.pair, toy.shift), toy.read),
          weights(one=(5, 4), two=(5, 3), pair=(6, 4, 3), shift=(6,), read=(2, 6)), data(2, 5),
          free=[3, 4, 6])  # fmt: skip


@pytest.mark.parametrize(
    "code",
    [
        lambda toy, x: x @ toy.made @ toy.read,
        lambda toy, x: torch.mm(torch.mm(x, toy.made), toy.read),
        lambda toy, x: torch.bmm((x @ toy.made)[None], toy.read[None])[0],
        lambda toy, x: torch.addmm(toy.start, torch.addmm(toy.shift, x, toy.made), toy.read),
        lambda toy, x: torch.baddbmm(toy.start, (x @ toy.made)[None], toy.read[None]),
        lambda toy, x: torch.addbmm(toy.start, (x @ toy.made)[:, None], toy.read.expand(2, -1, 3)),
        lambda toy, x: torch.einsum("ni,ic,co->no", x, toy.made, toy.read),
        lambda toy, x: torch.einsum("...c,co", x @ toy.made, toy.read),
        lambda toy, x: torch.tensordot(x @ toy.made, toy.read, 1),
        lambda toy, x: torch.tensordot(toy.made, x, ([0], [1])).t() @ toy.read,
        lambda toy, x: torch.inner(x @ toy.made, toy.read.t()),
        lambda toy, x: torch.mv(toy.read.t(), (x @ toy.made)[0]),
        lambda toy, x: torch.addmv(toy.start, toy.read.t(), (x @ toy.made)[1]),
        lambda toy, x: torch.dot((x @ toy.made)[0], toy.read[:, 0]),
        lambda toy, x: torch.vdot((x @ toy.made)[0], toy.read[:, 0]),
        lambda toy, x: torch.outer((x @ toy.made)[0], x[0]).t() @ toy.read,
    ],
)
def test_products_of_matrices(code: Any) -> None:
    held = weights(made=(5, 6), read=(6, 3), start=(3,), shift=(6,))
    check(code, held, data(2, 5), free=[6], fits=True)


def test_a_sum_and_a_product_is_zero_where_both_are() -> None:
    held = weights(made=(5, 6), shift=(6,))
    check(lambda toy, x: torch.addmm(toy.shift, x, toy.made).sum(1), held, data(2, 5), free=[6])
    plain = weights(made=(5, 6)) | {"shift": data(6)}
    check(lambda toy, x: torch.addmm(toy.shift, x, toy.made).sum(1), plain, data(2, 5), free=[6],
          inexact=[6])  # fmt: skip
    alike = weights(made=(5, 6), shift=(1,))
    check(lambda toy, x: torch.addmm(toy.shift, x, toy.made).sum(1), alike, data(2, 5), free=[6],
          inexact=[6])  # fmt: skip


def test_one_axis_both_added_over_and_passed_on_is_no_zero() -> None:
    """Channels attend to channels: a zero on the right leaves the rows of the left."""

    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        scores = (h.mT @ h).exp()
        return (scores @ h.mT).abs().sum(1)

    check(code, weights(made=(5, 6)), data(2, 4, 5), free=[6], inexact=[6])


def test_a_weight_that_only_reads_a_channel_does_not_make_it_zero() -> None:
    """What the data passes on is no zero for the sake of the weight."""

    def pairs(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.made
        return (h[:, :, None] * h[:, None, :]).exp()

    held = weights(made=(5, 6), read=(3, 6))
    check(lambda toy, x: F.linear(pairs(toy, x), toy.read).sum(1), held, data(2, 5), free=[6],
          inexact=[6])  # fmt: skip
    check(lambda toy, x: F.conv1d(pairs(toy, x), toy.read[..., None]).sum(2), held, data(2, 5),
          free=[6], inexact=[6])  # fmt: skip


def attention(toy: Any, x: Tensor, heads: int, scale: float | None = 0.3) -> Tensor:
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2)
               for each in (x @ toy.q, x @ toy.k, x @ toy.v))  # fmt: skip
    y = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return y.transpose(1, 2).flatten(2) @ toy.read


def test_attention_has_heads_and_two_widths() -> None:
    held = weights(q=(5, 12), k=(5, 12), v=(5, 28), read=(28, 3))
    seen = check(lambda toy, x: attention(toy, x, 4), held, data(2, 6, 5), free=[3, 4, 7],
                 fits=False)  # fmt: skip
    assert (seen.written("q"), seen.written("v")) == ("!5 (4 3)", "!5 (4 7)")
    check(lambda toy, x: F.scaled_dot_product_attention(x @ toy.q, x @ toy.k, x @ toy.v, scale=0.3)
          @ toy.read, held, data(2, 6, 5), free=[12, 28])  # fmt: skip


def test_the_default_scale_pins_the_width_it_depends_on() -> None:
    held = weights(q=(5, 12), k=(5, 12), v=(5, 28), read=(28, 3))
    seen = check(lambda toy, x: attention(toy, x, 4, None), held, data(2, 6, 5), free=[4, 7],
                 fits=False)  # fmt: skip
    assert "attention's default scale depends on its size" in seen.reasons


def test_a_zero_value_is_zero_and_a_zero_query_is_not() -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x @ toy.q, x @ toy.k, x @ toy.v, scale=1.0).sum(-1)

    check(code, weights(q=(5, 6), k=(5, 6), v=(5, 7)), data(2, 4, 5), free=[6, 7])

    def rows(toy: Any, x: Tensor) -> Tensor:
        """Channels are the queries."""
        q = (x @ toy.q).mT
        return F.scaled_dot_product_attention(q, x.mT @ toy.k, x.mT @ toy.v, scale=1.0).sum(1)

    check(rows, weights(q=(5, 6), k=(4, 4), v=(4, 7)), data(2, 4, 5), free=[6], inexact=[6])


@pytest.mark.parametrize("way", ["fused", "expanded", "interleaved"])
def test_queries_in_groups_share_a_key_and_a_value(way: str) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        q = (x @ toy.q).unflatten(-1, (6, 5)).transpose(1, 2)
        k, v = ((x @ w).unflatten(-1, (2, 5)).transpose(1, 2) for w in (toy.k, toy.v))
        if way == "expanded":
            k, v = (each[:, :, None].expand(-1, -1, 3, -1, -1).flatten(1, 2) for each in (k, v))
        if way == "interleaved":
            k, v = (each.repeat_interleave(3, 1) for each in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=way == "fused")
        return y.transpose(1, 2).flatten(2) @ toy.read

    seen = check(code, weights(q=(4, 30), k=(4, 10), v=(4, 10), read=(30, 7)), data(2, 8, 4),
                 free=[2, 3, 5, 5], fits=False)  # fmt: skip
    assert (seen.written("q"), seen.written("k")) == ("!4 (2 3 5)", "!4 (2 5)")


def test_a_mask_of_heads_and_a_causal_mask() -> None:
    def code(toy: Any, x: Tensor, causal: bool) -> Tensor:
        q, k, v = (each.unflatten(-1, (3, -1)).transpose(1, 2)
                   for each in (x @ toy.q, x @ toy.k, x @ toy.v))  # fmt: skip
        mask = None if causal else toy.bias
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=0.3)
        return y.transpose(1, 2).flatten(2) @ toy.read

    held = weights(q=(5, 12), k=(5, 12), v=(5, 21), read=(21, 2), bias=(3, 1, 6))
    seen = check(lambda toy, x: code(toy, x, False), held, data(2, 6, 5), free=[3, 4, 7],
                 fits=False)  # fmt: skip
    assert seen.written("bias") == "3 1 !6"
    check(lambda toy, x: code(toy, x, True), held, data(2, 6, 5), free=[3, 4, 7], fits=False)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped product")
def test_experts_are_told_apart_by_offsets() -> None:
    def code(toy: Any, x: Tensor, ends: Tensor) -> Tensor:
        h = torch._grouped_mm(x, toy.made, offs=ends).relu()
        return torch._grouped_mm(h, toy.read, offs=ends)

    held = {name: torch.nn.Parameter(each.detach().bfloat16())
            for name, each in weights(made=(2, 16, 24), read=(2, 24, 8)).items()}  # fmt: skip
    seen = look(code, held, data(8, 16).bfloat16(), torch.tensor([3, 8], dtype=torch.int32))
    assert seen.sizes == [24]
    assert seen.written("made") == "!2 !16 24"


def test_deformable_convolution() -> None:
    ops = pytest.importorskip("torchvision.ops")

    def code(toy: Any, x: Tensor) -> Tensor:
        h = F.conv2d(x, toy.made)
        where = F.conv2d(h, toy.offsets, padding=1)
        return F.conv2d(ops.deform_conv2d(h, where, toy.bent, toy.shift, padding=1), toy.read)

    held = weights(made=(6, 4, 1, 1), offsets=(18, 6, 3, 3), bent=(7, 6, 3, 3), shift=(7,),
                   read=(3, 7, 1, 1))  # fmt: skip
    check(code, held, image(4), free=[6, 7])


def test_costs_are_products_of_sizes() -> None:
    seen = look(lambda toy, x: F.conv2d(x, toy.w).flatten(1) @ toy.read,
                weights(w=(6, 4, 3, 3), read=(54, 5)), image(4))  # fmt: skip
    costs = [torch.Size(term.size for term in terms).numel()
             for several in seen.findings.costs.values() for terms in several]  # fmt: skip
    assert costs == [2 * 6 * 9 * 4 * 9, 2 * 54 * 5]
