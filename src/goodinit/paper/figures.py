"""The pictures beside the tables, a panel a column or a group of rows; `draw` makes and saves the figure."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goodinit.files import write_whole
from goodinit.paper.tables import Filled, Filling, by_title, final_accuracy
from goodinit.paper.walks import EVERY
from goodinit.plots import COLOURS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where, in the paper's words, networks converge.
_HEALTHY = (0.001, 0.01)
_SHOWN_WALKS = 8


def draw(table: Filling, path: Path) -> bool:
    """Save the picture of a table, if it has one and there are results for it; says whether."""
    if table.experiment.figure not in _KINDS or not table.results:
        return False
    paint, by_column = _KINDS[table.experiment.figure]
    panels = {title: cells for title, cells in _panels(table, by_column=by_column).items() if any(c.results for c in cells)}
    figure = new_figure(max(6.0, 5.0 * len(panels)), 4.2)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, cells) in zip(axes, panels.items(), strict=True):
        paint(ax, {name: filled for name, filled in by_title(table, cells).items() if any(f.results for f in filled)})
        ax.set_title(title, fontsize="medium")
    for ax in axes[1:]:
        ax.set_ylabel("")
    figure.suptitle(f"{table.experiment.title} ({table.budget})", fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100, metadata={"Software": None})  # the same rows give the same file
    write_whole(path, picture.getvalue())
    return True


def _panels(table: Filling, *, by_column: bool) -> dict[str, list[Filled]]:
    """The cells side by side: of each column, or of the rows with the same panel."""
    panels: dict[str, list[Filled]] = {}
    for filled in table.cells:
        key = filled.cell.column if by_column else table.experiment.panels.get(filled.cell.row, "")
        panels.setdefault(key, []).append(filled)
    return panels


Rows = dict[str, list[Filled]]


def _style(i: int) -> dict[str, Any]:
    again, i = divmod(i, len(COLOURS))
    return {
        "color": COLOURS[i],
        "marker": MARKERS[i],
        "markersize": 4,
        "linewidth": 1.6,
        "linestyle": ("-", "--", ":")[again % 3],
    }


def _curves(ax: Axes, rows: Rows) -> None:
    """Test accuracy by iteration, the mean over seeds, from the lowest to the highest faintly around it."""
    for i, (name, (filled, *_)) in enumerate(rows.items()):
        by_iteration: dict[int, list[float]] = {}
        for result in filled.results:
            for iteration, accuracy, _ in result.row["evaluations"]:
                by_iteration.setdefault(int(iteration), []).append(100 * accuracy)
        xs = sorted(by_iteration)
        ax.plot(xs, [statistics.mean(by_iteration[x]) for x in xs], label=name, markevery=max(1, len(xs) // 8), **_style(i))
        _spread(ax, xs, [by_iteration[x] for x in xs], i)
    ax.set_xlabel("iteration")
    ax.set_ylabel("test accuracy, %")
    ax.legend(frameon=False, fontsize="small")


def _columns(ax: Axes, rows: Rows) -> None:
    """Accuracy by the columns, which are numbers; where runs did not converge that of guessing."""
    all_xs: set[int] = set()
    for i, (name, cells) in enumerate(rows.items()):
        points = {int(f.cell.column): [100 * final_accuracy(r) for r in f.results] for f in cells if f.results}
        xs = sorted(points)
        all_xs.update(xs)
        ax.plot(xs, [statistics.mean(points[x]) for x in xs], label=name, **_style(i))
        _spread(ax, xs, [points[x] for x in xs], i)
    ax.set_xscale("log")
    ax.set_xticks(sorted(all_xs), [str(x) for x in sorted(all_xs)])
    ax.minorticks_off()
    ax.set_xlabel("layers")
    ax.set_ylabel("test accuracy, %")
    ax.legend(frameon=False, fontsize="small")


def _spread(ax: Axes, xs: Sequence[int], values: Sequence[Sequence[float]], i: int) -> None:
    lows, highs = [min(v) for v in values], [max(v) for v in values]
    ax.fill_between(xs, lows, highs, color=COLOURS[i % len(COLOURS)], alpha=0.15, linewidth=0)


def _updates(ax: Axes, rows: Rows) -> None:
    """|update| / |weight| by iteration, the median over seeds: of the layer in the middle, one line a scale of the weights."""
    ax.axhspan(*_HEALTHY, color="0.92", zorder=0)
    for i, (name, (filled, *_)) in enumerate(rows.items()):
        sizes: dict[int, list[float]] = {}
        for result in filled.results:
            layers = list(result.row["updates"])
            for iteration, size in result.row["updates"][layers[len(layers) // 2]]:
                if size > 0:
                    sizes.setdefault(int(iteration), []).append(size)
        if sizes:
            xs, lost = sorted(sizes), not any(result.converged for result in filled.results)
            ys = [statistics.median(sizes[x]) for x in xs]
            ax.plot(xs, ys, label=f"{name}{' (n/c)' if lost else ''}", markevery=6, **_style(i))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(1e-6, 1e2)  # what lies above diverges
    ax.set_xlabel("iteration")
    ax.set_ylabel("|update| / |weight| of the middle layer")
    ax.legend(frameon=False, fontsize="small", title="scale", title_fontsize="small")


def _walks(ax: Axes, rows: Rows) -> None:
    """The logarithm of the error's norm from the last layer to the first: some draws, and the mean of all."""
    ax.axhline(0, color="0.75", linewidth=1, zorder=0)
    named = [(", ".join(filter(None, [name, f.cell.column])), f) for name, cells in rows.items() for f in cells]
    for i, (name, filled) in enumerate(named):
        paths = [path for result in filled.results for path in result.row["paths"] if None not in path]
        if not paths:
            continue
        xs = [place * EVERY for place in range(len(paths[0]))]
        for path in paths[:_SHOWN_WALKS]:
            ax.plot(xs, path, color=COLOURS[i % len(COLOURS)], linewidth=0.6, alpha=0.35)
        ax.plot(xs, [statistics.mean(values) for values in zip(*paths, strict=True)], label=name, markevery=4, **_style(i))
    ax.set_xlabel("layers from the last")
    ax.set_ylabel("log |error| over that at the last layer")
    ax.legend(frameon=False, fontsize="small")


# Figure -> what paints one panel, and whether the columns are the panels.
_KINDS: dict[str, tuple[Callable[[Axes, Rows], None], bool]] = {
    "curves": (_curves, True),
    "updates": (_updates, True),
    "columns": (_columns, False),
    "walks": (_walks, False),
}
