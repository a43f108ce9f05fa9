"""init_: each scheme's distribution by its formula, on every kind of weight, and that nothing else changes."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from scipy import stats
from torch import nn

from goodinit import DataError, ModelError, OptionError, init_, lsuv_
from goodinit.report import STATUSES
from goodinit.schemes import SCHEMES, random_walk_gain
from goodinit.seeds import Seeds
from nets import MODELS, Functional, assert_same, build, surroundings

# Rows, columns, and the two of a convolution: (out, in, k, k) with n_in = in k^2, n_out = out k^2.
N_IN, N_OUT = 24 * 9, 40 * 9
SQUARE = 300


def seeded():
    return torch.Generator().manual_seed(0)


def weights(scheme, **options):
    """Of a convolution and a tall and a wide linear layer, as the scheme fills them."""
    net = nn.ModuleDict({"conv": nn.Conv2d(24, 40, 3), "tall": nn.Linear(100, 400), "wide": nn.Linear(400, 100)})
    init_(net, scheme, generator=seeded(), **options)
    return net


@pytest.mark.parametrize(
    ("scheme", "options", "distribution"),
    [
        ("glorot", {}, lambda n_in, n_out: stats.uniform(-math.sqrt(6 / (n_in + n_out)), 2 * math.sqrt(6 / (n_in + n_out)))),
        ("lecun", {}, lambda n_in, n_out: stats.uniform(-math.sqrt(3 / n_in), 2 * math.sqrt(3 / n_in))),
        ("he", {}, lambda n_in, n_out: stats.norm(0, math.sqrt(2 / n_in))),
        ("he", {"nonlinearity": "linear"}, lambda n_in, n_out: stats.norm(0, math.sqrt(1 / n_in))),
        ("he", {"gain": 3.0}, lambda n_in, n_out: stats.norm(0, 3 * math.sqrt(2 / n_in))),
        ("random-walk", {}, lambda n_in, n_out: stats.norm(0, math.sqrt(2 / n_in) * math.exp(1.2 / (n_in - 2.4)))),
        ("random-walk", {"nonlinearity": "linear"}, lambda n_in, n_out: stats.norm(0, math.exp(0.5 / n_in) / math.sqrt(n_in))),
        ("default", {}, lambda n_in, n_out: stats.uniform(-1 / math.sqrt(n_in), 2 / math.sqrt(n_in))),
    ],
)
def test_elements_are_drawn_by_the_formula(scheme, options, distribution):
    net = weights(scheme, **options)
    for name, n_in, n_out in (("conv", N_IN, N_OUT), ("tall", 100, 400), ("wide", 400, 100)):
        drawn = net[name].weight.detach().double().flatten().numpy()
        assert stats.kstest(drawn, distribution(n_in, n_out).cdf).pvalue > 1e-3, name
        # The same test tells a scale that is wrong by a tenth apart.
        assert stats.kstest(drawn * 1.1, distribution(n_in, n_out).cdf).pvalue < 1e-3, name


@pytest.mark.parametrize(("scheme", "gain"), [("orthonormal", 1.0), ("orthonormal", 0.5), ("orthonormal-he", 1.0)])
def test_orthonormal_schemes(scheme, gain):
    net = weights(scheme, gain=gain)
    for name, rows, columns in (("conv", 40, N_IN), ("tall", 400, 100), ("wide", 100, 400)):
        w = net[name].weight.detach().reshape(rows, columns)
        gram = w @ w.T if rows <= columns else w.T @ w
        if scheme == "orthonormal-he":
            assert w.square().mean().item() == pytest.approx(2 / columns, rel=1e-5)  # the variance of He's elements
            expected = 2 * max(rows, columns) / columns
        else:
            expected = gain**2
        assert torch.allclose(gram, expected * torch.eye(len(gram)), atol=1e-5), name


def test_random_walk_gains():
    assert random_walk_gain(100, "linear") == pytest.approx(math.exp(1 / 200))
    assert random_walk_gain(100, "relu") == pytest.approx(math.sqrt(2) * math.exp(1.2 / 97.6))
    assert random_walk_gain(3, "relu") == random_walk_gain(6, "relu") == pytest.approx(math.sqrt(2) * math.exp(1.2 / 3.6))


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "default"])
def test_biases_become_zero(scheme):
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    init_(net, scheme, torch.randn(50, 5))
    assert not net[0].bias.any()
    assert not net[2].bias.any()


def test_default_is_what_the_layers_start_with():
    """The same numbers, where there is one layer to draw them for."""
    for make in (
        lambda: nn.Linear(7, 9),
        lambda: nn.Conv2d(4, 6, 3, groups=2),
        lambda: nn.ConvTranspose1d(4, 6, 3),
        lambda: nn.LSTM(5, 6, num_layers=2),
        lambda: nn.GRUCell(5, 6),
        lambda: nn.Bilinear(3, 4, 5),
    ):
        other = make()
        report = init_(other, "default", generator=seeded())
        own = Seeds.drawn_from(seeded()).generator(("layer", 0), torch.device("cpu"))
        torch.set_rng_state(own.get_state())
        fresh = make()
        assert report.ok
        assert {record.status for record in report} == {"drawn"}
        assert_same(other.state_dict(), fresh.state_dict())


def test_default_of_attention():
    attention = nn.MultiheadAttention(32, 4)
    nn.init.constant_(attention.out_proj.bias, 5.0)
    nn.init.constant_(attention.in_proj_weight, 5.0)
    init_(attention, "default", generator=seeded())
    assert not attention.out_proj.bias.any()  # as the constructor leaves it, though a Linear's is drawn
    assert not attention.in_proj_bias.any()
    assert attention.in_proj_weight.std().item() == pytest.approx(math.sqrt(2 / (32 + 96)), rel=0.05)


def test_every_group_gate_and_projection_is_a_matrix_of_its_own():
    net = nn.ModuleDict(
        {"conv": nn.Conv2d(16, 32, 3, groups=4), "lstm": nn.LSTM(64, 32), "attention": nn.MultiheadAttention(48, 3)}
    )
    init_(net, "orthonormal")
    groups = net["conv"].weight.detach().reshape(4, 8, 36)
    assert torch.allclose(groups @ groups.mT, torch.eye(8).expand(4, 8, 8), atol=1e-5)
    gates = net["lstm"].weight_ih_l0.detach().reshape(4, 32, 64)
    assert torch.allclose(gates @ gates.mT, torch.eye(32).expand(4, 32, 32), atol=1e-5)
    thirds = net["attention"].in_proj_weight.detach().reshape(3, 48, 48)
    assert torch.allclose(thirds @ thirds.mT, torch.eye(48).expand(3, 48, 48), atol=1e-5)
    init_(net, "glorot", generator=seeded())
    assert net["lstm"].weight_ih_l0.abs().max().item() == pytest.approx(math.sqrt(6 / (64 + 32)), rel=1e-2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scheme", ["he", "orthonormal", "random-walk"])
def test_a_forward_pass_finds_the_weights_of_operators(name, scheme):
    model, data = build(name)
    report = init_(model, scheme, data)
    assert report.forward_passes == 1
    matrices = {n for n, p in model.named_parameters() if p.dim() > 1}
    assert {r.name.partition("[")[0] for r in report} == matrices
    assert {r.status for r in report} == {"drawn"}


def test_operators_layouts_are_known():
    """x @ W has W of (in, out)."""
    model = Functional()
    init_(model, "he", torch.randn(8, 6), generator=seeded())
    assert model.einsummed.std().item() == pytest.approx(math.sqrt(2 / 10), rel=0.2)
    assert model.first.std().item() == pytest.approx(math.sqrt(2 / 6), rel=0.2)


def test_lsuv_is_lsuv():
    model, data = build("plain_cnn") if "plain_cnn" in MODELS else build(next(iter(MODELS)))
    other = copy.deepcopy(model)
    report = init_(model, "lsuv", data, generator=seeded())
    lsuv_(other, data, generator=seeded())
    assert_same(model.state_dict(), other.state_dict())
    assert {r.status for r in report} == {"scaled"}


def test_lsuv_gaussian():
    net, x = nn.Sequential(nn.Linear(400, 300), nn.Tanh(), nn.Linear(300, 200)), torch.randn(500, 400)
    init_(net, "lsuv-gaussian", x, generator=seeded())
    assert net(x).std().item() == pytest.approx(1, abs=1e-3)
    w = net[0].weight.detach()
    assert stats.kstest(w.flatten().double().numpy(), stats.norm(0, w.std().item()).cdf).pvalue > 1e-3
    gram = w @ w.T / w.square().sum(1).mean()
    assert (gram - torch.eye(300)).abs().max() > 0.1  # it is not orthonormal


def test_skipped_and_frozen_weights_stay():
    for scheme in ("he", "default"):
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        net[1].requires_grad_(False)
        before = copy.deepcopy(net.state_dict())
        report = init_(net, scheme, skip="2")
        assert [r.status for r in report] == ["drawn", "frozen", "skipped"]
        after = net.state_dict()
        changed = [key for key in before if not torch.equal(before[key], after[key])]
        assert set(changed) == {"0.weight", "0.bias"}
        assert STATUSES["drawn"]


def test_one_parameter_of_a_layer_may_stay():
    net = nn.Linear(4, 4)
    kept = net.bias.detach().clone()
    net.bias.requires_grad_(False)
    weight = net.weight.detach().clone()
    init_(net, "default")
    assert torch.equal(net.bias, kept)
    assert not torch.equal(net.weight, weight)


def test_parametrized_weights():
    net = nn.utils.parametrizations.weight_norm(nn.Linear(50, 40))
    report = init_(net, "orthonormal")
    assert [r.status for r in report] == ["drawn"]
    w = net.weight.detach()
    assert torch.allclose(w @ w.T, torch.eye(40), atol=1e-5)
    with pytest.raises(ModelError, match="default cannot reset '', whose weight is parametrized; use another scheme"):
        init_(net, "default")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_weight_that_is_no_parameter_needs_a_forward_pass():
    net = nn.Sequential(nn.utils.weight_norm(nn.Linear(50, 40)))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(
        ModelError, match=r"the weight of '0' is no parameter \(torch.nn.utils.weight_norm makes such\); with data="
    ):
        init_(net, "orthonormal")
    assert_same(net.state_dict(), before)
    init_(net, "orthonormal", torch.randn(8, 50))
    net(torch.randn(8, 50))
    assert torch.allclose(net[0].weight @ net[0].weight.T, torch.eye(40), atol=1e-5)


def test_nothing_else_changes():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2)).eval()
    x = torch.randn(5, 3, 4, 4)
    for scheme in SCHEMES:
        before = surroundings(net)
        init_(net, scheme, x, generator=seeded())
        assert_same(surroundings(net), before)
        assert net[1].weight.eq(1).all()


def test_the_generator_decides():
    a, b = nn.Linear(30, 20), nn.Linear(30, 20)
    for scheme in SCHEMES:
        for net in (a, b):
            init_(net, scheme, torch.arange(120.0).view(4, 30), generator=seeded())
        assert_same(a.state_dict(), b.state_dict())
        torch.manual_seed(5)
        init_(a, scheme, torch.eye(30))
        torch.manual_seed(5)
        init_(b, scheme, torch.eye(30))
        assert_same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    net = nn.Linear(200, 100, dtype=dtype)
    for scheme in ("default", "glorot", "he", "orthonormal", "orthonormal-he", "random-walk"):
        init_(net, scheme)
        assert 0.3 < net.weight.float().std().item() * 200**0.5 < 3


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            ("xavier",),
            {},
            OptionError,
            "scheme must be one of default, lecun, glorot, he, .*; got 'xavier', which is called 'glorot' here",
        ),
        (("kaiming_normal",), {}, OptionError, "got 'kaiming_normal', which is called 'he' here"),
        (("gloro",), {}, OptionError, r"got 'gloro' \(did you mean 'glorot'\?\)"),
        (("lsuv",), {}, DataError, "no data: pass a batch"),
        (("he",), {"gain": 0}, OptionError, "gain must be a positive number; got 0"),
        (
            ("lsuv", torch.ones(2, 4)),
            {"gain": 2.0},
            OptionError,
            r"lsuv measures the scale .*; got gain=2.0. lsuv_ has target_std=",
        ),
        (("default",), {"gain": 2.0}, OptionError, "which know no gain; got gain=2.0"),
        (("random-walk",), {"nonlinearity": "tanh"}, OptionError, "one of linear, relu for random-walk; got 'tanh'"),
        (("he",), {"nonlinearity": "gelu"}, OptionError, "one of linear, sigmoid, tanh, relu, selu for he; got 'gelu'"),
        (("he",), {"skip": "head"}, OptionError, "skip: the pattern 'head' matches no parameter"),
    ],
)
def test_bad_input(arguments, options, error, message):
    net = nn.Sequential(nn.Linear(4, 4))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=message):
        init_(net, *arguments, **options)
    assert_same(net.state_dict(), before)


def test_a_model_without_layers_of_torch_s_needs_data():
    model = Functional()
    with pytest.raises(ModelError, match="Functional has no layer of torch's with a weight; with data=, a batch"):
        init_(model, "he")
    with pytest.raises(ModelError, match=re.escape("model must be a torch.nn.Module; got int")):
        init_(3, "he")


@pytest.mark.parametrize("scheme", ["default", "he", "lsuv"])
def test_lazy_layers_get_their_form_from_data(scheme):
    def net():
        return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4))

    model, x = net(), torch.randn(16, 3)
    assert [r.name for r in init_(model, scheme, x)] == ["0.weight", "2.weight"]
    assert model[0].weight.shape == (8, 3)
    if scheme != "lsuv":
        with pytest.raises(ModelError, match=r"the weight of '0' has no shape yet \(it is lazy\); data=, a batch, gives it one"):
            init_(net(), scheme)
        assert [r.name for r in init_(net(), scheme, skip="0")] == ["2.weight"]


def test_a_forward_that_raises_leaves_the_weights():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(5, 4))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError) as caught:
        init_(net, "he", torch.ones(2, 4))
    assert_same(net.state_dict(), before)
    assert "goodinit.init_: raised in linear" in str(getattr(caught.value, "__notes__", caught.value.args))
