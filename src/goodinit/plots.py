"""Pictures. `plot_signal` makes a figure of several axes; every other function takes an axis to draw on, or makes a figure of its
own, and returns (figure, axis).

Figures are made without pyplot, so that neither its backend nor its list of open figures changes: save them with
``fig.savefig(path)``, or pass ``ax=plt.gca()`` to draw into a figure of pyplot's. Colours follow the ground, light or dark.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from goodinit.canvas import (
    COLOURS,
    LABELS,
    MARKERS,
    Theme,
    check_picture_path,
    colours,
    is_dark,
    label_layers,
    literal,
    muted,
    new_axes,
    new_figure,
    picture_formats,
    short_name,
    spread,
    themed,
)
from goodinit.errors import OptionError, is_number
from goodinit.measurement.layer import HEALTHY_UPDATES, Layer
from goodinit.measurement.signals import Signal, rate_of
from goodinit.report import Report
from goodinit.ridges import plot_ridges

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "COLOURS",
    "MARKERS",
    "check_picture_path",
    "new_figure",
    "picture_formats",
    "plot_gradients",
    "plot_ridges",
    "plot_signal",
    "plot_stds",
    "plot_updates",
    "short_name",
    "spread",
]

Stds = Mapping[str, float] | Signal | Report
_DASHES = (0, (2, 1.5))
# Of a logarithmic axis, top to bottom.
_LEAST_RANGE = 100.0
# Characters in a line above a figure.
_TITLE = 130


def plot_signal(
    before: Signal,
    after: Signal | None = None,
    *,
    lr: float | None = None,
    labels: tuple[str, str] = LABELS,
    title: str | None = None,
    theme: Theme = None,
) -> tuple[Figure, tuple[Axes, ...]]:
    """Draw a signal, or two, in one figure: stds and histograms; with a loss gradients and relative updates too.

    Args:
        before: what `goodinit.measure` found.
        after: another one, of the same model later or of another run.
        lr: for the relative updates; by default the signal's own, or 0.01.
        labels: of the two.
        title: above all; by default the first lines of the verdicts.
        theme: ``"light"`` or ``"dark"``; None for matplotlib's own style.
    """
    last = before if after is None else after
    has_gradients = any(layer.grad_std is not None for layer in last)
    with themed(theme):
        figure = new_figure(11, 7.6 if has_gradients else 4.2)
        axes = tuple(figure.subplots(2 if has_gradients else 1, 2).flat)
        plot_stds(before, after, labels=labels, ax=axes[0])
        plot_ridges(before, after, labels=labels, ax=axes[1])
        if has_gradients:
            plot_gradients(before, after, labels=labels, ax=axes[2])
            plot_updates(before, after, lr=lr, labels=labels, ax=axes[3])
        figure.suptitle(literal(_title(before, after, labels) if title is None else title), fontsize="medium")
    return figure, axes


def plot_stds(
    before: Stds,
    after: Stds | None = None,
    *,
    target: float = 1.0,
    labels: tuple[str, str] = LABELS,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the std of every layer's output on a logarithmic axis, of one network or before and after an initialization.

    A straight line that falls or rises is a signal that shrinks or grows by a factor a layer; enough layers leave nothing of it.
    After LSUV the line lies on the target. Dashed, of signals: the std between samples; where it leaves the line, the outputs
    become alike for all samples. A std of 0 falls out of the picture at the bottom.

    Args:
        before: a signal; or stds by layer in the order in which the layers run; or a report, which has both.
        after: a signal or stds.
        target: drawn as a thin line.
        labels: of the two.
        ax: where to draw; a figure of its own by default.
    """
    ax = ax or new_axes()
    ax.axhline(target, color=muted(ax), linewidth=1, zorder=0, label=f"target {target:g}")
    sides = [_stds(side) for side in (before, after) if side is not None]
    if isinstance(before, Report) and after is None:
        sides.insert(0, {record.name: record.std_before for record in before if record.std_before is not None})
    names = _curves(ax, sides, labels if len(sides) > 1 else ("all elements",))
    signals = [(i, side) for i, side in enumerate((before, after)) if isinstance(side, Signal)]
    for i, signal in signals:
        among = {layer.name: layer.sample_std for layer in signal if layer.output_shape[:1] != (1,)}
        ax.plot(
            _places(names, among),
            _finite(among.values()),
            color=colours(ax)[i],
            linestyle=_DASHES,
            linewidth=1.5,
            label="between samples" if i == signals[0][0] else None,
        )
    return _finished(ax, names, "std of the output")


