"""Orthonormal matrices for every layout of a weight: what is a matrix in it, and in which precision and place it is drawn.

How one is drawn is `goodinit.haar`'s business, or `goodinit.structured`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from goodinit.errors import OptionError, did_you_mean, is_number
from goodinit.haar import haar_
from goodinit.structured import structured_

Method = Literal["haar", "structured"]
METHODS: dict[str, Callable[[Tensor, torch.Generator | None], None]] = {"haar": haar_, "structured": structured_}


@torch.no_grad()
def orthonormal_(
    weight: Tensor,
    *,
    groups: int = 1,
    batch_dims: int = 0,
    gain: float = 1.0,
    method: Method = "haar",
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
        method: ``"haar"`` draws from the uniform distribution exactly, in about 2 m n^2 operations for m x n numbers, m >= n;
            ``"structured"`` draws large matrices that are just as orthonormal, and nearly uniform, in 5 m^1.5 n: see
            `goodinit.structured`.
        generator: source of the random numbers, torch's global one by default. One on another device than the weight's is
            allowed: the matrix is drawn there and copied, so that a CPU generator gives every device the same weights.

    Returns:
        ``weight``.

    Raises:
        OptionError: the shape cannot be split as asked, or the weight is not of a float or complex dtype, or has no storage;
            an unknown method.

    Sources:
        Saxe, McClelland, Ganguli 2014, arXiv 1312.6120; Mezzadri 2007, arXiv math-ph/0609050.

    >>> w = orthonormal_(torch.empty(3, 5))
    >>> torch.allclose(w @ w.T, torch.eye(3), atol=1e-5)
    True
    """
    count, rows, columns = matrix_shape(weight, groups=groups, batch_dims=batch_dims)
    check_method(method)
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise OptionError(f"generator must be a torch.Generator: generator=torch.Generator().manual_seed(0); got {generator!r}")
    if not is_number(gain) or not math.isfinite(gain):
        raise OptionError(f"gain must be a finite number; got {gain!r}")
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
            METHODS[method](matrices, generator)
    else:
        METHODS[method](matrices, generator)
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
    if not isinstance(weight, Tensor):
        raise OptionError(f"orthonormal_ fills a tensor, such as layer.weight; got {type(weight).__name__}")
    if any(isinstance(n, bool) or not isinstance(n, int) for n in (groups, batch_dims)):
        raise OptionError(f"groups and batch_dims must be integers; got {groups!r} and {batch_dims!r}")
    shape = tuple(weight.shape)
    if weight.layout is not torch.strided or any(n > 1 and not step for n, step in zip(shape, weight.stride(), strict=True)):
        raise OptionError(f"orthonormal_ cannot fill a sparse or an expanded weight (shape {shape}); give it weight.clone()")
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


def check_method(method: object) -> None:
    """Refuse an unknown way to draw.

    Raises:
        OptionError: see `orthonormal_`.
    """
    if method not in METHODS:
        raise OptionError(f"method must be one of {', '.join(METHODS)}; got {method!r}{did_you_mean(str(method), METHODS)}")
