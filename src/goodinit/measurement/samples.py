"""Effective rank and histogram of outputs: of a few elements, taken in the pass, and for all layers at once after it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from goodinit.ledger import fetched, held

# The smaller and the larger side of the matrix that is taken of an output: rows x channels, or channels x rows.
_SHORT, _LONG = 32, 256
# Elements of it that histograms are taken of.
_COUNTED = 2048
BINS, REACH = 40, 4.0
"""Of histograms: how many bins, and how many stds they reach to either side of the mean."""
# Last digits, by which rows that are the same may differ from their mean.
_ROUNDING = 4
# Layers that are worked on at once.
_TOGETHER = 32
# Differences between numbers that are equal but for it, in their size.
_EQUAL = 1e-4


# Elements of memory that is taken at once for what is kept.
_SHELF = 1 << 18


class Shelf:
    """Room for what is kept of the outputs, taken in large pieces.

    Small tensors that outlive an output would be put where the one before it was, and the next one no longer fits there: with
    glibc's malloc the process would grow by an output a layer.
    """

    def __init__(self) -> None:
        self._free: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def copy(self, x: Tensor) -> Tensor:
        """A contiguous copy."""
        kind = x.dtype, x.device
        free = self._free.get(kind)
        if free is None or free.numel() < x.numel():
            if x.numel() > _SHELF:
                return x.clone(memory_format=torch.contiguous_format)
            free = x.new_empty(_SHELF)
        self._free[kind] = free[x.numel() :]
        return free[: x.numel()].view(x.shape).copy_(x)


def sampled(z: Tensor, shelf: Shelf | None = None) -> Tensor:
    """Rows (places in samples, evenly spread) x channels (likewise) of a real output, `.summaries.folded`: a copy."""
    n, o, c, i = z.shape
    rows, channels = (_LONG, c) if c <= _SHORT else (_SHORT, _LONG)
    samples = _step(n, rows)
    left = max(1, rows * samples // n)
    outer = _step(o, left)
    inner = _step(i, max(1, left * outer // o))
    some = z[::samples, ::outer, :: _step(c, channels), ::inner].permute(0, 1, 3, 2)
    copy = some.clone(memory_format=torch.contiguous_format) if shelf is None else shelf.copy(some)
    return copy.view(-1, some.shape[-1])


def _step(count: int, most: int) -> int:
    return math.ceil(count / max(1, most))


def rank_limit(rows: Tensor) -> int:
    """The rank that these rows less their mean can have."""
    return min(rows.shape[0] - 1, rows.shape[1])


def effective_ranks(rows: Sequence[Tensor]) -> list[float | None]:
    """exp(entropy of the covariance's eigenvalues, as shares of their sum): Roy & Vetterli 2007. None if it is not finite."""
    ranks: list[float | None] = [None] * len(rows)
    for places, x in _stacks(rows):
        gram = _grams(x).to("cpu", torch.float32)
        finite = gram.isfinite().all(-1).all(-1)
        eigenvalues = torch.linalg.eigvalsh(gram.where(finite[:, None, None], torch.zeros((), device="cpu"))).clamp_min(0)
        total = eigenvalues.sum(-1, keepdim=True)
        entropies = torch.special.entr(eigenvalues / total.clamp_min(torch.finfo(total.dtype).tiny)).sum(-1)
        found = entropies.exp() * (total[:, 0] > 0)  # a constant has rank 0
        for place, rank, is_finite in zip(places, found.tolist(), finite.tolist(), strict=True):
            ranks[place] = rank if is_finite and math.isfinite(rank) else None
    return ranks


def _grams(x: Tensor) -> Tensor:
    """The smaller of X X^T and X^T X of each matrix, X being less its mean and of entries of 1 at most."""
    means = x.mean(1, keepdim=True)
    x = x - means
    size, rounding = x.abs().amax((1, 2), keepdim=True), _ROUNDING * torch.finfo(x.dtype).eps
    x = x / size.clamp_min(torch.finfo(x.dtype).tiny)
    # What is left of a constant is rounding: of rank 0, as the constant is, and some LAPACKs give NaN for eigenvalues of it.
    constant = size <= rounding * means.abs().amax((1, 2), keepdim=True)  # not of NaN
    x = x.masked_fill(constant, 0)
    return x @ x.mT if x.shape[1] <= x.shape[2] else x.mT @ x


def histograms(rows: Sequence[Tensor], means: Sequence[float], stds: Sequence[float]) -> list[tuple[int, ...] | None]:
    """Counts in bins of equal width from mean - 4 std to mean + 4 std; None where these are not finite, or the std is 0."""
    found: list[tuple[int, ...] | None] = [None] * len(rows)
    usable = [i for i in range(len(rows)) if math.isfinite(means[i]) and math.isfinite(stds[i]) and stds[i] > 0]
    for numbers, x in _stacks([rows[i] for i in usable]):
        places = [usable[number] for number in numbers]
        flat = x.flatten(1)
        some = flat[:, :: _step(flat.shape[1], _COUNTED)].to("cpu", torch.float64)
        mean, std = (
            torch.tensor([values[i] for i in places], dtype=torch.float64, device="cpu")[:, None] for values in (means, stds)
        )
        bins = ((some - mean) / std + REACH).mul_(BINS / (2 * REACH)).floor_().clamp_(-1, BINS).nan_to_num_(-1).to(torch.int64)
        bins += 1 + torch.arange(len(places), device="cpu")[:, None] * (BINS + 2)  # the first and the last are for what is beyond
        counts = bins.flatten().bincount(minlength=len(places) * (BINS + 2)).view(len(places), BINS + 2)
        for place, row in zip(places, counts[:, 1:-1].tolist(), strict=True):
            found[place] = tuple(row)
    return found


def _stacks(rows: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Matrices of one form, stacked, of at least float32; and their places."""
    alike: dict[Hashable, list[int]] = {}
    for i, x in enumerate(rows):
        alike.setdefault((x.shape, x.dtype, x.device), []).append(i)
    for places in alike.values():
        for start in range(0, len(places), _TOGETHER):
            some = places[start : start + _TOGETHER]
            stack = torch.stack([rows[i] for i in some])
            yield some, stack.to(torch.promote_types(stack.dtype, torch.float32))


def same_units(rows: Sequence[Tensor]) -> list[bool | None]:
    """Of each layer's rows, whether all of its channels are the same but for a constant; waits for the device once."""
    judged = [i for i, x in enumerate(rows) if min(x.shape) > 1]
    found: list[bool | None] = [None] * len(rows)
    for i, ratio in zip(judged, fetched([held(_difference(rows[i])) for i in judged]), strict=True):
        found[i] = ratio < _EQUAL
    return found


def _difference(rows: Tensor) -> Tensor:
    """The most that two channels differ by, in the most that one varies by; NaN where nothing varies."""
    moved = rows - rows.mean(0)
    return (moved - moved[:, :1]).abs().amax() / moved.abs().amax()
