"""Effective ranks and histograms."""

from __future__ import annotations

import math

import pytest
import torch

from goodinit.measurement.samples import BINS, REACH, Shelf, effective_ranks, histograms, rank_limit, sampled
from goodinit.measurement.summaries import folded


def rank(matrix):
    """The definition, of all rows."""
    x = matrix.double() - matrix.double().mean(0)
    eigenvalues = torch.linalg.svdvals(x) ** 2
    shares = eigenvalues / eigenvalues.sum()
    return torch.special.entr(shares).sum().exp().item()


@pytest.mark.parametrize("shape", [(20, 100), (100, 20), (30, 30), (2, 9)])
def test_rank_is_the_exponential_of_the_entropy_of_eigenvalues(shape):
    x = torch.randn(shape) * torch.linspace(0.1, 3, shape[1])
    assert effective_ranks([x]) == pytest.approx([rank(x)], rel=1e-3)


def test_known_ranks():
    line = torch.randn(40, 1) * torch.randn(1, 30) + 7
    plane = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    constant = torch.ones(40, 30)
    assert effective_ranks([line, plane, constant]) == pytest.approx([1, 2, 0], abs=1e-3)


def test_ranks_of_many_at_once_are_those_of_each():
    matrices = [torch.randn(20, 1 + i % 7) * 10.0 ** (i - 5) for i in range(30)]
    assert effective_ranks(matrices) == pytest.approx([effective_ranks([x])[0] for x in matrices])
    bad = torch.full((20, 3), math.nan)
    assert effective_ranks([matrices[1], bad, torch.randn(20, 3)])[1] is None
    assert effective_ranks([]) == []


@pytest.mark.parametrize(
    ("shape", "channel", "rows"),
    [
        ((512, 300), 1, (32, 150)),
        ((512, 20), 1, (256, 20)),
        ((8, 64, 56, 56), 1, (32, 64)),
        ((2, 9), 1, (2, 9)),
        ((300,), None, (150, 1)),
    ],
)
def test_samples_are_few_and_evenly_spread(shape, channel, rows):
    z = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    some = sampled(folded(z, channel))
    assert (some.shape[0], some.shape[1]) == rows
    assert some.min() < z.numel() / 8
    assert some.max() > z.numel() * 7 / 8 - 1
    assert len(some.unique()) == some.numel()
    assert some.data_ptr() != z.data_ptr()


def test_rows_are_vectors_over_channels():
    z = torch.arange(6.0).view(1, 6, 1, 1) + 10 * torch.arange(4.0).view(4, 1, 1, 1) + torch.zeros(4, 6, 5, 5)
    for row in sampled(folded(z, 1)):
        assert torch.equal(row - row[0], torch.arange(6.0))


def test_rank_limit():
    assert rank_limit(torch.ones(10, 4)) == 4
    assert rank_limit(torch.ones(4, 10)) == 3


def test_histograms():
    normal = torch.randn(64, 32)
    (counts,) = histograms([normal], [0.0], [1.0])
    assert counts is not None
    assert len(counts) == BINS
    assert sum(counts) == pytest.approx(normal.numel(), abs=4)  # all but what is more than 4 stds away
    assert sum(counts[BINS // 2 - 5 : BINS // 2 + 5]) == pytest.approx(0.683 * normal.numel(), rel=0.1)
    width = 2 * REACH / BINS
    (one,) = histograms([torch.full((2, 2), 3 + 0.5 * width)], [3.0], [1.0])
    assert one is not None
    assert one[BINS // 2] == 4
    assert sum(one) == 4


def test_histograms_leave_out_what_lies_beyond_and_what_has_none():
    x = torch.tensor([[-100.0, -3.9, 3.9, 100.0, math.nan]])
    assert histograms([x, x, x, x], [0.0, math.nan, 0.0, 0.0], [1.0, 1.0, 0.0, math.inf])[1:] == [None, None, None]
    (counts,) = histograms([x[:, :4]], [0.0], [1.0])
    assert counts is not None
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)


def test_what_is_kept_lies_in_few_pieces_of_memory():
    shelf = Shelf()
    kinds = [torch.randn(3, 5).T, torch.randn(600, 600), torch.randn(4, 4), torch.arange(6).view(2, 3)]
    copies = [shelf.copy(x) for x in kinds]
    for x, copy in zip(kinds, copies, strict=True):
        assert torch.equal(x, copy)
        assert copy.is_contiguous()
    first, large, last, whole = (copy.untyped_storage().data_ptr() for copy in copies)
    assert len({first, large, whole}) == 3
    assert last == first
    shelf.copy(torch.zeros(300, 300))
    assert torch.equal(copies[0], kinds[0])


def test_rows_that_are_the_same_have_rank_0_whatever_rounding_makes_of_them():
    for seed in range(20):  # the mean of 31 equal numbers is one of them only nearly
        row = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        assert effective_ranks([row.expand(31, 64).clone()]) == [0.0]
    varied = torch.randn(31, 64, generator=torch.Generator().manual_seed(0))
    (small,), (large,) = effective_ranks([1e-4 * varied + 1.0]), effective_ranks([varied])
    assert small == pytest.approx(large, rel=1e-3)
