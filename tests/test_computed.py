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
        (lambda: Weighted(lambda m: F.layer_norm(m.w, (6,)), w=normal(5, 6)), "scale-invariant"),
        (lambda: Weighted(lambda m: torch.tanh(m.w), w=normal(5, 6)), "unsupported"),
        (lambda: Weighted(lambda m: m.w @ m.w.t() @ m.w, w=normal(5, 6)), "unsupported"),
    ],
    ids=["spectral_norm", "spectral_norm, old", "orthogonal", "standardized", "tanh", "cube"],
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
