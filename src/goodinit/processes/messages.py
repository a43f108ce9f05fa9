"""What processes tell each other of an operator: eight numbers that add up to those of all processes, 64 bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from goodinit.moments import doubled
from goodinit.outputs import Statistic

SIZE = 8
OPERATOR, OPERATOR_SQUARED, FAILED, N, REAL, IMAG, SQUARE, COV = range(SIZE)
MOST_OPERATORS = 1 << 20
"""Numbers of operators are below: their squares add up exactly over 8192 processes."""


def message(found: Statistic, operator: int = 0) -> Tensor:
    """n, n mean, M2 + n |mean|^2, n cov, on the output's device; and a number that stands for the operator."""
    # On the host plain numbers: a dozen operators on tensors would take longer than the all-reduce.
    on_host = found.m2.device.type == "cpu" and found.mean.dim() == 0
    numbers: list[Any] = [x.item() if on_host and isinstance(x, Tensor) else x for x in found[:4]]
    n, mean, m2, cov = numbers
    real, imag = (mean.real, mean.imag) if found.mean.is_complex() else (mean, 0.0)
    square = m2 + n * (real * real + imag * imag)
    sums = [operator, operator**2, 0.0, n, n * real, n * imag, square, 0.0 if cov is None else cov]
    if on_host:
        return torch.tensor(sums, dtype=torch.float64, device="cpu")
    zero = torch.zeros_like(doubled(square))
    return torch.stack([zero + (value.to(zero.device) if isinstance(value, Tensor) else value) for value in sums])


def waiting(device: torch.device, *, failed: bool, noted: bool = False) -> Tensor:
    """Of a process that is at no operator: whether it failed; and something to be noted, in the place of a number of elements."""
    told = [0.0] * SIZE
    told[FAILED], told[N] = float(failed), float(noted)
    return torch.tensor(told, dtype=torch.float64, device=device)


def strangers(sums: Tensor | Sequence[float], operator: int, size: int) -> Any:
    """Bool, of a tensor one on its device: whether any of ``size`` processes was not at this operator.

    If mean and mean square of some numbers are those of one number, all are that number.
    """
    return (sums[OPERATOR] != operator * size) | (sums[OPERATOR_SQUARED] != operator**2 * size)


def statistic_of(sums: Tensor, like: Statistic) -> Statistic:
    """Of the sums; of no element at all that of one zero, with ``seen`` False."""
    n = sums[N].clamp_min(1)
    mean = sums[REAL] / n
    square = mean.square()
    if like.mean.is_complex():
        imag = sums[IMAG] / n
        square = square + imag.square()
        mean = torch.complex(mean, imag)
    m2 = (sums[SQUARE] - n * square).clamp_min(0)
    return Statistic(n, mean, m2, None if like.cov_sum is None else sums[COV], like.var_bias, sums[N] > 0)


def as_numbers(found: Statistic) -> tuple[Any, ...]:
    """What can be sent as an object."""
    return tuple(value.tolist() if isinstance(value, Tensor) else value for value in found[:5])


def of_numbers(numbers: tuple[Any, ...], device: torch.device) -> Statistic:
    """The inverse of `as_numbers`."""
    n, *others = numbers

    def tensor(value: Any) -> Tensor | None:
        if value is None:
            return None
        made = torch.tensor(value, dtype=torch.complex128, device="cpu")
        return (made if _is_complex(value) else made.real.clone()).to(device)

    mean, m2, cov, var_bias = map(tensor, others)
    assert mean is not None
    assert m2 is not None
    return Statistic(n, mean, m2, cov, var_bias)


def _is_complex(value: Any) -> bool:
    """Of a number, or of lists of numbers at any depth."""
    while isinstance(value, list):
        value = value[0] if value else 0.0
    return isinstance(value, complex)
