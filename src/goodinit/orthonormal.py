"""Orthonormal matrices from the uniform (Haar) distribution, for every layout of a weight.

torch.nn.init.orthogonal_ draws a Gaussian matrix, factorizes it into Householder reflectors
(geqrf) and multiplies them (orgqr). The reflectors of a Gaussian matrix are independent of each
other, so they can be drawn directly (Stewart 1980; Mezzadri 2007, arXiv math-ph/0609050): only
the multiplication is left, with the same distribution. It is done here in blocks of reflectors,
I - V T V^H (the compact WY form of Schreiber and Van Loan 1989), nearly all of it matrix products.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from goodinit.errors import OptionError

# Reflectors multiplied at once. 128 was the fastest, or within 10 % of it, from 100x100 to 9216x4096.
_BLOCK = 128


@torch.no_grad()
def orthonormal_(
    weight: Tensor,
    *,
    groups: int = 1,
    batch_dims: int = 0,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill ``weight`` in place with orthonormal matrices drawn uniformly (Saxe et al. 2014).

    The weight is read as a stack of matrices: its leading ``batch_dims`` axes count matrices, the next axis holds
    the rows of ``groups`` matrices, and the remaining axes, flattened, are the columns. Each matrix
    Q of shape (rows, columns) gets orthonormal rows (Q Q^H = I) if it is wide and orthonormal columns
    (Q^H Q = I) if it is tall, and is drawn independently from the Haar distribution.

    ============================================  =========================  ==============
    weight                                        shape                      options
    ============================================  =========================  ==============
    nn.Linear, nn.Bilinear                        (out, in…)                 none
    nn.Conv1d/2d/3d                               (out, in/groups, k…)       ``groups``
    nn.ConvTranspose1d/2d/3d                      (in, out/groups, k…)       ``groups``
    nn.MultiheadAttention.in_proj_weight          (3 E, E)                   ``groups=3``
    nn.LSTM, nn.GRU, nn.RNN                       (gates * H, in)            ``groups=4, 3, 1``
    a stack of experts                            (experts, in, out)         ``batch_dims=1``
    ============================================  =========================  ==============

    Args:
        weight: float or complex tensor of any float dtype, on any device, with any strides; matrices of 16 bits
            are drawn in float32 and rounded. Complex matrices are unitary.
        groups: number of matrices along the rows' axis.
        batch_dims: number of leading axes that count matrices.
        gain: factor on the result.
        generator: source of the random numbers, torch's global one by default. One on another device than the weight's is
            allowed: the matrix is drawn there and copied, so that a CPU generator gives every device the same weights.

    Returns:
        ``weight``.

    Raises:
        OptionError: the shape cannot be split as asked, or the weight is not of a float or complex dtype, or has no storage.

    Sources:
        Saxe, McClelland, Ganguli 2014, arXiv 1312.6120; Mezzadri 2007, arXiv math-ph/0609050.

    >>> w = orthonormal_(torch.empty(3, 5))
    >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-5)
    True
    """
    count, rows, columns = matrix_shape(weight, groups=groups, batch_dims=batch_dims)
    if weight.numel() == 0:
        return weight
    device = weight.device if generator is None else generator.device
    dtype = weight.dtype if weight.element_size() >= (8 if weight.is_complex() else 4) else torch.float32
    if weight.dtype == torch.complex32:
        dtype = torch.complex64
    in_place = weight.is_contiguous() and weight.dtype == dtype and weight.device == device
    stack = weight.view(count, rows, columns) if in_place else torch.empty(count, rows, columns, dtype=dtype, device=device)
    matrices = stack if rows >= columns else stack.mT
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):  # the products below need all their digits
            _haar_(matrices, generator)
    else:
        _haar_(matrices, generator)
    if gain != 1.0:
        stack.mul_(gain)
    if not in_place:
        weight.copy_(stack.view(weight.shape))
    return weight


def matrix_shape(weight: Tensor, *, groups: int = 1, batch_dims: int = 0) -> tuple[int, int, int]:
    """(number of matrices, rows, columns) of a weight read as `orthonormal_` reads it.

    Raises:
        OptionError: see `orthonormal_`.
    """
    shape = tuple(weight.shape)
    if not (weight.is_floating_point() or weight.is_complex()):
        raise OptionError(f"orthonormal_ needs a float or complex weight; got {weight.dtype} of shape {shape}")
    if weight.is_meta:
        raise OptionError(
            f"orthonormal_ cannot fill a weight on the meta device (shape {shape}); "
            "give it storage first: module.to_empty(device='cpu')"
        )
    if batch_dims < 0 or groups < 1:
        raise OptionError(f"batch_dims must be at least 0 and groups at least 1; got {batch_dims} and {groups}")
    if len(shape) < batch_dims + 2:
        raise OptionError(
            f"orthonormal_ needs at least {batch_dims + 2} axes (batch_dims={batch_dims}, rows, columns); "
            f"got shape {shape}. For a vector use weight[None]"
        )
    if shape[batch_dims] % groups:
        raise OptionError(f"groups={groups} does not divide axis {batch_dims} of a weight of shape {shape}")
    count = math.prod(shape[:batch_dims]) * groups
    return count, shape[batch_dims] // groups, math.prod(shape[batch_dims + 1 :])


def _haar_(q: Tensor, generator: torch.Generator | None) -> None:
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
    wide = torch.complex128 if v.is_complex() else torch.float64
    if v.device.type == "mps":  # has no float64
        wide = v.dtype
    h = torch.linalg.vector_norm(v.to(wide), dim=2).square_().div_(2)
    t_inverse = (v.conj() @ v.mT).triu_(1)
    t_inverse.diagonal(dim1=1, dim2=2).copy_(h)
    return v, t_inverse, phase.neg()


def _subtract_product_(c: Tensor, a: Tensor, b: Tensor) -> None:
    """C -= A B in place, without a temporary of C's size."""
    if c.shape[0] == 1:  # baddbmm_ copies a strided C, addmm_ does not
        c[0].addmm_(a[0], b[0], alpha=-1)
    else:
        c.baddbmm_(a, b, alpha=-1)