def plot_gradients(
    before: Signal, after: Signal | None = None, *, labels: tuple[str, str] = LABELS, ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the norm of the gradient at every layer's output, on a logarithmic axis. Needs signals measured with a loss.

    The gradient runs from right to left. A line that falls on its way to the left is a gradient that vanishes, one that rises
    there is one that explodes; level is healthy.
    """
    ax = ax or new_axes()
    return _finished(ax, _numbers(ax, (before, after), labels, lambda layer: layer.grad_norm), "norm of the gradient")


def plot_updates(
    before: Signal,
    after: Signal | None = None,
    *,
    lr: float | None = None,
    labels: tuple[str, str] = LABELS,
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw by what share of itself the first step of SGD changes every weight, and the band in which networks converge.

    The quantity of the paper's Figure 1: 0.1 % to 1 %. Weights far apart from each other do not train at one learning rate. Needs
    signals measured with a loss.

    Args:
        before: a signal.
        after: another one.
        lr: the learning rate; by default that of the last signal that has one, or 0.01.
        labels: of the two.
        ax: where to draw; a figure of its own by default.

    Raises:
        OptionError: lr is not positive.
    """
    ax = ax or new_axes()
    rate = rate_of(lr, [before] if after is None else [before, after])
    if not (is_number(rate) and 0 < rate < float("inf")):
        raise OptionError(f"lr must be a positive number; got {rate!r}")
    ax.axhspan(
        *HEALTHY_UPDATES,
        color=colours(ax)[2],
        alpha=0.35 if is_dark(ax) else 0.2,
        linewidth=0,
        zorder=0,
        label="healthy: 0.1 % to 1 %",
    )
    names = _numbers(ax, (before, after), labels, lambda layer: layer.relative_update(rate))
    return _finished(ax, names, f"relative update at lr={rate:g}")


def _stds(side: Stds) -> dict[str, float]:
    if isinstance(side, Signal):
        return {layer.name: layer.std for layer in side}
    if isinstance(side, Report):
        return {record.name: record.std_after for record in side if record.std_after is not None}
    return dict(side)


def _numbers(
    ax: Axes, signals: Sequence[Signal | None], labels: Sequence[str], number: Callable[[Layer], float | None]
) -> list[str]:
    """A curve of each signal; the names of its layers."""
    sides = [
        {layer.name: value for layer in signal if (value := number(layer)) is not None}
        for signal in signals
        if signal is not None
    ]
    return _curves(ax, sides, labels if len(sides) > 1 else (None,))


def _curves(ax: Axes, sides: Sequence[Mapping[str, float]], labels: Sequence[str | None]) -> list[str]:
    """A line each over the layers' places, on a logarithmic axis; the layers' names."""
    names = list(dict.fromkeys(name for side in sides for name in side))
    for side, label, colour, marker in zip(sides, labels, colours(ax), MARKERS, strict=False):
        ax.plot(
            _places(names, side),
            _finite(side.values()),
            color=colour,
            marker=marker,
            markersize=4,
            markevery=math.ceil(len(names) / 40),
            linewidth=1.5,
            label=label and literal(label),
        )
    ax.set_yscale("log", nonpositive="clip")
    return names


def _finished(ax: Axes, names: Sequence[str], what: str) -> tuple[Figure | SubFigure, Axes]:
    """With names under it, a legend if there is anything to tell apart, and a range in which what is level looks level."""
    low, high = ax.get_ylim()
    if 0 < low < high < _LEAST_RANGE * low:
        middle = math.sqrt(low * high)
        ax.set_ylim(middle / math.sqrt(_LEAST_RANGE), middle * math.sqrt(_LEAST_RANGE))
    label_layers(ax, names)
    ax.set_ylabel(what)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(framealpha=0.7, edgecolor="none", fontsize="small")
    return ax.figure, ax


def _places(names: Sequence[str], side: Mapping[str, float]) -> list[int]:
    place = {name: i for i, name in enumerate(names)}
    return [place[name] for name in side]


def _finite(values: Iterable[float]) -> list[float]:
    """Infinity leaves a gap, as NaN does."""
    return [value if math.isfinite(value) else math.nan for value in values]


def _title(before: Signal, after: Signal | None, labels: Sequence[str]) -> str:
    """The verdicts' first lines."""
    verdicts = [signal.verdict.splitlines()[0] for signal in (before, after) if signal is not None]
    told = verdicts if after is None else [f"{label}: {verdict}" for label, verdict in zip(labels, verdicts, strict=True)]
    return "\n".join(textwrap.shorten(line, _TITLE, placeholder=" …") for line in told)
