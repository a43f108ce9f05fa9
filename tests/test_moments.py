"""Mean and variance against float64, for every layout and size, and where naive formulas fail."""

from __future__ import annotations

import pytest
import torch

from goodinit import moments as module
from goodinit.moments import moments

Z = torch.randn(6, 5, 8, 7, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunk", [1, 10, 64, 1 << 18])
@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z,
        lambda z: z.to(memory_format=torch.channels_last),
        lambda z: z.transpose(0, 2),
        lambda z: z[..., ::2],
        lambda z: z[:, 1:3],
        lambda z: z[0, 0, 0, :1],
        lambda z: z[0, 0, 0, 0],
        lambda z: z[:, :1].expand(-1, 5, -1, -1),
        lambda z: z.double(),
        lambda z: torch.complex(z, 2 * z.flip(0)),
    ],
)
def test_any_layout(layout, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CPU", chunk)
    z = layout(Z)
    exact = z.to(torch.promote_types(z.dtype, torch.float64))
    m = moments(z)
    assert m.n == z.numel()
    assert torch.allclose(m.mean, exact.mean(), atol=1e-7)
    assert m.var.item() == pytest.approx((exact - exact.mean()).abs().square().mean().item(), rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_summed_in_float32(dtype):
    z = (10 + torch.randn(1000, 300)).to(dtype)
    assert moments(z).var.item() == pytest.approx(z.double().var(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize("offset", [1e3, -1e4])
def test_a_large_mean_costs_no_digits(offset):
    z = (torch.randn(300_000, dtype=torch.float64) + offset).float()
    assert moments(z).var.item() == pytest.approx(z.double().var(correction=0).item(), rel=1e-4)
    naive = (z.square().mean() - z.mean().square()).item()
    assert naive != pytest.approx(z.double().var(correction=0).item(), rel=1e-4)


def test_chunks_with_different_means(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CPU", 1000)
    z = torch.randn(10, 1000) + 100 * torch.arange(10)[:, None]
    assert moments(z).var.item() == pytest.approx(z.double().var(correction=0).item(), rel=1e-5)


def test_a_shift_far_from_the_mean():
    """The shift is taken from the first elements; the rest of a chunk may lie elsewhere."""
    z = torch.cat([torch.randn(5000), 10 + torch.randn(20000)])
    assert moments(z).var.item() == pytest.approx(z.double().var(correction=0).item(), rel=1e-5)
    assert moments(z).mean.item() == pytest.approx(z.double().mean().item(), rel=1e-6)


def test_empty():
    assert moments(torch.empty(0, 3)).n == 0


def test_non_finite_shows():
    assert not torch.isfinite(moments(torch.tensor([1.0, torch.nan])).var)
    assert not torch.isfinite(moments(torch.tensor([1.0, torch.inf])).var)


def test_no_copy_of_the_whole(monkeypatch):
    """The largest temporary is a chunk: of a bfloat16 output no float32 copy is made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.new = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sources = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in sources:
                self.new = max(self.new, out.numel())
            return out

    monkeypatch.setattr(module, "CHUNK_CPU", 1000)
    for z in (torch.randn(64, 1000), torch.randn(64, 1000).bfloat16(), torch.randn(64, 2000)[:, ::2]):
        with Largest() as largest:
            moments(z)
        assert 0 < largest.new <= 1000
