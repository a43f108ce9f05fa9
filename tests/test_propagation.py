"""What `measure` measures, against sums done by hand; and that it changes nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from goodinit import DataError, ModelError, lsuv_
from goodinit.propagation import measure


def test_both_stds_are_those_of_the_outputs_with_bias():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))
    x = 3 * torch.randn(50, 1, 8, 8)
    conv = model[0](x)
    linear = model[3](conv.relu().flatten(1))
    signals = measure(model, x)
    assert [(s.name, s.operator) for s in signals] == [("0.weight", "conv2d"), ("3.weight", "linear")]
    for signal, output in zip(signals, (conv, linear), strict=True):
        assert signal.std == pytest.approx(output.std(correction=0).item(), rel=1e-5)
        deviations = output - output.mean(dim=0)
        assert signal.sample_std == pytest.approx(deviations.square().mean().sqrt().item(), rel=1e-5)


def test_what_varies_only_by_bias_does_not_vary_between_samples():
    layer = nn.Linear(3, 4)
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    (signal,) = measure(layer, torch.randn(20, 3))
    assert (signal.std, signal.sample_std) == (1.0, 0.0)


def test_a_batch_of_one_has_no_std_between_samples():
    (signal,) = measure(nn.Linear(3, 4), torch.randn(1, 3))
    assert signal.std > 0
    assert signal.sample_std == 0


class Twice(nn.Module):
    """Runs its layers in another order than it holds them, one twice and one never."""

    def __init__(self):
        super().__init__()
        self.late, self.never, self.early = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.early(10 * self.late(self.early(x)))


def test_first_uses_in_call_order():
    model, x = Twice(), torch.randn(100, 4)
    signals = measure(model, x)
    assert [s.name for s in signals] == ["early.weight", "late.weight"]
    assert signals[0].std == pytest.approx(model.early(x).std(correction=0).item(), rel=1e-5)


def test_complex_and_16_bit_outputs():
    for dtype in (torch.complex64, torch.bfloat16):
        layer = nn.Linear(16, 16, dtype=dtype)
        x = torch.randn(64, 16, dtype=dtype)
        (signal,) = measure(layer, x)
        assert signal.std == pytest.approx(
            layer(x).to(torch.promote_types(dtype, torch.float32)).std(correction=0).item(), rel=0.01
        )
        assert 0 < signal.sample_std < signal.std


def test_names_and_stds_agree_with_the_report_of_lsuv():
    model = nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 3))
    x = torch.randn(32, 5, 8)
    report = lsuv_(model, x)
    signals = measure(model, x)
    assert [s.name for s in signals] == [r.name for r in report]
    assert [s.std for s in signals] == pytest.approx([r.std_after for r in report], rel=1e-4)


@pytest.mark.parametrize("kind", ["loader", "tuple", "mapping", "forward"])
def test_data_in_every_form(kind):
    model, x, y = nn.Linear(4, 2), torch.randn(16, 4), torch.zeros(16)
    expected = measure(model, x).layers
    data, forward = {
        "loader": (DataLoader(TensorDataset(x, y), batch_size=16), None),
        "tuple": ((x, y), None),
        "mapping": ({"input": x}, None),
        "forward": ({"x": x}, lambda model, batch: model(batch["x"])),
    }[kind]
    assert measure(model, data, forward=forward).layers == expected


class Noisy(nn.Module):
    """Does to itself and the world whatever a forward pass can."""

    calls: torch.Tensor

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.register_buffer("calls", torch.zeros(()))
        self.fail = False

    def forward(self, x):
        self.calls += 1
        random.random()
        np.random.rand()
        x = F.dropout(self.layers(x) + torch.randn_like(x), 0.5, self.training)
        if self.fail:
            raise KeyError("of the model's own")
        return x


def everything(model):
    numpy_state: Any = np.random.get_state()
    generators = (torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist())
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    grads = [(None if p.grad is None else p.grad.tolist(), p.requires_grad) for p in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    return state, flags, grads, hooks, generators, torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_afterwards_everything_is_as_before(training, fail):
    model, x = Noisy().train(training), torch.randn(10, 6)
    model.layers[4].eval()
    model.layers[0].weight.grad = torch.ones(6, 6)
    model.fail = fail
    before = everything(model)
    if fail:
        with pytest.raises(KeyError, match="of the model's own"):
            measure(model, x)
    else:
        assert len(measure(model, x)) == 2
    assert everything(model) == before


def test_dropout_is_not_measured():
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(64, 8)).train()
    x = torch.randn(100, 64)
    assert measure(model, x).layers == measure(model.eval(), x).layers


def test_batch_norm_uses_the_batch_as_training_will():
    norm = nn.BatchNorm1d(8)
    model = nn.Sequential(norm, nn.Linear(8, 8)).eval()
    assert norm.running_var is not None
    norm.running_var.fill_(1e4)
    (signal,) = measure(model, 50 * torch.randn(1000, 8))
    assert 0.3 < signal.sample_std < 1


def test_nothing_linear_nothing_measured():
    assert measure(nn.LayerNorm(4), torch.randn(2, 4)).layers == ()


def test_errors():
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module; got function"):
        measure(lambda x: x, torch.randn(2, 4))
    with pytest.raises(DataError, match="NaN or infinity"):
        measure(nn.Linear(4, 4), torch.full((2, 4), float("nan")))
