"""The std by channel or between samples, and means moved into biases: as by whole forward passes, and without a trace."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from goodinit import GoodinitWarning, OptionError, lsuv_
from goodinit.centring import grouped
from goodinit.reference import first_output, layers_in_call_order, scale_and_centre_reference_
from nets import Functional, assert_same, snapshot, surroundings

ACTIVATIONS = {"relu": nn.ReLU, "relu in place": lambda: nn.ReLU(inplace=True), "tanh": nn.Tanh, "gelu": nn.GELU}
OPTIONS = list(itertools.product(("all", "samples", "channels"), (False, True)))


@st.composite
def stacks(draw):
    """A perceptron, or convolutions of every kind, biased or not; and a batch."""
    torch.manual_seed(draw(st.integers(0, 99)))
    act, depth, bias = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))], draw(st.integers(1, 4)), draw(st.booleans())
    layers: list[nn.Module] = []
    if draw(st.booleans()):
        for i in range(depth):
            layers += [nn.Linear(6 if i else 5, 6, bias=bias), act()]
        return nn.Sequential(*layers, nn.Linear(6, 3)), torch.randn(24, 5)
    kinds = {
        "plain": lambda: nn.Conv2d(4, 4, 3, padding=1, bias=bias),
        "groups": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=bias),
        "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, bias=bias),
        "transposed groups": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2, bias=bias),
    }
    for _ in range(depth):
        layers += [kinds[draw(st.sampled_from(sorted(kinds)))](), act()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(100, 3)), torch.randn(12, 4, 5, 5)


@given(stack=stacks(), option=st.sampled_from(OPTIONS), target=st.sampled_from((1.0, 0.3)))
@settings(max_examples=40, deadline=None)
def test_one_pass_is_what_whole_passes_come_to(stack, option, target):
    model, x = stack
    model.double()  # so that both ways agree to many digits
    variance, center = option
    slow = copy.deepcopy(model)
    scale_and_centre_reference_(
        slow, lambda: slow(x.double()), target_std=target, variance=variance, center=center, tol=1e-9, t_max=30
    )
    if not center:  # the plain std takes biases in, which these variances do not see
        for m in (model, slow):
            for layer in m:
                if getattr(layer, "bias", None) is not None:
                    nn.init.zeros_(layer.bias)
        slow.load_state_dict(model.state_dict())
        scale_and_centre_reference_(slow, lambda: slow(x.double()), target_std=target, variance=variance, tol=1e-9, t_max=30)
    report = lsuv_(model, x.double(), target_std=target, variance=variance, center=center, pre_init=None)
    assert report.forward_passes == 1
    for ours, theirs in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def channel_means_and_stds(z):
    channels = z.movedim(1, 0).flatten(1)
    return channels.mean(1), channels.std(1, correction=0)


@pytest.mark.parametrize("variance", ["all", "channels"])
def test_every_channel_has_the_mean_asked_for_and_the_models_output_the_mean_zero(variance):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(True), nn.Conv2d(8, 8, 3), nn.ReLU(True), nn.Flatten(), nn.Linear(32, 5))
    x = torch.randn(64, 3, 6, 6)
    lsuv_(model, x, variance=variance, center=True, target_mean=1.5, target_std=0.5)
    *hidden, last = [first_output(layer, lambda: model(x)) for layer in layers_in_call_order(model, lambda: model(x))]
    for z in hidden:
        means, stds = channel_means_and_stds(z)
        assert means.allclose(torch.tensor(0.75, dtype=torch.float64), atol=1e-5)
        assert (z - z.mean((0, 2, 3), keepdim=True)).std(correction=0).item() == pytest.approx(0.5, rel=1e-4)
        if variance == "channels":
            assert stds.allclose(torch.tensor(0.5, dtype=torch.float64), rtol=1e-4)
    assert channel_means_and_stds(last)[0].abs().max() < 1e-5
    with torch.no_grad():
        model(x)


def test_operators_are_centred_whatever_they_are_and_without_a_bias_the_report_says_so():
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(64, 6)
    report = lsuv_(model, x, center=True, variance="channels")
    with torch.no_grad():
        h1 = x @ model.first.T
        h2 = torch.addmm(model.bias, torch.tanh(h1), model.einsummed)
        h3 = h2.relu() @ model.last
    for h in (h1, h2, h3):
        assert h.std(0, correction=0).allclose(torch.ones(h.shape[1]), atol=1e-4)
    assert h2.mean(0).abs().max() < 1e-5
    assert [r.note for r in report] == ["not centred: no bias", "", "not centred: no bias"]
    assert "not centred: no bias" in str(report)


class Layouts(nn.Module):
    """Weights on the left, in einsum and tensordot, and query, key and value in one."""

    def __init__(self):
        super().__init__()
        self.left, self.summed, self.dotted = (nn.Parameter(torch.randn(*s)) for s in ((7, 6), (7, 2, 4), (8, 5)))

    def forward(self, x):
        h = (self.left @ x.mT).mT.tanh()
        h = torch.einsum("nci,iab->nacb", h.unsqueeze(1), self.summed).flatten(1)
        self.outputs = torch.tensordot(h, self.dotted, dims=([1], [0]))
        return self.outputs


def test_channels_are_found_on_either_side_and_where_there_is_not_one_axis_of_them_the_report_says_so():
    torch.manual_seed(0)
    model, x = Layouts(), torch.randn(50, 6)
    report = lsuv_(model, x, variance="channels")
    with torch.no_grad():
        assert (x @ model.left.T).std(0, correction=0).allclose(torch.ones(7), atol=1e-4)
        assert model(x).std(0, correction=0).allclose(torch.ones(5), atol=1e-4)
    assert [r.note for r in report] == ["", "no axis of channels: scaled as a whole", ""]


def test_query_key_and_value_are_centred_apart():
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True), torch.randn(8, 5, 16) + 1
    lsuv_(model, x, center=True)
    attention = model.self_attn
    for third in F.linear(x, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1):
        assert third.mean((0, 1)).abs().max() < 1e-5
        assert third.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_biases_that_are_to_stay_stay():
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3))), torch.randn(32, 6) + 1
    model[0].bias.requires_grad_(False)
    kept = [model[i].bias.clone() for i in (0, 1)]
    report = lsuv_(model, x, center=True, skip="1.bias")
    assert_same(kept, [model[i].bias.detach().clone() for i in (0, 1)])
    assert [bool(r.note) for r in report] == [True, True, False]
    assert model[2].bias.any()


def test_weights_that_are_computed_are_scaled_as_a_whole():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 3)),
        torch.randn(32, 6),
    )
    report = lsuv_(model, x, variance="channels", center=True)
    assert "computed from parameters: scaled as a whole" in next(iter(report)).note
    with torch.no_grad():
        z = model[0](x)
    assert z.mean(0).abs().max() < 1e-5
    assert z.std(0, correction=0).square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)


def test_constant_channels_are_left_and_counted():
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), torch.randn(32, 6)
    nn.init.zeros_(model.weight[1:2].data)
    report = lsuv_(model, x, variance="channels", pre_init=None)
    assert report["weight"].note == "1 constant channels not scaled"
    assert not model.weight[1].any()
    with pytest.warns(GoodinitWarning, match="no-signal"):
        lsuv_(model, x[:1], variance="samples")


@pytest.mark.parametrize("option", OPTIONS)
def test_no_trace_and_on_failure_none_at_all(option):
    variance, center = option
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(8, 2, 6, 6)
    model(x).sum().backward()
    before, random = surroundings(model), torch.get_rng_state()
    lsuv_(model, x, variance=variance, center=center, generator=torch.Generator())
    assert_same(before, surroundings(model))
    assert_same(random, torch.get_rng_state())
    everything = snapshot(model)

    def fails(model, x):
        model(x)
        raise RuntimeError("at the end")

    for pre_init in ("orthonormal", None):
        with pytest.raises(RuntimeError, match="at the end"):
            lsuv_(model, x, variance=variance, center=center, pre_init=pre_init, forward=fails)
        assert_same(everything, snapshot(model))


def test_a_shared_bias_is_used_once():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), torch.randn(32, 6)
    model[2].bias = model[0].bias
    report = lsuv_(model, x, center=True)
    assert [r.note for r in report] == ["", "not centred: its bias was used before"]
    assert model[0](x).mean(0).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": "sample"}, "variance must be 'all', 'samples' or 'channels'; got 'sample' .did you mean 'samples'"),
        ({"center": 1.0}, "center must be True or False; got 1.0. target_mean= takes a number"),
        ({"target_mean": 1.0}, "target_mean=1.0 is what center=True brings"),
        ({"target_mean": float("nan"), "center": True}, "target_mean must be a number; got nan"),
        ({"center": True, "batches": 2}, "center=True measures one batch; got batches=2"),
        ({"variance": "samples", "batches": 2}, "variance='samples' measures one batch"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        lsuv_(nn.Linear(3, 3), torch.randn(4, 3), **options)


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.complex64)),
    data=st.data(),
)
@settings(max_examples=30, deadline=None)
def test_grouped_statistics_are_torchs(shape, dtype, data):
    z = (torch.randn(shape, dtype=torch.complex64 if dtype.is_complex else torch.float32) + 3).to(dtype)
    over = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    found, wide = grouped(z, over), z.to(torch.complex128 if dtype.is_complex else torch.float64)
    assert torch.allclose(found.mean, wide.mean(over), rtol=1e-5)
    assert torch.allclose(found.var, wide.var(over, correction=0), rtol=1e-4, atol=1e-9)


def test_grouped_statistics_in_many_chunks_with_a_large_mean():
    z = torch.randn(3000, 4, 50) + 1000
    found = grouped(z, (0, 2))
    assert torch.allclose(found.var, z.double().var((0, 2), correction=0), rtol=1e-4)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 3))


def one_of_two(rank):
    x = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    own, states = (x[:4], x[4:])[rank], {}
    for option in OPTIONS:
        model, (variance, center) = convolutional(), option
        report = lsuv_(model, own, variance=variance, center=center, generator=torch.Generator().manual_seed(2))
        states[option] = model.state_dict(), [r.std_before for r in report]
    messages = []
    for model, options in (
        (convolutional(), {"target_std": "auto"}),
        (Branching(), {"center": True, "forward": lambda model, x: model(x, rank)}),
    ):
        before = copy.deepcopy(model.state_dict())
        try:
            lsuv_(model, own if isinstance(model, nn.Sequential) else own.flatten(1), **options)
        except Exception as error:  # noqa: BLE001 - whatever it is, told by its message
            messages.append(f"{type(error).__name__}: {error}")
        assert_same(before, model.state_dict())
    return states, messages


class Branching(nn.Module):
    """One layer that all processes use, and one that a single process does."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.shared, self.own = nn.Linear(72, 6), nn.Linear(6, 6)

    def forward(self, x, rank):
        return self.own(self.shared(x)) if rank else self.shared(x)


