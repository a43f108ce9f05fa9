"""What lsuv_ promises: every weight at its target after one forward pass, as by Algorithm 1 run in full."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from goodinit import DataError, GoodinitWarning, lsuv_
from goodinit.reference import lsuv_reference_
from nets import MODELS, Branches, Functional, Residual, assert_same, build, first_use_stds, mlp, snapshot, surroundings


@pytest.mark.parametrize("name", MODELS)
def test_one_pass_brings_every_weight_to_its_target(name):
    model, data = build(name)
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    report = lsuv_(model, data)
    hook.remove()
    assert len(passes) == 1 == report.forward_passes
    stds = first_use_stds(model, lambda m: m(data))
    for weight, std in stds.items():
        assert std == pytest.approx(1, abs=1e-3), weight
        assert report[weight].status == "scaled"
    assert report.ok
    matrices = [n for n, p in model.named_parameters() if p.dim() > 1]
    assert {r.name.partition("[")[0] for r in report} == set(matrices)
    assert all(r.std_after == pytest.approx(1) for r in report)


def test_functional_operators_are_at_target_too():
    model, data = build("functional")
    report = lsuv_(model, data)
    with torch.no_grad():
        h1 = data @ model.first.T
        h2 = torch.tanh(h1) @ model.einsummed
        h3 = h2.relu() @ model.last
    for h in (h1, h2, h3):
        assert h.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert [r.name for r in report] == ["first", "einsummed", "last"]  # as they run, not as they are registered
    assert not model.bias.any()


def test_attention_scales_query_key_and_value_apart():
    model, data = build("attention")
    report = lsuv_(model, data)
    q, k, v = F.linear(data, model.self_attn.in_proj_weight).chunk(3, dim=-1)
    for third in (q, k, v):
        assert third.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert [r.name for r in report][:3] == [f"self_attn.in_proj_weight[{a}:{a + 16}]" for a in (0, 16, 32)]
    for third in model.self_attn.in_proj_weight.detach().chunk(3):
        gram = third @ third.T
        assert torch.allclose(gram / gram[0, 0], torch.eye(16), atol=1e-5)


def test_weights_stay_orthonormal_up_to_the_factor_and_biases_are_zero():
    model, data = build("normalized")
    report = lsuv_(model, data)
    w = model.net[0].weight.detach().flatten(1) / report["net.0.weight"].factor
    assert torch.allclose(w @ w.T, torch.eye(8), atol=1e-5)
    assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias") and "net.1" not in n)
    assert model.net[1].weight.eq(1).all()  # the normalization's are no weights of a linear operator


def test_same_seed_same_weights_and_only_the_matrices_are_drawn():
    states = []
    for _ in range(2):
        model, data = build("normalized", seed=5)
        torch.manual_seed(11)
        lsuv_(model, data)
        states.append((model.state_dict(), torch.get_rng_state()))
    assert_same(states[0], states[1])
    torch.manual_seed(11)
    torch.randint(2**62, ())  # the number that all matrices follow from
    assert_same(torch.get_rng_state(), states[0][1])


def test_a_matrix_depends_on_the_seed_and_its_place_alone():
    """Not on what else is drawn, in which order, or on a wrapper around the model."""
    model, data = build("mlp")
    wrapped, some = nn.DataParallel(copy.deepcopy(model)), copy.deepcopy(model)
    lsuv_(model, data, generator=torch.Generator().manual_seed(1))
    lsuv_(wrapped, data, generator=torch.Generator().manual_seed(1))
    assert_same(model.state_dict(), wrapped.module.state_dict())
    first, *_, last = [name for name, p in model.named_parameters() if p.dim() > 1]
    lsuv_(some, data, generator=torch.Generator().manual_seed(1), skip=first)
    ours, theirs = model.get_parameter(last), some.get_parameter(last)
    assert torch.allclose(ours / ours.norm(), theirs / theirs.norm(), atol=1e-6)
    assert not torch.equal(model.get_parameter(first), some.get_parameter(first))


def test_generator_leaves_the_global_one_alone():
    model, data = build("mlp")
    other = copy.deepcopy(model)
    before = torch.get_rng_state()
    lsuv_(model, data, generator=torch.Generator().manual_seed(1))
    assert_same(before, torch.get_rng_state())
    torch.randn(3)
    lsuv_(other, data, generator=torch.Generator().manual_seed(1))
    assert_same(model.state_dict(), other.state_dict())


def test_noise_in_the_forward_is_reproducible_and_not_that_of_the_matrices():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(40, 40)

        def forward(self, x):
            self.noise = torch.randn(40, 40)
            return self.fc(x + 0.1 * self.noise)

    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Noisy()
        torch.manual_seed(3)
        lsuv_(model, torch.eye(40))
        drawn.append(model.noise)
    assert torch.equal(*drawn)
    torch.manual_seed(3)
    assert not torch.equal(drawn[0], torch.randn(40, 40))  # those are the first draws of the matrices


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_batch_statistics_are_the_batchs(training):
    class Regularized(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.frozen = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.9, batch_first=True)
            self.drop = nn.Dropout(0.9)
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            x = self.frozen(self.norm(x.flatten(0, 1))).view_as(x)
            x = F.dropout(self.drop(x), 0.9, self.training)
            return self.fc(F.scaled_dot_product_attention(x, x, x, dropout_p=0.9) + self.attention(x, x, x)[0])

    torch.manual_seed(0)
    model, data = Regularized(), 5 + 3 * torch.randn(32, 10, 8)
    if training:
        nn.init.constant_(model.frozen.running_mean, 1.0)  # in eval by the caller: stays so, and is used as it is
        model.frozen.eval()
    model.train(training) if not training else None
    flags = [m.training for m in model.modules()]
    report = lsuv_(model, data)
    assert [m.training for m in model.modules()] == flags
    assert all(r.std_after == pytest.approx(1) for r in report)
    h = (data - data.mean((0, 1))) / data.std((0, 1), correction=0)
    h = h - 1 if training else h
    q = h @ model.attention.in_proj_weight[:8].T
    assert q.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    eval_all = copy.deepcopy(model).eval()
    h = F.scaled_dot_product_attention(h, h, h) + eval_all.attention(h, h, h)[0]
    assert eval_all.fc(h).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_eval_mode_uses_running_statistics():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8)), 3 * torch.randn(256, 8)
    nn.init.constant_(model[0].running_var, 4.0)
    (record,) = lsuv_(model, data, mode="eval")
    assert model.training
    assert model.eval()(data).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert lsuv_(model, data, mode="train")["1.weight"].factor > 1.3 * record.factor  # there the inputs have std 1, not 1.5


def test_noise_of_a_module_without_parameters_is_off():
    class StochasticDepth(nn.Module):
        def forward(self, x):
            return x * torch.empty(len(x), 1).bernoulli_(0.5) / 0.5 if self.training else x

    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 8), StochasticDepth(), nn.RReLU(0.1, 0.9), nn.Linear(8, 8)), torch.randn(256, 8)
    lsuv_(model, data)
    assert model[1].training
    assert model[2].training
    assert model.eval()(data).std(correction=0).item() == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------- Algorithm 1 as the oracle


@st.composite
def networks(draw):
    """Random nets, plain, branching and residual, from layers with and without bias, in-place activations among them."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    activations = [nn.ReLU, lambda: nn.ReLU(inplace=True), nn.Tanh, nn.GELU, lambda: nn.LeakyReLU(1 / 3)]

    def body(width, depth):
        layers: list[nn.Module] = []
        for _ in range(depth):
            kind = draw(st.sampled_from(["conv", "conv", "wide", "residual", "branches", "grouped", "pool"]))
            bias = draw(st.booleans())
            if kind == "conv":
                out = draw(st.integers(2, 8))
                layers.append(nn.Conv2d(width, out, 3, padding=1, bias=bias))
                width = out
            elif kind == "wide":
                layers.append(nn.Conv2d(width, 4 * width, 1, bias=bias))
                width *= 4
            elif kind == "grouped":
                layers.append(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=bias))
            elif kind == "residual":
                hidden = draw(st.integers(2, 6))
                layers.append(
                    Residual(nn.Conv2d(width, hidden, 3, padding=1), nn.Tanh(), nn.ConvTranspose2d(hidden, width, 3, padding=1))
                )
            elif kind == "branches":
                layers.append(Branches(nn.Conv2d(width, 3, 1), nn.Sequential(nn.Conv2d(width, 2, 3, padding=1), nn.ReLU())))
                width = 5
            else:
                layers.append(nn.MaxPool2d(3, 1, 1))
            layers.append(draw(st.sampled_from(activations))())
        return layers, width

    layers, width = body(4, draw(st.integers(1, 5)))
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(36 * width, 3))
    return model, torch.randn(32, 2, 6, 6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(networks())
def test_equals_algorithm_1(case):
    model, data = case
    slow = copy.deepcopy(model)
    lsuv_(model, data, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        passes = lsuv_reference_(slow, lambda: slow(data), tol_var=1e-6, t_max=5, generator=torch.Generator().manual_seed(0))
    assert passes > 1
    for (name, fast), exact in zip(model.named_parameters(), slow.parameters(), strict=True):
        assert (fast - exact).norm() <= 1e-4 * exact.norm(), name


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("target", [0.1, 1, 3.0])
def test_target_for_all(target):
    model, data = build("mlp")
    lsuv_(model, data, target_std=target)
    for std in first_use_stds(model, lambda m: m(data)).values():
        assert std == pytest.approx(target, rel=1e-3)


def test_targets_by_pattern_first_match_counts():
    model, data = build("mlp")
    report = lsuv_(model, data, target_std={"6": 0.1, "[02]*": 2.0})
    stds = first_use_stds(model, lambda m: m(data))
    assert list(stds.values()) == [pytest.approx(t, rel=1e-3) for t in (2, 2, 1, 0.1)]
    assert [r.target for r in report] == [2, 2, 1, 0.1]


@pytest.mark.parametrize("skip", ["2", ["2.weight", "2.bias"], ("2*",)])
def test_skip(skip):
    model, data = build("mlp")
    kept = copy.deepcopy(model[2].state_dict())
    report = lsuv_(model, data, skip=skip)
    assert_same(model[2].state_dict(), kept)
    stds = first_use_stds(model, lambda m: m(data))
    assert report["2.weight"].status == "skipped"
    assert report["2.weight"].std_after == pytest.approx(stds.pop("2.weight"), rel=1e-4)
    assert all(std == pytest.approx(1, abs=1e-3) for std in stds.values())


def test_a_bias_that_is_skipped_is_kept_and_counted():
    model, data = build("mlp")
    nn.init.normal_(model[0].bias, std=0.5)
    kept = model[0].bias.detach().clone()
    lsuv_(model, data, skip="0.bias")
    assert torch.equal(model[0].bias, kept)
    assert model[0](data).std(correction=0).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "attention"])
