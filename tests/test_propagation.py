"""What `measure` measures, against sums done by hand; and that it changes nothing."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import rank_jobs
from goodinit import DataError, ModelError, OptionError, init_, lsuv_
from goodinit.measurement import observer
from goodinit.measurement.activations import _shape
from goodinit.measurement.propagation import measure
from goodinit.measurement.traces import Trace
from nets import MODELS, assert_same, build, snapshot


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


def test_one_sample_without_an_axis_of_samples_is_one():
    note = "The batch holds one sample: what lies between samples was not judged."
    assert note in measure(nn.Linear(3, 4), torch.randn(3)).verdict
    assert note in measure(nn.Conv2d(3, 4, 3), torch.randn(3, 8, 8)).verdict
    assert note not in measure(nn.Linear(3, 4), torch.randn(5, 3)).verdict


def test_few_samples_say_nothing_of_dead_units():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    note = "whether they are dead was not judged. Measure with 32 samples or more."
    assert note in measure(model, torch.randn(16, 8)).verdict
    assert note not in measure(model, torch.randn(32, 8)).verdict


@pytest.mark.parametrize("run", ["forward", "backward"])
def test_computed_weights_are_let_go_of(run):
    """No circle through autograd's hooks, which Python's collector does not see into."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(37, 41))
    model, x, y = nn.Sequential(layer, nn.Linear(41, 4)), torch.randn(16, 37), torch.randint(4, (16,))
    for _ in range(3):
        if run == "backward":
            measure(model, (x, y), loss=F.cross_entropy)
        else:
            measure(model, x)
    gc.collect()
    # By type first: to ask all objects for their shape would wake deprecated ones.
    kept = [each for each in gc.get_objects() if type(each) in (torch.Tensor, nn.Parameter) and each.shape == (41, 37)]
    assert len(kept) == 1  # weight_v


