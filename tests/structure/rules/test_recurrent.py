"""Recurrent layers: one hidden axis for all gates, layers and directions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from structure.axes import check, data, masked, same, taken, weights
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from secateur.structure.infer import held_terms, infer
from secateur.structure.record import record
from secateur.structure.terms import Term, leaves
from secateur.structure.zeros import Zeros


class Sequences(nn.Module):
    """A recurrent layer between two linear ones, which may pack what it is given."""

    def __init__(self, kind: Any, hidden: int, inputs: int, packed: bool, **options: Any) -> None:
        super().__init__()
        self.into = nn.Linear(5, inputs)
        self.rnn = kind(inputs, hidden, batch_first=True, **options)
        width = options.get("proj_size") or hidden
        self.read = nn.Linear(width * (2 if self.rnn.bidirectional else 1), 3)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        if not self.packed:
            return self.read(self.rnn(h)[0])
        lengths = torch.tensor([4, 2])
        made = self.rnn(pack_padded_sequence(h, lengths, batch_first=True))[0]
        return self.read(pad_packed_sequence(made, batch_first=True)[0])


OPTIONS = [
    *((kind, options) for kind in (nn.LSTM, nn.GRU, nn.RNN) for options in (
        {}, {"num_layers": 2}, {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True, "bias": False},
    )),
    (nn.RNN, {"nonlinearity": "relu"}),
    (nn.LSTM, {"proj_size": 4, "num_layers": 2}),
]  # fmt: skip


def sizes_of(model: Sequences) -> dict[str, int]:
    found = {"hidden": model.rnn.hidden_size, "inputs": model.rnn.input_size}
    return found | ({"proj_size": model.rnn.proj_size} if model.rnn.proj_size else {})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_hidden_units_go_from_all_gates(kind: Any, options: dict[str, Any], packed: bool) -> None:
    torch.manual_seed(0)
    model, x = Sequences(kind, 7, 6, packed, **options).double(), data(2, 4, 5)
    # Packing looks at the lengths, which are data.
    recording = record(model, (x,), real=packed)
    assert recording.failure is None
    findings = infer(recording)
    assert findings.unknown == {}
    held = held_terms(recording, findings)
    names = [name for name, _ in model.named_parameters()]
    free = {leaf for name in names for term in held[name] for leaf in leaves(term)
            if leaf.pinned is None}  # fmt: skip
    sizes = sizes_of(model)
    assert sorted(leaf.size for leaf in free) == sorted(sizes.values())
    for leaf in free:
        assert Zeros([recording.graph], findings).noticed(leaf, names) == []
        assert_removable(model, held, leaf, kind, options | {"packed": packed}, x)


@torch.no_grad()
def assert_removable(
    model: Sequences, held: Any, leaf: Term, kind: Any, options: dict[str, Any], x: Tensor
) -> None:
    gone, kept = [1, leaf.size - 1], [*range(1), *range(2, leaf.size - 1)]
    smaller = {name: len(kept) if size == leaf.size else size
               for name, size in sizes_of(model).items()}  # fmt: skip
    small = Sequences(kind, **{**options, **smaller}).double()
    for name, parameter in small.named_parameters():
        parameter.copy_(taken(model.get_parameter(name), held[name], {leaf: torch.tensor(kept)}))
    with_zeros = copy.deepcopy(model)
    for name, parameter in with_zeros.named_parameters():
        parameter.copy_(masked(parameter, held[name], leaf, gone))
    same(small(x), with_zeros(x))


@pytest.mark.parametrize("gates", [4, 3, 1])
def test_cells(gates: int) -> None:
    def code(toy: Any, x: Tensor) -> Tensor:
        h = x @ toy.into
        start = torch.zeros(len(x), toy.across.shape[1], dtype=x.dtype)
        given = (toy.inward, toy.across, toy.one, toy.two)
        if gates == 4:
            h = torch.lstm_cell(h, (start, start), *given)[0]
        else:
            cell = torch.gru_cell if gates == 3 else torch.rnn_tanh_cell
            h = cell(h, start, *given)
        return h @ toy.read

    rows = gates * 7
    held = weights(into=(5, 6), inward=(rows, 6), across=(rows, 7), one=(rows,), two=(rows,),
                   read=(7, 3))  # fmt: skip
    seen = check(code, held, data(2, 5), free=[6, 7])
    assert seen.written("across") == ("7 7" if gates == 1 else f"(!{gates} 7) 7")


def test_a_channel_without_weights_stays_zero() -> None:
    cell = nn.LSTM(5, 7).double()
    held = dict(cell.named_parameters())

    def code(toy: Any, x: Tensor) -> Tensor:
        start = torch.zeros(1, 2, toy.weight_hh_l0.shape[1], dtype=x.dtype)
        given = [getattr(toy, name) for name in held]
        return torch.lstm(x, (start, start), given, True, 1, 0.0, False, False, False)[0].sum(-1)

    check(code, held, data(4, 2, 5), free=[7])


def test_a_state_that_is_not_zero_shows() -> None:
    """Half of the first state stays in a channel that has no weights."""

    def code(toy: Any, x: Tensor, start: Tensor) -> Tensor:
        return torch.gru_cell(x, start @ toy.begin, toy.inward, toy.across).sum(1)

    held = weights(begin=(4, 7), inward=(21, 5), across=(21, 7))
    check(code, held, data(2, 5), data(2, 4), free=[7])

    def learned(toy: Any, x: Tensor) -> Tensor:
        start = torch.cat([toy.begin, toy.begin])
        return torch.gru_cell(x, start + 1, toy.inward, toy.across).sum(1)

    held = weights(begin=(1, 7), inward=(21, 5), across=(21, 7))
    check(learned, held, data(2, 5), free=[7], inexact=[7])