def test_without_pre_init_weights_are_only_scaled_biases_kept(name):
    model, data = build(name)
    before = copy.deepcopy(model.state_dict())
    report = lsuv_(model, data, pre_init=None)
    assert report.sampling_seconds == 0
    for weight, std in first_use_stds(model, lambda m: m(data)).items():
        assert std == pytest.approx(1, abs=1e-3), weight
    for key, value in model.state_dict().items():
        if value.dim() > 1:
            ratio = value / before[key]
            assert torch.allclose(ratio, ratio.flatten()[0], rtol=1e-4), key
        else:
            assert torch.equal(value, before[key]), key


def test_a_bias_larger_than_the_target_is_said():
    model = nn.Linear(4, 8)
    nn.init.normal_(model.bias, std=5)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(GoodinitWarning, match="'weight' is bias-dominated"):
        report = lsuv_(model, torch.randn(64, 4), pre_init=None)
    assert report["weight"].status == "bias-dominated"
    assert not report.ok
    assert_same(model.state_dict(), before)
    assert report["weight"].std_after == pytest.approx(model(torch.zeros(1, 4)).std(correction=0).item(), rel=0.2)


def test_the_largest_root_is_taken_when_weight_and_bias_cancel():
    model = nn.Linear(1, 4, bias=True)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([-3.0, -1.0, 1.0, 3.0]))
        model.weight.copy_(torch.tensor([[3.0], [1.0], [-1.0], [-2.9]]))
    data = 1 + 0.1 * torch.randn(1000, 1)
    lsuv_(model, data, pre_init=None)
    assert model(data).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert model.weight[0].item() > 3  # the smaller root would shrink it


