"""Verdicts on networks that have the fault, and on those that have none."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from goodinit import init_, lsuv_, measure
from goodinit.errors import GoodinitWarning
from goodinit.measurement.courses import Course
from goodinit.measurement.layer import Layer
from goodinit.measurement.units import share
from goodinit.measurement.verdict import findings_of, verdict_on
from zoo import all_entries

WIDTH = 64


def data():
    return torch.randn(128, WIDTH), torch.arange(128) % 10


def mlp(depth, activation, seed=0, head=True):
    torch.manual_seed(seed)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*layers, *([nn.Linear(WIDTH, 10)] if head else []))


def judged(model, **options):
    """Kind -> finding, of a classification."""
    return {finding.kind: finding for finding in measure(model, data(), F.cross_entropy, **options).findings}


def with_lsuv(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GoodinitWarning)
        lsuv_(model, data()[0], **options)
    return model


def scaled(model, std):
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
    return model


# Networks that have a fault.


def test_deep_tanh_from_the_default_initialization_collapses_and_lsuv_mends_it():
    model = mlp(30, nn.Tanh)
    found = judged(model)
    assert list(found) == ["collapse", "gradient-vanishing"]
    assert "The samples become alike from 16.weight on: of the std, what lies between samples is " in found["collapse"].text
    assert "at 0.weight, " in found["collapse"].text
    assert found["collapse"].layer == "16.weight"
    assert "LSUV mends this: goodinit.lsuv_(model, data) sets the biases to 0" in found["collapse"].advice
    assert found["gradient-vanishing"].layer == "0.weight"
    assert "at 0.weight its norm is " in found["gradient-vanishing"].text
    assert "of what it is at 60.weight" in found["gradient-vanishing"].text
    assert found["gradient-vanishing"].advice.startswith("LSUV mends this")
    assert judged(with_lsuv(model)) == {}


def test_without_biases_the_signal_vanishes():
    model = scaled(mlp(12, nn.Tanh), 0.05)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
    found = judged(model)["vanishing"]
    assert found.layer in ("4.weight", "6.weight")
    assert "a factor of 0.39 a layer" in found.text
    assert "LSUV mends this: goodinit.lsuv_(model, data) gives every output the std 1." in found.advice
    assert judged(with_lsuv(model)) == {}


def test_large_weights_explode():
    model = scaled(mlp(12, nn.ReLU), 1.0)
    found = judged(model)
    assert set(found) == {"exploding", "gradient-exploding"}
    assert "The signal explodes from " in found["exploding"].text
    assert ": std 8" in found["exploding"].text
    assert "a factor of 5.6 a layer" in found["exploding"].text
    assert "LSUV mends this" in found["exploding"].advice
    assert "LSUV mends this" in found["gradient-exploding"].advice
    assert judged(with_lsuv(model)) == {}


def test_explosion_to_infinity_says_where_it_begins():
    model = scaled(mlp(30, nn.ReLU), 20.0)
    signal = measure(model, data(), F.cross_entropy)
    broken = [layer.name for layer in signal if not layer.finite]
    found = {finding.kind: finding for finding in signal.findings}
    assert list(found) == ["non-finite", "exploding"]
    assert found["non-finite"].layer == broken[0]
    assert f"NaN or infinity from {broken[0]} on (linear, " in found["non-finite"].text
    assert "The output before it, of " in found["non-finite"].text
    assert "in float16 try bfloat16" in found["non-finite"].advice


def test_a_sigmoid_stack_is_beyond_lsuv():
    model = mlp(20, nn.Sigmoid)
    for stage in (model, with_lsuv(model)):
        found = judged(stage)
        assert set(found) == {"collapse", "gradient-vanishing"}
        for finding in found.values():
            assert "LSUV as in the paper cannot mend this: a sigmoid's slope is 1/4 at most" in finding.advice
            assert "Take tanh or ReLU" in finding.advice


def test_very_deep_tanh_at_std_1_has_gradients_that_grow_and_a_smaller_target_helps():
    model = with_lsuv(mlp(120, nn.Tanh))
    (found,) = judged(model).values()
    assert found.kind == "gradient-exploding"
    times = float(found.text.partition("its norm is ")[2].partition(" times")[0].replace(",", ""))
    assert times > 1000
    assert "goodinit.lsuv_(model, data, target_std=0.5)" in found.advice
    assert judged(with_lsuv(model, target_std=0.5)) == {}


def test_very_deep_relu_collapses_onto_a_line_and_lsuv_cannot_mend_it():
    model = mlp(200, nn.ReLU)
    before = judged(model)["collapse"]
    assert "At 201 layers with relu part of it will stay." in before.advice
    found = judged(with_lsuv(model))
    assert list(found) == ["collapse", "dead"]
    assert "The samples collapse onto a line: of its dimensions the output uses " in found["collapse"].text
    assert "LSUV cannot mend this: the stds are as it leaves them." in found["collapse"].advice
    assert "It comes with the collapse" in found["dead"].advice


def test_large_tanh_saturates():
    model = scaled(mlp(6, nn.Tanh), 1.0)
    found = judged(model)["saturated"]
    assert found.layer == "0.weight"
    assert "where tanh is flat; half or more in 6 layers." in found.text
    assert "(std 8" in found.text
    assert "LSUV mends this" in found.advice
    assert "saturated" not in judged(with_lsuv(model))


def test_dead_units():
    model = with_lsuv(mlp(4, nn.ReLU))
    nn.init.constant_(model[2].bias, -3.0)
    found = judged(model)["dead"]
    assert found.layer == "2.weight"
    assert "% of the units are dead after 2.weight (relu; its output has the mean -2.9" in found.text
    assert "LSUV mends it where biases far below 0 are the cause" in found.advice
    assert "dead" not in judged(with_lsuv(model))


def test_dead_units_in_front_of_a_collapse_are_its_reason():
    model = mlp(4, nn.ReLU)
    nn.init.constant_(model[2].bias, -5.0)
    found = judged(model)
    assert (found["collapse"].layer, found["dead"].layer) == ("4.weight", "2.weight")
    assert "100 % of the units are dead after 2.weight (relu; its output has the mean -4.99 and the std 0.2" in found["dead"].text
    assert "LSUV mends it where biases far below 0 are the cause" in found["dead"].advice
    assert judged(with_lsuv(model)) == {}


def test_a_loss_that_nothing_depends_on():
    class Stuck(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(4, nn.ReLU)

        def forward(self, x):
            return self.net(x) * 0

    (found,) = measure(Stuck(), data(), F.cross_entropy).findings
    assert (found.kind, found.text) == ("gradient-vanishing", "No gradient reaches any layer.")
    assert "Does the loss depend on the output?" in found.advice


def test_a_head_of_zeros_is_by_design():
    model = mlp(6, nn.Tanh)
    nn.init.zeros_(model[-1].weight)
    assert judged(with_lsuv(model, skip="12")) == {}


def test_a_loss_that_is_not_a_number():
    found = measure(mlp(3, nn.Tanh), data()[0], lambda y: (y.sum() * 0 - 1).log()).findings[0]
    assert found.kind == "non-finite"
    assert "The loss is nan, while all outputs are finite." in found.text


def test_a_gradient_that_is_not_a_number():
    model = mlp(3, nn.Tanh)
    (found,) = measure(model, data()[0], lambda y: ((y - y.detach()) ** 2).sum().sqrt()).findings
    assert found.kind == "non-finite"
    assert "The gradient holds NaN or infinity from 6.weight back to 0.weight; outputs and loss are finite." in found.text


def test_size_of_updates():
    model = with_lsuv(mlp(4, nn.Tanh))
    assert judged(model) == judged(model, lr=0.05) == {}
    large = judged(model, lr=30.0)["update-size"]
    assert "At lr=30 the first step of SGD changes " in large.text
    assert "0.1 % to 1 % is healthy" in large.text
    suggested = float(large.advice.removeprefix("lr=").partition(" ")[0])
    assert judged(model, lr=suggested) == {}
    small = judged(model, lr=1e-5)["update-size"]
    assert "At lr=1e-05 the first step of SGD changes the weights by " in small.text
    assert small.advice.startswith("Take lr=")


def test_nothing_measured_is_not_healthy():
    signal = measure(nn.LayerNorm(4), torch.randn(2, 4))
    (found,) = signal.findings
    assert (found.kind, found.layer) == ("nothing-measured", "")
    assert signal.verdict.startswith("Not healthy, 0 layers: nothing-measured.\n- No linear operator on a weight was reached")


# Networks that have none.


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU, nn.SELU, nn.SiLU, nn.LeakyReLU])
@pytest.mark.parametrize("depth", [3, 12])
def test_plain_networks_from_lsuv(activation, depth):
    assert judged(with_lsuv(mlp(depth, activation))) == {}


@pytest.mark.parametrize(("activation", "scheme"), [(nn.ReLU, "he"), (nn.Tanh, "glorot"), (nn.Tanh, "orthonormal")])
def test_plain_networks_from_what_was_made_for_them(activation, scheme):
    model = mlp(12, activation)
    init_(model, scheme)
    assert judged(model) == {}


def test_shallow_networks_from_the_default_initialization():
    assert judged(mlp(3, nn.ReLU)) == judged(mlp(5, nn.Tanh)) == {}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_layers(count):
    assert measure(mlp(count - 1, nn.ReLU), data()[0]).healthy


# Not healthy as they come: branches with gains of 0; a quantizer that passes nothing on before it is trained; initializer_range
# is 1e-10.
NOT_HEALTHY = {"layer_scale", "EncodecModel", "BlipModel", "Blip2Model"}
STOCK = [entry for entry in all_entries() if entry.name not in NOT_HEALTHY]


def leaves(output):
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from leaves(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from leaves(value)


def any_loss(output, _):
    """A number that all of the output matters for, with gradients of no pattern."""
    generator = torch.Generator().manual_seed(0)
    real = [torch.view_as_real(t) if t.is_complex() else t for t in leaves(output) if t.requires_grad]
    return sum(((t * torch.randn(t.shape, generator=generator)).mean() for t in real), torch.zeros((), requires_grad=True))


def findings_on(entry, model):
    batch = entry.data()
    try:
        signal = measure(model, batch, any_loss, forward=entry.run)
    except RuntimeError:  # models that overwrite what a gradient would need, or write with out=
        signal = measure(model, batch, forward=entry.run)
    return [str(finding) for finding in signal.findings]


def check(entry):
    for package in entry.needs:
        pytest.importorskip(package)
    model = entry.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert findings_on(entry, model) == []
        lsuv_(model, entry.data(), forward=entry.run)
        assert findings_on(entry, model) == []


@pytest.mark.slow
@pytest.mark.parametrize("entry", STOCK, ids=lambda entry: entry.name)
def test_no_false_alarms_on_the_zoo(entry):
    check(entry)


FEW = {
    *("reversed", "attention", "transformer_encoder", "routed_experts", "checkpointed", "complex", "bfloat16", "weight_norm"),
    *("lora", "shared", "convolutions", "lstm", "autocast", "tied", "graph", "timm-resnet10t", "GPT2LMHeadModel"),
}


@pytest.mark.parametrize("entry", [entry for entry in STOCK if entry.name in FEW], ids=lambda entry: entry.name)
def test_no_false_alarms_on_some_of_the_zoo(entry):
    check(entry)


# The parts.


def layers(stds, **fields):
    return [
        Layer(f"{i}.weight", "linear", (8, 8), 0.0, std, std, weight_norm=1.0, output_shape=(32, 8), **{"channels": 8, **fields})
        for i, std in enumerate(stds)
    ]


def kinds(found_in, **options):
    return [finding.kind for finding in findings_of(found_in, **{"loss": None, "lr": None, **options})]


def test_a_steady_fall_is_a_fault_and_an_odd_layer_is_none():
    assert kinds(layers([0.5**i for i in range(16)])) == ["vanishing"]
    assert kinds(layers([2.0**i for i in range(20)])) == ["exploding"]
    odd = [1.0] * 16
    odd[3], odd[7], odd[15] = 1e-9, 0.0, 1e-6
    assert kinds(layers(odd)) == []
    assert kinds(layers([1.0] * 8 + [1e-8] * 8)) == ["vanishing"]  # however: nothing comes back from this


def test_heads_side_by_side_may_be_small():
    few = layers([1.0, 0.05, 0.002])
    assert kinds(few) == ["vanishing"]
    assert kinds([few[0], few[1], dataclasses.replace(few[2], beside=few[1].name)]) == []
    assert kinds([few[0], *(dataclasses.replace(layer, beside=few[0].name) for layer in few[1:])]) == []
    many = layers([1.0] * 4 + [0.05, 0.002, 1e-4, 1e-6])
    assert kinds(many) == ["vanishing"]
    assert kinds([*many[:5], *(dataclasses.replace(layer, beside=many[4].name) for layer in many[5:])]) == []


def test_which_layers_are_side_by_side():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.one, self.other, self.last = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            h = self.trunk(x).relu()
            return self.last(self.one(h)), self.other(h)

    found = {layer.name: layer.beside for layer in measure(Heads(), torch.randn(32, 8))}
    assert found == {"trunk.weight": None, "one.weight": None, "last.weight": None, "other.weight": "one.weight"}


def test_a_jump_of_the_sample_std_is_by_design():
    steady, jump = layers([1.0] * 12), layers([1.0] * 12)
    steady = [dataclasses.replace(layer, sample_std=0.5**i) for i, layer in enumerate(steady)]
    jump = [dataclasses.replace(layer, sample_std=1.0 if i < 6 else 1e-4) for i, layer in enumerate(jump)]
    assert kinds(steady) == ["collapse"]
    assert kinds(jump) == []
    constant = [dataclasses.replace(layer, sample_std=1.0 if i < 6 else 0.0) for i, layer in enumerate(jump)]
    assert kinds(constant) == ["collapse"]
    one_sample = [dataclasses.replace(layer, output_shape=(1, 8)) for layer in steady]
    assert kinds(one_sample) == []


def test_gradients_may_grow_further_where_layers_are_normalized():
    grown = [dataclasses.replace(layer, grad_std=0.6**i) for i, layer in enumerate(layers([1.0] * 20))]
    assert kinds(grown) == ["gradient-exploding"]
    assert kinds([dataclasses.replace(layer, normalized=True) for layer in grown]) == []
    assert kinds(grown[::-1]) == ["gradient-vanishing"]


def test_a_single_layer_without_a_gradient_is_by_design():
    norms = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]

    def with_gradients(values):
        return [dataclasses.replace(layer, grad_std=value) for layer, value in zip(layers([1.0] * 8), values, strict=False)]

    assert kinds(with_gradients(norms)[:5]) == []  # a router that is asked for its largest output alone
    (found,) = findings_of(with_gradients([0.0, *norms]), loss=None, lr=None)
    assert "No gradient reaches 0.weight to 1.weight, 2 layers" in found.text


def test_units_are_judged_where_there_are_enough_elements():
    dead = layers([1.0] * 8, dead=0.9, channels=8, activation="relu")
    assert kinds(dead) == ["dead"]
    assert kinds([dataclasses.replace(layer, output_shape=(4, 8)) for layer in dead]) == []
    half = [dataclasses.replace(layer, dead=0.6 if i == 2 else 0.0) for i, layer in enumerate(dead)]
    assert kinds(half) == []


def test_course():
    course = Course.of(layers([4.0, 2.0, 1.0, 0.5, 0.25, 0.125]), lambda layer: layer.std)
    assert (course.start, course.end, course.ratio) == (3.0, 0.1875, 0.0625)
    assert course.steadiness() == -1
    assert course.falls_in_steps()
    assert course.first_below(0.2).name == "3.weight"
    assert str(course) == "4 at 0.weight, 0.12 at 5.weight, a factor of 0.5 a layer"
    up = Course.of(layers([1.0, 1.0, 30.0, 2.0]), lambda layer: layer.std)
    assert 0 < up.steadiness() < 1
    assert up.first_above(10).name == "2.weight"
    assert not Course.of(layers([1.0, 1.0, 1e-5, 1e-5]), lambda layer: layer.std).falls_in_steps()
    assert Course.of(layers([1.0, 1.0]), lambda layer: layer.std).steadiness() == 0
    assert not Course.of(layers([1.0, 1.0]), lambda layer: None).values


def test_verdict_in_one_sentence():
    assert verdict_on((), 1) == "Healthy: no fault found in 1 layer."
    found = findings_of(layers([0.5**i for i in range(16)]), loss=None, lr=None)
    first, second = verdict_on(found, 16).splitlines()
    assert first == "Not healthy, 16 layers: vanishing (4.weight)."
    assert second == f"- {found[0]}"


def test_shares():
    assert [share(v) for v in (0.0, 1e-9, 0.0004, 0.025, 0.5, 1.0, 22.0)] == [
        "0 %",
        "1.0e-09",
        "0.04 %",
        "2.5 %",
        "50 %",
        "100 %",
        "2200 %",
    ]


class Stopped(nn.Module):
    """``b`` has a bias that lets nothing pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(20, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        nn.init.constant_(self.b.bias, -100.0)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def test_a_dead_layer_is_named_before_the_collapse_that_it_leads_to():
    torch.manual_seed(0)  # the mean, -100 to three digits, was once -99.9
    first, second = measure(Stopped(), torch.randn(64, 20)).findings
    assert (first.kind, first.layer) == ("dead", "b.weight")
    assert "100 % of the units are dead after b.weight (relu; its output has the mean -100 and the std 0." in first.text
    assert "sets them to 0" in first.advice
    assert (second.kind, second.layer) == ("collapse", "c.weight")
    assert second.advice == "It follows from the dead units: mend these first."


def test_one_sample_and_equal_ones_are_told():
    single = measure(Stopped(), torch.randn(1, 20))
    assert "The batch holds one sample: what lies between samples was not judged. Measure with several." in single.verdict
    assert single.healthy
    (found,) = measure(nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)), torch.ones(64, 20)).findings
    assert (found.kind, found.layer) == ("same-samples", "0.weight")
    assert "different ones" in found.advice
    assert not measure(Stopped(), torch.randn(64, 20)).notes
    growing = nn.Sequential(*(nn.Linear(20, 20, bias=False) for _ in range(12)))
    for layer in growing:
        nn.init.eye_(layer.weight).data.mul_(30.0)
    row = torch.randn(1, 20).expand(64, 20)
    assert [found.kind for found in measure(growing, row).findings] == ["exploding", "same-samples"]


