"""Structured matrices: exactly orthonormal, and like Haar ones in what can be seen of a single one."""

import math

import pytest
import torch
from torch import nn

from goodinit import lsuv_, orthonormal_
from goodinit.errors import OptionError
from goodinit.structured import _ROUNDS, _block, _rotations, structured_


def draw(m, n, seed=0, dtype=torch.float32):
    q = torch.full((m, n), math.nan, dtype=dtype)
    structured_(q[None], torch.Generator().manual_seed(seed))
    return q


def gram_error(q):
    wide = q.to(torch.promote_types(q.dtype, torch.float64))
    return (wide.mH @ wide - torch.eye(q.shape[1])).abs().max().item()


@pytest.mark.parametrize("shape", [(1024, 1024), (1021, 700), (257, 257), (600, 3), (5000, 1100), (90, 90)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_orthonormal_whatever_the_shape(shape, dtype):
    """Primes, powers of two, several chunks of columns, and matrices too small for it."""
    assert gram_error(draw(*shape, dtype=dtype)) < 5e-6


def test_every_layout():
    conv = orthonormal_(torch.empty(512, 32, 3, 3), groups=2, method="structured")
    for group in conv.chunk(2):
        assert gram_error(group.flatten(1).T) < 5e-6
    experts = orthonormal_(torch.empty(2, 500, 300), batch_dims=1, method="structured")
    assert all(gram_error(one) < 5e-6 for one in experts)
    assert not torch.equal(experts[0], experts[1])
    assert gram_error(orthonormal_(torch.empty(300, 900), method="structured").T) < 5e-6


def moments_of(q):
    """Kurtosis of the numbers; singular values of a part, in their order; std of the rows' squared norms."""
    z = q.double()
    kurtosis = (z.pow(4).mean() / z.square().mean().square()).item()
    m, n = q.shape
    return kurtosis, torch.linalg.svdvals(z[: m // 2, : n // 2]), z.square().sum(1).std().item()


@pytest.mark.parametrize("shape", [(1000, 1000), (1021, 400)], ids=str)
def test_like_a_haar_matrix(shape):
    kurtosis, values, rows = moments_of(draw(*shape))
    exact = orthonormal_(torch.empty(*shape), generator=torch.Generator().manual_seed(1))
    expected, reference, of_rows = moments_of(exact)
    assert kurtosis == pytest.approx(expected, abs=0.07)
    assert (values - reference).abs().max() < 0.03
    assert rows == pytest.approx(of_rows, rel=0.15, abs=1e-6)


def test_the_comparison_fails_for_fewer_rounds(monkeypatch):
    """Three rounds are orthonormal too, and seen not to be Haar."""
    assert _ROUNDS == 4
    monkeypatch.setattr("goodinit.structured._ROUNDS", 3)
    q = draw(1000, 1000)
    assert gram_error(q) < 5e-6
    assert moments_of(q)[0] > 3.3


def test_signs_and_places_are_even():
    """No number of a matrix is larger, or more often positive, than others; over 200 matrices."""
    draws = torch.stack([draw(300, 260, seed) for seed in range(200)])
    squares = draws.square().mean(0) * 300
    assert (squares - 1).abs().max() < 0.65  # 5 sigma: a square's std is sqrt(2), over sqrt(200)
    assert (squares.mean(0) - 1).abs().max() < 1e-3
    assert (draws.mean(0) * math.sqrt(300 * 200)).abs().max() < 5.5
    neighbours = (draws[:, :-1] * draws[:, 1:]).mean(0) * 300 * math.sqrt(200)
    assert neighbours.abs().max() < 6


def test_blocks_differ_by_one_in_size():
    for m in (257, 1000, 1021, 9216):
        stacks = _rotations(m, torch.empty(0), None)
        sizes = [len(stack) * stack.shape[1] for stack in stacks]
        assert sum(sizes) == m
        assert all(abs(stack.shape[1] - _block(m)) <= 2 for stack in stacks)


def test_the_same_seed_the_same_matrix():
    assert torch.equal(draw(400, 300, 5), draw(400, 300, 5))
    assert not torch.equal(draw(400, 300, 5), draw(400, 300, 6))
    state = torch.get_rng_state()
    draw(400, 300)
    assert torch.equal(state, torch.get_rng_state())


def test_lsuv_draws_with_it():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 600), nn.ReLU(), nn.Linear(600, 300), nn.ReLU(), nn.Linear(300, 10)).requires_grad_(True)
    x = torch.randn(50, 400)
    report = lsuv_(net, x, pre_init="structured")
    assert report.ok
    weight = net[0].weight.detach()
    assert gram_error(weight / torch.linalg.vector_norm(weight[:, 0])) < 5e-6
    assert net(x).std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_an_unknown_method():
    with pytest.raises(OptionError, match=r"one of haar, structured; got 'structure' \(did you mean 'structured'\?\)"):
        orthonormal_(torch.empty(3, 3), method="structure")
