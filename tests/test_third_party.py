"""How models of other libraries use their weights (normflows, peft, zuko, e3nn, torch_geometric), reduced to plain torch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from goodinit import DataError, init_, lsuv_, measure
from goodinit.interception import computed
from goodinit.interception.weights import region_label

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Used(nn.Module):
    """A weight, used by a function, a layer before its output and one behind."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.w, self.use = nn.Parameter(torch.randn(8, 8)), use
        self.layer, self.head = nn.Linear(8, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.use(self, x))


def std(x):
    return x.std(correction=0).item()


def status(report):
    return {record.name: record.status for record in report}


CONSTANTS = {
    "computed": lambda w: torch.tensor(2.0).sqrt(),
    "moved": lambda w: torch.ones(1).to(w.device),
    "subtracted": lambda w: 1 - torch.tensor(0.5),
    "cast": lambda w: torch.tensor(2.0, dtype=torch.float64).to(w.dtype),
    "clamped": lambda w: torch.full((), 0.5).clamp(max=1),
}


@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_weight_times_a_number_that_the_forward_computed(kind):
    net = Used(lambda net, x: F.linear(x, net.w * CONSTANTS[kind](net.w)))
    assert status(lsuv_(net, X))["w"] == "scaled"
    assert std(F.linear(X, net.w * CONSTANTS[kind](net.w))) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "masked",
    [
        lambda w: w * torch.ones(8, 8).tril(),
        lambda w: (w * torch.ones(8, 8).tril()).t(),
        lambda w: w.masked_fill(torch.ones(8, 8).tril() > 0, 0.0),
        lambda w: torch.where(torch.arange(8)[:, None] < 4, w, 0.0),
    ],
)
def test_a_weight_with_a_mask_of_the_forward_has_a_line(masked):
    net = Used(lambda net, x: F.linear(x, masked(net.w)))
    before = net.w.detach().clone()
    assert status(lsuv_(net, X))["w"] == "unsupported"
    assert torch.equal(net.w, before)


def test_positions_are_no_weights_though_they_are_as_large_as_one_sample():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.layer = nn.Parameter(torch.randn(1, 10, 8)), nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x + self.places)

    assert [record.name for record in lsuv_(Positions(), X[None, :10])] == ["layer.weight"]


def bit(net, x):
    scale = net.layer.weight.abs().mean()
    return net.layer(x) / scale


def normed(net, x):
    norms = net.w.norm(dim=1)
    return (x @ net.w.t()) / norms


def normed_later(net, x):
    norms = net.w.norm(dim=1)
    z = x @ net.w.t()
    return z / (2 * norms)


def distances(net, x):
    squares = (net.w**2).sum(-1)
    return squares - 2 * x @ net.w.T


@pytest.mark.parametrize("options", [{}, {"pre_init": None}, {"center": True}, {"batches": 2}], ids=str)
@pytest.mark.parametrize("use", [bit, normed, normed_later, distances])
def test_what_was_computed_from_a_weight_before_its_product_is_as_new_as_the_weight(use, options):
    net = Used(use)
    batches = [X[:32], X[32:]]
    report = lsuv_(net, batches if "batches" in options else X, **options)
    assert report["head.weight"].status == "scaled"
    # Over several batches to a tolerance, where the network is not homogeneous in its weights.
    assert std(net(X)) == pytest.approx(report["head.weight"].std_after, rel=0.01 if "batches" in options else 1e-4)


def guarded(net, x):
    norms = net.w.norm(dim=1)
    norms[norms < 0.1] = 1.0
    return F.linear(x, net.w) / norms


def renormed(net, x):
    norms = net.w.norm(dim=1)
    views = norms.unsqueeze(0)
    h = F.linear(x, net.w)
    norms.mul_(h.std())  # data: known no more, and what shares its memory neither
    return F.linear(h / views, net.layer.weight)


