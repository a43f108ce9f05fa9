"""``target_std="auto"``: what it measures, what it chooses, and that nothing else of it is left."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from goodinit import OptionError, Report, auto, lsuv_
from goodinit.auto import CLEARLY, correlation, cosines, products, similarity, tensors_in
from goodinit.choice import Choice, Trial
from nets import assert_same, build, mlp, snapshot, surroundings


def deep(activation, depth=50, width=32):
    torch.manual_seed(0)
    return mlp(*[width] * depth, 10, activation=activation), torch.randn(64, width)


def test_a_shallow_network_keeps_the_papers_target_after_one_trial():
    model, x = deep(nn.Tanh, depth=4)
    report = lsuv_(model, x, target_std="auto")
    assert report.choice is not None
    assert (report.choice.target_std, report.choice.center, len(report.choice.trials)) == (1.0, False, 1)
    assert report.forward_passes == 3
    assert report.ok
    assert (report.choice.head, report.choice.head_std) == ("6.weight", 0.1)
    assert model(x).std(correction=0).item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.Tanh, {(0.3, 0.0)}), (nn.GELU, {(0.1, 0.0), (0.3, 0.0), (1.0, 2.0)}), (nn.ReLU, {(1.0, 2.0)})],
)
def test_deep_networks_get_what_keeps_gradients_and_differences(activation, expected):
    model, x = deep(activation, depth=100)
    choice = lsuv_(model, x, target_std="auto").choice
    assert (choice.target_std, choice.target_mean) in expected
    least = min(trial.decades for trial in choice.trials)
    assert least < 0.7 < 1.5 < choice.trials[0].decades
    setting = (choice.target_std, choice.center, choice.target_mean)
    chosen = next(t for t in choice.trials if (t.target_std, t.center, t.target_mean) == setting)
    assert chosen.decades <= least + CLEARLY
    assert "at the paper's target" in choice.reason


@pytest.mark.parametrize("seed", range(3))
def test_likeness_tells_a_good_setting_from_one_that_makes_all_samples_unlike(seed):
    x = torch.tensor(load_digits().data[64 * seed :][:64], dtype=torch.float32)
    torch.manual_seed(seed)
    model = mlp(*[64] * 30, 10, activation=nn.GELU)
    choice = lsuv_(model, (x - x.mean()) / x.std(), target_std="auto").choice
    assert (choice.target_std, choice.center, choice.target_mean) == (1, True, 2)
    assert choice.trials[0].likeness < 0.3
    assert choice.trials[-1].likeness > 0.7
    assert "which samples are alike is forgotten" in choice.reason


class Noisy(nn.Tanh):
    """Has parameters, so that its noise is not taken for a dropout's."""

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return super().forward(x + self.size * torch.randn_like(x))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.Identity, Noisy])
def test_it_is_lsuv_with_the_options_that_it_chose(activation):
    model, x = deep(activation, depth=30)
    again = copy.deepcopy(model)
    choice = lsuv_(model, x, target_std="auto", generator=torch.Generator().manual_seed(3)).choice
    targets = {choice.head: choice.head_std, "*": choice.target_std}
    chosen = {"target_std": targets, "center": choice.center, "target_mean": choice.target_mean}
    lsuv_(again, x, generator=torch.Generator().manual_seed(3), **chosen)
    assert_same(again.state_dict(), model.state_dict())


def test_where_nothing_helps_the_papers_target_stays():
    torch.manual_seed(0)
    layers = [layer for _ in range(40) for layer in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())]  # its scale is nobody's
    model, x = nn.Sequential(*layers, nn.Linear(32, 10)), torch.randn(64, 32)
    report = lsuv_(model, x, target_std="auto")
    assert report.choice.target_std == 1
    assert not report.choice.center
    assert "nothing that was tried is clearly better" in report.choice.reason
    plain = copy.deepcopy(model)
    torch.manual_seed(1)
    lsuv_(plain, x, target_std={"120": 0.1})
    torch.manual_seed(1)
    lsuv_(model, x, target_std="auto")
    assert_same(plain.state_dict(), model.state_dict())


