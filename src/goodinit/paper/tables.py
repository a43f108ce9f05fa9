"""From rows to the cells of a table: all seeds of a run together, budgets and precisions never."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from goodinit.paper.config import Timing, Training, Walk
from goodinit.paper.experiment import Cell, Experiment
from goodinit.paper.results import Result, same_but_seed
from goodinit.paper.timings import medians


@dataclass(frozen=True)
class Filled:
    """A cell with its results."""

    cell: Cell
    results: tuple[Result, ...]
    """One a seed, the last where a seed was run twice."""

    @property
    def scores(self) -> list[float]:
        """Of the runs that converged, in percent: accuracy, or error."""
        accuracies = [100 * float(r.row["final_accuracy"]) for r in self.results if r.converged]
        return [100 - a for a in accuracies] if self.cell.score == "error" else accuracies

    def __str__(self) -> str:
        """``"93.94 ± 0.12 (3)"``: mean, standard deviation, n; ``"n/c (3)"``; ``"·"`` for no run."""
        if not self.results:
            return "·"
        scores, lost = self.scores, len(self.results) - len(self.scores)
        failed = [f"n/c ({lost})"] if lost else []
        if not scores:
            return failed[0]
        spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        return ", ".join([f"{statistics.mean(scores):.2f}{spread} ({len(scores)})", *failed])


@dataclass(frozen=True)
class Filling:
    """A table of one budget, filled with the rows of one precision."""

    experiment: Experiment
    budget: str
    precision: str
    cells: tuple[Filled, ...]

    @property
    def results(self) -> list[Result]:
        """All that are in it."""
        return [result for cell in self.cells for result in cell.results]

    @property
    def rows(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(filled.cell.row for filled in self.cells))

    @property
    def columns(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(filled.cell.column for filled in self.cells))

    def at(self, row: str, column: str) -> Filled | None:
        """The cell of a row and column; not every row has every column."""
        return next((f for f in self.cells if (f.cell.row, f.cell.column) == (row, column)), None)


def fillings(experiment: Experiment, results: Iterable[Result], shown: Sequence[str]) -> list[Filling]:
    """The tables of an experiment: of every budget that is to be shown or has results, in every precision that has some."""
    results = list(results)
    found = []
    for budget, cells in experiment.cells.items():
        own, kinds = {cell.run.precision for cell in cells}, {type(cell.run) for cell in cells}
        for precision in sorted(own | {r.run.precision for r in results if type(r.run) in kinds}, reverse=True):
            table = Filling(experiment, budget, precision, tuple(_filled(cell, precision, results) for cell in cells))
            if table.results or (budget in shown and precision in own):
                found.append(table)
    return found


def _filled(cell: Cell, precision: str, results: Iterable[Result]) -> Filled:
    run = replace(cell.run, precision=precision)
    by_seed = {result.run.seed: result for result in results if same_but_seed(result.run, run)}
    return Filled(cell, tuple(by_seed[seed] for seed in sorted(by_seed)))


def times(filled: Filled) -> dict[str, float]:
    """Median seconds of every contender of a measurement; of several seeds the last."""
    if not filled.results or not isinstance(filled.cell.run, Timing):
        return {}
    return medians(filled.results[-1].row["seconds"])


@dataclass(frozen=True)
class Drift:
    """What random walks come to."""

    mean: float
    """Of a step."""
    error: float
    """Standard error of that over the draws."""
    step: float
    """Standard deviation of a step, the mean over the draws."""
    ratio: float
    """Norm of the error at the first layer over that at the last, the median over the draws."""


def drift(filled: Filled) -> Drift | None:
    """Of a cell's walks; None if there are none, or the errors are infinite or 0."""
    if not filled.results:
        return None
    result = filled.results[-1]
    assert isinstance(result.run, Walk)
    means, steps = result.row["step_mean"], result.row["step_std"]
    if None in means or len(means) < 2:
        return None
    ratio = math.exp(statistics.median(means) * (result.run.depth - 2))
    return Drift(statistics.mean(means), statistics.stdev(means) / math.sqrt(len(means)), statistics.mean(steps), ratio)


def median_update(filled: Filled) -> float | None:
    """The median over layers and iterations, but for the first tenth of these, of the relative size of an update.

    None if there is no run, or none of whose updates was finite.
    """
    sizes: list[float] = []
    for result in filled.results:
        assert isinstance(result.run, Training)
        for points in result.row.get("updates", {}).values():
            sizes += [size for iteration, size in points if size >= 0 and iteration > result.run.iterations / 10]
    return statistics.median(sizes) if sizes else None