def test_pre_init_by_a_function():
    seen = []

    def fill(w):
        seen.append(tuple(w.shape))
        nn.init.xavier_normal_(w)

    torch.manual_seed(0)
    model = Functional()
    data = torch.randn(64, 6)
    lsuv_(model, data, pre_init=fill)
    assert seen == [(10, 6), (12, 10), (4, 12)]  # always (out, in), also where the operator has it the other way
    assert first_use_stds(nn.Sequential(nn.Linear(1, 1)), lambda m: m(torch.ones(1, 1)))  # the recorder itself records
    assert (data @ model.first.T).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    other = Functional()
    lsuv_(other, data, pre_init=nn.init.xavier_normal_)
    assert not torch.equal(other.first, model.first)  # the global generator has moved on by what the function drew


def test_forward():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def encode(self, x, *, both):
            return self.b(self.a(x)) if both else self.a(x)

    model = Odd()
    report = lsuv_(model, {"deep": torch.randn(32, 3)}, forward=lambda m, d: m.encode(d["deep"], both=True))
    assert [r.status for r in report] == ["scaled", "scaled"]


# ---------------------------------------------------------------- cases


def test_lazy_modules_are_materialized_and_initialized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyConv2d(6, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    data = torch.randn(32, 3, 6, 6)
    report = lsuv_(model, data)
    assert [(r.name, r.shape, r.status) for r in report] == [
        ("0.weight", (6, 3, 3, 3), "scaled"),
        ("4.weight", (4, 96), "scaled"),
    ]
    assert type(model[0]) is nn.Conv2d
    assert model[1].running_mean.eq(0).all()
    assert all(s == pytest.approx(1, abs=1e-3) for s in first_use_stds(model, lambda m: m(data)).values())


def test_shared_weight_is_scaled_at_its_first_use():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), layer)
    data = torch.randn(256, 8)
    report = lsuv_(model, data)
    (record,) = report
    uses = []
    hook = layer.register_forward_hook(lambda m, a, out: uses.append(out.std(correction=0).item()))
    model(data)
    hook.remove()
    assert record.status == "shared"
    assert record.uses == pytest.approx(uses, rel=1e-4)
    assert uses[0] == pytest.approx(1, abs=1e-4)


