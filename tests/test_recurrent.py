"""Recurrent layers: drawn gate by gate, nothing scaled, biases zero but for the forget gate's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from goodinit import lsuv_
from nets import assert_same

# torch says so once, of the first LSTM with a projection.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

IN, HIDDEN = 12, 8
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

LAYERS = {
    "LSTM": lambda: nn.LSTM(IN, HIDDEN, 2, dropout=0.5),
    "LSTM, bidirectional": lambda: nn.LSTM(IN, HIDDEN, bidirectional=True),
    "LSTM, projection": lambda: nn.LSTM(IN, HIDDEN, 2, proj_size=5),
    "LSTM, projection without bias": lambda: nn.LSTM(IN, HIDDEN, bias=False, proj_size=5),
    "GRU": lambda: nn.GRU(IN, HIDDEN, 2),
    "GRU, no bias": lambda: nn.GRU(IN, HIDDEN, bias=False),
    "RNN": lambda: nn.RNN(IN, HIDDEN),
    "RNN, ReLU": lambda: nn.RNN(IN, HIDDEN, nonlinearity="relu"),
}
CELLS = {
    "LSTM": lambda: nn.LSTMCell(IN, HIDDEN),
    "GRU": lambda: nn.GRUCell(IN, HIDDEN),
    "RNN": lambda: nn.RNNCell(IN, HIDDEN),
    "RNN, ReLU": lambda: nn.RNNCell(IN, HIDDEN, nonlinearity="relu"),
}
MODULES = LAYERS | {f"{name} cell": build for name, build in CELLS.items()}


class Net(nn.Module):
    """A linear layer, and the recurrent one if it is used."""

    def __init__(self, recurrent, *, used=True):
        super().__init__()
        self.first, self.recurrent, self.used = nn.Linear(6, IN), recurrent, used

    def forward(self, x):
        hidden = self.first(x)
        return self.recurrent(hidden) if self.used else hidden


def data(name):
    return torch.randn(10, 6) if "cell" in name else torch.randn(9, 10, 6)


def packed(model, x):
    return model.recurrent(nn.utils.rnn.pack_padded_sequence(model.first(x), torch.tensor([9, 7, 4, *[2] * 7])))


def check(module, gates):
    """Every gate is orthonormal, by itself; of the biases only the forget gate's are left."""
    for name, p in module.named_parameters():
        if "weight" in name:
            for gate in p.detach().chunk(1 if "weight_hr" in name else gates):
                gram = gate.T @ gate if gate.shape[0] >= gate.shape[1] else gate @ gate.T
                assert torch.allclose(gram, torch.eye(len(gram)), atol=1e-5), name
        else:
            for i, gate in enumerate(p.detach().chunk(gates)):
                assert bool(gate.any()) == (gates == 4 and i == 1), name


USES = [*((name, how) for name in MODULES for how in ("used", "unused")), *((name, "packed") for name in LAYERS)]


@pytest.mark.parametrize(("name", "how"), USES)
def test_orthonormal_gate_by_gate_and_not_scaled(name, how):
    torch.manual_seed(0)
    model = Net(MODULES[name](), used=how != "unused")
    forget = {k: p.detach().chunk(4)[1].clone() for k, p in model.recurrent.named_parameters() if "bias" in k and "LSTM" in name}
    report = lsuv_(model, data(name), forward=packed if how == "packed" else None)
    weights = [n for n, _ in model.named_parameters() if n.startswith("recurrent.weight")]
    assert {r.name for r in report} == {"first.weight", *weights}
    assert report.records[0].status == "scaled"
    for r in report.records[1:]:
        assert (r.std_before, r.std_after, r.factor) == (None, None, 1.0)
        assert r.status == ("unused" if how == "unused" else "recurrent")
    check(model.recurrent, GATES[name.partition(" ")[0].strip(",")])
    for k, kept in forget.items():
        assert torch.equal(model.recurrent.get_parameter(k).detach().chunk(4)[1], kept)


@pytest.mark.parametrize("name", MODULES)
def test_kept_with_pre_init_none(name):
    model = Net(MODULES[name]())
    kept = {k: p.detach().clone() for k, p in model.recurrent.named_parameters()}
    report = lsuv_(model, data(name), pre_init=None)
    assert {r.status for r in report} == {"scaled", "recurrent"}
    assert_same({k: p.detach() for k, p in model.recurrent.named_parameters()}, kept)


def test_frozen_and_skipped_weights_keep_their_values():
    model = Net(nn.LSTM(IN, HIDDEN))
    lstm = model.recurrent
    lstm.weight_ih_l0.requires_grad_(requires_grad=False)
    kept = {k: p.detach().clone() for k, p in lstm.named_parameters()}
    report = lsuv_(model, data("LSTM"), skip="recurrent.weight_hh_l0")
    assert {r.name: r.status for r in report.records[1:]} == {
        "recurrent.weight_ih_l0": "frozen",
        "recurrent.weight_hh_l0": "skipped",
    }
    assert_same({k: p.detach() for k, p in lstm.named_parameters()}, kept)


def test_dropout_between_layers_is_off():
    model, seen = Net(nn.LSTM(IN, HIDDEN, 2, dropout=0.5)), []
    x = data("LSTM")
    lsuv_(model, x, forward=lambda m, d: seen.append(m(d)[0]))
    assert torch.allclose(seen[0], model.eval()(x)[0], atol=1e-6)


def test_what_comes_after_sees_the_drawn_layer():
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": nn.LSTM(6, HIDDEN), "head": nn.Linear(HIDDEN, 4)})
    forward = lambda m, d: m["head"](m["lstm"](d)[0])
    x = torch.randn(9, 10, 6)
    lsuv_(model, x, forward=forward)
    with torch.no_grad():
        assert forward(model, x).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_weights_are_put_back_on_failure():
    model = Net(nn.GRU(IN, HIDDEN))
    kept = {k: p.detach().clone() for k, p in model.named_parameters()}

    def forward(m, d):
        m(d)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        lsuv_(model, data("GRU"), forward=forward)
    assert_same({k: p.detach() for k, p in model.named_parameters()}, kept)


def test_a_cell_unrolled_by_linear_layers_is_scaled():
    torch.manual_seed(0)
    model = nn.ModuleDict({"into": nn.Linear(6, HIDDEN), "back": nn.Linear(HIDDEN, HIDDEN)})

    def forward(m, d):
        state = torch.tanh(m["into"](d[0]))
        for x in d[1:]:
            state = torch.tanh(m["into"](x) + m["back"](state))

    assert {r.status for r in lsuv_(model, torch.randn(9, 10, 6), forward=forward)} == {"shared"}
