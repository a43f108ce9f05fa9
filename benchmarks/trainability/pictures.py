"""Figures of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trainability.summary import Standing, Summary, course

_LINES = ("default", "he", "orthonormal", "lsuv", "lsuv-auto", "normalized")
_COLOURS = dict(zip(_LINES, ("#999999", "#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73"), strict=True))


def write_figures(summary: Summary, folder: Path) -> None:
    """Error by time, the initialization's included; one panel a task."""
    tasks = summary.tasks
    if not tasks:
        return
    columns = 5
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
    for i, task in enumerate(tasks):
        axis = figure.add_subplot(rows, columns, i + 1)
        for standing in summary.standings[task.name]:
            if standing.contestant in _LINES:
                _curve(axis, summary, standing)
        axis.set_title(task.name, fontsize=9)
        axis.tick_params(labelsize=7)
        untaught = summary.cells[task.name, summary.standings[task.name][0].contestant].untaught
        axis.set_ylim(0, 1.1 * untaught)
    handles = [Line2D([], [], color=_COLOURS[name], label=name) for name in _LINES]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(_LINES), frameon=False)
    figure.supxlabel("time in training steps of the network as it is, initialization included", fontsize=9)
    figure.supylabel("error on the test", fontsize=9)
    save(figure, folder / "trainability-time.png")


def _curve(axis: Any, summary: Summary, standing: Standing) -> None:
    cost = summary.step_cost(standing.task, standing.contestant)
    rows = [
        r for r in summary.cells[standing.task.name, standing.contestant].ended if (r["optimizer"], r["lr"]) == standing.point
    ]
    for row in rows:
        marks = [(time, error) for time, error in course(row, cost) if error is not None]
        axis.plot(*zip(*marks, strict=True), color=_COLOURS[standing.contestant], linewidth=1.3, alpha=1 / len(rows) ** 0.5)


def save(figure: Figure, path: Path) -> None:
    """The same rows give the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})