def test_what_is_measured(monkeypatch):
    monkeypatch.setattr(auto, "CANDIDATES", auto.CANDIDATES[:1])  # so that the model is left as it was measured
    model, x = deep(nn.Tanh, depth=12)
    trial = lsuv_(model, x, target_std="auto").choice.trials[0]
    outputs, z = [], x
    for layer in model:
        z = layer(z)
        if isinstance(layer, nn.Linear):
            z.retain_grad()
            outputs.append(z)
    z.backward(torch.randn(z.shape, generator=torch.Generator().manual_seed(0)))
    sizes = torch.stack([out.grad.norm() for out in outputs[:-1]]).log()
    assert trial.gradient_ratio == pytest.approx((sizes[:2].mean() - sizes[-2:].mean()).exp().item(), rel=1e-3)

    def cosine(out):
        rows = nn.functional.normalize(out.detach())
        return (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool)].mean().double()

    alike = torch.stack([cosine(out) for out in outputs])
    assert trial.similarity == pytest.approx(alike[-3:].mean().item(), abs=1e-5)
    away = (1 - alike).log()
    assert trial.distinct == pytest.approx((away[-3:].mean() - away[:3].mean()).exp().item(), rel=1e-3)
    assert trial.forward_ratio == pytest.approx(1, rel=1e-4)

    def pairs(out):
        rows = nn.functional.normalize(out.detach()[:32].double())
        one, other = torch.triu_indices(32, 32, 1)
        return (rows @ rows.T)[one, other]

    kept = [torch.corrcoef(torch.stack([pairs(outputs[0]), pairs(out)]))[0, 1] for out in outputs[1:]]
    assert trial.likeness == pytest.approx(torch.stack(kept[-3:-1]).mean().item(), rel=1e-3)
    terms = (trial.gradient_ratio, trial.distinct, trial.forward_ratio, max(trial.likeness, 0.1))
    assert trial.decades == pytest.approx(sum(abs(math.log10(term)) for term in terms))


