"""One output in a few numbers: mean, std, spread over samples and channels. Without a copy of it.

Everything is read once, in blocks that stay in a core's cache. For every feature (a place in the output of one sample)
sum and sum of squares over the samples are taken of the distance from the first sample, so that outputs which are nearly the same
for all samples keep their difference; sums of squares that float32 cannot hold are in float64, so that neither 1e-30 nor 1e30 is
lost. Results stay on the device: none is waited for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from goodinit.ledger import Number, held
from goodinit.moments import CHUNK_CPU, chunks

# Elements of a block: on a CPU it and its copy should stay in the cache of a core; a GPU wants few, large kernels.
_BLOCK_CPU, _BLOCK_GPU = CHUNK_CPU, 1 << 23
# A block has at least so many neighbouring features, whatever the number of samples: memory is read by cache lines.
_FEATURES = 256
# Norms of which float32 holds the squares, sums of single ones with them.
_SQUARES = 1e-12, 1e15


@dataclass
class Summary:
    """Raw sums over one output of (samples, features), real; see `Numbers`."""

    samples: int
    features: int
    channels: int
    shift: Number
    """The features' means are summed as distances from it."""
    within: list[Number]
    """Roots of sums of squares of the distances from the first sample."""
    sums: list[Number]
    """Roots of sums of squares of their sums over the samples."""
    means: list[Number]
    """Roots of sums of squares of the features' means, less the shift."""
    channel_sums: tuple[Number, Number]
    """Of the features' means, less the shift, summed for each channel: sum, and root of the sum of squares."""

    def raw(self) -> list[Number]:
        """All that has to be fetched."""
        return [self.shift, *self.within, *self.sums, *self.means, *self.channel_sums]

    def numbers(self, values: Iterator[float]) -> Numbers:
        """What they come to: of the values of `raw`."""
        shift = next(values)
        within, sums, means = (sum(squared(next(values)) for _ in part) for part in (self.within, self.sums, self.means))
        total, square = next(values), squared(next(values))
        n, f, c = self.samples, self.features, self.channels
        sample_var = _positive(within - sums / n) / (n * f)
        feature_var = _positive(means / f - squared(total / f))
        each = f // c  # places of a channel in one sample
        channel_var = _positive(square / c / each**2 - squared(total / f))
        return Numbers(shift + total / f, sample_var + feature_var, sample_var, channel_var)


@dataclass(frozen=True)
class Numbers:
    """Mean; population variances: over everything, between samples, of the channels' means."""

    mean: float
    var: float
    sample_var: float
    channel_var: float


def summarized(z: Tensor) -> Summary:
    """Sums over a real output, `folded`."""
    n, o, c, i = z.shape
    work = torch.float64 if z.dtype == torch.float64 else torch.float32
    channel_sums = torch.zeros(c, dtype=work, device=z.device)
    shift: Tensor | None = None
    within, sums, means = list[Number](), list[Number](), list[Number]()
    size = _BLOCK_CPU if z.device.type == "cpu" else _BLOCK_GPU
    buffer = torch.empty(min(z.numel(), max(size, _FEATURES)), dtype=work, device=z.device)
    for place, block in _blocks(z, max(size // n, _FEATURES)):
        first = block[0].to(work)
        total, roots = _distances(block, first, buffer)
        within += roots
        sums.append(_root(total))
        mean = torch.add(first, total, alpha=1 / n)
        shift = mean.mean() if shift is None else shift
        mean -= shift
        means.append(_root(mean))
        channel_sums[place] += mean.sum((0, 2))
    assert shift is not None
    totals = held(channel_sums.sum()), _root(channel_sums)
    return Summary(n, o * c * i, c, held(shift), within, sums, means, totals)


def _distances(block: Tensor, first: Tensor, buffer: Tensor) -> tuple[Tensor, list[Number]]:
    """Of all samples from the first one: their sums over the samples, and roots of their sums of squares."""
    rows = max(1, buffer.numel() // first.numel())
    total: Tensor | None = None
    roots: list[Number] = []
    for part in (block,) if rows >= len(block) else block.split(rows):
        d = buffer[: part.numel()].view(part.shape)
        if part.dtype == first.dtype:
            torch.sub(part, first, out=d)
        else:
            d.copy_(part).sub_(first)
        total = d.sum(0) if total is None else total.add_(d.sum(0))
        roots.append(_root(d))
    assert total is not None
    return total, roots


def _root(x: Tensor) -> Number:
    """Root of the sum of squares, in float64 (float32 where there is no other)."""
    if x.device.type == "cpu" and x.dtype == torch.float32:
        quick: float = torch.linalg.vector_norm(x).item()
        if _SQUARES[0] < quick < _SQUARES[1]:
            return quick
    return held(torch.linalg.vector_norm(x, dtype=torch.float32 if x.device.type == "mps" else torch.float64))


def norms(x: Tensor) -> list[Number]:
    """Roots of the sums of squares of a tensor's parts: it is not copied as a whole."""
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return [_root(part) for part in chunks(x, _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_GPU)]


def folded(z: Tensor, channel: int | None) -> Tensor:
    """(samples, places, channels, places) in the order of memory; a view wherever there is one."""
    if z.dim() < 2:
        return z.reshape(-1, 1, 1, 1)
    order = sorted(range(1, z.dim()), key=z.stride, reverse=True)
    sizes = [z.shape[axis] for axis in order]
    at = order.index(channel) if channel else len(order)
    outer, inner = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
    return z.permute(0, *order).reshape(len(z), outer, sizes[at] if channel else 1, inner)


def _blocks(z: Tensor, features: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of about so many features, with the channels that each has."""
    _, outer, channels, inner = z.shape
    if outer * channels * inner <= features:
        yield slice(None), z
        return
    for o in _slices(outer, features // (channels * inner)):
        for c in _slices(channels, channels if channels * inner <= features else features // inner):
            for i in _slices(inner, features):
                yield c, z[:, o, c, i]


def _slices(count: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def squared(value: float) -> float:
    """Infinity where Python's ``**`` would raise."""
    return value * value


def _positive(value: float) -> float:
    """Rounding may have left a variance below zero; NaN stays."""
    return 0.0 if value < 0 else value
