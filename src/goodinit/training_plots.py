"""Pictures of a training: its losses, and what the initialization did before it. Drawn as in `goodinit.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from goodinit.canvas import MARKERS, colours, muted, new_axes, new_figure
from goodinit.measurement.layer import Layer
from goodinit.plots import plot_stds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


def plot_losses(curves: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Draw training losses by step: smoothed over a twentieth of all steps as a line, and as they are faintly behind it.

    Args:
        curves: losses by label.
        ax: where to draw; a figure of its own by default.
    """
    ax = ax or new_axes()
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - needs the extra

    for i, (label, losses) in enumerate(curves.items()):
        steps, colour = range(1, len(losses) + 1), colours(ax)[i % len(MARKERS)]
        ax.plot(steps, losses, color=colour, linewidth=0.8, alpha=0.3)
        ax.plot(
            steps,
            running_mean(losses, max(1, len(losses) // 20)),
            color=colour,
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            markevery=max(1, len(losses) // 8),
            linewidth=1.8,
            label=label,
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("training step")
    ax.set_ylabel("loss")
    ax.legend(frameon=False)
    return ax.figure, ax


def demo_figure(
    default: Sequence[Layer], lsuv: Sequence[Layer], losses: Mapping[str, Sequence[float]], *, title: str, guessing: float
) -> tuple[Figure, tuple[Axes, Axes]]:
    """Draw what the initialization does to a network: its signals before training, and its training losses.

    Args:
        default: measured before `goodinit.lsuv_`.
        lsuv: measured after it.
        losses: by label, the default's first.
        title: above both pictures.
        guessing: the loss of guessing, drawn as a thin line.
    """
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    labels = [f"{label}, all elements" for label in losses]
    # Before the others, which set the range of the axis.
    for signals, label, colour in zip((default, lsuv), losses, colours(left), strict=False):
        left.plot(
            [s.sample_std for s in signals],
            color=colour,
            linestyle=(0, (2, 1.5)),
            linewidth=1.5,
            label=f"{label}, between images",
        )
    plot_stds({s.name: s.std for s in default}, {s.name: s.std for s in lsuv}, labels=(labels[0], labels[1]), ax=left)
    left.set_title("Before training: std of each layer's output", fontsize="medium")
    handles, texts = left.get_legend_handles_labels()
    left.legend([*handles[2:], *handles[:2]], [*texts[2:], *texts[:2]], frameon=False, fontsize="small")
    right.axhline(guessing, color=muted(right), linewidth=1, zorder=0, label=f"guessing: {guessing:.2f}")
    plot_losses(losses, ax=right)
    right.set_ylim(bottom=0)
    right.set_title("Training loss", fontsize="medium")
    figure.suptitle(title)
    return figure, (left, right)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and its neighbours, ``window`` values in all or, near the ends, those that there are."""
    before = (window - 1) // 2
    parts = (values[max(0, i - before) : i - before + window] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]