def test_frozen_weight_is_left():
    model, data = build("mlp")
    model[2].requires_grad_(False)
    kept = copy.deepcopy(model[2].state_dict())
    report = lsuv_(model, data)
    assert report["2.weight"].status == "frozen"
    assert_same(model[2].state_dict(), kept)
    assert first_use_stds(model, lambda m: m(data))["4.weight"] == pytest.approx(1, abs=1e-3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.mix(self.embed(ids)))


def test_tied_head_is_left_unless_asked_for():
    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(20, (4, 9))
    kept = model.embed.weight.detach().clone()
    report = lsuv_(model, ids)
    assert report["embed.weight"].status == "tied"
    assert torch.equal(model.embed.weight, kept)
    report = lsuv_(model, ids, target_std={"embed": 0.5})
    assert report["embed.weight"].status == "scaled"
    assert not torch.equal(model.embed.weight, kept)


def test_unused_weight_is_orthonormal_and_not_scaled():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 6)

        def forward(self, x):
            return self.used(x)

    model = Half()
    report = lsuv_(model, torch.randn(16, 4))
    assert (report["unused.weight"].status, report["unused.weight"].std_after) == ("unused", None)
    w = model.unused.weight.detach()
    assert torch.allclose(w.T @ w, torch.eye(4), atol=1e-5)
    assert not model.unused.bias.any()
    before = copy.deepcopy(model.unused.state_dict())
    assert lsuv_(model, torch.randn(16, 4), pre_init=None)["unused.weight"].status == "unused"
    assert_same(model.unused.state_dict(), before)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_dead_layer_has_no_signal(value):
    torch.manual_seed(0)
    dead = nn.Linear(4, 1)
    model = nn.Sequential(nn.Linear(4, 4), nn.Threshold(1e9, value), dead, nn.Linear(1, 3))
    with pytest.warns(
        GoodinitWarning, match=r"'2.weight' is no-signal \(its output is constant, zero or too small for its dtype: not scaled\)"
    ):
        report = lsuv_(model, torch.randn(32, 4))
    assert report["0.weight"].status == "scaled"
    assert report["2.weight"].status == "no-signal"
    assert report["2.weight"].factor == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not report.ok


def test_empty_input_of_a_branch_counts_as_unused():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.Parameter(torch.randn(3, 4, 5))

        def forward(self, x):
            return [x[: 0 if i == 1 else None] @ self.experts[i] for i in range(3)]

    model = Routed()
    report = lsuv_(model, torch.randn(32, 4))
    assert {r.name: r.status for r in report} == {"experts[0]": "scaled", "experts[2]": "scaled", "experts[1]": "unused"}
    w = model.experts[1].detach()
    assert torch.allclose(w @ w.T, torch.eye(4), atol=1e-5)


