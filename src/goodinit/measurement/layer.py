"""What is measured of one layer, and what may be wrong with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

HEALTHY_UPDATES = (1e-3, 1e-2)
"""Relative updates with which the paper's networks converge (Figure 1)."""


@dataclass(frozen=True)
class Layer:
    """The output of one weight's operator, bias included, at the weight's first use."""

    name: str
    """Name of the parameter, as in a `goodinit.Report`."""
    operator: str
    """``"linear"``, ``"conv2d"``, ``"matmul"``, …"""
    shape: tuple[int, ...]
    """Of the weight, as the operator saw it."""
    mean: float
    """Over all elements of the output: samples, channels, positions; of a complex output its absolute value."""
    std: float
    """Over all elements. What LSUV brings to 1. NaN or infinity if there is NaN or infinity among them."""
    sample_std: float
    """Between samples, the first axis: the root of the variance over samples, averaged over all else. Where it is much smaller
    than ``std``, the output is nearly the same whatever the input is; what varies in it are biases. 0 for a batch of one."""
    channel_spread: float | None = None
    """Std of the channels' means, as a share of ``std``: 1 says that an element's channel decides what it is."""
    effective_rank: float | None = None
    """exp(entropy of the eigenvalues of the output's covariance, as shares of their sum: Roy & Vetterli 2007), as a share of
    ``rank_limit``; of some of the output."""
    rank_limit: int | None = None
    """The most that it can be: of up to 32 rows (samples and positions) and 256 channels, or 256 and 32, the smaller number, the
    rows less one."""
    activation: str | None = None
    """The elementwise non-linearity that the output goes into, directly or through a normalization; None if none was seen."""
    normalized: bool = False
    """Whether the output goes into a normalization layer, before its non-linearity or behind it."""
    dead: float | None = None
    """Share of channels for which the non-linearity is flat (slope under 1/1000 of its steepest) at all samples and positions."""
    saturated: float | None = None
    """Share of elements where the non-linearity is flat (slope under 1/20 of its steepest), if it is so at both ends (tanh); of
    the elements that ``effective_rank`` is of."""
    grad_std: float | None = None
    """Root mean square of dL/d output over all elements; with a loss."""
    weight_norm: float = math.nan
    """Frobenius norm."""
    weight_grad_norm: float | None = None
    """Frobenius norm of dL/d weight; with a loss."""
    histogram: tuple[int, ...] | None = None
    """Of some elements of the output: counts in bins of equal width from mean - 4 std to mean + 4 std."""
    output_shape: tuple[int, ...] = ()
    """The first axis counts the samples."""
    channels: int | None = None
    """Of the output: its units; None where it has no axis for them."""
    same_units: bool | None = None
    """Whether all units put out the same, but for a constant; None of fewer than two units or samples."""
    beside: str | None = None
    """The first layer that was given the same tensor, if this one is not it: an attention's queries for its keys, a head for the
    next one."""

    @property
    def dimensions(self) -> float | None:
        """How many the output uses: the effective rank as a number."""
        return None if self.effective_rank is None or self.rank_limit is None else self.effective_rank * self.rank_limit

    @property
    def grad_norm(self) -> float | None:
        """Of the gradient at the output, over all of its elements: what stays the same where a layer keeps the signal.

        The std of single elements changes with their number, as where pixels are pooled.
        """
        return None if self.grad_std is None else self.grad_std * math.sqrt(math.prod(self.output_shape))

    @property
    def finite(self) -> bool:
        """Whether the output holds neither NaN nor infinity."""
        return math.isfinite(self.std)

    def relative_update(self, lr: float = 0.01) -> float | None:
        """By what share of itself the first step of SGD without momentum moves the weight: lr * |dL/dW| / |W|.

        The quantity of the paper's Figure 1: from 0.001 to 0.01 networks converge; above that they diverge, below they hardly
        move. None without a loss.
        """
        return None if self.weight_grad_norm is None else _ratio(lr * self.weight_grad_norm, self.weight_norm)


class Input(NamedTuple):
    """An argument of the forward that is data."""

    name: str
    mean: float
    std: float
    sample_std: float | None
    """Between samples, as `Layer.sample_std`; None for one sample."""


KINDS = {
    "nothing-measured": "the forward uses no weight that can be measured",
    "non-finite": "NaN or infinity in an output, a gradient or the loss",
    "vanishing": "outputs become smaller and smaller, or are lost at one layer; or all weights are zero",
    "exploding": "outputs become larger and larger, or burst at one layer",
    "same-samples": "the samples of the batch are the same for the model from its first layer on",
    "same-units": "the units of a layer have equal weights, and stay equal in training",
    "collapse": "samples become alike on their way, or lie on a line in the end",
    "dead": "units that no sample switches on",
    "saturated": "elements where the next non-linearity is flat",
    "gradient-vanishing": "gradients become smaller and smaller on their way back, or none reaches any layer",
    "gradient-exploding": "gradients become larger and larger on their way back",
    "overconfident": "a cross-entropy far above that of guessing",
    "update-size": "the first step of SGD would change a weight by too large or too small a share of itself",
}
"""Kinds of findings, and what they mean."""


@dataclass(frozen=True)
class Finding:
    """One thing that a person can act on."""

    kind: str
    """A key of `KINDS`."""
    layer: str
    """Name of the weight at which it begins; empty where it is no single one's."""
    text: str
    """What was seen."""
    advice: str
    """What to do about it; whether LSUV mends it."""

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


def _ratio(numerator: float, denominator: float) -> float:
    """Of two numbers, infinity for a denominator of zero."""
    return numerator / denominator if denominator else math.inf if numerator else 0.0