@pytest.mark.parametrize("use", [guarded, renormed])
def test_what_is_written_into_before_and_after_a_product(use):
    net = Used(use)
    net.w.data *= 4
    report = lsuv_(net, X)
    assert report["head.weight"].std_after == pytest.approx(1, rel=1e-4)
    assert use is renormed or std(net(X)) == pytest.approx(1, rel=1e-3)


def test_a_penalty_that_is_added_up_reads_no_weight():
    def use(net, x):
        penalty = torch.zeros(())
        for p in (net.w, net.layer.weight):
            penalty += p.pow(2).sum()
        net.penalty = penalty
        return F.linear(torch.tanh(F.linear(x, net.w)), net.layer.weight)

    assert set(status(lsuv_(Used(use), X)).values()) == {"scaled"}


def selected(net, x):
    large = net.w[net.w.abs() > 0.1]  # of another size, when the weight is another one
    return x @ net.w.t() - large.mean()


def sparse(net, x):
    product = (2 * net.w).to_sparse()
    h = F.linear(x, net.w)
    return h + torch.sparse.mm(product, x.t()).t()


@pytest.mark.parametrize("use", [selected, sparse])
def test_what_cannot_be_brought_up_to_date_stays_as_it_is(use):
    assert lsuv_(Used(use), X).ok


class Twice(nn.Module):
    """Two matrices of one parameter, and something that is done with the first before the second is used."""

    def __init__(self, use: Any) -> None:
        super().__init__()
        self.w, self.use, self.head = nn.Parameter(torch.randn(2, 8, 8)), use, nn.Linear(8, 4)
        self.register_buffer("step", torch.ones(()))

    def forward(self, x):
        return self.head(self.use(self, x))


def summed(net, x):
    total = torch.zeros(())
    h = x @ net.w[0]
    total += net.w[0].norm()
    return (h @ net.w[1]) / total


def counted(net, x):
    h = x @ net.w[0]
    n = net.w[0].norm() * net.step
    net.step += 1
    return (h @ net.w[1]) / n


def decayed(net, x):
    factor, weights = torch.tensor(1.0), []
    for _ in range(3):
        weights.append(net.w[0] * factor)
        factor *= 0.5
    for weight in weights:
        x = F.linear(x, weight)
    return x


@pytest.mark.parametrize("use", [summed, counted, decayed])
def test_numbers_that_change_in_place(use):
    net = Twice(use)
    report = lsuv_(net, X)
    assert report["head.weight"].std_after == pytest.approx(1, rel=1e-4)
    net.step.fill_(1)
    assert std(net(X)) == pytest.approx(1, rel=1e-3)


def test_arguments_of_operators_are_brought_up_to_date_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.u = nn.Parameter(5 * torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            u = self.u * self.w.norm()
            return self.head(F.linear(F.linear(x, self.w), u))

    net = Scaled()
    report = lsuv_(net, X)
    assert status(report) == {"w": "scaled", "u": "scaled", "head.weight": "scaled"}
    assert std(net(X)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("together", [True, False])
def test_long_chains_are_computed_once(monkeypatch, together):
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 4)

        def forward(self, x):
            values = [self.w.mean(0)]
            for _ in range(100):
                values.append(torch.tanh(values[-1]))
            x = F.linear(x, self.w)
            for value in [torch.stack(values).mean(0)] if together else values:
                x = x + value
            return self.head(x)

    again = []
    compute = computed.Node._made

    def counted_once(*args):
        again.append(1)
        return compute(*args)

    monkeypatch.setattr(computed.Node, "_made", counted_once)
    net = Chain()
    lsuv_(net, X)
    assert 101 <= len(again) < 120
    assert std(net(X)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"pre_init": None}], ids=str)
def test_a_weight_whose_elements_overlap_is_left_alone(options):
    class Hankel(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(15))

        def forward(self, x):
            return x @ self.w.unfold(0, 8, 1)

    net = Hankel()
    before = net.w.detach().clone()
    (record,) = lsuv_(net, X, **options)
    assert record.status == "unsupported"
    assert record.std_after == pytest.approx(std(net(X)), rel=1e-4)
    assert torch.equal(net.w, before)


