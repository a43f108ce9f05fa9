"""What a page shows of every layer: how each quantity is called, explained and written, and which are drawn together."""

from __future__ import annotations

import math
from dataclasses import dataclass

from goodinit.measurement.verdict import HEALTHY_UPDATES
from goodinit.report import number, percent


@dataclass(frozen=True)
class Quantity:
    """A number that every layer has, in one column for each side of a comparison."""

    key: str
    """A field of `goodinit.measurement.propagation.Layer`, or ``"relative_update"``."""
    title: str
    meaning: str
    """For a person who meets the word for the first time."""
    is_share: bool = False
    """Written in percent."""
    shown: bool = False
    """Whether its column is there at first."""


@dataclass(frozen=True)
class Panel:
    """Quantities that are drawn over each other, by depth."""

    title: str
    keys: tuple[str, ...]
    """The first as a line, the second dashed."""
    is_log: bool = True
    band: tuple[float, float] | None = None
    """The healthy range, where it does not depend on the model."""


# Of a layer's fields: key, title, meaning.
_NUMBERS = (
    ("std", "std", "Standard deviation of the output over all its elements: samples, channels, positions"),
    ("sample_std", "std between samples", "How much the output depends on the input: far below std, biases say it all"),
    ("mean", "mean", "Mean of the output over all its elements"),
    ("grad_norm", "gradient", "Norm of the loss's gradient at the output, over all its elements"),
    ("grad_std", "gradient, rms", "Root mean square of the loss's gradient at the output"),
    ("weight_norm", "weight norm", "Frobenius norm of the weight"),
    ("weight_grad_norm", "weight gradient", "Frobenius norm of the loss's gradient at the weight"),
)
_SHARES = (
    (
        "relative_update",
        "relative update",
        "How far a first step of plain SGD moves the weight, of its norm: 0.1 % to 1 % is healthy",
    ),
    ("dead", "dead units", "Units for which the non-linearity is flat for the whole batch: no gradient gets through"),
    ("saturated", "saturated", "Elements where tanh or the like is flat at its ends: little gradient gets through"),
    ("effective_rank", "effective rank", "In how many directions the output varies, of those that it could"),
    ("channel_spread", "channel spread", "Std of the channels' means as a share of std: near 100 %, only the channel matters"),
)
_SHOWN = ("std", "grad_norm", "relative_update", "dead", "saturated")

QUANTITIES = tuple(
    Quantity(key, title, meaning, is_share=is_share, shown=key in _SHOWN)
    for quantities, is_share in ((_NUMBERS, False), (_SHARES, True))
    for key, title, meaning in quantities
)

PANELS = (
    Panel("Output: standard deviation", ("std", "sample_std")),
    Panel("Gradient at the output: norm", ("grad_norm",)),
    Panel("Relative update of the weight", ("relative_update",), band=HEALTHY_UPDATES),
    Panel("Dead and saturated units", ("dead", "saturated"), is_log=False),
    Panel("Effective rank", ("effective_rank",), is_log=False),
)


def written(value: float | None, *, is_share: bool = False) -> str:
    """As a cell of the table: like the other tables of goodinit, or in percent.

    >>> [written(x) for x in (1.0, 1e-9, None)], [written(x, is_share=True) for x in (0.5, 0.0123, 1e-7, 0)]
    (['1.000', '1.0e-09', '-'], ['50.0 %', '1.23 %', '1.0e-05 %', '0 %'])
    """
    if value is not None and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    return percent(value) if is_share else number(value)
