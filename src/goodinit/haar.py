"""Orthonormal matrices drawn uniformly: the Haar distribution, exactly.

torch.nn.init.orthogonal_ draws a Gaussian matrix, factorizes it into Householder reflectors
(geqrf) and multiplies them (orgqr). The reflectors of a Gaussian matrix are independent of each
other, so they can be drawn directly (Stewart 1980; Mezzadri 2007, arXiv math-ph/0609050): only
the multiplication is left, with the same distribution. It is done here in blocks of reflectors,
I - V T V^H (the compact WY form of Schreiber and Van Loan 1989), nearly all of it matrix products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from goodinit.moments import widest

# Reflectors multiplied at once. 128 was the fastest, or within 10 % of it, from 100x100 to 9216x4096.
_BLOCK = 128


def haar_(q: Tensor, generator: torch.Generator | None) -> None:
    """Fill ``q`` (count, m, n), m >= n, any strides, with Haar orthonormal columns.

    Q = H_1 H_2 … H_n E D: H_i reflects a Gaussian vector of m - i + 1 components onto an axis,
    E is the first n columns of I, and D the phases that make the distribution uniform (with
    LAPACK's fixed choice of phases alone it is not). From the last block of reflectors to the first:
    Q[j:, j:] <- (I - V T V^H) Q[j:, j:], whose first rows and columns are still those of I.
    """
    count, m, n = q.shape
    q.zero_()
    for start in reversed(range(0, n, _BLOCK)):
        stop = min(start + _BLOCK, n)
        block = stop - start
        v, t_inverse, phase = _reflectors(count, block, m - start, q, generator)
        rest = q[:, start:, stop:]
        if stop < n:
            w = torch.linalg.solve_triangular(t_inverse, v.conj()[:, :, block:] @ rest[:, block:], upper=True)
            _subtract_product_(rest, v.mT, w)
        w = torch.linalg.solve_triangular(t_inverse, v.conj()[:, :, :block], upper=True)
        own = q[:, start:, start:stop]
        own.copy_(v.mT @ w).neg_()
        own.diagonal(dim1=1, dim2=2).add_(1)
        own.mul_(phase.unsqueeze(1))


def _reflectors(
    count: int, block: int, length: int, like: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``block`` reflectors I - v v^H / h, h = |v|^2 / 2, the i-th zero before its i-th component, which is 1.

    Returns v (count, block, length), the upper triangular T^-1 of their product
    (count, block, block; T^-1 + T^-H = V^H V), and the phases D (count, block).
    """
    v = torch.randn(count, block, length, dtype=like.dtype, device=like.device, generator=generator).triu_()
    first = v.diagonal(dim1=1, dim2=2)
    # The phase of the first component; 1 for the zero that a float32 Gaussian has once in 10^7 draws.
    phase = torch.where(first == 0, torch.ones_like(first), torch.sgn(first))
    scale = first + phase * torch.linalg.vector_norm(v, dim=2)
    v.div_(torch.where(scale == 0, torch.ones_like(scale), scale).unsqueeze(2))
    first.fill_(1)
    # h in float64, of the rounded v: an error in it is one in Q^H Q, twice as large.
    h = torch.linalg.vector_norm(v.to(torch.promote_types(v.dtype, widest(v.device))), dim=2).square_().div_(2)
    t_inverse = (v.conj() @ v.mT).triu_(1)
    t_inverse.diagonal(dim1=1, dim2=2).copy_(h)
    return v, t_inverse, phase.neg()


def _subtract_product_(c: Tensor, a: Tensor, b: Tensor) -> None:
    """C -= A B in place, without a temporary of C's size."""
    if c.shape[0] == 1:  # baddbmm_ copies a strided C, addmm_ does not
        c[0].addmm_(a[0], b[0], alpha=-1)
    else:
        c.baddbmm_(a, b, alpha=-1)