def test_parts_of_a_flat_parameter_have_their_indices():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(192))

        def forward(self, x):
            return (x @ self.w[:128].view(8, 16)).relu() @ self.w[128:].view(16, 4)

    report = lsuv_(Flat(), X, target_std={"w[0:128]": 0.1})
    assert {record.name: round(record.std_after, 3) for record in report} == {"w[0:128]": 0.1, "w[128:192]": 1.0}


def test_a_part_that_is_no_block_of_a_parameter_has_its_offset():
    w = torch.randn(4, 8)
    assert region_label(w, w.view(-1)[8:20].view(3, 4)) == "[offset 8, shape (3, 4)]"
    assert region_label(w, w.view(-1)[8:24].view(4, 4)) == "[1:3]"


def test_a_weight_that_data_met_after_another_one_was_computed_from_it():
    def use(net, x):
        doubled = 2 * net.w
        return F.linear(x, doubled) + (x.mean() * net.w).sum()

    def use_later(net, x):
        doubled = 2 * net.w
        shift = (x.mean() * net.w).sum()
        return F.linear(x, doubled) + shift

    assert [status(lsuv_(Used(each), X))["w"] for each in (use, use_later)] == ["scaled", "tied"]


def test_zeros_show_nothing_of_scale_invariance():
    class Triangle(nn.Module):
        def __init__(self, fill):
            super().__init__()
            self.low, self.layer = nn.Parameter(torch.full((6,), fill)), nn.Linear(4, 4)
            self.register_buffer("eye", torch.eye(4))

        def forward(self, x):
            low = self.low.new_zeros(4, 4)
            low[[1, 2, 2, 3, 3, 3], [0, 0, 1, 0, 1, 2]] = self.low
            return self.layer(F.linear(x, low + self.eye))

    assert [status(lsuv_(Triangle(fill), X[:, :4]))["low"] for fill in (0.0, 0.5)] == ["unsupported"] * 2


@pytest.mark.parametrize("x", [X, X.view(4, 16, 8)])
def test_an_ellipsis_that_stands_for_no_axis_of_the_weight(x):
    net = Used(lambda net, x: torch.einsum("...ij,...j->...i", net.w, x))
    assert status(lsuv_(net, x))["w"] == "scaled"
    assert std(torch.einsum("...ij,...j->...i", net.w, x)) == pytest.approx(1, rel=1e-4)


def test_keyword_arguments_of_a_class_of_their_own():
    class Graph:
        nodes = X

    class Net(nn.Linear):
        def forward(self, graph):
            return super().forward(graph.nodes)

    net = Net(8, 4)
    lsuv_(net, {"graph": Graph()})
    assert std(net(Graph())) == pytest.approx(1, rel=1e-4)


# Forwards that differentiate.


def net():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


class Differentiating(nn.Module):
    def __init__(self, use: Any) -> None:
        super().__init__()
        self.net, self.use = net(), use

    @property
    def parameters_by_name(self):
        return dict(self.net.named_parameters())

    def forward(self, x):
        return self.use(self, x)


def by_biases(model, x):  # as in MAML
    with torch.enable_grad():
        grads = torch.autograd.grad(model.net(x).square().mean(), list(model.net.parameters()), create_graph=True)
        moved = {name: p - 0.1 * d for (name, p), d in zip(model.parameters_by_name.items(), grads, strict=True)}
        return functional_call(model.net, moved, (x,))


def by_input(model, x):  # as in physics-informed networks
    x = x.requires_grad_()
    return torch.autograd.grad(model.net(x).sum(), x, create_graph=True)[0]


def batched(model, x):
    with torch.enable_grad():
        return torch.autograd.functional.jacobian(lambda y: model.net(y).sum(0), x, create_graph=True, vectorize=True)[0]