def test_two_processes_end_with_what_one_would_have_from_all_the_data(two):
    (states, messages), (others, other_messages) = two.run(one_of_two)
    x = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    for option in OPTIONS:
        model, (variance, center) = convolutional(), option
        report = lsuv_(model, x, variance=variance, center=center, generator=torch.Generator().manual_seed(2))
        assert_same(states[option], others[option])
        for name, value in model.state_dict().items():
            assert torch.allclose(value, states[option][0][name], rtol=1e-4, atol=1e-6), (option, name)
        assert states[option][1] == pytest.approx([r.std_before for r in report], rel=1e-4)
    assert all("OptionError: target_std='auto' measures in one process; there are 2" in m[0] for m in (messages, other_messages))
    assert "does not use 'own.weight' when that of another process does" in messages[1]
    assert "process 0 failed" in other_messages[1]


def test_weights_that_are_not_in_memory_are_refused(tmp_path):
    x = torch.randn(4, 3)
    for options in ({"target_std": "auto"}, {"center": True}, {"variance": "samples"}):
        with torch.device("meta"):
            model = nn.Linear(3, 3)
        with pytest.raises(OptionError, match="need a model in memory, and write no checkpoint"):
            lsuv_(model, x, device="cpu", **options)
        with pytest.raises(OptionError, match="need a model in memory, and write no checkpoint"):
            lsuv_(nn.Linear(3, 3), x, checkpoint=tmp_path, **options)
