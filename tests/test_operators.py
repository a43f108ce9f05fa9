"""Every operator that is linear in a weight is found, drawn in its own layout, scaled, and gives what torch gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, stack_module_state

from goodinit import lsuv_
from goodinit.interception.intercept import intercept
from goodinit.interception.transforms import unwrapped
from goodinit.moments import moments
from nets import assert_same, build

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")


def normal(*shape, dtype=None):
    return torch.randn(shape, dtype=dtype)


class Op(nn.Module):
    """One operator on one weight w, and a bias where the operator has one."""

    def __init__(self, function, w, b=None):
        super().__init__()
        self.function = function
        self.w = nn.Parameter(w)
        self.b = nn.Parameter(b) if b is not None else None

    def forward(self, x):
        return self.function(x, self.w) if self.b is None else self.function(x, self.w, self.b)


# name: (function, data, weight, bias, the weight's matrices (count, rows, columns) as the operator has them)
CASES = {
    "linear": (F.linear, normal(64, 5), normal(7, 5), normal(7), lambda w: w[None]),
    "linear by keyword": (
        lambda x, w, b: F.linear(input=x, weight=w, bias=b),
        normal(64, 5),
        normal(7, 5),
        normal(7),
        lambda w: w[None],
    ),
    "linear, 3-d data": (F.linear, normal(8, 9, 5), normal(7, 5), normal(7), lambda w: w[None]),
    "linear, a vector": (F.linear, normal(64, 5), normal(5), None, lambda w: w[None, None]),
    "linear, transposed": (lambda x, w: F.linear(x, w.t()), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "linear, detached": (lambda x, w: F.linear(x, w.detach()), normal(64, 5), normal(7, 5), None, lambda w: w[None]),
    "bilinear": (
        lambda x, w, b: F.bilinear(x, x.flip(0), w, b),
        normal(64, 5),
        normal(6, 5, 5),
        normal(6),
        lambda w: w.flatten(1)[None],
    ),
    "conv1d": (F.conv1d, normal(8, 4, 20), normal(6, 4, 3), normal(6), lambda w: w.flatten(1)[None]),
    "conv2d": (
        lambda x, w, b: F.conv2d(x, w, b, 2, 1),
        normal(8, 4, 9, 9),
        normal(6, 4, 3, 3),
        normal(6),
        lambda w: w.flatten(1)[None],
    ),
    "conv2d, one sample": (
        F.conv2d,
        normal(4, 9, 9),
        normal(6, 4, 3, 3),
        normal(6),
        lambda w: w.flatten(1)[None],
    ),
    "conv2d, groups": (
        lambda x, w, b: F.conv2d(x, w, bias=b, padding="same", groups=2),
        normal(8, 4, 9, 9),
        normal(6, 2, 3, 3),
        normal(6),
        lambda w: w.reshape(2, 3, -1),
    ),
    "conv2d, tall groups": (
        lambda x, w: F.conv2d(x, w, groups=2),
        normal(8, 2, 9, 9),
        normal(12, 1, 1, 2),
        None,
        lambda w: w.reshape(2, 6, 2),
    ),
    "conv_transpose2d, tall groups": (
        lambda x, w: F.conv_transpose2d(x, w, groups=2),
        normal(8, 12, 9, 9),
        normal(12, 1, 1, 2),
        None,
        lambda w: w.reshape(2, 6, 2),
    ),
    "conv2d, channels last": (
        F.conv2d,
        normal(8, 4, 9, 9).to(memory_format=torch.channels_last),
        normal(6, 4, 3, 3).to(memory_format=torch.channels_last),
        None,
        lambda w: w.flatten(1)[None],
    ),
    "conv3d": (F.conv3d, normal(4, 2, 5, 5, 5), normal(6, 2, 3, 3, 3), normal(6), lambda w: w.flatten(1)[None]),
    "conv_transpose1d": (F.conv_transpose1d, normal(8, 4, 9), normal(4, 6, 3), normal(6), lambda w: w.flatten(1)[None]),
    "conv_transpose2d, groups": (
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, groups=2),
        normal(8, 4, 9, 9),
        normal(4, 3, 3, 3),
        normal(6),
        lambda w: w.reshape(2, 2, -1),
    ),
    "conv_transpose3d": (
        F.conv_transpose3d,
        normal(4, 2, 5, 5, 5),
        normal(2, 3, 2, 2, 2),
        normal(3),
        lambda w: w.flatten(1)[None],
    ),
    "x @ w": (lambda x, w: x @ w, normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "w @ x": (lambda x, w: w @ x, normal(5, 64), normal(7, 5), None, lambda w: w[None]),
    "w @ x, images": (lambda x, w: w @ x, normal(8, 5, 64), normal(7, 5), None, lambda w: w[None]),
    "w @ vector": (lambda x, w: w @ x, normal(50), normal(40, 50), None, lambda w: w[None]),
    "matmul": (lambda x, w: torch.matmul(input=x, other=w), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "linalg.matmul": (torch.linalg.matmul, normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "method matmul": (lambda x, w: x.matmul(w), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "x @ vector": (lambda x, w: x @ w, normal(64, 5), normal(5), None, lambda w: w[None, None]),
    "mm": (lambda x, w: torch.mm(x, mat2=w), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "mv": (lambda x, w: torch.mv(w, vec=x), normal(50), normal(40, 50), None, lambda w: w[None]),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), normal(64, 5), normal(5, 7), normal(7), lambda w: w[None]),
    "addmm by keyword": (
        lambda x, w, b: torch.addmm(input=b, mat1=x, mat2=w),
        normal(64, 5),
        normal(5, 7),
        normal(7),
        lambda w: w[None],
    ),
    "addmm, alpha": (lambda x, w, b: b.addmm(x, w, alpha=3.0), normal(64, 5), normal(5, 7), normal(7), lambda w: w[None]),
    "addmm, expanded bias": (
        lambda x, w, b: torch.addmm(b.expand(64, -1), x, w),
        normal(64, 5),
        normal(5, 7),
        normal(7),
        lambda w: w[None],
    ),
    "addmv": (lambda x, w, b: torch.addmv(b, w, x), normal(50), normal(40, 50), normal(40), lambda w: w[None]),
    "einsum": (lambda x, w: torch.einsum("bi,io->bo", x, w), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "einsum, weight first": (
        lambda x, w: torch.einsum("oi,...i->...o", w, x),
        normal(8, 9, 5),
        normal(7, 5),
        None,
        lambda w: w[None],
    ),
    "einsum, implicit": (lambda x, w: torch.einsum("bi,ic", x, w), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "einsum, list": (lambda x, w: torch.einsum("b i, i o -> b o", [x, w]), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "einsum, numbers": (
        lambda x, w: torch.einsum(x, [0, 1], w, [2, 1], [0, 2]),
        normal(64, 5),
        normal(7, 5),
        None,
        lambda w: w[None],
    ),
    "einsum, many axes": (
        lambda x, w: torch.einsum("bihw,iohc->bocw", x, w),
        normal(8, 5, 4, 6),
        normal(5, 3, 4, 2),
        None,
        lambda w: w.permute(1, 3, 0, 2).reshape(1, 6, 20),
    ),
    "inner": (torch.inner, normal(8, 9, 5), normal(7, 5), None, lambda w: w[None]),
    "inner, weight first": (lambda x, w: w.inner(x), normal(64, 5), normal(3, 2, 5), None, lambda w: w.reshape(1, 6, 5)),
    "tensordot": (lambda x, w: torch.tensordot(x, w, 2), normal(64, 3, 4), normal(3, 4, 7), None, lambda w: w.reshape(1, 12, 7)),
    "tensordot, weight first": (
        lambda x, w: torch.tensordot(b=x, a=w, dims=([-1, 0], [0, 2])),
        normal(5, 64, 3),
        normal(3, 7, 5),
        None,
        lambda w: w.permute(1, 0, 2).reshape(1, 7, 15),
    ),
    "sparse.mm": (torch.sparse.mm, normal(64, 5).to_sparse(), normal(5, 7), None, lambda w: w[None]),
    "sparse.mm, mean": (
        lambda x, w: torch.sparse.mm(x.to_sparse_csr(), w, "mean"),
        normal(64, 5),
        normal(5, 7),
        None,
        lambda w: w[None],
    ),
    "sparse @ w": (lambda x, w: x @ w, normal(64, 5).to_sparse(), normal(5, 7), None, lambda w: w[None]),
    "sparse, linear": (F.linear, normal(64, 5).to_sparse(), normal(7, 5), normal(7), lambda w: w[None]),
    "expanded": (
        lambda x, w: torch.bmm(w.expand(16, -1, -1), x),
        normal(16, 5, 9),
        normal(7, 5),
        None,
        lambda w: w[None],
    ),
    "expanded, one filter for all channels": (
        lambda x, w: F.conv2d(x, w.expand(4, -1, -1, -1), groups=4),
        normal(8, 4, 9, 9),
        normal(1, 1, 3, 3),
        None,
        lambda w: w.reshape(1, 1, 9),
    ),
    "out=": (lambda x, w: torch.matmul(x, w, out=torch.empty(64, 7)), normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "torch.ops": (torch.ops.aten.linear, normal(64, 5), normal(7, 5), normal(7), lambda w: w[None]),
    "torch.ops.default": (torch.ops.aten.mm.default, normal(64, 5), normal(5, 7), None, lambda w: w[None]),
    "vmap over samples": (torch.vmap(lambda x, w: w @ x.tanh(), (0, None)), normal(64, 5), normal(7, 5), None, lambda w: w[None]),
    "vmap over columns": (
        torch.vmap(F.linear, (1, None, None)),
        normal(5, 64),
        normal(7, 5),
        normal(7),
        lambda w: w[None],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_found_drawn_and_scaled(name):
    torch.manual_seed(0)
    function, x, w, b, matrices = CASES[name]
    model = Op(function, w.clone(memory_format=torch.preserve_format), None if b is None else b.clone())
    report = lsuv_(model, x)
    (record,) = report
    assert record.name == "w"
    assert record.status == "scaled"
    with torch.no_grad():
        assert model(x).std(correction=0).item() == pytest.approx(1, abs=1e-4)
    q = matrices(model.w.detach()) / record.factor
    gram = q @ q.mT if q.shape[1] <= q.shape[2] else q.mT @ q
    assert torch.allclose(gram, torch.eye(gram.shape[-1]), atol=1e-5)
    assert model.b is None or not model.b.any()
    assert model.w.stride() == w.stride()


@pytest.mark.parametrize("name", CASES)
def test_kept_weight_and_bias(name):
    """pre_init=None: the completed output, bias included, is at the target, and is what the model then computes by itself."""
    torch.manual_seed(0)
    function, x, w, b, _ = CASES[name]
    b = None if b is None else 0.3 * b
    model = Op(function, w.clone(), b)
    seen = []
    lsuv_(model, x, pre_init=None, target_std=2.0, forward=lambda m, d: seen.append(m(d)))
    with torch.no_grad():
        after = model(x)
    assert after.std(correction=0).item() == pytest.approx(2, abs=1e-3)
    assert torch.allclose(seen[0], after, atol=1e-4)
    ratio = model.w.detach() / w
    assert torch.allclose(ratio, ratio.flatten()[0], rtol=1e-4)


BATCHED = {
    "bmm": (torch.bmm, normal(3, 64, 5), normal(3, 5, 7), None),
    "x @ w": (lambda x, w: x @ w, normal(3, 64, 5), normal(3, 5, 7), None),
    "broadcast": (lambda x, w: x[:, None] @ w, normal(8, 64, 5), normal(3, 5, 7), None),
    "one token": (lambda x, w: x @ w, normal(500), normal(3, 500, 400), None),
    "weight left": (lambda x, w: w @ x, normal(3, 5, 64), normal(3, 7, 5), None),
    "baddbmm": (torch.baddbmm, normal(3, 64, 5), normal(3, 5, 7), normal(3, 1, 7)),
    "einsum": (lambda x, w: torch.einsum("bhi,hio->bho", x, w), normal(64, 3, 5), normal(3, 5, 7), None),
}


@pytest.mark.parametrize("name", BATCHED)
@pytest.mark.parametrize("pre_init", ["orthonormal", None])
def test_matrices_of_a_batch_are_scaled_apart(name, pre_init):
    torch.manual_seed(0)
    function, x, w, b = BATCHED[name]
    if name == "baddbmm":
        function = lambda x, w, b: torch.baddbmm(b, x, w)
        b = 0.2 * b
    scale = torch.tensor([0.1, 1.0, 20.0])[:, None, None]
    model = Op(function, w * scale, b)
    report = lsuv_(model, x, pre_init=pre_init)
    assert [r.name for r in report] == ["w[0]", "w[1]", "w[2]"]
    with torch.no_grad():
        out = model(x)
    axis = {"broadcast": 1, "einsum": 1}.get(name, 0)
    for i in range(3):
        assert out.select(axis, i).std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this version of torch has no grouped product")
@pytest.mark.parametrize("transposed", [False, True])
def test_experts_of_a_grouped_product_are_scaled_apart(transposed):
    """Of rows that belong to no expert nothing is asked; they may hold anything."""
    torch.manual_seed(0)
    offs = torch.tensor([30, 30, 50], dtype=torch.int32)
    x = normal(64, 16)
    x[:30] *= 20
    product = lambda x, w: torch._grouped_mm(x, w.mT if transposed else w, offs=offs)
    model = Op(product, normal(3, *((32, 16) if transposed else (16, 32))))
    report = lsuv_(model, x)
    assert {r.name: r.status for r in report} == {"w[0]": "scaled", "w[1]": "unused", "w[2]": "scaled"}
    assert report["w[0]"].factor == pytest.approx(report["w[2]"].factor / 20, rel=0.2)
    with torch.no_grad():
        out = model(x)
        for rows in (out[:30], out[30:50]):
            assert rows.std(correction=0).item() == pytest.approx(1, abs=1e-3)
        for i, r in enumerate(report[f"w[{i}]"] for i in range(3)):
            q = (model.w[i] if not transposed else model.w[i].mT) / r.factor
            assert torch.allclose(q @ q.mT, torch.eye(16), atol=1e-5)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this version of torch has no grouped product")
def test_an_expert_that_gets_its_first_rows_in_a_later_call_is_scaled_there():
    torch.manual_seed(0)
    first, second = (torch.tensor(ends, dtype=torch.int32) for ends in ([64, 64], [32, 64]))
    model = Op(lambda x, w: torch._grouped_mm(torch._grouped_mm(x, w, offs=first), w, offs=second), normal(2, 16, 16))
    x = normal(64, 16)
    report = lsuv_(model, x)
    assert {r.name: r.status for r in report} == {"w[0]": "shared", "w[1]": "scaled"}
    with torch.no_grad():
        assert model(x)[32:].std(correction=0).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_weights_of_a_chain_of_products_are_scaled_in_turn(place):
    torch.manual_seed(0)
    a, b = (nn.Parameter(normal(16, 16)) for _ in range(2))
    x = normal(16, 16)

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = a, b

        def forward(self, x):
            factors = [self.a, self.b]
            factors.insert(place, x)
            out = torch.empty(16, 16)
            assert torch.linalg.multi_dot(factors, out=out) is out
            return out

    model, seen = Chain(), []
    report = lsuv_(model, x, forward=lambda m, d: seen.append(m(d)))
    order = {0: ["a", "b"], 1: ["b", "a"], 2: ["b", "a"]}[place]
    assert [r.name for r in report] == order
    assert report[order[0]].std_after == pytest.approx(1)
    with torch.no_grad():
        after = model(x)
    assert after.std(correction=0).item() == pytest.approx(1, abs=1e-3)
    assert torch.allclose(seen[0], after, atol=1e-4)


def test_the_result_is_in_out():
    torch.manual_seed(0)
    out = torch.empty(0)
    model = Op(lambda x, w: torch.mm(x, w, out=out), normal(5, 7))
    x = normal(64, 5)
    seen = []
    lsuv_(model, x, forward=lambda m, d: seen.append(m(d)))
    assert seen[0] is out
    assert torch.allclose(out, x @ model.w, atol=1e-5)
    assert out.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_a_derivative_by_torch_func_has_the_final_weights():
    """As in physics-informed networks: u' by torch.func.grad, for every sample by vmap."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))

    class Derivative(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.vmap(torch.func.grad(lambda t: self.net(t).sum()))(x)

    x, seen = normal(256, 1), []
    model = Derivative()
    report = lsuv_(model, x, forward=lambda m, d: seen.append(m(d)))
    assert [r.status for r in report] == ["scaled", "scaled"]
    assert torch.allclose(seen[0], model(x), atol=1e-5)
    with torch.no_grad():
        assert net[:1](x).std(correction=0).item() == pytest.approx(1, abs=1e-3)
        assert net(x).std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_the_axes_that_vmap_hides_come_first():
    x, seen = normal(4, 5, 6), []

    def inner(row):
        seen.append(unwrapped(row))
        return row

    torch.vmap(torch.vmap(inner, 1), 2)(x)
    assert torch.equal(seen[0], x.permute(2, 1, 0))
    assert unwrapped(x) is x


def test_a_recurrent_cell_in_vmap_is_drawn():
    model = nn.Sequential(nn.Linear(5, 6), nn.GRUCell(6, 6))
    with pytest.warns(UserWarning, match="batching rule"):  # torch's, of its cell
        report = lsuv_(model, normal(64, 1, 5), forward=lambda m, d: torch.vmap(m)(d))
    assert [r.status for r in report] == ["scaled", "recurrent", "recurrent"]


def test_a_sparse_buffer_and_a_sparse_parameter_are_left_as_they_are():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("adjacency", (torch.rand(64, 64) < 0.2).float().to_sparse())
            self.mixing, self.w = nn.Parameter(torch.eye(7).to_sparse()), nn.Parameter(normal(5, 7))

        def forward(self, x):
            return torch.sparse.mm(self.mixing, torch.sparse.mm(self.adjacency, x @ self.w).T)

    model = Graph()
    before = model.adjacency.to_dense()
    mixing = model.mixing.to_dense()
    report = lsuv_(model, normal(64, 5))
    assert [(r.name, r.status) for r in report] == [("w", "scaled"), ("mixing", "unsupported")]
    assert torch.equal(model.adjacency.to_dense(), before)
    assert torch.equal(model.mixing.to_dense(), mixing)


def test_weights_that_vmap_runs_over_are_left_as_they_are():
    model = Op(lambda x, w: torch.vmap(lambda w: x @ w)(w), normal(3, 5, 7))
    kept = model.w.detach().clone()
    (record,) = lsuv_(model, normal(64, 5))
    assert (record.name, record.status) == ("w", "unsupported")
    assert torch.equal(model.w, kept)


def test_an_ensemble_that_the_forward_stacks():
    """By torch.func's stack_module_state, which leaves the derivatives behind."""

    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.members = nn.Linear(5, 5), nn.ModuleList(nn.Linear(5, 2) for _ in range(3))

        def forward(self, x):
            stacked, _ = stack_module_state(list(self.members))
            return torch.vmap(lambda own: functional_call(self.members[0], own, (self.stem(x).relu(),)))(stacked)

    model = Ensemble()
    kept = {k: v.detach().clone() for k, v in model.members.named_parameters()}
    assert {r.name: r.status for r in lsuv_(model, normal(64, 5))} == {"stem.weight": "scaled", "members.0.weight": "unsupported"}
    assert_same(kept, {k: v.detach() for k, v in model.members.named_parameters()})


def test_weights_that_meet_buffers_alone_have_a_line():
    """A product of weights and buffers is the weight of another operator, or else nothing measures it."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.high, self.table = (nn.Parameter(normal(*shape)) for shape in ((5, 2), (2, 7), (3, 7)))
            self.register_buffer("places", normal(64, 3))

        def forward(self, x):
            return x @ (self.low @ self.high) + self.places @ self.table

    model = Positions()
    kept = model.table.detach().clone()
    x = normal(64, 5)
    report = lsuv_(model, x)
    assert [(r.name, r.status) for r in report] == [("high", "scaled"), ("table", "unsupported")]
    assert torch.equal(model.table, kept)
    assert (x @ (model.low @ model.high)).std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_addmm_on_data_counts_only_its_own_part():
    torch.manual_seed(0)
    residual = 5 * normal(64, 7)
    model = Op(lambda x, w: torch.addmm(residual, x, w, beta=0.5), normal(5, 7))
    x = normal(64, 5)
    lsuv_(model, x)
    assert (x @ model.w).std(correction=0).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x * w[0] + x @ torch.ones(5, 7).mm(w.new_ones(7, 5)),
        lambda x, w: torch.einsum("bi,oi->bi", x, w * 1),
        lambda x, w: torch.einsum("bi,oi->bio", x, w),
    ],
    ids=["elementwise", "gain", "outer product"],
)
def test_not_an_operation(function):
    model = nn.Sequential(nn.Linear(5, 5), Op(function, normal(7, 5)))
    kept = model[1].w.detach().clone()
    report = lsuv_(model, normal(64, 5))
    assert [r.name for r in report] == ["0.weight"]
    assert torch.equal(model[1].w, kept)


def test_a_product_of_maxima_is_not_followed():
    model = Op(lambda x, w: torch.sparse.mm((x @ torch.ones(5, 7)).to_sparse_csr(), w, "amax"), normal(7, 5))
    kept = model.w.detach().clone()
    report = lsuv_(nn.Sequential(nn.Linear(5, 5), model), normal(64, 5))
    assert [(r.name, r.status) for r in report] == [("0.weight", "scaled"), ("1.w", "unsupported")]
    assert torch.equal(model.w, kept)


def test_complex_weights_are_unitary():
    torch.manual_seed(0)
    model = Op(lambda x, w: x @ w, normal(6, 6, dtype=torch.complex64))
    x = normal(256, 6, dtype=torch.complex64)
    (record,) = lsuv_(model, x)
    w = model.w.detach() / record.factor
    assert torch.allclose(w @ w.mH, torch.eye(6, dtype=w.dtype), atol=1e-5)
    out = (x @ model.w).detach()
    assert (out - out.mean()).abs().square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["functional", "attention", "normalized"])
def test_interception_alone_changes_no_result(name):
    model, data = build(name)
    model.eval()
    names = []

    def observe(operation):
        names.append(operation.weight.name)
        return operation.complete(operation.linear_part())

    with torch.no_grad():
        plain = model(data)
        with intercept(model, observe):
            watched = model(data)
    assert torch.allclose(plain, watched, atol=1e-6)
    assert len(names) >= 3


def test_cross_attention_cuts_key_and_value_apart():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    q, kv = normal(16, 5, 8), normal(16, 9, 8)
    report = lsuv_(attention, (q, kv, kv))
    assert [r.name for r in report] == [*(f"in_proj_weight[{a}:{a + 8}]" for a in (0, 8, 16)), "out_proj.weight"]
    for x, w in zip((q, kv, kv), attention.in_proj_weight.chunk(3), strict=True):
        assert (x @ w.T).std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_attention_with_other_widths_for_key_and_value():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    report = lsuv_(attention, (normal(16, 5, 8), normal(16, 9, 6), normal(16, 9, 4)))
    assert {r.name for r in report} == {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"}
    assert all(r.status == "scaled" for r in report)


def test_std_is_that_of_the_whole_output():
    z = normal(64, 7)
    assert moments(z).var.sqrt().item() == pytest.approx(z.std(correction=0).item(), rel=1e-6)
