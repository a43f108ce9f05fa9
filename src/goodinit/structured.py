"""Large orthonormal matrices that are nearly uniform, at a cost close to writing them.

A product of orthogonal matrices is orthogonal, and each may be sparse: here four times a random permutation of the m axes, then
a rotation of each block of about sqrt(m) of them by a Haar matrix of its own. After two rounds nearly every axis has met every
other, after four no axis remembers where it was: the kurtosis of the numbers and the singular values of parts are those of a
Haar matrix, nearly (tests/test_structured.py). For m x n numbers that takes about 5 m^1.5 n operations, against 2 m n^2 for the
exact draw. Products of random rotations of few axes tend to the Haar distribution (Kac's walk: Diaconis & Saloff-Coste 2000).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goodinit.haar import haar_

_ROUNDS = 4
# A block's size as a share of sqrt(m), and the smallest. At half the share four rounds leave a kurtosis of 3.1 to 3.5 in place of
# the 3 of a Haar matrix; with these it is under 3.06, of any number of axes.
_SHARE, _SMALLEST = 2 / 3, 32
# Of fewer axes, or fewer columns than so many times a block's size, an exact draw takes no longer.
_FEWEST_AXES, _FEWEST_BLOCKS = 256, 8
# Numbers worked on at once: on a CPU so that two copies of them stay in the cache; a GPU wants few, large kernels.
_CHUNK_CPU, _CHUNK_GPU = 1 << 22, 1 << 26


def structured_(q: Tensor, generator: torch.Generator | None) -> None:
    """Fill ``q`` (count, m, n), m >= n, any strides, with orthonormal columns, nearly Haar; small ones with exactly Haar."""
    _, m, n = q.shape
    if m < _FEWEST_AXES or n < _FEWEST_BLOCKS * _block(m):
        haar_(q, generator)
        return
    for matrix in q:
        _fill_(matrix, generator)


def _block(m: int) -> int:
    """About how many axes a block has."""
    return max(_SMALLEST, round(_SHARE * math.sqrt(m)))


def _fill_(q: Tensor, generator: torch.Generator | None) -> None:
    """All rounds on the first n columns of I, some columns at a time."""
    m, n = q.shape
    orders = [torch.randperm(m, generator=generator, device=q.device) for _ in range(_ROUNDS)]
    rotations = [_rotations(m, q, generator) for _ in range(_ROUNDS)]
    width = max(1, (_CHUNK_CPU if q.device.type == "cpu" else _CHUNK_GPU) // m)
    for part, places in zip(q.split(width, dim=1), orders[0][:n].split(width), strict=True):
        x = torch.zeros(m, len(places), dtype=q.dtype, device=q.device)
        x[places, torch.arange(len(places), device=q.device)] = 1  # columns of I, permuted
        turned = torch.empty_like(x)
        _rotate(x, rotations[0], out=turned)
        for order, blocks in zip(orders[1:], rotations[1:], strict=True):
            torch.index_select(turned, 0, order, out=x)
            _rotate(x, blocks, out=turned)
        part.copy_(turned)


def _rotations(m: int, like: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    """Haar matrices on the diagonal of an m x m one, as stacks (count, b, b) of equal size: b differs by 1 at most."""
    count = round(m / _block(m))
    size, larger = divmod(m, count)
    shapes = [(larger, size + 1), (count - larger, size)]
    stacks = [torch.empty(number, b, b, dtype=like.dtype, device=like.device) for number, b in shapes if number]
    for stack in stacks:
        haar_(stack, generator)
    return stacks


def _rotate(x: Tensor, blocks: list[Tensor], *, out: Tensor) -> None:
    """``out`` = blockdiag(blocks) x."""
    start = 0
    for stack in blocks:
        number, b, _ = stack.shape
        rows = slice(start, start + number * b)
        torch.bmm(stack, x[rows].view(number, b, -1), out=out[rows].view(number, b, -1))
        start += number * b
