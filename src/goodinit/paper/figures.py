"""The pictures beside the tables. Every function takes axes to draw on and returns nothing; `draw` makes the figure."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from goodinit.paper.tables import Filled, Filling
from goodinit.plots import COLOURS, MARKERS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where, in the paper's words, networks converge.
_HEALTHY = (0.001, 0.01)


def draw(table: Filling, path: Path) -> bool:
    """Save the picture of a table, if it has one and there are results for it; says whether."""
    kinds: dict[str, Callable[[Axes, Filling, str], None]] = {"curves": _curves, "updates": _updates}
    kind = kinds.get(table.experiment.figure)
    if kind is None or not table.results:
        return False
    columns = [column for column in table.columns if any(f.results for f in table.cells if f.cell.column == column)]
    figure = new_figure(5.0 * len(columns), 4.2)
    for ax, column in zip(figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], columns, strict=True):
        kind(ax, table, column)
        ax.set_title(column, fontsize="medium")
        ax.set_xlabel("iteration")
    figure.suptitle(f"{table.experiment.title} ({table.budget})", fontsize="medium")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, metadata={"Software": None})  # the same rows give the same file
    return True


def _curves(ax: Axes, table: Filling, column: str) -> None:
    """Test accuracy by iteration, the mean over seeds, from the lowest to the highest faintly around it."""
    for i, (name, filled) in enumerate(_of_column(table, column)):
        by_iteration: dict[int, list[float]] = {}
        for result in filled.results:
            for iteration, accuracy, _ in result.row["evaluations"]:
                by_iteration.setdefault(int(iteration), []).append(100 * accuracy)
        xs = sorted(by_iteration)
        style = {"color": COLOURS[i % len(COLOURS)], "linewidth": 1.6, "markersize": 4}
        means = [statistics.mean(by_iteration[x]) for x in xs]
        ax.plot(xs, means, marker=MARKERS[i % len(MARKERS)], markevery=max(1, len(xs) // 8), label=name, **style)  # type: ignore[arg-type]  # a style
        lows, highs = [min(by_iteration[x]) for x in xs], [max(by_iteration[x]) for x in xs]
        ax.fill_between(xs, lows, highs, color=COLOURS[i % len(COLOURS)], alpha=0.15, linewidth=0)
    ax.set_ylabel("test accuracy, %")
    ax.legend(frameon=False, fontsize="small")


def _updates(ax: Axes, table: Filling, column: str) -> None:
    """|update| / |weight| by iteration: of the layer in the middle, one line a scale of the weights."""
    ax.axhspan(*_HEALTHY, color="0.92", zorder=0)
    for i, (name, filled) in enumerate(_of_column(table, column)):
        result = filled.results[0]
        layers = list(result.row["updates"])
        points = [(x, y) for x, y in result.row["updates"][layers[len(layers) // 2]] if y > 0]
        if not points:
            continue
        label = f"{name}{'' if result.converged else ' (n/c)'}"
        xs, ys = zip(*points, strict=True)
        ax.plot(xs, ys, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markevery=6, markersize=4, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylabel("|update| / |weight| of the middle layer")
    ax.legend(frameon=False, fontsize="small", title="scale", title_fontsize="small")


def _of_column(table: Filling, column: str) -> list[tuple[str, Filled]]:
    """The filled cells of a column with the titles of their rows."""
    titles = table.experiment.titles
    return [(titles.get(f.cell.row, f.cell.row), f) for f in table.cells if f.cell.column == column and f.results]
