"""Mean and variance of an operator's output: in chunks, without a copy of it, without a synchronization.

Statistics are (n, mean, M2), M2 the sum of squared distances from the mean, and are merged
exactly (Chan, Golub, LeVeque 1983), so that chunks, batches and ranks combine to what one pass over all
the data would give. Chunks are centred on a common shift before they are squared: an
output of mean 1000 and std 1 keeps its variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_CPU = 1 << 17
"""Elements read at once on a CPU, where a chunk and its centred copy should stay in the cache of a core."""
# A GPU wants few, large kernels.
_CHUNK_GPU = 1 << 24
# The shift is the mean of so many elements: any number near the mean will do.
_SHIFT_FROM = 4096


class Moments(NamedTuple):
    """Number of elements; their mean (complex for complex data) and M2, 0-d on the data's device."""

    n: int
    mean: Tensor
    m2: Tensor

    @property
    def var(self) -> Tensor:
        """Population variance, M2 / n; for complex data the mean squared distance from the mean."""
        return self.m2 / self.n


def widest(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def doubled(numbers: Tensor) -> Tensor:
    """In float64; those of MPS on the CPU."""
    return numbers.cpu().double() if numbers.device.type == "mps" else numbers.double()


def moments(z: Tensor) -> Moments:
    """Moments over all elements of ``z`` (float or complex, any shape and strides), in float64."""
    z = z.detach()  # a dual tensor's tangent is not measured
    if z.is_complex():
        re, im = moments(z.real), moments(z.imag)
        return Moments(re.n, torch.complex(re.mean, im.mean), re.m2 + im.m2)
    if z.numel() == 0:
        zero = z.new_zeros((), dtype=widest(z.device))
        return Moments(0, zero, zero)
    counts, sums = _shifted_sums(z, torch.float64 if z.dtype == torch.float64 else torch.float32)
    n = z.numel()
    shift, *rest = sums.to(widest(z.device)).unbind()
    if len(counts) == 1:
        total, square = rest
        mean = total / n
        return Moments(n, shift + mean, (square - total * mean).clamp_min(0))
    total, square = torch.stack(rest).view(-1, 2).unbind(1)
    count = torch.tensor(counts, dtype=total.dtype).to(z.device, non_blocking=True)
    mean, means = total.sum() / n, total / count
    m2 = (square - total * means).sum() + (count * (means - mean).square()).sum()
    return Moments(n, shift + mean, m2.clamp_min(0))


def _shifted_sums(z: Tensor, work: torch.dtype) -> tuple[list[int], Tensor]:
    """Sizes of the chunks; and the shift, then each chunk's sum and sum of squares after subtraction of it."""
    counts: list[int] = []
    sums: list[Tensor] = []
    for chunk in chunks(z, CHUNK_CPU if z.device.type == "cpu" else _CHUNK_GPU):
        if not counts:  # the first chunk is the largest
            buffer = torch.empty(chunk.numel(), dtype=work, device=z.device)
            shift = chunk[:_SHIFT_FROM].mean(dtype=work)
            sums.append(shift)
        d = buffer[: chunk.numel()]
        if chunk.dtype == work:
            torch.sub(chunk, shift, out=d)
        else:
            d.copy_(chunk).sub_(shift)
        counts.append(chunk.numel())
        total, square = d.sum(), d.square_().sum()
        if d.device.type == "cpu" and torch.isinf(square):  # beyond float32's squares, and not its numbers
            square = (chunk.double() - shift).square_().sum()
        sums += (total, square)
    wide = torch.float64 if any(each.dtype == torch.float64 for each in sums) else work
    return counts, torch.stack([each.to(wide) for each in sums])


def chunks(z: Tensor, size: int) -> Iterator[Tensor]:
    """``z`` as 1-d tensors of at most ``size`` elements where its layout allows (any order), else copied row by row."""
    flat = _flat(z)
    if flat is not None:
        yield from (flat,) if flat.numel() <= size else flat.split(size)
        return
    axis = max(range(z.dim()), key=lambda i: z.shape[i])
    rows = z.movedim(axis, 0)
    step = max(1, size * rows.shape[0] // rows.numel())
    for part in rows.split(step):
        yield part.reshape(-1)


def _flat(z: Tensor) -> Tensor | None:
    """A 1-d view of all elements in memory order (channels_last, transposed, …), or None if there are gaps."""
    if z.is_contiguous():
        return z.view(-1)
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(z.stride(), z.shape, strict=True) if n > 1):
        if stride != expected:
            return None
        expected = stride * size
    return z.as_strided((math.prod(z.shape),), (1,))
