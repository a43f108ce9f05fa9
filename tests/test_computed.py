"""Weights that are computed from parameters: which parameters carry the factor, what is drawn, what cannot be scaled."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from goodinit import lsuv_
from nets import assert_same, snapshot


def normal(*shape):
    return torch.randn(shape)


def old(wrap, module, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and still what people have
        return wrap(module, **kwargs)


class Weighted(nn.Module):
    """x @ weight(parameters)."""

    def __init__(self, weight, **parameters):
        super().__init__()
        self.weight = weight
        for name, p in parameters.items():
            self.register_parameter(name, nn.Parameter(p))

    def forward(self, x):
        return F.linear(x, self.weight(self))


# name: (module, shape of its input, parameters that carry the factor, whether what results is orthonormal)
SCALED = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 5)), (6,), {"parametrizations.weight.original0"}, True),
    "weight_norm, in": (lambda: old(nn.utils.weight_norm, nn.Linear(6, 5), dim=1), (6,), {"weight_g"}, False),
    "weight_norm, old": (lambda: old(nn.utils.weight_norm, nn.Conv1d(3, 4, 3)), (3, 9), {"weight_g"}, True),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(6, 5), "weight", amount=0.3), (6,), {"weight_orig"}, False),
    "cast": (lambda: Weighted(lambda m: m.w.float(), w=normal(5, 6).double()), (6,), {"w"}, True),
    "contiguous": (lambda: Weighted(lambda m: m.w.t().contiguous(), w=normal(6, 5)), (6,), {"w"}, True),
    "constant factor": (lambda: Weighted(lambda m: 0.2 * m.w, w=normal(5, 6)), (6,), {"w"}, True),
    "concatenated": (lambda: Weighted(lambda m: torch.cat([m.a, m.b]), a=normal(2, 6), b=normal(3, 6)), (6,), {"a", "b"}, False),
    "sum": (lambda: Weighted(lambda m: m.a + m.b, a=normal(5, 6), b=normal(5, 6)), (6,), {"a", "b"}, False),
    "product": (lambda: Weighted(lambda m: m.a @ m.b, a=normal(5, 2), b=normal(2, 6)), (6,), {"b"}, False),
    "LoRA": (lambda: Weighted(lambda m: m.w + m.b @ m.a, w=normal(5, 6), b=normal(5, 2), a=normal(2, 6)), (6,), {"w", "a"}, 0),
    "gain": (lambda: Weighted(lambda m: m.g * F.layer_norm(m.w, (6,)), g=torch.ones(5, 1), w=normal(5, 6)), (6,), {"g"}, 0),
}  # fmt: skip


def weight_of(module):
    """The matrix that the module multiplies by."""
    if isinstance(module, Weighted):
        return module.weight(module).detach().flatten(1)
    module(torch.randn(2, *((6,) if hasattr(module, "in_features") else (3, 9))))
    return module.weight.detach().flatten(1)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("pre_init", ["orthonormal", None])
def test_the_parameters_that_carry_the_factor_get_it(name, pre_init):
    torch.manual_seed(0)
    make, shape, carriers, orthonormal = SCALED[name]
    module, data = make(), normal(64, *shape)
    if getattr(module, "bias", None) is not None:
        nn.init.normal_(module.bias, std=0.1)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    (record,) = lsuv_(module, data, pre_init=pre_init)
    assert record.status == "scaled"
    with torch.no_grad():
        assert module(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    if pre_init is None:
        for key, value in module.state_dict().items():
            expected = before[key] * record.factor if key in carriers else before[key]
            assert torch.allclose(value, expected, rtol=1e-4), key
    elif orthonormal:
        w = weight_of(module)
        gram = w @ w.T
        assert torch.allclose(gram / gram[0, 0], torch.eye(len(gram)).to(w.dtype), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), "scale-invariant"),
        (lambda: old(nn.utils.spectral_norm, nn.Linear(6, 5)), "scale-invariant"),
        (lambda: parametrizations.orthogonal(nn.Linear(6, 6)), "scale-invariant"),
        (lambda: parametrizations.orthogonal(nn.Linear(6, 5)), "scale-invariant"),
        (lambda: parametrizations.orthogonal(nn.Linear(6, 9)), "scale-invariant"),
        (lambda: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley"), "scale-invariant"),
        (lambda: Weighted(lambda m: F.layer_norm(m.w, (6,)), w=normal(5, 6)), "scale-invariant"),
        (lambda: Weighted(lambda m: torch.tanh(m.w), w=normal(5, 6)), "unsupported"),
        (lambda: Weighted(lambda m: m.w @ m.w.t() @ m.w, w=normal(5, 6)), "unsupported"),
    ],
    ids=["spectral_norm", "spectral_norm, old", "orthogonal", "wide", "tall", "cayley", "standardized", "tanh", "cube"],
)
def test_what_no_factor_scales_is_left(make, status):
    torch.manual_seed(0)
    model = nn.Sequential(make(), nn.ReLU(), nn.LazyLinear(4))
    data = normal(64, 6)
    with torch.no_grad():
        model(data)
    before = {k: v.detach().clone() for k, v in model[0].named_parameters() if "bias" not in k}
    report = lsuv_(model, data)
    assert [r.status for r in report] == [status, "scaled"]
    assert_same(before, {k: v.detach() for k, v in model[0].named_parameters() if "bias" not in k})
    with torch.no_grad():
        out = model(data).std(correction=0).item()
        assert out == pytest.approx(1, abs=0.1)  # spectral_norm goes on with its power iteration


def test_a_computed_weight_that_is_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(normal(6, 6).double())

        def forward(self, x):
            w = self.w.float()
            other = w.clone()
            return F.linear(F.linear(x, w).relu(), other)

    torch.manual_seed(0)
    model, data = Twice(), normal(64, 6)
    seen = []
    (record,) = lsuv_(model, data, forward=lambda m, d: seen.append(m(d)))
    assert record.status == "shared"
    with torch.no_grad():
        after = model(data)
    assert torch.allclose(seen[0], after, atol=1e-5)
    assert record.uses == pytest.approx([1, after.std(correction=0).item()], rel=1e-4)


def test_frozen_base_of_a_lora_is_left():
    torch.manual_seed(0)
    model = Weighted(lambda m: m.w + m.b @ m.a, w=normal(5, 6), b=normal(5, 2), a=normal(2, 6))
    model.w.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (record,) = lsuv_(model, normal(64, 6))
    assert (record.name, record.status) == ("w", "frozen")
    assert_same(before, dict(model.state_dict()))


def test_inside_cached_parametrizations():
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.Tanh(), parametrizations.weight_norm(nn.Linear(6, 6)))
    data = normal(64, 6)
    with parametrize.cached():
        lsuv_(model, data)
    with torch.no_grad():
        assert model[0](data).std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert model(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("make", [m for m, *_ in SCALED.values()], ids=SCALED)
def test_a_failure_puts_all_of_them_back(make):
    torch.manual_seed(0)
    module = make()
    data = normal(64, *(next(s for m, s, *_ in SCALED.values() if m is make)))
    module(data)
    before, weight = snapshot(module), vars(module).get("weight")
    with pytest.raises(ZeroDivisionError):
        lsuv_(module, data, forward=lambda m, d: m(d) / (1 // 0))
    assert_same(before, snapshot(module))
    assert vars(module).get("weight") is weight


def test_what_is_made_from_data_is_no_weight():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.first, self.w = nn.Parameter(normal(20, 6)), nn.Parameter(normal(3, 6)), nn.Parameter(normal(6, 5))

        def forward(self, ids):
            h = self.table[ids]
            h[:, 0] += self.first[0]
            return h @ self.w

    torch.manual_seed(0)
    model, ids = Embedded(), torch.randint(20, (8, 4))
    report = lsuv_(model, ids)
    assert [(r.name, r.status) for r in report] == [("w", "scaled")]
    assert model(ids).std(correction=0).item() == pytest.approx(1, abs=1e-4)


class Affine(nn.Module):
    """x @ weight(parameters) + bias(parameters)."""

    def __init__(self, weight, bias, **parameters):
        super().__init__()
        self.weight, self.bias = weight, bias
        for name, p in parameters.items():
            self.register_parameter(name, nn.Parameter(p))

    def forward(self, x, function="linear"):
        weight, bias = self.weight(self), self.bias(self)
        if function == "addmm":
            return torch.addmm(bias, x, weight.t())
        if function == "conv":
            return F.conv1d(x[..., None], weight[..., None], bias)[..., 0]
        return F.linear(x, weight, bias)


def numbers(*shape):
    """Such as nothing draws."""
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)


@pytest.mark.parametrize(
    ("weight", "bias", "zero", "kept"),
    [
        (lambda m: m.w * m.g[:, None], lambda m: m.b * m.g, {"b"}, {"g"}),
        (lambda m: m.w * m.s, lambda m: m.b * m.s, {"b"}, {"s"}),
        (lambda m: m.w * m.g[:, None], lambda m: m.g, set(), {"g"}),
        (lambda m: m.w, lambda m: m.b * m.s, {"b"}, {"s"}),
        (lambda m: m.w, lambda m: m.b + m.g, {"b", "g"}, set()),
        (lambda m: m.w, lambda m: torch.cat([m.b[:2], m.g[2:]]), {"b[:2]", "g[2:]"}, set()),
        (lambda m: m.w, lambda m: F.softplus(m.b), {"b"}, set()),
        (lambda m: m.w * m.i, lambda m: m.w @ m.j + m.b, {"b", "j"}, {"i"}),
        (lambda m: m.w, lambda m: m.b - m.w @ m.j, {"b", "j"}, set()),
    ],
    ids=["gain", "scalar", "only gain", "own scalar", "sum", "parts", "softplus", "layer norm folded", "mean folded"],
)
@pytest.mark.parametrize("function", ["linear", "addmm", "conv"])
def test_biases_become_zero_by_parameters_that_are_nothing_but_biases(weight, bias, zero, kept, function):
    torch.manual_seed(0)
    shapes = {"w": (5, 6), "b": (5,), "g": (5,), "s": (1,), "i": (6,), "j": (6,)}
    parameters = {name: 0.1 * numbers(*shape) for name, shape in shapes.items()}
    net = Affine(weight, bias, **parameters)
    data = normal(64, 6)
    report = lsuv_(net, data, forward=lambda m, x: m(x, function))
    assert report["w"].status == "scaled"
    with torch.no_grad():
        assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert net.w.count_nonzero() == 30
    for name in kept:
        assert torch.equal(getattr(net, name), parameters[name]), name
    for part in zero:
        name, _, index = part.partition("[")
        values = getattr(net, name)
        assert not values[slice(*(int(i) if i else None for i in index[:-1].split(":"))) if index else ...].any(), part


def test_a_bias_that_changes_with_its_weight_is_no_offset():
    """There is no telling what a factor would do to the std of their sum."""
    torch.manual_seed(0)
    net = Affine(lambda m: m.w, lambda m: m.w[:, 0] ** 2, w=normal(5, 6))
    before = snapshot(net)
    report = lsuv_(nn.Sequential(net, nn.Linear(5, 2)), normal(64, 6))
    assert [record.status for record in report] == ["unsupported", "scaled"]
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("way", ["frozen", "skip"])
@pytest.mark.parametrize(
    ("name", "status"), [("product", "scaled"), ("concatenated", "unsupported"), ("sum", "unsupported"), ("LoRA", "scaled")]
)
def test_what_is_to_stay_as_it_is_stays_in_what_is_computed_from_it(name, status, way):
    torch.manual_seed(0)
    net, data = SCALED[name][0](), normal(64, 6)
    sizes = {key: p.numel() for key, p in net.named_parameters()}
    smaller = min(sizes, key=lambda key: sizes[key]) if name != "sum" else "b"
    if way == "frozen":
        net.get_parameter(smaller).requires_grad_(False)
    before = {key: p.clone() for key, p in net.state_dict().items()}
    (record,) = lsuv_(net, data, skip=smaller if way == "skip" else ())
    assert record.status == status
    assert torch.equal(before[smaller], net.get_parameter(smaller))
    if status == "unsupported":
        assert_same(before, dict(net.state_dict()))
    else:
        assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_parts_of_a_bias_that_are_to_stay_do():
    torch.manual_seed(0)
    net = Affine(lambda m: m.w, lambda m: torch.cat([m.b, m.c]), w=normal(5, 6), b=numbers(3), c=numbers(2))
    net.c.requires_grad_(False)
    data = normal(64, 6)
    (record,) = lsuv_(net, data, target_std=3.0)
    assert record.status == "scaled"
    assert not net.b.any()
    assert torch.equal(net.c, numbers(2))
    assert net(data).std(correction=0).item() == pytest.approx(3, abs=1e-3)


def test_a_bias_that_is_a_weight_later_is_left_then():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.v = nn.Parameter(normal(6, 6)), nn.Parameter(normal(6))

        def forward(self, x):
            return F.linear(x, self.w, self.v).tanh() @ self.v

    torch.manual_seed(0)
    net, data = Late(), normal(64, 6)
    report = lsuv_(net, data)
    assert [record.status for record in report] == ["scaled", "tied"]
    assert F.linear(data, net.w, net.v).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_gains_are_not_drawn():
    torch.manual_seed(0)
    net = Weighted(lambda m: m.u @ (m.s[:, None] * m.v), u=normal(5, 4), s=numbers(4), v=normal(4, 6))
    (record,) = lsuv_(net, normal(64, 6))
    assert record.status == "scaled"
    assert torch.equal(net.s, numbers(4))


def iterated(step):
    def weight(m):
        w = m.w
        for _ in range(60):
            w = step(w)
        return w

    return weight


@pytest.mark.parametrize(
    ("step", "status"),
    [
        (lambda w: 1.5 * w - 0.5 * w @ (w.t() @ w), "scale-invariant"),
        (lambda w: w - w.logsumexp(1, keepdim=True) / 2 - w.logsumexp(0, keepdim=True) / 2, "unsupported"),
        (lambda w: w / w.norm(), "scale-invariant"),
        (lambda w: 0.6 * w + 0.4 * w, "scaled"),
    ],
    ids=["Björck", "Sinkhorn", "normalized", "doubled"],
)
def test_weights_from_a_loop_that_uses_every_step_several_times(step, status):
    """There are 2 to 4 ways through each of its 60 steps."""
    torch.manual_seed(0)
    net = Weighted(iterated(step), w=normal(6, 6) / 6)
    (record,) = lsuv_(net, normal(64, 6))
    assert record.status == status


def test_a_weight_from_thousands_of_steps():
    def weight(m):
        w = m.w
        for _ in range(2000):
            w = w * 1.0001
        return w

    torch.manual_seed(0)
    net, data = Weighted(weight, w=normal(5, 6)), normal(64, 6)
    (record,) = lsuv_(net, data)
    assert record.status == "scaled"
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_a_step_in_place_leaves_what_else_was_made_from_the_one_before(first):
    def weight(m):
        doubled = 2 * m.w
        other = doubled + 0.5 * m.w
        doubled.mul_(-3)
        return doubled + other if first else other + doubled

    torch.manual_seed(0)
    net, data = Weighted(weight, w=normal(5, 6)), normal(64, 6)
    (record,) = lsuv_(net, data)
    assert record.status == "scaled"
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("select", ["index_select", "method", "brackets"])
def test_matrices_selected_from_a_stack(select):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(normal(4, 6, 6))

        def forward(self, x):
            chosen = torch.arange(len(x)) % 4
            some = {
                "index_select": lambda: torch.index_select(self.w, 0, chosen),
                "method": lambda: self.w.index_select(0, chosen),
                "brackets": lambda: self.w[chosen],
            }[select]()
            return torch.bmm(x[:, None], some)

    torch.manual_seed(0)
    net, data = Experts(), normal(64, 6)
    (record,) = lsuv_(net, data)
    assert (record.name, record.status) == ("w", "scaled")
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("write", ["copy_", "slice", "out"])
@pytest.mark.parametrize("product", ["matmul", "einsum"])
def test_a_buffer_that_data_went_into_is_data(write, product):
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.w = nn.Linear(6, 6), nn.Parameter(normal(6, 6))
            self.register_buffer("state", torch.zeros(64, 6))

        def forward(self, x):
            with torch.no_grad():
                h = torch.tanh(self.first(x))
                if write == "copy_":
                    self.state.copy_(h)
                elif write == "slice":
                    self.state[:] = h
                else:
                    torch.add(h, h, out=self.state)
            return self.state @ self.w if product == "matmul" else torch.einsum("bi,io->bo", self.state, self.w)

    torch.manual_seed(0)
    net, data = Stateful(), normal(64, 6)
    report = lsuv_(net, data)
    assert [(record.name, record.status) for record in report] == [("first.weight", "scaled"), ("w", "scaled")]
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_parametrized_layers_that_the_forward_does_not_use():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.plain, self.normed = nn.Linear(6, 6), nn.Linear(6, 6), parametrizations.weight_norm(nn.Linear(6, 6))

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    net = Spare()
    report = lsuv_(net, normal(64, 6))
    assert [record.status for record in report] == ["scaled", "unused", "unused"]
    gram = net.normed.weight @ net.normed.weight.T
    assert torch.allclose(gram, torch.eye(6), atol=1e-4)


def indexed(m):
    w = m.w.clone()
    w[m.mask] = 0
    return w


def through_a_view(m):
    w = m.w.clone()
    w[:2].mul_(10.0)
    return w


def through_another(m):
    w = m.w.clone()
    w.diagonal().zero_()
    return 2 * w


@pytest.mark.parametrize(
    ("weight", "status"), [(indexed, "scaled"), (through_a_view, "unsupported"), (through_another, "unsupported")]
)
@pytest.mark.parametrize("zero", [False, True])
def test_what_is_written_into_a_computed_weight_is_seen(weight, status, zero):
    """Also where the parameter has nothing to show it, being zero there at first."""
    torch.manual_seed(0)
    net, data = Weighted(weight, w=normal(5, 6)), normal(64, 6)
    net.register_buffer("mask", torch.rand(5, 6) < 0.4)
    if zero:
        net.w.data.zero_()
    before = net.w.clone()
    (record,) = lsuv_(net, data)
    assert record.status == status
    if status == "scaled":
        assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)
    else:
        assert torch.equal(net.w, before)


def test_weights_and_biases_that_are_expanded():
    torch.manual_seed(0)
    net, data = Affine(lambda m: m.w, lambda m: (2 * m.s).expand(5), w=normal(5, 6), s=numbers(1)), normal(64, 6)
    for function in ("linear", "conv"):
        (record,) = lsuv_(net, data, forward=lambda m, x, function=function: m(x, function))
        assert (record.status, net.s.item()) == ("scaled", 0)
        assert net(data, function).std(correction=0).item() == pytest.approx(1, abs=1e-3)
        net.s.data.fill_(1.0)


def test_without_drawing_only_what_is_scaled_moves_a_bias():
    torch.manual_seed(0)
    parameters = {"a": normal(5, 3), "b": normal(3, 30), "c": 0.01 * normal(3)}
    net, data = Affine(lambda m: m.a @ m.b, lambda m: m.a @ m.c, **parameters), normal(64, 30)
    (record,) = lsuv_(net, data, pre_init=None)
    assert (record.name, record.status) == ("b", "scaled")
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("zero", [{"a"}, {"b"}, {"a", "b"}])
@pytest.mark.parametrize("name", ["concatenated", "sum", "product", "LoRA"])
def test_roots_that_are_zero_at_first(name, zero):
    torch.manual_seed(0)
    net, data = SCALED[name][0](), normal(64, 6)
    for each in zero:
        net.get_parameter(each).data.zero_()
    (record,) = lsuv_(net, data)
    assert record.status == "scaled"
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_a_weight_of_nothing_but_gains_is_drawn():
    torch.manual_seed(0)
    rows = {f"r{i}": torch.zeros(6) for i in range(5)}
    net, data = Weighted(lambda m: torch.cat([getattr(m, name)[None] for name in rows]), **rows), normal(64, 6)
    (record,) = lsuv_(net, data)
    assert record.status == "scaled"
    assert net(data).std(correction=0).item() == pytest.approx(1, abs=1e-3)
