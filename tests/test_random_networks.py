"""Random networks: `lsuv_` on graphs that nobody thought of, checked by the recorder and by Algorithm 1 as printed.

A `Plan` is plain data, so that a failing one is shown as it is, and shrinks: which layers there are, and which step calls what on
which earlier values. A `Graph` is the module that a plan describes.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, event, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from goodinit import GoodinitWarning, Report, lsuv_
from goodinit.reference import lsuv_reference_
from nets import Residual, assert_same, surroundings
from recorder import Use, record

# ---------------------------------------------------------------- networks as data


@dataclass(frozen=True)
class Layer:
    """Something with parameters (or, dropout, with a flag), registered once and called by any number of steps."""

    kind: str
    width: int
    out: int
    bias: bool = True
    frozen: bool = False


@dataclass(frozen=True)
class Step:
    """One value from earlier ones: value 0 is the network's input, value i + 1 is what step i gives."""

    op: str
    inputs: tuple[int, ...]
    layer: int = -1


@dataclass(frozen=True)
class Plan:
    layers: tuple[Layer, ...]
    registered: tuple[int, ...]
    """The order in which the layers are registered, which is not that of the steps."""
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    """The values that the network returns, side by side."""
    width: int
    batch: int
    training: bool
    seed: int

    def build(self) -> Graph:
        torch.manual_seed(self.seed)
        return Graph(self).train(self.training)

    def data(self) -> Tensor:
        return torch.randn(self.batch, self.width, generator=torch.Generator().manual_seed(self.seed))


MODULES = ("linear", "residual")
FUNCTIONAL = ("F.linear", "x @ w", "w @ x", "addmm", "addmm on data", "einsum")
COMPUTED = ("weight_norm",)
WEIGHTED = (*MODULES, *FUNCTIONAL, *COMPUTED)
NORMS = ("layer_norm",)
BATCH_NORMS = ("batch_norm", "batch_norm in eval")
OTHERS = ("gate", "dropout")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "leaky_relu": nn.LeakyReLU(1 / 3),
    "sigmoid": torch.sigmoid,
    "softmax": partial(F.softmax, dim=-1),
}
IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_": nn.ReLU(inplace=True),
    "F.relu(inplace)": partial(F.relu, inplace=True),
    "tanh_": torch.tanh_,
    "mul_": lambda x: x.mul_(0.5),
    "elu_": nn.ELU(inplace=True),
}
PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": lambda a, b: a + b,
    "gated by data": lambda a, b: a * b.sigmoid(),
    "sum in place": lambda a, b: a.add_(b),
}
# In these what a step gives may share its memory with what it was given: dropout that is off, and views.
ALIASES = ("dropout", "functional dropout", "view")


class Functional(nn.Module):
    """A parameter used by a function."""

    def __init__(self, layer: Layer):
        super().__init__()
        self.kind = layer.kind
        out_by_in = layer.kind in ("F.linear", "w @ x", "einsum")
        self.weight = nn.Parameter(torch.randn(layer.out, layer.width) if out_by_in else torch.randn(layer.width, layer.out))
        self.bias = nn.Parameter(torch.randn(layer.out)) if layer.kind == "addmm" or layer.bias else None

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        if self.kind == "F.linear":
            return F.linear(x, self.weight, self.bias)
        if self.kind == "addmm":
            return torch.addmm(self.bias, x, self.weight)
        if self.kind == "addmm on data":
            return torch.addmm(added, x, self.weight, alpha=0.5)
        if self.kind == "einsum":
            z = torch.einsum("bi,oi->bo", x, self.weight)
        else:
            z = x @ self.weight if self.kind == "x @ w" else (self.weight @ x.T).T
        return z if self.bias is None else z + self.bias

    @property
    def operators_bias(self) -> str | None:
        """Name of the bias, if the operator itself adds it."""
        return "bias" if self.bias is not None and self.kind in ("F.linear", "addmm") else None


