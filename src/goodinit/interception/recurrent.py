"""The weights of torch's recurrent operators, which are not linear in them: one matrix a gate, one below the other.

LSTM, for example: (i, f, g, o) = W_ih x + b_ih + W_hh h + b_hh, and with a projection h = W_hr (o tanh c). W_ih is of shape
(4 hidden, in), W_hh of (4 hidden, hidden or projection), W_hr of (projection, hidden), the biases of (4 hidden).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# The second of an LSTM's gates is the forget gate. Its bias is often 1 by design (Jozefowicz et al. 2015).
FORGET_GATE = 1


class GatedWeight(NamedTuple):
    """One weight of a recurrent layer."""

    weight: Tensor
    """(gates * hidden, in)."""
    gates: int
    bias: Tensor | None = None
    """(gates * hidden,)."""
    kept: int | None = None
    """The gate whose bias is the user's choice."""


_LAYERS = {torch.lstm: "lstm", torch.gru: "gru", torch.rnn_tanh: "rnn", torch.rnn_relu: "rnn"}
_CELLS = {torch.lstm_cell: "lstm", torch.gru_cell: "gru", torch.rnn_tanh_cell: "rnn", torch.rnn_relu_cell: "rnn"}
RECURRENT = frozenset(_LAYERS) | frozenset(_CELLS)


def gates_of_call(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[GatedWeight]:
    """The weights that a call of a recurrent operator is given, in their order: layer by layer, W_ih before W_hh before W_hr."""
    if function in _CELLS:
        given = [*args[2:], *(kwargs[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if name in kwargs)]
        yield from _gates(_CELLS[function], given, has_biases=len(given) > 2)
        return
    place = _place_of_weights(args)
    weights, has_biases, layers = args[place : place + 3]
    directions = 2 if args[place + 5] else 1
    each = len(weights) // (layers * directions)
    for start in range(0, len(weights), each):
        yield from _gates(_LAYERS[function], weights[start : start + each], has_biases=has_biases)


def without_dropout(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a recurrent operator with dropout between its layers switched off."""
    if function in _CELLS:
        return args
    place = _place_of_weights(args) + 3
    return (*args[:place], 0.0, *args[place + 1 :])


def gates_of_module(module: nn.Module) -> Iterator[GatedWeight]:
    """The weights of a recurrent module, in the order of `gates_of_call`."""
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return
    kind = "lstm" if isinstance(module, (nn.LSTM, nn.LSTMCell)) else "gru" if isinstance(module, (nn.GRU, nn.GRUCell)) else "rnn"
    for name, weight in module.named_parameters(recurse=False):
        if name.startswith("weight"):
            bias = getattr(module, name.replace("weight", "bias"), None)
            yield _one(kind, weight, bias, projection=name.startswith("weight_hr"))


def _place_of_weights(args: Sequence[Any]) -> int:
    """(input, hx, weights, has_biases, layers, dropout, …); packed sequences: (data, batch_sizes, hx, weights, …)."""
    return 2 if isinstance(args[3], bool) else 3


def _gates(kind: str, given: Sequence[Tensor | None], *, has_biases: bool) -> Iterator[GatedWeight]:
    """From W_ih, W_hh, then b_ih, b_hh if there are biases, then W_hr if there is a projection."""
    w_ih, w_hh = given[:2]
    b_ih, b_hh, *rest = given[2:] if has_biases else (None, None, *given[2:])
    for weight, bias, projection in ((w_ih, b_ih, False), (w_hh, b_hh, False), *((w, None, True) for w in rest)):
        if weight is not None:
            yield _one(kind, weight, bias, projection=projection)


def _one(kind: str, weight: Tensor, bias: Tensor | None, *, projection: bool) -> GatedWeight:
    if projection:
        return GatedWeight(weight, 1)
    return GatedWeight(weight, GATES[kind], bias, FORGET_GATE if kind == "lstm" else None)
