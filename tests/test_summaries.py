"""Sums over outputs, against what torch computes of a float64 copy."""

from __future__ import annotations

import math

import pytest
import torch

from goodinit.ledger import fetched
from goodinit.measurement import summaries
from goodinit.measurement.summaries import folded, norms, summarized


def numbers(z, channel):
    summary = summarized(folded(z, channel))
    return summary.numbers(iter(fetched(summary.raw())))


def expected(z, channel):
    z = z.double()
    others = [axis for axis in range(z.dim()) if axis != channel]
    channel_means = z.mean() if channel is None else z.mean(others)
    sample_var = z.var(0, correction=0).mean()
    return [z.mean().item(), z.var(correction=0).item(), sample_var.item(), channel_means.var(correction=0).item()]


def found(z, channel):
    n = numbers(z, channel)
    return [n.mean, n.var, n.sample_var, n.channel_var]


SHAPES = [
    ((512, 25), 1),
    ((8, 6, 14, 14), 1),
    ((16, 10, 32), 2),
    ((3, 7, 5), 1),
    ((1, 6, 20, 20), 1),
    ((3000, 5), 1),
    ((2, 3000), 1),
    ((700, 90), 1),
    ((7,), None),
    ((4, 3, 5, 6, 7), 1),
]


@pytest.mark.parametrize("block", [1 << 10, 1 << 17])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_of_a_float64_copy(shape, block, monkeypatch):
    monkeypatch.setattr(summaries, "_BLOCK_CPU", block)
    dims, channel = shape
    z = 3 * torch.randn(dims) + torch.linspace(-5, 5, dims[-1])
    assert found(z, channel) == pytest.approx(expected(z, channel), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.to(memory_format=torch.channels_last),
        lambda z: z.transpose(2, 3),
        lambda z: z[:, :, ::2],
        lambda z: z.permute(1, 0, 2, 3).contiguous().permute(1, 0, 2, 3),
        lambda z: z[:1].expand(6, -1, -1, -1),
    ],
)
def test_whatever_the_layout_in_memory(layout):
    z = layout(torch.randn(6, 8, 10, 12) + torch.arange(8.0).view(8, 1, 1))
    assert found(z, 1) == pytest.approx(expected(z, 1), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.bfloat16, 1e-5), (torch.float16, 1e-5), (torch.float64, 1e-12)])
def test_dtypes(dtype, rel):
    z = (torch.randn(64, 30, dtype=torch.float64) + 2).to(dtype)
    assert found(z, 1) == pytest.approx(expected(z, 1), rel=max(rel, 1e-5))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e30])
def test_neither_small_nor_large_numbers_are_lost(size):
    z = size * torch.randn(64, 100)
    n = numbers(z, 1)
    assert math.sqrt(n.var) == pytest.approx(z.double().std(correction=0).item(), rel=1e-5)
    assert math.sqrt(n.sample_var) == pytest.approx(math.sqrt(n.var), rel=0.1)


def test_what_hardly_differs_between_samples_keeps_its_difference():
    z = 5 + torch.randn(1, 300) + 1e-6 * torch.randn(64, 300)
    assert numbers(z, 1).sample_var == pytest.approx(z.double().var(0, correction=0).mean().item(), rel=1e-3)
    assert numbers(z[:1].expand(64, 300), 1).sample_var == 0


def test_a_small_std_beside_a_large_mean():
    z = 1000 + 0.01 * torch.randn(64, 300)
    assert numbers(z, 1).var == pytest.approx(z.double().var(correction=0).item(), rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_element_shows(bad):
    z = torch.randn(40, 50)
    z[3, 4] = bad
    assert not math.isfinite(numbers(z, 1).var)


@pytest.mark.parametrize("x", [torch.randn(1000, 300), torch.randn(70, 30).T, torch.randn(40, 5, dtype=torch.complex64)])
def test_norms(x):
    roots = torch.tensor(norms(x))
    assert torch.linalg.vector_norm(roots).item() == pytest.approx(torch.linalg.vector_norm(x).item(), rel=1e-5)


def test_folding_copies_nothing():
    for z, channel in ((torch.randn(4, 6, 5, 5), 1), (torch.randn(4, 7, 6), 2)):
        assert folded(z, channel).data_ptr() == z.data_ptr()
    z = torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last)
    assert folded(z, 1).data_ptr() == z.data_ptr()
    assert folded(z, 1).shape == (4, 25, 6, 1)