class Preprocessing(nn.Module):
    """Normalizes its input in place, as torchvision's transforms may."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.out(F.relu(self.fc(x.sub_(5).div_(2)), inplace=True))


@pytest.mark.parametrize(
    "call",
    [
        lsuv_,
        lambda model, x: lsuv_(model, x, target_std="auto"),
        lambda model, x: lsuv_(model, [x, x + 1], batches=2),
        lambda model, x: init_(model, "he", x),
        measure,
        lambda model, x: measure(model, x, loss=lambda y: y.square().mean()),
    ],
)
def test_the_batch_is_as_before_where_the_model_writes_into_it(call):
    model, x = Preprocessing(), 5 + 2 * torch.randn(64, 8)
    before = x.clone()
    call(model, x)
    assert torch.equal(x, before)
    signal = measure(model, x)
    assert signal.inputs[0][1] == pytest.approx(before.mean().item(), abs=1e-4)  # before the forward
    assert signal["fc.weight"].mean == pytest.approx(model.fc((before - 5) / 2).mean().item(), abs=1e-4)


class Counting(nn.Module):
    """Counts, and makes a layer and a hook."""

    def __init__(self):
        super().__init__()
        self.fc, self.calls, self.seen = nn.Linear(4, 4), 0, None

    def forward(self, x):
        self.calls, self.seen = self.calls + 1, "x"
        self.late = nn.Linear(4, 4)
        self.fc.register_forward_hook(lambda *_: None)
        return self.late(self.fc(x))


def test_what_the_forward_counts_and_makes_is_taken_back():
    model = Counting()
    assert len(measure(model, torch.randn(16, 4))) == 2
    assert (model.calls, model.seen, hasattr(model, "late"), len(model.fc._forward_hooks)) == (0, None, False, 0)


def test_lazy_layers_are_without_a_form_again():
    def formed(measuring):
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d())
        if measuring:
            assert [layer.shape for layer in measure(model, torch.ones(16, 5))] == [(8, 5)]
            assert (type(model[0]), type(model[1])) == (nn.LazyLinear, nn.LazyBatchNorm1d)
        model(torch.ones(3, 4))  # of another width
        return model.state_dict()

    assert_same(formed(measuring=True), formed(measuring=False))


class Conjugated(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 6, dtype=torch.complex64))

    def forward(self, x):
        return (x @ self.w.conj()).conj()


def test_conjugated_weights_and_gradients():
    model, x = Conjugated(), torch.randn(40, 8, dtype=torch.complex64)
    (layer,) = measure(model, x, loss=lambda y: (y * y).real.sum())
    assert layer.weight_norm == pytest.approx(model.w.abs().square().sum().sqrt().item(), rel=1e-5)
    z = (x @ model.w.conj()).detach().requires_grad_()
    (z.conj() * z.conj()).real.sum().backward()
    assert layer.grad_norm == pytest.approx(torch.linalg.vector_norm(z.grad).item(), rel=1e-5)


def test_outputs_beyond_the_squares_of_float():
    """float32's squares end at 1e19, float64's at 1e154."""
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
    report = lsuv_(net, 1e20 * x)
    assert report.ok
    assert net(1e20 * x).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    steep = nn.Sequential(nn.Linear(8, 8).double(), nn.Linear(8, 8).double())
    with torch.no_grad():
        steep[1].weight.mul_(1e200)
    (found,) = measure(steep, x.double()).findings
    assert (found.kind, found.layer) == ("non-finite", "1.weight")


def test_a_foreign_default_device():
    net, data = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), (torch.randn(64, 8), torch.randint(4, (64,)))
    generator = torch.Generator()
    with torch.device("meta"):
        assert measure(net, data, loss=F.cross_entropy)[0].effective_rank is not None
        assert lsuv_(net, data[0], target_std="auto", generator=generator).ok
        assert lsuv_(net, [data[0], data[0]], batches=2, generator=generator).ok


def test_a_learning_rate_needs_a_loss():
    with pytest.raises(OptionError, match=r"lr=0.1 judges updates, which need gradients: pass loss=, or leave lr out"):
        measure(nn.Linear(3, 4), torch.randn(5, 3), lr=np.float64(0.1))
    assert measure(nn.Linear(3, 4), torch.randn(5, 3), loss=lambda y: y.sum(), lr=np.float32(0.1)).lr == pytest.approx(0.1)


def _of_any(*given):
    return F.cross_entropy(*given)


@pytest.mark.parametrize("loss", [lambda y, target=None: F.cross_entropy(y, target), _of_any], ids=["default", "any"])
def test_a_target_that_a_loss_may_do_without_is_given_to_it(loss):
    net, x, y = nn.Linear(8, 4), torch.randn(16, 8), torch.randint(4, (16,))
    assert measure(net, (x, y), loss=loss).loss == pytest.approx(F.cross_entropy(net(x), y).item())


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


def test_eval_mode():
    norm = nn.BatchNorm1d(8)
    model = nn.Sequential(norm, nn.Linear(8, 8)).train()
    assert norm.running_var is not None
    norm.running_var.fill_(1e4)
    (layer,) = measure(model, 50 * torch.randn(1000, 8), mode="eval")
    assert layer.sample_std < 0.5
    assert model.training


def test_nothing_linear_nothing_measured():
    assert measure(nn.LayerNorm(4), torch.randn(2, 4)).layers == ()


def test_errors():
    with pytest.raises(ModelError, match=r"must be a torch\.nn\.Module; got function"):
        measure(lambda x: x, torch.randn(2, 4))
    with pytest.raises(DataError, match="NaN or infinity"):
        measure(nn.Linear(4, 4), torch.full((2, 4), float("nan")))
    with pytest.raises(OptionError, match="mode must be 'train' or 'eval'; got 'test'"):
        measure(nn.Linear(4, 4), torch.randn(2, 4), mode="test")
    for lr in (0, -1.0, float("inf"), "fast"):
        with pytest.raises(OptionError, match="lr must be a positive number; got"):
            measure(nn.Linear(4, 4), torch.randn(2, 4), lr=lr)


# Ranks, channels, histograms.


def test_spread_over_channels():
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([10.0, -10.0, 10.0, -10.0]))
    x = torch.randn(500, 3)
    (found,) = measure(layer, x)
    out = layer(x)
    assert found.channel_spread == pytest.approx((out.mean(0).std(correction=0) / out.std(correction=0)).item(), rel=1e-4)
    assert 0.9 < found.channel_spread < 1
    assert (found.channels, found.output_shape, found.shape) == (4, (500, 4), (4, 3))


def test_rank_of_the_output():
    torch.manual_seed(0)
    low = nn.Linear(30, 30)
    with torch.no_grad():
        low.weight.copy_(torch.randn(30, 2) @ torch.randn(2, 30))
    full, two = measure(nn.Sequential(nn.Linear(30, 30), low), torch.randn(400, 30))
    assert full.rank_limit == two.rank_limit == 30
    assert full.effective_rank is not None
    assert full.effective_rank > 0.4
    assert two.dimensions == pytest.approx(1.8, abs=0.25)
    (one,) = measure(nn.Linear(3, 3), torch.randn(1, 3))
    assert one.effective_rank is None


def test_histogram_of_the_output():
    (layer,) = measure(nn.Linear(3, 40), 1000 * torch.randn(64, 3))
    assert layer.histogram is not None
    assert sum(layer.histogram) == pytest.approx(2048, rel=0.4)
    assert max(layer.histogram) in layer.histogram[15:25]


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [
        (nn.Conv2d(3, 5, 3), (4, 3, 8, 9), 5),
        (nn.Conv1d(3, 5, 3), (4, 3, 8), 5),
        (nn.Conv2d(3, 5, 3), (3, 8, 9), None),
        (nn.Linear(6, 5), (4, 7, 6), 5),
        (nn.ConvTranspose2d(3, 5, 2), (4, 3, 4, 4), 5),
        (nn.Bilinear(3, 3, 5), None, 5),
    ],
)
def test_the_axis_of_channels(layer, shape, channels):
    data = torch.randn(shape) if shape else (torch.randn(8, 3), torch.randn(8, 3))
    (found,) = measure(layer, data)
    assert found.channels == channels


# The non-linearity behind.


def activation_of(*behind, x=None):
    torch.manual_seed(0)
    return measure(nn.Sequential(nn.Linear(6, 40), *behind), torch.randn(64, 6) if x is None else x)[0]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        h = self.b(torch.relu(self.a(x)))
        h += x
        return torch.relu(h)


def test_which_non_linearity_an_output_goes_into():
    assert activation_of(nn.ReLU()).activation == "relu"
    assert activation_of(nn.ReLU(inplace=True)).activation == "relu"
    assert activation_of(nn.BatchNorm1d(40), nn.Dropout(0.5), nn.Tanh()).activation == "tanh"
    assert activation_of(nn.Unflatten(1, (4, 10)), nn.GELU(), nn.Sigmoid()).activation == "gelu"
    assert activation_of(nn.Softmax(1)).activation is None
    assert activation_of().activation is None
    a, b = measure(Residual(), torch.randn(64, 6))
    assert (a.activation, b.activation) == ("relu", None)


def test_normalization_before_or_behind_the_non_linearity():
    assert activation_of(nn.BatchNorm1d(40), nn.ReLU()).normalized
    assert activation_of(nn.ReLU(), nn.LayerNorm(40)).normalized
    assert not activation_of(nn.ReLU()).normalized


@pytest.mark.parametrize("inplace", [False, True])
def test_dead_units_are_those_that_are_never_positive(inplace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(inplace=inplace), nn.Flatten(), nn.Linear(720, 30), nn.ReLU())
    x = torch.randn(64, 3, 8, 8)
    with torch.no_grad():
        model[0].bias[:5] = -100
        model[3].bias[:12] = -1000
    conv, linear = measure(model, x)
    assert (conv.dead, linear.dead) == pytest.approx((5 / 20, 12 / 30), abs=1e-6)
    assert conv.saturated is None


def test_dead_behind_a_normalization_and_with_channels_moved():
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(8)

        def forward(self, x):
            return F.gelu(self.norm(self.conv(x).permute(0, 2, 3, 1)))

    model = Moved()
    nn.init.constant_(model.norm.bias[:2], -50)
    (layer,) = measure(model, torch.randn(4, 3, 5, 6))
    assert (layer.activation, layer.dead) == ("gelu", pytest.approx(0.25))


def test_saturated_elements():
    x = torch.randn(256, 60)
    for scale, share in ((1, 0.029), (4, 0.586)):
        layer = nn.Linear(60, 40)  # fewer outputs than inputs: each of them has the same std
        lsuv_(layer, x, target_std=float(scale))
        found = measure(nn.Sequential(layer, nn.Tanh()), x)[0]
        assert found.saturated == pytest.approx(share, abs=0.06)  # of a sample
    assert activation_of(nn.ReLU6()).saturated is None


# Gradients.


def gradients(model, outputs, loss):
    """Root mean square of the gradient at each output."""
    return [g.square().mean().sqrt().item() for g in torch.autograd.grad(loss, outputs, retain_graph=True)]


@pytest.mark.parametrize("inplace", [False, True])
def test_gradients_at_outputs_and_weights(inplace):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(144, 5))
    x, y = torch.randn(50, 1, 8, 8), torch.randint(5, (50,))
    signal = measure(model, (x, y), F.cross_entropy)
    conv = model[0](x)
    linear = model[3](conv.relu().flatten(1))
    loss = F.cross_entropy(linear, y)
    assert signal.loss == pytest.approx(loss.item(), rel=1e-5)
    assert [layer.grad_std for layer in signal] == pytest.approx(gradients(model, [conv, linear], loss), rel=1e-4)
    for layer, weight in zip(signal, (model[0].weight, model[3].weight), strict=True):
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert layer.weight_norm == pytest.approx(weight.norm().item(), rel=1e-5)
        assert layer.weight_grad_norm == pytest.approx(gradient.norm().item(), rel=1e-4)
        assert layer.relative_update(0.1) == pytest.approx((0.1 * gradient.norm() / weight.norm()).item(), rel=1e-4)
        assert layer.grad_norm == pytest.approx(layer.grad_std * (50 * layer.channels * (36 if layer is signal[0] else 1)) ** 0.5)


def test_without_a_loss_there_are_no_gradients():
    signal = measure(nn.Linear(3, 3), torch.randn(4, 3))
    assert (signal.loss, signal[0].grad_std, signal[0].weight_grad_norm, signal[0].relative_update()) == (None,) * 4


def test_tiny_gradients_are_not_lost():
    model = nn.Linear(3, 3)
    (layer,) = measure(model, torch.randn(4, 3), lambda y: 1e-28 * y.sum())
    assert layer.grad_std == pytest.approx(1e-28, rel=1e-4)


def test_parts_of_a_weight_have_gradients_of_their_own():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(4, 5, 8)
    call = {"query": x, "key": x, "value": x}
    signal = measure(attention, call, lambda y: y[0].square().mean())
    attention(**call)[0].square().mean().backward()
    assert attention.in_proj_weight.grad is not None
    thirds = attention.in_proj_weight.grad.chunk(3)
    found = [layer.weight_grad_norm for layer in signal if "in_proj" in layer.name]
    assert found == pytest.approx([third.norm().item() for third in thirds], rel=1e-3)
    whole = [layer.weight_norm**2 for layer in signal if "in_proj" in layer.name]
    assert sum(whole) == pytest.approx(attention.in_proj_weight.square().sum().item(), rel=1e-4)


def test_a_weight_that_is_computed_has_the_gradient_of_what_is_used():
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
    x = torch.randn(9, 6)
    (found,) = measure(layer, x, lambda y: y.square().mean())
    w = layer.weight.detach().requires_grad_()
    F.linear(x, w, layer.bias).square().mean().backward()
    assert w.grad is not None
    assert found.weight_grad_norm == pytest.approx(w.grad.norm().item(), rel=1e-4)


def test_frozen_weights_have_no_gradient():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    model[0].bias.requires_grad_()
    first, second, third = measure(model, torch.randn(8, 4), torch.mean)
    assert (first.weight_grad_norm, second.weight_grad_norm) == (None, None)
    assert all(layer.grad_std for layer in (first, second, third))
    assert third.weight_grad_norm
    with pytest.raises(OptionError, match="the loss has no gradient: no weight that trains leads to it"):
        measure(model.requires_grad_(False), torch.randn(8, 4), lambda y: y.mean())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints(use_reentrant):
    body = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 6))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body = nn.Linear(6, 6), body

        def forward(self, x):
            return checkpoint(self.body, self.first(x), use_reentrant=use_reentrant)

    model, x = Checkpointed(), torch.randn(20, 6)
    plain = measure(nn.Sequential(model.first, body), x, lambda y: y.square().mean())
    _shape.cache_clear()  # what has been computed outside of a checkpoint
    found = measure(model, x, lambda y: y.square().mean())
    assert [layer.grad_std for layer in found] == pytest.approx([layer.grad_std for layer in plain], rel=1e-4)
    assert [layer.weight_grad_norm for layer in found] == pytest.approx([layer.weight_grad_norm for layer in plain], rel=1e-4)


# The loss and the data.


class Pairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.fc(inputs)


@pytest.mark.parametrize("kind", ["pair", "loader", "list", "mapping", "forward", "output", "module"])
def test_the_loss_gets_what_the_model_does_not(kind):
    model, x, y = Pairs(), torch.randn(16, 4), torch.randint(3, (16,))
    expected = F.cross_entropy(model(x), y).item()
    data, loss, forward = {
        "pair": ((x, y), F.cross_entropy, None),
        "loader": (DataLoader(TensorDataset(x, y), batch_size=16), F.cross_entropy, None),
        "list": ([(x, y)], F.cross_entropy, None),
        "mapping": ({"inputs": x, "labels": y}, F.cross_entropy, None),
        "forward": (
            {"a": x, "b": y},
            lambda out, batch: F.cross_entropy(out, batch["b"]),
            lambda model, batch: model(batch["a"]),
        ),
        "output": ((x, y), "output", lambda model, batch: {"loss": F.cross_entropy(model(batch[0]), batch[1])}),
        "module": ((x, y), nn.CrossEntropyLoss(), None),
    }[kind]
    assert measure(model, data, loss, forward=forward).loss == pytest.approx(expected, rel=1e-5)


def test_a_tuple_is_a_batch_of_a_loader_where_the_loss_takes_a_target():
    class Optional(Pairs):
        def forward(self, inputs, scale=None):
            return self.fc(inputs) if scale is None else scale * self.fc(inputs)

    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    assert measure(Optional(), (x, y), F.cross_entropy).batch.endswith("not given to the model: item 1")
    assert measure(Optional(), (x, torch.ones(3))).batch == "(16, 4) float32, (3,) float32"


def test_a_loader_is_read_once_and_as_it_was():
    loader = DataLoader(TensorDataset(torch.arange(40.0).view(40, 1)), batch_size=8, shuffle=True, generator=torch.Generator())
    state = loader.generator.get_state()
    model = nn.Linear(1, 2)
    assert measure(model, loader).layers == measure(model, loader).layers
    assert torch.equal(state, loader.generator.get_state())


def test_no_target():
    with pytest.raises(DataError, match=r"the batch has 0 more than the model takes \(\(6, 4\) float32\)"):
        measure(nn.Linear(4, 4), torch.randn(6, 4), F.cross_entropy)


# Numbers of all kinds.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_gradients_of_all_dtypes(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, dtype=dtype), nn.Linear(16, 4, dtype=dtype))
    x = torch.randn(64, 16, dtype=dtype)
    signal = measure(model, x, lambda y: y.abs().float().square().mean())
    wide = torch.promote_types(dtype, torch.float32)
    wider = nn.Sequential(nn.Linear(16, 16, dtype=wide), nn.Linear(16, 4, dtype=wide))
    wider.load_state_dict(model.state_dict())
    h = wider[0](x.to(wide))
    y = wider[1](h)
    expected = [g.abs().square().mean().sqrt().item() for g in torch.autograd.grad(y.abs().square().mean(), [h, y])]
    assert [layer.grad_std for layer in signal] == pytest.approx(expected, rel=0.02)
    assert [layer.std for layer in signal] == pytest.approx([z.std(correction=0).item() for z in (h, y)], rel=0.02)


def test_under_autocast_the_measurement_is_in_full_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x = torch.randn(256, 64)
    plain = measure(model, x, lambda y: y.float().square().mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = measure(model, x, lambda y: y.float().square().mean())
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(plain, cast, strict=True):
        assert a.dimensions == pytest.approx(b.dimensions, rel=0.02)
        assert (a.std, a.grad_std) == (pytest.approx(b.std, rel=0.01), pytest.approx(b.grad_std, rel=0.02))
        assert a != b


def test_what_is_not_finite_is_found_and_no_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    nn.init.constant_(model[1].bias, float("inf"))
    signal = measure(model, torch.randn(8, 4), lambda y: y.sum())
    assert [layer.finite for layer in signal] == [True, False, False]
    assert signal[1].effective_rank is None
    assert signal[1].histogram is None
    assert not np.isfinite(signal.loss)
    assert signal.findings[0].kind == "non-finite"


# Nothing changes.


@pytest.mark.parametrize("name", MODELS)
def test_with_a_loss_nothing_at_all_is_changed(name):
    model, data = build(name)
    for i, (module, p) in enumerate(zip(model.modules(), model.parameters(), strict=False)):
        module.training = i % 3 > 0
        p.grad = torch.randn_like(p) if i % 2 else None
    grads = [p.grad for p in model.parameters()]
    before = snapshot(model), torch.get_rng_state(), random.getstate()
    measure(model, data, lambda y: y.square().mean())
    assert_same(before, (snapshot(model), torch.get_rng_state(), random.getstate()))
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))


class Strike(TorchFunctionMode):
    """Raises at the k-th call of a function of torch."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.at -= 1
        if self.at == 0:
            raise RuntimeError("of the model's own")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["normalized", "attention", "functional"])