class Gate(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gate = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate


def _module(layer: Layer) -> nn.Module:
    module: nn.Module
    if layer.kind == "linear":
        module = nn.Linear(layer.width, layer.out, layer.bias)
    elif layer.kind == "residual":
        module = Residual(nn.Linear(layer.width, layer.out, layer.bias), nn.ReLU(True), nn.Linear(layer.out, layer.width))
    elif layer.kind == "weight_norm":
        module = nn.utils.parametrizations.weight_norm(nn.Linear(layer.width, layer.out, layer.bias))
    elif layer.kind == "layer_norm":
        module = nn.LayerNorm(layer.width)
    elif layer.kind in BATCH_NORMS:
        module = nn.BatchNorm1d(layer.width)
    elif layer.kind == "gate":
        module = Gate(layer.width)
    elif layer.kind == "dropout":
        module = nn.Dropout(0.5)
    else:
        module = Functional(layer)
    with torch.no_grad():
        for name, p in module.named_parameters():  # nothing at a value that would go unnoticed: no bias at 0, no gain at 1
            if p.dim() == 1 and not name.startswith("parametrizations"):
                p.add_(0.3 * torch.randn_like(p))
            p.requires_grad = not layer.frozen
    return module


class Graph(nn.Module):
    """Runs a plan."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.plan = plan
        self.calls = 0
        modules = {i: _module(layer) for i, layer in enumerate(plan.layers)}
        self.layers = nn.ModuleDict({str(i): modules[i] for i in plan.registered})

    def train(self, mode: bool = True) -> Graph:
        """In train mode a BatchNorm may be in eval, as a frozen one is."""
        super().train(mode)
        for i, layer in enumerate(self.plan.layers):
            if layer.kind == "batch_norm in eval":
                self.layers[str(i)].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        values = [x]
        for step in self.plan.steps:
            values.append(self._run(step, [values[i] for i in step.inputs]))
        return torch.cat([values[i] for i in self.plan.outputs], dim=-1)

    def _run(self, step: Step, given: list[Tensor]) -> Tensor:
        op = step.op
        if op == "layer":
            return self.layers[str(step.layer)](*given)
        if op == "transposed":
            return given[0] @ self._matrix(step.layer)
        if op == "cat":
            return torch.cat(given, dim=-1)
        if op == "functional dropout":
            return F.dropout(given[0], 0.5, self.training)
        if op == "view":
            return given[0].view(-1).view(given[0].shape) if given[0].is_contiguous() else given[0].T.T
        return PAIRS[op](*given) if op in PAIRS else {**ACTIVATIONS, **IN_PLACE}[op](*given)

    def _matrix(self, layer: int) -> Tensor:
        """The weight so that x @ it goes from the layer's outputs back to its inputs."""
        weight = self.layers[str(layer)].weight
        assert isinstance(weight, Tensor)
        return weight.T if self.plan.layers[layer].kind in ("x @ w", "addmm") else weight


@dataclass(frozen=True)
class Used:
    """A weight that the plan's steps use."""

    name: str
    """What the report calls it."""
    bias: str | None
    """The bias that its operator adds."""
    frozen: bool
    uses: int


def used_weights(model: Graph) -> list[Used]:
    """In the order of their first use."""
    counts: dict[tuple[str, str | None, bool], int] = {}
    for step in model.plan.steps:
        if step.layer >= 0:
            layer, module = model.plan.layers[step.layer], model.layers[str(step.layer)]
            for weight, bias in _weights_of(layer, module):
                path = f"layers.{step.layer}."
                key = (path + weight, bias and path + bias, layer.frozen)
                counts[key] = counts.get(key, 0) + 1
    return [Used(*key, uses) for key, uses in counts.items()]


def _weights_of(layer: Layer, module: nn.Module) -> list[tuple[str, str | None]]:
    bias = "bias" if layer.bias else None
    if layer.kind == "linear":
        return [("weight", bias)]
    if layer.kind == "residual":
        return [("body.0.weight", bias and "body.0.bias"), ("body.2.weight", "body.2.bias")]
    if layer.kind == "weight_norm":
        return [("parametrizations.weight.original1", bias)]
    return [("weight", module.operators_bias)] if isinstance(module, Functional) else []


# ---------------------------------------------------------------- drawing them

WIDTHS = (2, 3, 4, 6)


@st.composite
def plans(draw, kinds=(*WEIGHTED, *NORMS, *BATCH_NORMS, *OTHERS), freeze=True):
    """Plans of 3 to 14 steps, of which about half call a layer, a new one or one called before."""
    layers: list[Layer] = []
    steps: list[Step] = []
    width = draw(st.sampled_from(WIDTHS))
    widths, memory = [width], [0]  # of every value; values of one memory are views of each other
    overwritten: set[int] = set()  # values that hold something else by now: no step may have them

    def value(wide=0):
        fitting = [i for i, w in enumerate(widths) if i not in overwritten and wide in (0, w)]
        return draw(st.sampled_from(fitting[:-4:-1] if draw(st.booleans()) else fitting[::-1]))  # deep rather than wide

    def add(op, inputs, out, layer=-1):
        steps.append(Step(op, tuple(inputs), layer))
        aliased = op in ALIASES or (layer >= 0 and layers[layer].kind == "dropout")
        in_place = op in IN_PLACE or op == "sum in place"
        if in_place:
            overwritten.update(i for i, m in enumerate(memory) if m == memory[inputs[0]])
        widths.append(out)
        memory.append(memory[inputs[0]] if aliased or in_place else len(memory))

    def call(index, x):
        layer = layers[index]
        inputs = (x, value(layer.out)) if layer.kind == "addmm on data" else (x,)
        add("layer", inputs, layer.width if layer.kind == "residual" else layer.out, index)

    def new_layer():
        kind, x = draw(st.sampled_from(kinds)), value()
        out = widths[x] if kind not in WEIGHTED else draw(st.sampled_from(WIDTHS))
        if kind == "addmm on data":
            out = widths[value()]
        frozen = freeze and kind in WEIGHTED and draw(st.integers(0, 9)) == 9
        layers.append(Layer(kind, widths[x], out, draw(st.booleans()), frozen))
        call(len(layers) - 1, x)

    new_layer()
    ops = [
        "new",
        "new",
        "new",
        "reuse",
        "transposed",
        "activation",
        "in place",
        "sum",
        "gated by data",
        "sum in place",
        "cat",
        "view",
    ]
    if "dropout" in kinds:
        ops.append("functional dropout")
    for _ in range(draw(st.integers(2, 13))):
        op, there = draw(st.sampled_from(ops)), {w for i, w in enumerate(widths) if i not in overwritten}
        again = [i for i, a in enumerate(layers) if a.width in there and (a.kind != "addmm on data" or a.out in there)]
        backwards = [i for i, a in enumerate(layers) if a.kind in WEIGHTED and a.kind != "residual" and a.out in there]
        # The input is the caller's: it is not written to.
        writable = [i for i, m in enumerate(memory) if m != 0 and i not in overwritten]
        if op == "reuse" and again:
            i = draw(st.sampled_from(again))
            call(i, value(layers[i].width))
        elif op == "transposed" and backwards:
            i = draw(st.sampled_from(backwards))
            add("transposed", [value(layers[i].out)], layers[i].width, i)
        elif op == "activation":
            x = value()
            add(draw(st.sampled_from(list(ACTIVATIONS))), [x], widths[x])
        elif op == "in place" and writable:
            x = draw(st.sampled_from(writable[::-1]))
            add(draw(st.sampled_from(list(IN_PLACE))), [x], widths[x])
        elif op == "sum in place" and writable:
            x = draw(st.sampled_from(writable[::-1]))
            add(op, [x, value(widths[x])], widths[x])
        elif op in ("sum", "gated by data"):
            x = value()
            add(op, [x, value(widths[x])], widths[x])
        elif op == "cat":
            x, y = value(), value()
            add(op, [x, y], widths[x] + widths[y])
        elif op in ("functional dropout", "view"):
            x = value()
            add(op, [x], widths[x])
        else:
            new_layer()
    if not any(layer.kind in WEIGHTED for layer in layers):
        layers.append(Layer("linear", widths[-1], 3))
        call(len(layers) - 1, len(widths) - 1)
    if draw(st.booleans()):
        layers.append(Layer("linear", 3, 5))  # no step calls it
    read = {i for step in steps for i in step.inputs}
    outputs = [i for i in range(1, len(widths)) if i not in read | overwritten] or [len(widths) - 1]
    return Plan(
        layers=tuple(layers),
        registered=tuple(draw(st.permutations(range(len(layers))))),
        steps=tuple(steps),
        outputs=tuple(outputs),
        width=width,
        batch=draw(st.integers(24, 64)),
        training=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


# ---------------------------------------------------------------- the properties


def initialize(model: Graph, data: Tensor, **options) -> Report:
    """`lsuv_` from a fixed seed. It warns if and only if a weight could not be scaled."""
    torch.manual_seed(7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = lsuv_(model, data, **options)
    assert [w.category for w in caught] == ([] if report.ok else [GoodinitWarning])
    return report


def first_uses(model: Graph, data: Tensor) -> list[Use]:
    """By the recorder, on a copy in the mode in which the pass runs; of every weight one."""
    copied = copy.deepcopy(model).train()
    first: dict[tuple[str, ...], Use] = {}
    for use in record(copied, lambda: copied(data)).uses:
        first.setdefault(use.parameters, use)
    return list(first.values())


def pairs(model: Graph, report: Report, data: Tensor) -> Iterator[tuple[Used, Use]]:
    """Every weight that the plan uses, and what the recorder says of it. They and the report agree on which and in what order."""
    used, measured = used_weights(model), first_uses(model, data)
    assert [r.name for r in report if r.status != "unused"] == [w.name for w in used]
    assert [w.name in use.parameters for w, use in zip(used, measured, strict=True)] == [True] * len(used)
    yield from zip(used, measured, strict=True)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def kept_parameters(model: Graph, before: dict[str, Tensor], changed: set[str]) -> None:
    """All but ``changed`` (and the gains of weight-normalized ones) are as before, to the bit."""
    gains = {name.replace("original1", "original0") for name in changed}
    kept = [name for name in before if name not in changed | gains]
    after = values(model)
    assert_same({n: after[n] for n in kept}, {n: before[n] for n in kept})


def every_weight_is_at_its_target(plan: Plan) -> None:
    """Every weight used by a linear operator has an output of std 1 at its first use, or the report says rightly why not."""
    model, data = plan.build(), plan.data()
    given, before, around = data.clone(), values(model), surroundings(model)
    report = initialize(model, data)
    assert model.calls == report.forward_passes == 1
    assert_same(surroundings(model), around)
    assert torch.equal(data, given)

    changed = {r.name for r in report if r.status == "unused"}
    changed |= {name.replace("weight", "bias") for name in changed}
    after = values(model)
    for weight, use in pairs(model, report, data):
        r = report[weight.name]
        event(r.status)
        assert len(r.uses) == weight.uses
        if weight.frozen:
            assert r.status == "frozen"
        else:
            changed |= {weight.name, weight.bias or weight.name}
            assert weight.bias is None or not after[weight.bias].any()
            assert r.status in (("shared" if weight.uses > 1 else "scaled"), "no-signal"), weight
        if r.status == "no-signal":
            assert use.std < 1e-3, weight
        else:
            assert use.std == pytest.approx(r.std_after, rel=1e-2), weight
        if r.status in ("scaled", "shared"):
            assert use.std == pytest.approx(1, abs=1e-2), weight
    kept_parameters(model, before, changed)

    again = plan.build()
    initialize(again, data)
    assert_same(values(again), after)


def equals_algorithm_1(plan: Plan) -> None:
    """Where the assumptions of Algorithm 1 as printed hold, that is what `lsuv_` does."""
    model, data = plan.build(), plan.data()
    slow = copy.deepcopy(model)
    slow.train()
    lsuv_report = initialize(model, data, generator=torch.Generator().manual_seed(0))
    assume(lsuv_report.ok)
    unused = [r.name for r in lsuv_report if r.status == "unused"]
    with torch.no_grad():
        lsuv_reference_(slow, lambda: slow(data), tol_var=1e-6, t_max=5, generator=torch.Generator().manual_seed(0))
    for (name, fast), exact in zip(model.named_parameters(), slow.parameters(), strict=True):
        if name not in unused and name.replace("bias", "weight") not in unused:  # the algorithm says nothing of these
            assert (fast - exact).norm() <= 1e-4 * exact.norm(), name


def kept_weights_are_scaled_with_their_biases(plan: Plan) -> None:
    """With pre_init=None and any biases, the outputs with their biases reach a target, unless a bias alone has more variance."""
    model, data, target = plan.build(), plan.data(), 0.7
    before = values(model)
    report = initialize(model, data, pre_init=None, target_std=target)
    assert model.calls == 1
    after = values(model)
    changed = set()
    for weight, use in pairs(model, report, data):
        status = report[weight.name].status
        event(status)
        if status in ("scaled", "shared"):
            changed.add(weight.name)
            assert use.std == pytest.approx(target, rel=1e-2), weight
            old, new = before[weight.name], after[weight.name]
            assert torch.allclose(F.normalize(new.flatten(), dim=0), F.normalize(old.flatten(), dim=0), atol=1e-5), weight
        elif status == "bias-dominated":
            assert weight.bias is not None
            assert before[weight.bias].std(correction=0) > 0.999 * target, weight
        elif status == "no-signal":
            assert weight.bias is not None or use.std < 1e-3, weight
        else:
            assert status == "frozen", weight
            assert weight.frozen, weight
        assert use.std == pytest.approx(report[weight.name].std_after, rel=1e-2, abs=1e-4), weight
    kept_parameters(model, before, changed)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(plans())
def test_every_weight_is_at_its_target_or_the_report_says_why(plan):
    every_weight_is_at_its_target(plan)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans(kinds=(*MODULES, *NORMS, "gate"), freeze=False))
def test_modules_get_the_weights_of_algorithm_1(plan):
    equals_algorithm_1(plan)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plans())
def test_weights_that_are_kept_are_scaled_with_their_biases(plan):
    kept_weights_are_scaled_with_their_biases(plan)


many = settings(max_examples=400, deadline=None, database=None)


@pytest.mark.slow
@seed(1)
@many
@given(plans())
def test_many_every_weight_is_at_its_target_or_the_report_says_why(plan):
    every_weight_is_at_its_target(plan)


@pytest.mark.slow
@seed(2)
@many
@given(plans(kinds=(*MODULES, *NORMS, "gate"), freeze=False))
def test_many_modules_get_the_weights_of_algorithm_1(plan):
    equals_algorithm_1(plan)


@pytest.mark.slow
@seed(3)
@many
@given(plans())
def test_many_weights_that_are_kept_are_scaled_with_their_biases(plan):
    kept_weights_are_scaled_with_their_biases(plan)
