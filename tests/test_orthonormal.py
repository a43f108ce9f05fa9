"""Algebra tested as algebra, the distribution by a test that is shown to fail on matrices that are orthonormal but not Haar."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from goodinit import OptionError, orthonormal_
from goodinit.orthonormal import matrix_shape

# (shape, options): one row for every layout of the docstring, wide, tall, square, longer than a block of reflectors.
LAYOUTS = [
    ((7, 4), {}),
    ((4, 7), {}),
    ((1, 1), {}),
    ((1, 9), {}),
    ((9, 1), {}),
    ((6, 3, 2), {}),  # bilinear
    ((8, 3, 3, 3), {}),  # conv
    ((12, 2, 3, 3), {"groups": 4}),
    ((12, 1, 3, 3), {"groups": 12}),  # depthwise
    ((6, 4, 3), {"groups": 3}),  # transposed
    ((24, 8), {"groups": 3}),  # in_proj, GRU
    ((32, 5), {"groups": 4}),  # LSTM
    ((3, 5, 4), {"batch_dims": 1}),  # experts
    ((2, 3, 6, 4), {"batch_dims": 2, "groups": 2}),
    ((300, 130), {}),
    ((130, 300), {}),
    ((260, 260), {}),
    ((3, 140, 150), {"batch_dims": 1}),
]


def gram_error(weight: Tensor, gain: float = 1.0, **options) -> float:
    """Largest |Q Q^H - I| or |Q^H Q - I| over all matrices, computed in double precision."""
    count, rows, columns = matrix_shape(weight, **options)
    q = weight.reshape(count, rows, columns).to(torch.complex128 if weight.is_complex() else torch.float64) / gain
    gram = q @ q.mH if rows <= columns else q.mH @ q
    return (gram - torch.eye(gram.shape[-1])).abs().max().item()


@pytest.mark.parametrize(("shape", "options"), LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_orthonormal(shape, options, dtype):
    w = torch.full(shape, torch.nan, dtype=dtype)
    assert orthonormal_(w, **options) is w
    assert gram_error(w, **options) < (5e-6 if dtype in (torch.float32, torch.complex64) else 1e-13)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_sixteen_bits_are_the_float32_matrix_rounded(dtype, rounding):
    low = orthonormal_(torch.empty(40, 60, dtype=dtype), generator=torch.Generator().manual_seed(1))
    full = orthonormal_(torch.empty(40, 60), generator=torch.Generator().manual_seed(1))
    assert torch.equal(low, full.to(dtype))
    assert gram_error(low) < 4 * rounding


@pytest.mark.parametrize(
    "layout", [lambda w: w.t(), lambda w: w[:, ::2], lambda w: w.unflatten(0, (3, 4)).transpose(0, 1).unflatten(0, (2, 2))]
)
def test_any_strides(layout):
    whole = torch.zeros(12, 10)
    view = layout(whole)
    assert not view.is_contiguous()
    orthonormal_(view)
    assert gram_error(view) < 5e-6
    assert (whole != 0).sum() == view.numel()  # nothing outside of the view is written


def test_gain_and_parameter():
    w = torch.nn.Parameter(torch.empty(5, 8))
    orthonormal_(w, gain=3.0)
    assert gram_error(w.detach(), gain=3.0) < 5e-6
    assert w.requires_grad
    assert w.grad_fn is None


def test_generator_alone_decides():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = orthonormal_(torch.empty(30, 200), generator=torch.Generator().manual_seed(3))
    b = orthonormal_(torch.empty(30, 200), generator=torch.Generator().manual_seed(3))
    c = orthonormal_(torch.empty(30, 200), generator=torch.Generator().manual_seed(4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())
    orthonormal_(torch.empty(3, 3))
    assert not torch.equal(before, torch.get_rng_state())


def test_groups_are_independent():
    w = orthonormal_(torch.empty(8, 4), groups=2)
    assert not torch.allclose(w[:4].abs(), w[4:].abs(), atol=1e-3)


N = 4000  # matrices a distribution test looks at
ALPHA = 1e-5  # its p-value's floor; the seeds are fixed, so it does not flicker


def haar_p_values(q: Tensor) -> list[float]:
    """P-values that every entry of q (N, m, n), n <= m, is distributed as a coordinate of a random point on a sphere.

    Two tests an entry: its square (modulus squared) is Beta distributed, and its sign (phase) is uniform; and the same
    for entries of A q with a fixed rotation A, since the Haar distribution does not change under it.
    """
    m = q.shape[1]
    fixed = torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(99), dtype=torch.float64))[0]
    values = []
    q = q.to(torch.promote_types(q.dtype, torch.float64))
    for z in (q, fixed.to(q.dtype) @ q):
        for entry in z.flatten(1).T:
            d = 2 if q.is_complex() else 1  # real dimensions of a coordinate
            values.append(stats.kstest(entry.abs().square().numpy(), stats.beta(d / 2, d * (m - 1) / 2).cdf).pvalue)
            if q.is_complex():
                values.append(stats.kstest(entry.angle().numpy(), stats.uniform(-torch.pi, 2 * torch.pi).cdf).pvalue)
            else:
                values.append(stats.binomtest(int((entry > 0).sum()), len(entry)).pvalue)
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(4, 2), (2, 4), (3, 3)], ids=str)
def test_haar_distribution(shape, dtype):
    q = orthonormal_(torch.empty(N, *shape, dtype=dtype), batch_dims=1, generator=torch.Generator().manual_seed(0))
    q = q if shape[0] >= shape[1] else q.mT
    assert min(haar_p_values(q)) > ALPHA


@pytest.mark.parametrize(
    "wrong",
    [
        lambda g: torch.linalg.qr(g)[0],  # LAPACK's signs: orthonormal, not uniform
        lambda g: torch.linalg.qr(g.sign() + 0.3 * g)[0],  # not rotation invariant
        lambda g: torch.linalg.qr(g.abs())[0] * torch.sign(torch.randn(N, 1, g.shape[2])),  # one orthant, then random signs
    ],
    ids=["no sign correction", "from signs", "from positive"],
)
def test_the_distribution_test_fails_for_matrices_that_are_not_haar(wrong):
    torch.manual_seed(0)
    q = wrong(torch.randn(N, 4, 2))
    assert gram_error(q, batch_dims=1) < 5e-6
    assert min(haar_p_values(q)) < ALPHA


def test_determinant_has_either_sign():
    q = orthonormal_(torch.empty(N, 3, 3), batch_dims=1, generator=torch.Generator().manual_seed(0))
    assert stats.binomtest(int((torch.linalg.det(q) > 0).sum()), N).pvalue > ALPHA


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (torch.empty(3), {}, r"needs at least 2 axes .* got shape \(3,\)\. For a vector use weight\[None\]"),
        (torch.empty(3, 4), {"batch_dims": 1}, "needs at least 3 axes"),
        (torch.empty(7, 4), {"groups": 3}, r"groups=3 does not divide axis 0 of a weight of shape \(7, 4\)"),
        (torch.empty(3, 4, dtype=torch.int64), {}, "needs a float or complex weight; got torch.int64"),
        (torch.empty(3, 4, device="meta"), {}, "meta device .* module.to_empty"),
        (torch.empty(3, 4), {"groups": 0}, "groups at least 1; got 0 and 0"),
        (5, {}, "fills a tensor, such as layer.weight; got int"),
        (nn.Linear(3, 3), {}, "fills a tensor, such as layer.weight; got Linear"),
        (torch.empty(3, 4), {"groups": 1.0}, "groups and batch_dims must be integers; got 1.0 and 0"),
        (torch.empty(3, 4), {"gain": "a"}, "gain must be a finite number; got 'a'"),
        (torch.empty(3, 4), {"gain": float("nan")}, "gain must be a finite number; got nan"),
        (torch.empty(3, 4), {"generator": 3}, "generator must be a torch.Generator: .* got 3"),
        (torch.empty(3, 1).expand(3, 4), {}, r"sparse or an expanded weight \(shape \(3, 4\)\); give it weight.clone\(\)"),
        (torch.empty(3, 4).to_sparse(), {}, "sparse or an expanded weight"),
    ],
)
def test_bad_input(weight, options, message):
    with pytest.raises(OptionError, match=message):
        orthonormal_(weight, **options)


def test_empty_weight():
    assert orthonormal_(torch.empty(0, 4)).shape == (0, 4)