@pytest.mark.parametrize("at", [1, 3, 5])
def test_what_the_model_raises_is_passed_on_with_a_note_and_nothing_is_changed(name, at):
    model, data = build(name)
    before = snapshot(model)

    def forward(model, batch):
        with Strike(at):
            return model(batch)

    with pytest.raises(RuntimeError, match="of the model's own") as caught:
        measure(model, data, lambda y, _: y.mean(), forward=forward)
    told = "".join(getattr(caught.value, "__notes__", caught.value.args))
    assert "goodinit.measure: raised " in told
    assert "Nothing was changed." in told
    assert_same(before, snapshot(model))


def test_what_the_backward_raises_changes_nothing():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("in the backward")

    model = nn.Linear(3, 3)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="in the backward"):
        measure(model, torch.randn(4, 3), lambda y: Bad.apply(y).sum())
    assert_same(before, snapshot(model))


def test_hooks_that_step_in_the_backward_do_not_run():
    model = nn.Linear(3, 3)
    model.weight.register_post_accumulate_grad_hook(lambda p: p.data.fill_(9.0))
    before = snapshot(model)
    measure(model, torch.randn(4, 3), lambda y: y.mean())
    assert_same(before, snapshot(model))


def test_tensors_that_a_forward_leaves_behind_are_taken_away():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.last, self.old = nn.Linear(3, 3), None, torch.zeros(3)

        def forward(self, x):
            self.last = self.fresh = self.old = self.fc(x)
            return self.last

    model = Keeping()
    old = model.old
    measure(model, torch.randn(4, 3), lambda y: y.mean())
    assert model.last is None
    assert model.old is old
    assert "fresh" not in vars(model)