def test_a_model_that_differentiates_in_its_forward():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(2, 16, 16, 1)
            self.after = nn.Linear(2, 3)

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                (force,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
            self.force = force.detach()
            return self.after(force)

    torch.manual_seed(0)
    model, data = Energy(), torch.randn(64, 2)
    lsuv_(model, data)
    force = model.force
    model(data)
    assert torch.allclose(model.force, force, atol=1e-5)  # the graph had the final weights
    assert all(std == pytest.approx(1, abs=1e-3) for std in first_use_stds(model, lambda m: m(data)).values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_dtypes(name, dtype, tolerance):
    model, data = build(name)
    model, data = model.to(dtype), data.to(dtype)
    report = lsuv_(model, data)
    for weight, std in first_use_stds(model, lambda m: m(data)).items():
        assert std == pytest.approx(1, abs=tolerance), weight
    assert all(p.dtype == dtype for p in model.parameters())
    assert report.ok


def test_autocast():
    model, data = build("mlp")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lsuv_(model, data)
        stds = first_use_stds(model, lambda m: m(data))
    assert all(std == pytest.approx(1, abs=2e-2) for std in stds.values())
    assert model[0].weight.dtype == torch.float32


def test_inference_mode_of_the_caller():
    model, data = build("functional")
    with torch.inference_mode():
        lsuv_(model, data)
    assert not model.first.is_inference()
    assert (data @ model.first.T).std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_great_depth():
    model = mlp(*[16] * 400, activation=nn.ReLU)
    data = torch.randn(128, 16)
    report = lsuv_(model, data)
    assert len(report) == 399
    assert max(abs(s - 1) for s in first_use_stds(model, lambda m: m(data)).values()) < 1e-3


def test_one_layer_registered_in_reverse_and_named_misleadingly():
    class LinearBlock(nn.Module):  # crashes lsuv 0.3.0, which looks for "Linear" in class names
        def __init__(self):
            super().__init__()
            self.second = nn.Linear(5, 6)
            self.first = nn.Linear(4, 5)

        def forward(self, x):
            return self.second(self.first(x).relu_())

    model, data = LinearBlock(), torch.randn(64, 4)
    assert [r.name for r in lsuv_(model, data)] == ["first.weight", "second.weight"]
    assert all(s == pytest.approx(1, abs=1e-3) for s in first_use_stds(model, lambda m: m(data)).values())


def test_the_signature():
    assert str(inspect.signature(lsuv_)).startswith("(model:")
    assert [p.name for p in inspect.signature(lsuv_).parameters.values()] == [
        *("model", "data", "target_std", "variance", "center", "target_mean"),
        *("pre_init", "forward", "skip", "generator", "mode", "batches", "tol", "distributed"),
        *("device", "reset", "checkpoint"),
    ]


def test_a_second_call_gives_the_same_std_and_leaves_nothing_of_the_first():
    model, data = build("normalized")
    before = surroundings(model)
    lsuv_(model, data)
    lsuv_(model, data)
    assert_same(before, surroundings(model))
    assert all(s == pytest.approx(1, abs=1e-3) for s in first_use_stds(model, lambda m: m(data)).values())
    assert math.isfinite(sum(p.sum().item() for p in model.parameters()))


def test_a_model_that_differentiates_in_its_forward_and_uses_weights_in_parts():
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.attention, self.out = nn.Parameter(torch.randn(3, 8, 8)), nn.MultiheadAttention(8, 2), nn.Linear(8, 1)

        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                h = x
                for w in self.w:
                    h = torch.tanh(h @ w)
                energy = self.out(self.attention(h, x, x)[0]).sum()
                return torch.autograd.grad(energy, x)[0]

    torch.manual_seed(0)
    model, data, forces = Forces(), torch.randn(16, 8), []
    report = lsuv_(model, data, forward=lambda m, x: forces.append(m(x)))
    assert len(report) == 8
    assert all(record.status == "scaled" for record in report)
    assert torch.allclose(model(data), forces[0], atol=1e-5)


def test_a_layer_without_outputs():
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 0))
    report = lsuv_(model, torch.randn(16, 8))
    assert [record.status for record in report] == ["scaled", "unused"]


def nested(layout):
    return torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=layout)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (torch.strided, "argument 0 is a nested tensor, whose outputs cannot be measured; give it padded"),
        (
            torch.jagged,
            "linear with the weight 'weight' .* makes a nested tensor, which cannot be measured; give the model",
        ),
    ],
)
def test_nested_tensors_are_refused(layout, message):
    model = nn.Linear(4, 4)
    before = snapshot(model)
    with pytest.raises(DataError, match=message):
        lsuv_(model, nested(layout))
    assert_same(before, snapshot(model))


