"""An operator's output z + b as numbers, and the factor on its weight that brings its std to a target.

Statistics merge exactly over batches and processes. They stay on their device: none is asked for its value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from goodinit.interception.operation import Part
from goodinit.ledger import Outcome
from goodinit.moments import Moments, moments

_PRINTED = 1024


class Statistic(NamedTuple):
    """Of an output z + b: number of elements, mean and M2 of z, and where there is a bias b what it adds to the variance."""

    n: Tensor | int
    mean: Tensor
    m2: Tensor
    cov_sum: Tensor | None = None
    """n times the covariance of z and b over all elements."""
    var_bias: Tensor | None = None
    seen: Tensor | None = None
    """Bool: whether there was any output in any process; None where there was for certain."""

    @property
    def var(self) -> Tensor:
        """Variance of z."""
        return self.m2 / self.n

    @property
    def std(self) -> Tensor:
        """Of the output z + b."""
        if self.cov_sum is None or self.var_bias is None:
            return self.var.sqrt()
        return (self.var + 2 * self.cov_sum / self.n + self.var_bias).clamp_min(0).sqrt()

    def is_zero(self) -> bool:
        """Whether z is zero everywhere; waits for the device."""
        return bool((self.m2 == 0) & (self.mean == 0))


def statistic(part: Part) -> Statistic:
    """Of one output; with n = 0 and zeros for the output of an expert that no token reached."""
    m = moments(part.z)
    if part.bias is None:
        return Statistic(m.n, m.mean, m.m2)
    whole = part.bias if part.whole_bias is None else part.whole_bias
    var_bias = _centred(whole, whole, m).abs().square().mean()
    cov = _covariance(part.z, _centred(part.bias, whole, m), m) if m.n else m.m2
    return Statistic(m.n, m.mean, m.m2, cov * m.n, var_bias)


def merged(a: Statistic, b: Statistic) -> Statistic:
    """Of the elements of both (Chan, Golub, LeVeque 1983); not both may be empty. The bias is the same."""
    n = a.n + b.n
    away = b.mean - a.mean
    share = b.n / n
    m2 = a.m2 + b.m2 + away.abs().square() * a.n * share
    cov_sum = None if a.cov_sum is None or b.cov_sum is None else a.cov_sum + b.cov_sum
    return Statistic(n, a.mean + away * share, m2, cov_sum, a.var_bias)


def scaling_of(found: Statistic, part: Part, target: float | Tensor, own: Tensor | None = None) -> tuple[Tensor, Outcome]:
    """The factor that gives the output the target std, 1 where there is none; and what became of it.

    ``own``: M2 of this process's output, where those of several were pooled.
    """
    std, var, t = found.var.sqrt(), found.var, target
    alive = std > _smallest_std(part, found, target)
    if found.cov_sum is None or found.var_bias is None:
        before, factor, usable = std, t / std, alive
    else:
        # The largest root s of s^2 var(z) + 2 s cov(z, b) + var(b) = target^2; NaN or not positive if there is none.
        cov = found.cov_sum / found.n
        before = found.std
        factor = ((cov.square() - var * (found.var_bias - t**2)).sqrt() - cov) / var
        usable = alive & (factor > 0)
    factor = torch.where(usable, factor, 1.0)
    return factor, Outcome(before, factor, alive=alive, scaled=usable, seen=found.seen, own=own)


def fingerprint(z: Tensor) -> Tensor:
    """A few elements of an output, made a unit vector: it stays as it is where the output changes in nothing but scale."""
    some = z.detach()
    while some.dim() > 1 and some[0].numel() >= _PRINTED:
        some = some[0]
    rows = some[: _PRINTED // max(1, some[:1].numel()) + 1] if some.dim() else some
    flat = rows.reshape(-1)[:_PRINTED]
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    size: Tensor = torch.linalg.vector_norm(flat)
    return flat / size.clamp_min(torch.finfo(flat.dtype).tiny)


def _centred(bias: Tensor, whole: Tensor, m: Moments) -> Tensor:
    """A bias, or a part of one, less the mean of the whole."""
    return bias.detach().to(m.mean.dtype) - whole.detach().to(m.mean.dtype).mean()


def _covariance(z: Tensor, centred: Tensor, m: Moments) -> Tensor:
    """cov(z, b) over all elements of the output, b broadcast."""
    centred = centred.reshape([1] * (z.dim() - centred.dim()) + list(centred.shape))
    repeated = [i for i, size in enumerate(centred.shape) if size == 1]
    z_mean = z.mean(repeated, keepdim=True, dtype=_at_least_float32(z.dtype)).to(m.mean.dtype) if repeated else z
    product = z_mean.conj() * centred
    return (product.real if z.is_complex() else product).mean()


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _smallest_std(part: Part, found: Statistic, target: float | Tensor) -> Tensor:
    """The std under which an output is no signal: a constant's rounding, or too small for a factor in the weight's dtype."""
    info, largest = torch.finfo(part.z.dtype), torch.finfo(part.weight.tensor.dtype).max ** 0.5
    rounding = (4 if info.bits >= 32 else 1) * info.eps
    return (found.mean.abs() * rounding).clamp_min(target / largest)
