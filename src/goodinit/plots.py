"""Pictures. Every function takes an axis to draw on, or makes a figure of its own, and returns (figure, axis).

Figures are made without pyplot, so that neither its backend nor its list of open figures changes: save them with
``fig.savefig(path)``, or pass ``ax=plt.gca()`` to draw into a figure of pyplot's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from goodinit.errors import OptionError, require
from goodinit.files import check_writable
from goodinit.propagation import Layer
from goodinit.weights import parameter_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Vermillion, blue, green, purple, orange, sky blue of Okabe and Ito's palette: told apart with any kind of colour vision.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
_MOST_TICKS = 12


def plot_stds(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    target: float = 1.0,
    labels: tuple[str, str] = ("before", "after"),
    ax: Axes | None = None,
) -> tuple[Figure | SubFigure, Axes]:
    """Draw the std of every layer's output before and after an initialization, on a logarithmic axis.

    A straight line that falls or rises is a signal that shrinks or grows by a factor a layer; enough layers leave nothing of it.
    After LSUV the line lies on the target. A std of 0 falls out of the picture at the bottom.

    Args:
        before: std by layer, in the order in which the layers run.
        after: the same.
        target: drawn as a thin line.
        labels: of the two curves.
        ax: where to draw; a figure of its own by default.
    """
    ax = ax or _new_axes()
    names = list(dict.fromkeys([*before, *after]))
    place = {name: i for i, name in enumerate(names)}
    ax.axhline(target, color="0.75", linewidth=1, zorder=0, label=f"target {target:g}")
    for stds, label, colour, marker in zip((before, after), labels, COLOURS, MARKERS, strict=False):
        ax.plot(
            [place[name] for name in stds],
            list(stds.values()),
            color=colour,
            marker=marker,
            markersize=4,
            markevery=math.ceil(len(names) / 40),
            linewidth=1.5,
            label=label,
        )
    ax.set_yscale("log", nonpositive="clip")
    _label_layers(ax, names)
    ax.set_ylabel("std of the output")
    ax.legend(frameon=False)
    return ax.figure, ax


def plot_losses(curves: Mapping[str, Sequence[float]], *, ax: Axes | None = None) -> tuple[Figure | SubFigure, Axes]:
    """Draw training losses by step: smoothed over a twentieth of all steps as a line, and as they are faintly behind it.

    Args:
        curves: losses by label.
        ax: where to draw; a figure of its own by default.
    """
    ax = ax or _new_axes()
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - needs the extra

    for i, (label, losses) in enumerate(curves.items()):
        steps, colour = range(1, len(losses) + 1), COLOURS[i % len(COLOURS)]
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
    plot_stds({s.name: s.std for s in default}, {s.name: s.std for s in lsuv}, labels=(labels[0], labels[1]), ax=left)
    for signals, label, colour in zip((default, lsuv), losses, COLOURS, strict=False):
        left.plot(
            [s.sample_std for s in signals],
            color=colour,
            linestyle=(0, (2, 1.5)),
            linewidth=1.5,
            label=f"{label}, between images",
        )
    left.set_title("Before training: std of each layer's output", fontsize="medium")
    left.legend(frameon=False, fontsize="small")
    right.axhline(guessing, color="0.75", linewidth=1, zorder=0, label=f"guessing: {guessing:.2f}")
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


def picture_formats() -> dict[str, str]:
    """Suffixes that a figure can be saved with, and what they mean.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib", extra="plot")
    from matplotlib.backend_bases import FigureCanvasBase  # noqa: PLC0415 - needs the extra

    return dict(FigureCanvasBase.get_supported_filetypes())


def check_picture_path(path: Path) -> None:
    """Refuse a path that no picture could be saved at: before the work whose result it should show, not after.

    Raises:
        OptionError: an unknown format, no such folder, no permission.
        MissingExtraError: matplotlib is not installed.
    """
    formats = picture_formats()
    if not path.is_dir() and path.suffix.lower().lstrip(".") not in formats:
        raise OptionError(
            f"a picture cannot be saved as {str(path)!r}: its name should end in .png, or in one of {', '.join(formats)}"
        )
    check_writable(path, what="a picture", example="goodinit.png")


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, without pyplot."""
    require("matplotlib", extra="plot")
    from matplotlib.figure import Figure  # noqa: PLC0415 - needs the extra

    return Figure(figsize=(width, height), layout="constrained")


def _new_axes() -> Axes:
    return new_figure(6, 4).add_subplot()


def _label_layers(ax: Axes, names: Sequence[str]) -> None:
    """Names under the axis, as many as stay readable, evenly spaced; the last one always."""
    last, step = len(names) - 1, max(1, math.ceil(len(names) / _MOST_TICKS))
    shown = [i for i in range(0, len(names), step) if i == last or last - i > step // 2]
    if names and last not in shown:
        shown.append(last)
    labels = [_elided(short_name(names[i])) for i in shown]
    ax.set_xticks(shown, labels, rotation=45, ha="right", rotation_mode="anchor", fontsize="small")


def short_name(name: str) -> str:
    """``"conv1"`` of ``"conv1.weight"``, ``"attention.in_proj_weight[0:64]"`` as it is."""
    return parameter_name(name).removesuffix(".weight") + name[len(parameter_name(name)) :]


def _elided(name: str) -> str:
    """A long name without its middle."""
    return name if len(name) <= 20 else f"{name[:11]}…{name[-8:]}"


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` (2 or more) of the numbers below ``count``, evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