def test_nested_tensors_that_the_model_pads():
    model, data = nn.Linear(4, 4), nested(torch.jagged)
    report = lsuv_(model, data, forward=lambda m, x: m(x.to_padded_tensor(0.0)))
    assert report["weight"].status == "scaled"


class Cell(nn.Module):
    """A recurrence written out, whose state begins as zeros."""

    def __init__(self, between=lambda model, h: h):
        super().__init__()
        self.into, self.back, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.spare = nn.Parameter(torch.randn(16, 16))
        self.between = between

    def forward(self, x):
        h = x.new_zeros(len(x), 16)
        for step in range(x.shape[1]):
            h = self.between(self, torch.tanh(self.into(x[:, step]) + self.back(h)))
        return self.out(h)


@pytest.mark.parametrize("padding", [0, 2])
def test_a_state_that_begins_as_zeros(padding):
    """Its matrix is scaled at the first step that has a signal; what came before was zero, and stays so."""
    torch.manual_seed(0)
    model, x, outputs = Cell(), torch.randn(64, 5, 8), []
    x[:, :padding] = 0
    report = lsuv_(model, x, forward=lambda m, d: outputs.append(m(d)))
    assert report.ok
    back = report["back.weight"]
    assert (back.status, back.uses[: 2 + padding]) == ("shared", (*[0.0] * (1 + padding), 1.0))
    assert back.std_before * back.factor == pytest.approx(1, rel=1e-5)
    stds = []
    model.back.register_forward_hook(lambda _m, _a, out: stds.append(out.std(correction=0).item()))
    with torch.no_grad():
        assert torch.allclose(model(x), outputs[0], atol=1e-5)
    assert stds == pytest.approx(back.uses, rel=1e-3)


@pytest.mark.parametrize("fused", ["chunks", "stack"])
def test_a_state_that_begins_as_zeros_and_one_parameter_for_all(fused):
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 32) if fused == "chunks" else torch.randn(2, 16, 16))

        def forward(self, x):
            into, back = self.w.chunk(2, 1) if fused == "chunks" else self.w
            h = torch.zeros_like(x[:, 0])
            for step in range(x.shape[1]):
                h = torch.tanh(F.linear(x[:, step], into) + F.linear(h, back))
            return h

    torch.manual_seed(0)
    model, x, outputs = Fused(), torch.randn(64, 5, 16), []
    report = lsuv_(model, x, forward=lambda m, d: outputs.append(m(d)))
    assert [record.uses[:2] for record in report][1] == (0.0, 1.0)
    assert torch.allclose(model(x), outputs[0], atol=1e-5)


@pytest.mark.parametrize(
    "between",
    [
        lambda model, h: h * model.back.weight[0, 0],
        lambda model, h: (h @ model.back.weight[:8].t()).repeat(1, 2),
        lambda model, h: F.linear(h, torch.eye(16), model.back.weight[0]),
        lambda model, h: F.linear(h, model.spare, model.back.weight[0]),
    ],
    ids=["read", "another part", "data's bias", "bias"],
)
def test_a_state_that_begins_as_zeros_and_whose_matrix_does_more(between):
    """Then it stays as it was when that was done with it."""
    torch.manual_seed(0)
    model, x, outputs = Cell(between), torch.randn(64, 5, 8), []
    with pytest.warns(GoodinitWarning, match="'back.weight' is no-signal"):
        lsuv_(model, x, forward=lambda m, d: outputs.append(m(d)))
    with torch.no_grad():
        assert torch.allclose(model(x), outputs[0], atol=1e-5)


def test_operators_by_the_names_that_torch_export_gives_them():
    class Exported(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(16, 16))

        def forward(self, x):
            h = torch.ops.aten.einsum.default("bi,oi->bo", [x, self.a])
            h = torch.ops.aten.einsum.default(equation="bi->ib", tensors=[h]).t()
            return torch.ops.aten.linear.default(torch.ops.aten.dropout.default(h, 0.5, True), self.b)

    torch.manual_seed(0)
    model, x = Exported(), torch.randn(64, 8)
    report = lsuv_(model, x)
    assert [(r.name, r.status) for r in report] == [("a", "scaled"), ("b", "scaled")]
    assert (x @ model.a.T @ model.b.T).std(correction=0).item() == pytest.approx(1, abs=1e-4)