@pytest.mark.parametrize("name", ["normalized", "residual", "branches", "functional", "attention", "volume"])
def test_no_trace(name):
    model, data = build(name)
    before, random = surroundings(model), torch.get_rng_state()
    report = lsuv_(model, data, target_std="auto", generator=torch.Generator())
    assert_same(before, surroundings(model))
    assert_same(random, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert report.ok


@pytest.mark.parametrize("passes", [1, 2, 3, 4, 6])
def test_a_failure_in_any_pass_leaves_the_model_as_it_was(passes):
    model, x = deep(nn.ReLU, depth=30)
    model(x).sum().backward()
    before, left = snapshot(model), [passes]

    def fails(model, x):
        left[0] -= 1
        out = model(x)
        if not left[0]:
            raise KeyboardInterrupt
        return out

    with pytest.raises(KeyboardInterrupt):
        lsuv_(model, x, target_std="auto", forward=fails)
    assert_same(before, snapshot(model))


def test_a_loss_and_nothing_to_differentiate():
    model, x = deep(nn.Tanh, depth=30)
    report = lsuv_(model, x, target_std="auto", forward=lambda model, x: {"loss": model(x).square().mean()})
    assert report.choice.target_std < 1
    report = lsuv_(model, x, target_std="auto", forward=lambda model, x: model(x).detach())
    assert report.choice.trials[0].gradient_ratio is None
    assert "gradient ratio not measured" in str(report)


def test_parts_of_one_parameter_and_recurrent_layers_begin_every_trial_as_drawn():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack, self.rnn = nn.Parameter(torch.zeros(40, 16, 16)), nn.GRU(16, 16, batch_first=True)

        def forward(self, x):
            x = self.rnn(x)[0]
            for weight in self.stack:
                x = torch.tanh(x @ weight)
            return x

    torch.manual_seed(0)
    model, x = Experts(), torch.randn(32, 3, 16)
    again = copy.deepcopy(model)
    choice = lsuv_(model, x, target_std="auto", generator=torch.Generator().manual_seed(3)).choice
    assert len(choice.trials) > 1
    assert (choice.head, choice.head_std) == ("stack[39]", 0.1)
    lsuv_(again, x, target_std=choice.target_std, center=choice.center, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        again.stack[39] *= 0.1 / choice.target_std
    assert torch.allclose(again.stack, model.stack, rtol=1e-5)
    assert_same(again.rnn.state_dict(), model.rnn.state_dict())


class Several(nn.Module):
    """A network that its forward calls several times."""

    def __init__(self, forward):
        super().__init__()
        self.net, self._forward = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), forward

    def forward(self, x):
        return self._forward(self.net, x)


def differentiated(net, x):
    """As in physics-informed networks."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return slope, net(x + 1)


def of_the_slope(net, x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    return net(slope)


@pytest.mark.parametrize(
    ("forward", "head"),
    [
        (lambda net, x: (net(x), net(2 * x)), "net.2.weight"),
        (differentiated, "net.2.weight"),
        (lambda net, x: net(net(x)), None),
        (of_the_slope, None),
        (lambda net, x: net[0](net(x)), None),
        (lambda net, x: (net(x), net[0](x)), None),
    ],
    ids=["side by side", "differentiated", "in a row", "of its slope", "ends in another layer", "two outputs"],
)
def test_a_network_called_several_times_has_a_head_if_no_call_sees_what_another_made(forward, head):
    torch.manual_seed(0)
    model, x = Several(forward), torch.randn(32, 8)
    report = lsuv_(model, x, target_std="auto")
    assert report.choice.head == head
    expected = {"net.0.weight": 1.0, "net.2.weight": 0.1 if head else 1.0}
    assert {r.name: r.std_after for r in report} == pytest.approx(expected, rel=1e-4)


def test_what_autograd_does_not_see_is_no_head():
    model = Several(lambda net, x: (net(x), net(2 * x))).requires_grad_(requires_grad=False)
    assert lsuv_(model, torch.randn(32, 8), target_std="auto").choice.head is None


def test_the_choice_is_in_the_report_and_in_json():
    model, x = deep(nn.Tanh)
    report = lsuv_(model, x, target_std="auto")
    assert Report.from_json(report.to_json()) == report
    assert isinstance(Report.from_json(report.to_json()).choice, Choice)
    assert json.loads(report.to_json())["choice"]["trials"][0]["target_std"] == 1
    assert "auto: target_std=0.3, '98.weight' 0.1: at the paper's target gradients are" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target_std": "Auto"},
            "target_std must be a positive number or a mapping from patterns to such, or 'auto'; got 'Auto'",
        ),
        ({"target_std": "auto", "center": True}, "decides itself whether to centre"),
        ({"target_std": "auto", "batches": 3}, "measures one batch; got batches=3"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(OptionError, match=message):
        lsuv_(nn.Linear(3, 3), torch.randn(4, 3), **options)


def test_similarity_is_the_mean_cosine_of_distinct_samples():
    assert similarity(torch.ones(5, 3)).item() == pytest.approx(1)
    assert similarity(torch.eye(4)).item() == pytest.approx(0, abs=1e-6)
    assert similarity(torch.tensor([[1.0, 0], [-2, 0]])).item() == pytest.approx(-1)


def test_cosines_of_pairs_and_their_correlation():
    x = torch.tensor([[1.0, 0], [2, 2], [0, -3]])
    assert cosines(products(x)).tolist() == pytest.approx([0.5**0.5, 0, -(0.5**0.5)], abs=1e-6)
    assert cosines(products(300 * x.half())).tolist() == pytest.approx([0.5**0.5, 0, -(0.5**0.5)], abs=1e-3)
    assert cosines(products(torch.tensor([[1, 1j], [1j, -1], [1, 1]]))).tolist() == pytest.approx([0, 0.5, -0.5], abs=1e-6)
    first = torch.tensor([0.1, 0.5, 0.9])
    assert correlation(first, 0.2 + 0.1 * first).item() == pytest.approx(1)
    assert correlation(first, -first).item() == pytest.approx(-1)
    assert correlation(first, torch.ones(3)).item() == 0
    assert correlation(torch.ones(3), first).isnan()


def test_all_are_tried_in_thirteen_passes_where_none_is_good():
    model, x = deep(nn.SiLU, depth=100)
    report = lsuv_(model, x, target_std="auto")
    tried = [(t.target_std, t.target_mean if t.center else None) for t in report.choice.trials]
    assert tuple(tried) == auto.CANDIDATES
    assert report.forward_passes == 13
    assert report.choice.reason.endswith("; nothing that was tried is clearly better than this")


def test_the_smallest_target_is_not_tried_where_targets_make_no_difference():
    model, x = deep(nn.ReLU, depth=100)
    targets = [trial.target_std for trial in lsuv_(model, x, target_std="auto").choice.trials]
    assert targets == [1, 0.3, 1, 1, 1]


def test_operators_that_see_other_samples_are_not_compared():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inside, self.last = nn.Linear(16, 16), nn.Linear(4, 4), nn.Linear(16, 16)

        def forward(self, x):
            x = torch.tanh(self.first(x))
            return self.last(torch.tanh(self.inside(x.view(-1, 4))).view(x.shape))

    trial = lsuv_(Windows(), torch.randn(32, 16), target_std="auto").choice.trials[0]
    assert trial.likeness is None
    assert trial.distinct is not None


def trials(*decades):
    settings = zip(auto.CANDIDATES, decades, strict=False)  # of fewer than all
    return [Trial(target, mean is not None, mean or 0.0, None, None, None, None, off) for (target, mean), off in settings]


@pytest.mark.parametrize(
    ("decades", "expected"),
    [([0.5], True), ([0.51], False), ([0.7, 0.46], False), ([0.7, 0.44], True), ([3, 2, 0.6], False), ([3, 2, 0.5], True)],
)
def test_good_enough(decades, expected):
    assert auto.good(trials(*decades)) is expected


@pytest.mark.parametrize(
    ("decades", "expected"),
    [
        ([2, 0.52, 0.9, 0.9, 1, 0.48], 1),
        ([0.72, 0.6, 0.9, 0.9, 1, 0.48], 0),
        ([2, 1.2, 0.78, 0.9, 1, 0.5], 5),
        ([9, 8, 7], 2),
        ([1.9, 1.7], 1),
        ([1.84, 1.7], 0),
    ],
)
def test_the_first_that_none_is_clearly_better_than(decades, expected):
    given = trials(*decades)
    assert auto.unbeaten(given) is given[expected]


def test_autocast_does_not_touch_what_is_measured():
    """Products of samples with more than 65,504 elements overflow half precision."""
    torch.manual_seed(0)
    model, x = mlp(*[64] * 4, activation=nn.ReLU), torch.randn(8, 1100, 64) + torch.randn(8, 1, 64)
    again = copy.deepcopy(model)
    plain = lsuv_(model, x, target_std="auto", generator=torch.Generator().manual_seed(0)).choice
    with torch.autocast("cpu", torch.float16):
        half = lsuv_(again, x, target_std="auto", generator=torch.Generator().manual_seed(0)).choice
    assert half.trials[0].likeness == pytest.approx(plain.trials[0].likeness, abs=0.02)
    assert half.trials[0].similarity == pytest.approx(plain.trials[0].similarity, abs=0.01)


def test_channels_of_an_image_without_a_batch_are_no_samples():
    torch.manual_seed(0)
    model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())])
    trial = lsuv_(model, torch.randn(8, 9, 9), target_std="auto").choice.trials[0]
    assert (trial.likeness, trial.similarity, trial.distinct) == (None, None, None)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (lambda x: x, 0.1),
        (lambda x: (x, torch.zeros(64, dtype=torch.int64)), 1.0),
        (lambda x: (x, torch.zeros(64, dtype=torch.uint8)), 1.0),
        (lambda x: (x, torch.zeros(64)), 0.1),
        (lambda x: DataLoader(TensorDataset(x, torch.zeros(64, dtype=torch.int64)), 64), 1.0),
        (lambda x: [{"x": x, "y": torch.zeros(64, dtype=torch.int64)}], 1.0),
        (lambda x: [{"x": x, "y": {"a": torch.zeros(64, dtype=torch.int64), "b": torch.zeros(64)}}], 0.1),
    ],
)
def test_the_output_begins_small_unless_the_targets_are_classes(data, expected):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x):
            return self.head(torch.tanh(self.body(x)))

    model, x = Net(), torch.randn(64, 8)
    report = lsuv_(model, data(x), target_std="auto")
    assert model(x).std(correction=0).item() == pytest.approx(expected, rel=1e-3)
    assert (report.choice.head, report.choice.head_std) == ("head.weight", expected)
    assert ("'head.weight' 0.1" in str(report)) is (expected < 1)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (lambda x, y: (x, y), 1.0),
        (lambda x, y: [x, y], 1.0),
        (lambda x, y: (x, y.float()), 0.1),
        (lambda x, _: (x,), 0.1),
        (lambda x, y: {0: x, "labels": y}, 1.0),
        (lambda x, _: {0: x}, 0.1),
        (lambda x, _: SimpleNamespace(x=x), 0.1),
    ],
)
def test_targets_in_a_batch_that_a_forward_of_the_callers_takes(batch, expected):
    model, x, y = mlp(8, 32, 4, activation=nn.Tanh), torch.randn(64, 8), torch.zeros(64, dtype=torch.int64)
    given = batch(x, y)
    forward = lambda model, b: model(b.x if isinstance(b, SimpleNamespace) else b[0])
    report = lsuv_(model, given, target_std="auto", forward=forward)
    assert report.choice.head_std == expected


def test_labels_that_the_model_takes_are_targets_too():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

        def forward(self, x, labels=None):
            out = self.head(torch.tanh(self.body(x)))
            return out if labels is None else {"loss": nn.functional.cross_entropy(out, labels), "logits": out}

    model, x = Net(), torch.randn(64, 8)
    report = lsuv_(model, {"x": x, "labels": torch.zeros(64, dtype=torch.int64)}, target_std="auto")
    assert report["head.weight"].std_after == pytest.approx(1)
    assert lsuv_(model, {"x": x}, target_std="auto")["head.weight"].std_after == pytest.approx(0.1)


def test_two_layers_have_no_hidden_ones_to_compare():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
    assert lsuv_(model, torch.randn(64, 16), target_std="auto").choice.trials[0].likeness is None


def test_a_gradient_that_is_not_finite_is_off_most():
    model = mlp(*[16] * 5, activation=nn.Tanh)

    def forward(model, x):
        return (model(x) - model(x).detach()).square().sum().sqrt()  # whose slope at 0 is NaN

    choice = lsuv_(model, torch.randn(32, 16), target_std="auto", forward=forward).choice
    assert choice.trials[0].decades > 29
    assert choice.reason.endswith("and nothing that was tried is clearly better")


def test_batches_that_say_nothing_of_likeness():
    torch.manual_seed(0)
    model = mlp(*[16] * 4, activation=nn.Tanh)
    few, orthogonal = torch.randn(7, 16), torch.eye(16)
    for x in (few, orthogonal):
        (trial,) = lsuv_(copy.deepcopy(model), x, target_std="auto").choice.trials
        assert trial.likeness is None
        assert "likeness kept not measured" in str(trial)


def test_tensors_are_found_in_any_container():
    assert len(list(tensors_in({"a": torch.ones(1), "b": [torch.ones(1), (torch.ones(1), None)]}))) == 3


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints_change_nothing_of_what_is_measured(use_reentrant):
    """A part of the forward runs again in the backward, or has a graph only there."""
    layers = [layer for _ in range(20) for layer in (nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.5))]
    x = torch.randn(64, 16)

    class Checkpointed(nn.Module):
        def __init__(self, *, on):
            super().__init__()
            self.on = on
            self.first, self.body, self.last = nn.Linear(16, 16), nn.Sequential(*copy.deepcopy(layers)), nn.Linear(16, 4)

        def forward(self, x):
            x = self.first(x)
            x = checkpoint(self.body, x, use_reentrant=use_reentrant) if self.on else self.body(x)
            return self.last(nn.functional.dropout(x, 0.5, self.training))

    reports = []
    for on in (False, True):
        model = Checkpointed(on=on)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        reports.append(lsuv_(model, x, target_std="auto", generator=torch.Generator().manual_seed(0)))
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    plain, checkpointed = (report.choice for report in reports)
    assert len(plain.trials) > 1
    assert [t.gradient_ratio for t in checkpointed.trials] == pytest.approx([t.gradient_ratio for t in plain.trials], rel=1e-4)


def test_leaves_that_are_no_parameters_keep_their_gradients():
    """Where a part of the forward runs without gradients, they are taken by a whole backward pass."""

    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 4)
            self.shift = torch.zeros(16, requires_grad=True)

        def forward(self, x):
            with torch.no_grad():
                x = self.first(x)
            return self.last(torch.tanh(x + self.shift))

    model = Partly()
    lsuv_(model, torch.randn(64, 16), target_std="auto")
    assert model.shift.grad is None


def test_the_model_is_let_go_of():
    """Python cannot find a circle that goes through autograd's graph."""
    model, x = deep(nn.Tanh, depth=3)
    weight = weakref.ref(model[0].weight)
    lsuv_(model, x, target_std="auto")
    del model
    gc.collect()
    assert weight() is None