def test_no_activation_is_kept_alive():
    alive = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
            self.most = 0

        def forward(self, x):
            for layer in self.layers:
                x = torch.tanh(layer(x))
                alive.append(weakref.ref(x))
                self.most = max(self.most, sum(ref() is not None for ref in alive))
            return x

    model = Counting()
    measure(model, torch.randn(16, 8))
    assert model.most <= 2
    assert not [ref for ref in alive if ref() is not None]


def test_nothing_small_is_left_where_an_output_was(monkeypatch):
    """Small tensors there would keep the next output from fitting in, and the process would grow by one a layer."""
    kept: list[Trace] = []

    def keep(traces):
        kept.extend(traces)
        return ()

    monkeypatch.setattr(observer, "layers_of", keep)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(20)))
    measure(model, torch.randn(40, 64), lambda y: y.square().mean())
    assert len(kept) == 20
    assert all(isinstance(number, float) for trace in kept for number in trace.raw())
    assert len({trace.rows.untyped_storage().data_ptr() for trace in kept}) == 1


def test_distributed_data_parallel_trains_on_afterwards(two):
    two.run(rank_jobs.measured_then_trained)


def test_checkpoints_of_the_old_kind_leave_nothing_either():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: p.data.fill_(9.0))
    model[1].bias.grad = torch.ones(3)
    hooks = list(model[0].weight._post_accumulate_grad_hooks.values())
    before = snapshot(model)
    x = torch.randn(4, 3, requires_grad=True)
    measure(model, x, lambda y, _: y.mean(), forward=lambda m, x: checkpoint(m, x, use_reentrant=True))
    assert_same(before, snapshot(model))
    assert list(model[0].weight._post_accumulate_grad_hooks.values()) == hooks
    assert x.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_is_not_waited_for_inside_the_pass():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5), nn.Tanh()).cuda()
    x, y = torch.randn(16, 3, 8, 8).cuda(), torch.zeros(16, dtype=torch.int64).cuda()

    def forward(model, batch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    signal = measure(model, x, lambda out, _: F.cross_entropy(out, y), forward=forward)
    plain = measure(model.cpu(), (x.cpu(), y.cpu()), F.cross_entropy)
    for a, b in zip(signal, plain, strict=True):
        assert (a.std, a.grad_std) == (pytest.approx(b.std, rel=1e-2), pytest.approx(b.grad_std, rel=1e-2))


def test_a_forward_in_inference_mode():
    class Frozen(nn.Sequential):
        @torch.inference_mode()
        def forward(self, x):
            return super().forward(x)

    layers, x = (nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), torch.randn(20, 6)
    found, plain = measure(Frozen(*layers), x), measure(nn.Sequential(*layers), x)
    assert [(a.std, a.activation, a.dead) for a in found] == [(b.std, b.activation, b.dead) for b in plain]


def test_a_signal_is_compared_with_a_signal():
    with pytest.raises(OptionError, match=r"a signal is compared with another one, of goodinit.measure; got int"):
        measure(nn.Linear(4, 2), torch.randn(8, 4)).compare(5)


def test_a_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    assert len(measure(model, torch.randn(64, 6))) == 2