def dual(model, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(model.net(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def func_grad_of_input(model, x):
    return grad(lambda p, x: functional_call(model.net, p, (x,)).sum(), argnums=1)(model.parameters_by_name, x)


def func_grad_of_parameters(model, x):
    given = model.parameters_by_name
    found = grad(lambda p: functional_call(model.net, p, (x,)).square().mean())(given)
    return functional_call(model.net, {name: p - 0.1 * found[name] for name, p in given.items()}, (x,))


def func_grad_in_vmap(model, x):
    one = grad(lambda p, y: functional_call(model.net, p, (y,)).sum(), argnums=1)
    return vmap(lambda y: one(model.parameters_by_name, y))(x)


def func_jvp_by_parameters(model, x):
    given = model.parameters_by_name
    return jvp(lambda p: functional_call(model.net, p, (x,)), (given,), (given,))[1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, for forward AD
@pytest.mark.parametrize(
    "use",
    [
        *(by_biases, by_input, batched, dual),
        *(func_grad_of_input, func_grad_of_parameters, func_grad_in_vmap, func_jvp_by_parameters),
    ],
)
def test_forwards_that_differentiate(use):
    model = Differentiating(use)
    before = measure(model, X)
    assert [layer.name for layer in before] == ["net.0.weight", "net.2.weight"]
    assert all(layer.grad_std is None for layer in before)
    report = lsuv_(model, X)
    assert status(report) == {"net.0.weight": "scaled", "net.2.weight": "scaled"}
    hidden = model.net[0](X)
    assert [std(hidden), std(model.net[2](hidden.tanh()))] == pytest.approx([1, 1], rel=1e-3)
    assert not X.requires_grad
    assert lsuv_(model, X, target_std="auto").ok


def test_forwards_that_differentiate_over_several_batches():
    model = Differentiating(by_input)
    assert lsuv_(model, [X[:32], X[32:]], batches=2)["net.2.weight"].std_after == pytest.approx(1, rel=0.01)
    assert torch.is_grad_enabled()
    assert status(init_(model, "he", X)) == {"net.0.weight": "drawn", "net.2.weight": "drawn"}
    with pytest.raises(RuntimeError, match="does not require grad") as caught:
        lsuv_(model, iter([X]))
    assert "pass forward=torch.enable_grad()(lambda model, batch: model(batch))" in caught.value.__notes__[-1]


def test_a_second_start_begins_as_the_first_did():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 1)
            self.register_buffer("n", torch.zeros(()))
            self.state: torch.Tensor | None = None
            self.seen: list[int] = []

        def forward(self, x):
            h = x * (1 if self.n == 0 and self.state is None else 10)
            self.n.add_(1)
            self.state = h
            self.seen.append(len(x))
            y = torch.tanh(self.first(h)).detach().requires_grad_()
            return torch.autograd.grad(self.last(y * y).sum(), y, create_graph=True)[0]

    model = Counting()
    before = measure(model, X)
    assert before["first.weight"].std == pytest.approx(std(model.first(X)), rel=1e-4)
    assert (model.n, model.state, model.seen) == (0, None, [])
    assert lsuv_(model, X)["first.weight"].std_after == pytest.approx(std(model.first(X)), rel=1e-4)
    assert model.n == 0


def by_retained_gradient(model, x):
    h = model.net[0](x)
    h.retain_grad()
    model.net[2](h.tanh()).sum().backward()
    return h.grad


def by_hook(model, x):
    found: list[torch.Tensor] = []
    h = model.net[0](x)
    h.register_hook(found.append)
    model.net[2](h.tanh()).sum().backward()
    return found[0]


@pytest.mark.parametrize("use", [by_retained_gradient, by_hook])
def test_other_ways_to_a_gradient(use):
    model = Differentiating(use)
    assert status(lsuv_(model, X)) == {"net.0.weight": "scaled", "net.2.weight": "scaled"}
    assert all(p.grad is None for p in model.parameters())


def test_data_that_go_on_where_they_stood_are_not_read_twice():
    class Stream:
        def __init__(self):
            self.batches = iter([X, 2 * X])

        def __iter__(self):
            return self.batches

    class Rows(IterableDataset):
        def __iter__(self):
            return iter(X)

    for data in (Stream(), DataLoader(Rows(), batch_size=8)):
        with pytest.raises(RuntimeError, match="does not require grad"):
            lsuv_(Differentiating(by_input), data)
    assert lsuv_(Differentiating(by_input), DataLoader(TensorDataset(X), batch_size=32)).ok


def test_a_batch_that_is_a_view_and_is_written_into():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.places, self.layer = nn.Parameter(torch.ones(8)), nn.Linear(8, 8)

        def forward(self, x):
            x += self.places
            return self.layer(x)

    data = X.clone()
    measure(Positions(), data[:32], lambda y: y.square().mean())
    lsuv_(Positions(), data[:32], forward=torch.enable_grad()(lambda model, x: model(x)))
    assert torch.equal(data, X)


def test_gradients_of_the_batch_are_put_aside():
    class ByBackward(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(8, 8), nn.Linear(8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x.requires_grad_()
            self.b(torch.tanh(self.a(x))).sum().backward(create_graph=True)
            return self.out(x.grad)

    model, x = ByBackward(), X.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of backward(create_graph=True), the model's own
        lsuv_(model, x)
        assert (x.grad, x.requires_grad) == (None, False)
        assert all(p.grad is None for p in model.parameters())
        lsuv_(model, [X[:32].clone(), X[32:].clone()], batches=2)
        assert std(model(X.clone())) == pytest.approx(1, rel=0.01)


def test_a_batch_that_is_written_into_leaves_the_model_s_graph():
    class Gain(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.net = nn.Parameter(torch.full((8,), 2.0)), net()

        def forward(self, x):
            x.mul_(self.gain)
            y = x.detach().requires_grad_()
            return torch.autograd.grad(self.net(y).sum(), y, create_graph=True)[0] + x

    x = X.clone()
    lsuv_(Gain(), x)
    assert torch.equal(x, X)
    assert (x.requires_grad, x.grad_fn) == (False, None)


def test_biases_inside_vmap_are_no_weights():
    model = nn.Linear(8, 3)
    ensemble = Used(lambda net, x: x)
    ensemble.w, ensemble.b = nn.Parameter(torch.randn(4, 3, 8)), nn.Parameter(torch.randn(4, 3))
    ensemble.use = lambda net, x: vmap(lambda w, b: F.linear(x, w, b))(net.w, net.b).mean(0) @ model.weight
    assert status(lsuv_(ensemble, X)) == {"w": "unsupported", "head.weight": "scaled", "layer.weight": "unused"}


# What measure says of weights that are used several times.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_state_that_begins_as_zero(masked, bias):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs, self.states = nn.Linear(8, 16), nn.Linear(16, 16, bias=bias)
            self.register_buffer("mask", torch.ones(16, 16).tril() if masked else torch.ones(16, 16))

        def forward(self, x):
            state = torch.zeros(len(x), 16)
            for _ in range(3):
                weight = self.states.weight * self.mask if masked else self.states.weight
                state = torch.tanh(self.inputs(x) + F.linear(state, weight, self.states.bias))
            return state

    model = Recurrent()
    assert measure(model, X).healthy
    record = lsuv_(model, X)["states.weight"]
    assert (record.status, round(record.std_after, 3)) == ("shared", 1.0)
    found = measure(model, X, lambda y: y.square().mean())
    assert found["states.weight"].std == pytest.approx(1, rel=1e-3)
    assert found["states.weight"].grad_std > 0
    assert found.healthy


def test_the_gradient_of_a_weight_is_that_of_its_first_use():
    class Shared(nn.Linear):
        def forward(self, x):
            self.first = super().forward(x)
            return super().forward(torch.tanh(self.first))

    model = Shared(8, 8)
    found = measure(model, X, lambda y: y.square().mean())
    y = model(X)
    model.first.retain_grad()
    y.square().mean().backward()
    assert found["weight"].grad_norm == pytest.approx(model.first.grad.norm().item(), rel=1e-4)


@pytest.mark.parametrize("use", [by_biases, by_input, batched])
def test_gradients_of_a_loss_of_forwards_that_differentiate(use):
    model = Differentiating(use)
    found = measure(model, X, lambda y: y.square().mean())
    weights = [model.net[0].weight, model.net[2].weight]
    loss = use(model, X.clone()).square().mean()
    for layer, gradient, weight in zip(found, torch.autograd.grad(loss, weights), weights, strict=True):
        update = gradient.norm().item() / weight.norm().item()
        assert layer.relative_update(1.0) == pytest.approx(update, rel=1e-3)


def test_the_gradient_of_a_weight_whose_first_use_is_detached():
    class SelfDistillation(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            teacher = self.net(x).detach()
            return self.net(x + 0.1) - teacher

    model = SelfDistillation()
    found = measure(model, X, lambda y: y.square().mean())
    z = model.net[0](X + 0.1)
    z.retain_grad()
    (model.net[2](z.tanh()) - model.net(X).detach()).square().mean().backward()
    assert found["net.0.weight"].grad_norm == pytest.approx(z.grad.norm().item(), rel=1e-4)
    assert found.healthy


def test_nested_tensors_are_refused_by_measure_too():
    class Nested(nn.Linear):
        def forward(self, x):
            return super().forward(torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged))

    for function in (measure, lsuv_):
        with pytest.raises(DataError, match="makes a nested tensor, which cannot be measured"):
            function(Nested(8, 4), X)


class DroppedWeights(nn.Module):
    """As in AWD-LSTM: dropout on a recurrent weight, and on another one, set as attributes in the forward."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 3)
        raw = self.lstm._parameters.pop("weight_hh_l0")
        self.recurrent, self.v = nn.Parameter(raw.detach()), nn.Parameter(torch.randn(8, 8))
        self.lstm.weight_hh_l0, self.w = raw.detach(), None

    def forward(self, x):
        self.lstm.weight_hh_l0 = F.dropout(self.recurrent, 0.5, self.training)
        self.w = F.dropout(self.v, 0.5, self.training)
        return self.head(F.linear(self.lstm(x)[0], self.w))


@pytest.mark.parametrize("options", [{}, {"mode": "eval"}, {"target_std": "auto"}, {"pre_init": None}], ids=str)
def test_dropout_on_weights(options):
    """The pass is without it; what the model sets is no parameter all the same."""
    net, x = DroppedWeights(), torch.randn(16, 5, 8)
    names = list(net.state_dict())
    report = lsuv_(net, x, **options)
    assert {name: status_ for name, status_ in status(report).items() if name in ("recurrent", "v")} == {
        "recurrent": "recurrent",
        "v": "scaled",
    }
    assert list(net.state_dict()) == names
    net(x).sum().backward()
    assert net.v.grad is not None


def test_what_dropout_was_given_is_not_what_it_gives():
    """In training it is not, so that what is written into the one is not in the other."""

    class Tripled(nn.Module):
        def __init__(self, functional):
            super().__init__()
            self.functional = functional
            self.first, self.drop, self.last = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)

        def forward(self, x):
            h = self.first(x)
            y = F.dropout(h, 0.5, self.training) if self.functional else self.drop(h)
            y.mul_(3)
            return self.last(h + y)

    for functional in (False, True):
        net = Tripled(functional)
        lsuv_(net, X)
        with torch.no_grad():
            h = net.first(X)
            assert std(net.last(4 * h)) == pytest.approx(1, abs=1e-4)
