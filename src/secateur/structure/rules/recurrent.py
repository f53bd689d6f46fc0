"""Recurrent layers: gates are products ``(gates hidden)``, all layers share one hidden axis."""

from __future__ import annotations

from secateur.structure.rules.registry import Call, Dims, rule
from secateur.structure.terms import Term, product, total

_GATES = "the gates of a recurrent layer"


# A channel whose weights, biases and first state are zero is zero at all times: gates scale it.
@rule("lstm", "gru", "rnn_tanh", "rnn_relu", zero="carried")
def _recurrent(call: Call) -> list[Dims]:
    packed = "data" in call.arguments
    data = call.need("data" if packed else "input")
    gates = {"lstm": 4, "gru": 3}.get(call.name, 1)
    layers, both = call.get("num_layers"), 2 if call.get("bidirectional") else 1
    states = call.list_of("hx") if call.name == "lstm" else [call.need("hx")]
    weights = call.list_of("params")
    each = len(weights) // (layers * both)
    projected = call.name == "lstm" and each in (3, 5)
    hidden = Term(weights[0][0].size // gates)
    outward = Term(weights[1][1].size) if projected else hidden
    whole = total([outward] * both)
    for number in range(layers * both):
        mine = weights[number * each : (number + 1) * each]
        nodes = call.get("params")[number * each : (number + 1) * each]
        inputs = data[-1] if number < both else whole
        _layer(call, mine, inputs, (hidden, outward), gates, projected)
        read = (call.get("data" if packed else "input"),) if number < both else ()
        call.reduce_nodes(inputs, "contract", (*read, nodes[0]))
        call.reduce_nodes(outward, "contract", (nodes[1],))
        if projected:
            call.reduce_nodes(hidden, "contract", (nodes[-1],))
    batch = data[0 if call.get("batch_first") else 1]
    for state, width in zip(states, (outward, hidden), strict=False):
        call.unify(state[-1], width)
        if len(state) == 3:
            call.unify(state[1], call.data(state[1].size) if packed else batch)
        call.pin(state[0], "the layers of a recurrent network")
    for tensor in weights:
        if len(tensor) == 2:
            call.cost(*data[:-1], *tensor)
    return [[*data[:-1], whole], *(list(state) for state in states)]


def _layer(
    call: Call, mine: list[Dims], inputs: Term, widths: tuple[Term, Term], gates: int,
    projected: bool,
) -> None:  # fmt: skip
    """Unify the weights of one layer and direction with what they read and make."""
    hidden, outward = widths
    call.unify(mine[0][1], inputs)
    call.unify(mine[1][1], outward)
    for tensor in mine[:-1] if projected else mine:
        call.unify(tensor[0], product([call.fixed(gates, _GATES), hidden]))
    if projected:
        call.unify(mine[-1][0], outward)
        call.unify(mine[-1][1], hidden)


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", zero="carried")
def _cell(call: Call) -> list[Dims] | Dims:
    data, inward, across = call.need("input"), call.need("w_ih"), call.need("w_hh")
    states = call.list_of("hx") if call.name == "lstm_cell" else [call.need("hx")]
    hidden = across[1]
    gates = across[0].size // hidden.size
    for vector in (inward, across, call.dims("b_ih"), call.dims("b_hh")):
        if vector is not None:
            call.unify(vector[0], product([call.fixed(gates, _GATES), hidden]))
    call.unify(data[-1], inward[1])
    call.reduce(inward[1], "contract", ("input", "w_ih"))
    call.reduce(hidden, "contract", ("w_hh",))
    for state in states:
        call.unify(state[-1], hidden)
    call.cost(*data[:-1], *inward)
    call.cost(*data[:-1], *across)
    made = [*data[:-1], hidden]
    return [list(made) for _ in states] if call.several else made


@rule("_pack_padded_sequence", zero="carried")
def _pack(call: Call) -> list[Dims]:
    data = call.need("input")
    return [[call.data(call.shapes[0][0]), *data[2:]], [call.data(call.shapes[1][0])]]


@rule("_pad_packed_sequence", zero="carried")
def _unpack(call: Call) -> list[Dims]:
    data = call.need("data")
    steps = [call.data(size) for size in call.shapes[0][:2]]
    return [[*steps, *data[1:]], [call.data(call.shapes[1][0])]]