def test_what_was_not_measured_is_told():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head, self.spare = nn.LSTM(20, 16, batch_first=True), nn.Linear(16, 5), nn.Linear(3, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    signal = measure(Recurrent(), torch.randn(8, 7, 20))
    assert signal.unmeasured == (
        *(("lstm.weight_ih_l0", "recurrent"), ("lstm.weight_hh_l0", "recurrent"), ("spare.weight", "unused")),
    )
    assert signal.verdict.splitlines()[-1] == (
        "Not measured: 2 weights recurrent (their operators are not linear in them), such as lstm.weight_ih_l0; "
        "1 weight not used in this forward, such as spare.weight."
    )
    assert type(signal).from_json(signal.to_json()) == signal
    both = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    assert measure(both, torch.randn(4, 5, 16)).unmeasured == ()


def test_no_factor_is_advised_where_an_output_is_0():
    class Gated(nn.Sequential):
        def forward(self, x):
            first, *others = self
            return nn.Sequential(*others)(0 * first(x))

    net = Gated(*(nn.Linear(20, 20, bias=False) for _ in range(5)))
    (found,) = measure(net, torch.randn(64, 20)).findings
    assert found.kind == "vanishing"
    assert found.advice.startswith("No factor on a weight mends an output that is 0")
    assert "lsuv_" not in found.advice


class TiedHead(nn.Module):
    """A head of 50 classes that shares the weight of an embedding drawn from N(0, 1)."""

    def __init__(self):
        super().__init__()
        self.tokens, self.inner, self.head = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        return self.head(nn.functional.layer_norm(self.inner(self.tokens(tokens)), [32]))


def next_token(logits, tokens):
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def test_a_loss_far_above_that_of_guessing_is_told():
    torch.manual_seed(0)
    model, tokens = TiedHead(), torch.randint(50, (16, 20))
    data = tokens, tokens.roll(1, 1)
    before = measure(model, data, next_token)
    (found,) = before.findings
    value, classes, layer = before.cross_entropy
    assert (classes, layer) == (50, "tokens.weight")
    assert value == pytest.approx(next_token(model(tokens), data[1]).item(), rel=1e-5)
    assert (found.kind, found.layer) == ("overconfident", "tokens.weight")
    assert f"is {value:.3g}, where guessing one of 50 classes costs 3.91" in found.text
    lsuv_(model, tokens, target_std={"tokens.weight": 0.1})  # as the advice has it
    after = measure(model, data, next_token)
    assert after.healthy
    assert after.cross_entropy[0] < 4
    assert before.cross_entropy is not None
    assert measure(model, tokens).cross_entropy is None


class Heads(nn.Module):
    """Two of one trunk; the first one's logits are far too large."""

    def __init__(self):
        super().__init__()
        self.trunk, self.large, self.small = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        with torch.no_grad():
            self.large.weight.mul_(100)

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return self.large(h), self.small(h)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("both", [False, True])
def test_of_several_heads_the_one_that_is_too_large_is_named(order, both):
    torch.manual_seed(0)

    def loss(outputs, y):
        return sum(F.cross_entropy(outputs[i], y) if both or i == 0 else outputs[i].square().mean() for i in order)

    (found,) = measure(Heads(), (torch.randn(64, 8), torch.randint(4, (64,))), loss).findings
    assert (found.kind, found.layer) == ("overconfident", "large.weight")


def test_weights_that_are_all_zero_are_not_healthy():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for loss in (None, F.cross_entropy):
        found = measure(model, (torch.randn(64, 8), torch.randint(4, (64,))), loss).findings
        assert (found[0].kind, found[0].layer) == ("vanishing", "0.weight")


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_logits_of_unit_variance_are_not_overconfident(classes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, classes))
    x, y = torch.randn(128, 20), torch.randint(classes, (128,))
    lsuv_(model, x)
    found = measure(model, (x, y), nn.CrossEntropyLoss(label_smoothing=0.1))
    assert found.cross_entropy[1] == classes
    assert found.healthy
    each = nn.CrossEntropyLoss(reduction="none")
    assert measure(model, (x, y), lambda z, t: each(z, t).sum()).cross_entropy is None  # not of one sample


