"""Histograms of outputs, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from goodinit.canvas import LABELS, axis_name, colours, literal, new_axes, spread
from goodinit.measurement.layer import Layer
from goodinit.measurement.samples import REACH
from goodinit.measurement.signals import Signal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Ridges that stay readable in one picture, and how far one may reach over the next.
_MOST_RIDGES, _OVERLAP = 20, 1.7


def plot_ridges(
    before: Signal, after: Signal | None = None, *, labels: tuple[str, str] = LABELS, ax: Axes | None = None
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the histogram of every layer's output, a ridge a layer, the first on top; of many layers some, evenly spread.

    All have one scale: where ridges become narrower, the signal shrinks. Their heights are the same whatever their width.
    """
    ax = ax or new_axes()
    sides = [{layer.name: layer for layer in side if layer.histogram} for side in (before, after) if side is not None]
    names = list(dict.fromkeys(name for side in sides for name in side))
    shown = [names[i] for i in spread(len(names), _MOST_RIDGES)]
    for side, colour, label in zip(sides, colours(ax), labels, strict=False):
        for place, name in enumerate(shown):
            if name in side:
                x, heights = _outline(side[name])
                y = [_OVERLAP * height - place for height in heights]
                ax.fill_between(x, -place, y, color=colour, alpha=0.3, linewidth=0, zorder=place)
                ax.plot(x, y, color=colour, linewidth=0.9, zorder=place + 0.5, label=literal(label) if name == shown[0] else None)
    ax.set_yticks([-place for place in range(len(shown))], [axis_name(name) for name in shown], fontsize="small")
    ax.set_xlabel("output")
    if len(sides) > 1:
        ax.legend(framealpha=0.7, edgecolor="none", fontsize="small", loc="upper right").set_zorder(len(shown) + 1)
    return ax.figure, ax


def _outline(layer: Layer) -> tuple[list[float], list[float]]:
    """Of a histogram: middles of its bins, and heights of 1 at most."""
    counts = layer.histogram or (0,)
    step = 2 * REACH / len(counts)
    middles = [layer.mean + layer.std * (step * (i + 0.5) - REACH) for i in range(len(counts))]
    return middles, [count / max(1, *counts) for count in counts]