class Scaled(nn.Module):
    """Cosine similarities to prototypes, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.trunk, self.w, self.factor = nn.Linear(20, 64), nn.Parameter(torch.randn(10, 64)), factor

    def forward(self, x):
        return self.factor * F.linear(F.normalize(self.trunk(x).relu()), F.normalize(self.w))


def test_a_temperature_is_by_design():
    torch.manual_seed(0)
    batch = torch.randn(128, 20), torch.randint(10, (128,))
    signal = measure(Scaled(64), batch, F.cross_entropy)
    assert signal.cross_entropy[0] > 10
    assert signal.cross_entropy[2] == ""
    assert signal.healthy


LOSSES = {
    "log_softmax": lambda z, y: F.nll_loss(F.log_softmax(z, 1), y),
    "method": lambda z, y: F.nll_loss(z.log_softmax(-1).view(128, 10), y),
    "module": lambda z, y: nn.NLLLoss()(nn.LogSoftmax(1)(z), y),
    "sum": lambda z, y: F.cross_entropy(z, y, reduction="sum"),
    "sum of shares": lambda z, y: F.cross_entropy(z, F.one_hot(y, 10).float(), reduction="sum"),
    "sum without some": lambda z, y: F.cross_entropy(z, torch.where(torch.arange(128) < 64, y, -100), reduction="sum"),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_cross_entropies_of_every_kind(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        model[2].weight.mul_(200)
    x, y = torch.randn(128, 20), torch.randint(10, (128,))
    signal = measure(model, (x, y), LOSSES[kind])
    kept = slice(0, 64) if "without" in kind else slice(None)
    expected = F.cross_entropy(model(x)[kept], y[kept]).item()
    assert signal.cross_entropy == (pytest.approx(expected, rel=1e-5), 10, "2.weight")
    assert [(found.kind, found.layer) for found in signal.findings] == [("overconfident", "2.weight")]


class Cut(nn.Module):
    """The gradient ends behind some layers."""

    def __init__(self, depth, behind):
        super().__init__()
        self.layers, self.behind = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth)), behind

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(x).tanh()
            x = x.detach() if i + 1 == self.behind else x
        return x


@pytest.mark.parametrize("initialized", [False, True])
def test_a_gradient_that_is_cut_is_told_of_whatever_the_weights(initialized):
    torch.manual_seed(0)
    model, batch = Cut(6, 3), (torch.randn(64, 32), torch.randint(32, (64,)))
    if initialized:
        lsuv_(model, batch[0])
    found = measure(model, batch, F.cross_entropy).findings
    assert [(f.kind, f.layer) for f in found] == [("gradient-vanishing", "layers.0.weight")]
    assert "No gradient reaches layers.0.weight to layers.2.weight, 3 layers" in found[0].text
    assert "LSUV" not in found[0].advice


def test_a_gradient_that_has_faded_is_not_cut():
    def gradients(*values):
        return [dataclasses.replace(layer, grad_std=v) for layer, v in zip(layers([1.0] * len(values)), values, strict=True)]

    cut, faded = (findings_of(gradients(*values), loss=1.0, lr=None) for values in ((0, 0, 1, 1), (0, 0, 1e-30, 1e-20, 1e-10, 1)))
    assert "is cut before" in cut[0].text
    assert "nothing of it is left" in faded[0].text
    assert not findings_of(gradients(0, 1, 1, 1), loss=1.0, lr=None)


def test_units_that_are_all_the_same():
    torch.manual_seed(0)
    model, batch = mlp(4, nn.Tanh), data()
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.constant_(layer.weight, 0.05)
    found = judged(model)
    assert found["same-units"].layer == "0.weight"
    assert "in 5 of 5 layers" in found["same-units"].text
    assert "same-units" not in judged(with_lsuv(model))
    on_a_line = measure(mlp(4, nn.Tanh), (batch[0][:, :1].expand(-1, WIDTH).contiguous(), batch[1]), F.cross_entropy)
    assert "same-units" not in {f.kind for f in on_a_line.findings}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_broken_is_named(bad):
    model = mlp(3, nn.ReLU)
    with torch.no_grad():
        model[2].weight[0] = bad
    signal = measure(model, data()[0])
    assert signal.findings[0].text.startswith("The weight 2.weight holds NaN or infinity (linear, 2 of 4)")
    assert signal[1].dead is None  # of NaN


def test_dead_units_behind_a_normalization_are_its_own():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())))
    for norm in list(model)[1::3]:
        nn.init.constant_(norm.bias, -5)
    assert "whose bias and gain say where its outputs are" in judged(model)["dead"].advice


def test_a_gate_of_0_is_not_mended_by_factors():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = mlp(4, nn.Tanh, head=False), mlp(4, nn.Tanh)

        def forward(self, x):
            return self.last(self.first(x) * 0.0)

    found = judged(with_lsuv(Gated()))
    assert "vanishing" in found
    assert all("LSUV mends" not in finding.advice for finding in found.values())


def test_inputs_that_are_nearly_the_same_for_all_samples():
    torch.manual_seed(0)
    x = torch.randn(WIDTH) + 0.02 * torch.randn(64, WIDTH)
    notes = measure(mlp(3, nn.ReLU), x).notes
    assert any(note.startswith("The input (argument 0) is nearly the same for all samples: of its std") for note in notes), notes
    assert not any("nearly the same" in note for note in measure(mlp(3, nn.ReLU), torch.randn(64, WIDTH)).notes)
    assert not any("nearly the same" in note for note in measure(mlp(3, nn.ReLU), x[:1]).notes)


def test_inputs_far_from_unit_variance_are_told():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)), torch.rand(64, 20)
    assert not measure(model, x).notes
    (note,) = measure(model, 255 * x).notes
    assert note.startswith("The input (argument 0) has the mean 12")
    assert f"std {255 * x.std(correction=0):.3g}: normalize it" in note
    assert measure(model, 255 * x).healthy
    assert len(measure(model, 0.01 * x).notes) == 1
    assert len(measure(model, x + 100).notes) == 1
    assert not measure(model, torch.zeros(64, 20)).notes  # which another finding is of


def test_a_dead_layer_is_named_where_it_begins():
    layers_ = layers([1.0] * 6, channels=8, activation="relu")
    worse = [dataclasses.replace(layer, dead=share_) for layer, share_ in zip(layers_, (0, 0.53, 0, 0.8, 0, 0), strict=True)]
    (found,) = findings_of(worse, loss=None, lr=None)
    assert found.layer == "1.weight"
    assert found.text.startswith("From 1.weight on units are dead: 53 % after it, 80 % after 3.weight (relu;")
