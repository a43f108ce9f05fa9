"""From rows to the cells of a table: all seeds of a run together, budgets and precisions never."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from goodinit.paper.config import Run, Timing, Training, Walk
from goodinit.paper.experiment import Cell, Experiment
from goodinit.paper.results import Result
from goodinit.paper.timings import medians

# The results of a run, whatever the seed, by seed; the last where a seed was run twice.
BySeed = dict[Run, dict[int, Result]]


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

    @property
    def published(self) -> str:
        """``"93.94"``, ``"n/c"``; nothing where there is no such figure."""
        published = self.cell.published
        return published if isinstance(published, str) else "" if published is None else f"{published:.2f}"

    @property
    def difference(self) -> str:
        """Ours minus the published figure, in percentage points; in words where one of the two did not converge."""
        published = self.cell.published
        if published is None or not self.results:
            return ""
        scores = self.scores
        if isinstance(published, str):
            return "ours converged" if scores else "neither converged"
        return f"{statistics.mean(scores) - published:+.2f}" if scores else "ours did not converge"


@dataclass(frozen=True)
class Filling:
    """A table of one budget, filled with the rows of one precision."""

    experiment: Experiment
    budget: str
    precision: str
    cells: tuple[Filled, ...]
    teachers: tuple[Filled, ...] = ()
    """Of the networks in the cells."""

    @property
    def reduced(self) -> str:
        """``", bfloat16"``; nothing for the usual precision."""
        return "" if self.precision == "float32" else f", {self.precision}"

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

    @property
    def runs(self) -> str:
        """How many cells have a run, and how many seeds they have: ``"7 of 25 cells, 1 to 3 seeds"``."""
        seeds = [len(filled.results) for filled in self.cells if filled.results]
        if not seeds:
            return f"none of {len(self.cells)} cells"
        least, most = min(seeds), max(seeds)
        share = "all" if len(seeds) == len(self.cells) else f"{len(seeds)} of"
        times = f"{least} to {most} seeds" if least < most else f"{most} seed{'s' if most > 1 else ''}"
        return f"{share} {len(self.cells)} cells, {times}"

    def title(self, row: str) -> str:
        """Of a row, as people read it."""
        return self.experiment.titles.get(row, row)

    def title_of(self, cell: Cell) -> str:
        """Of a cell: its row, and its column if it has one."""
        return ", ".join(filter(None, [self.title(cell.row), cell.column]))

    def at(self, row: str, column: str) -> Filled | None:
        """The cell of a row and column; not every row has every column."""
        return next((f for f in self.cells if (f.cell.row, f.cell.column) == (row, column)), None)


def fillings(experiment: Experiment, results: Iterable[Result], shown: Sequence[str]) -> list[Filling]:
    """The tables of an experiment: of every budget that is to be shown or has results, in every precision that has some."""
    results = list(results)
    by_seed, found = _by_seed(results), []
    for budget, cells in experiment.cells.items():
        own, kinds = {cell.run.precision for cell in cells}, {type(cell.run) for cell in cells}
        for precision in sorted(own | {r.run.precision for r in results if type(r.run) in kinds}, reverse=True):
            filled = tuple(_filled(cell, precision, by_seed) for cell in cells)
            teachers = tuple(_filled(teacher, precision, by_seed) for teacher in _teachers(cells))
            table = Filling(experiment, budget, precision, filled, teachers)
            if table.results or (budget in shown and precision in own):
                found.append(table)
    return found


def _teachers(cells: Iterable[Cell]) -> list[Cell]:
    """Each once."""
    found = {c.run.teacher_run: c.score for c in cells if isinstance(c.run, Training) and c.run.teacher}
    return [Cell("teacher", run.network, run, score, None) for run, score in found.items()]


def _filled(cell: Cell, precision: str, results: BySeed) -> Filled:
    run = replace(cell.run, precision=precision, seed=0)
    by_seed = results.get(run, {}) if run.precision == precision else {}  # some runs have but one
    return Filled(cell, tuple(by_seed[seed] for seed in sorted(by_seed)))


def _by_seed(results: Iterable[Result]) -> BySeed:
    """Of rows of one run on several sets of images, as of files that were put together, those of the last one."""
    found: BySeed = {}
    for result in results:
        seeds = found.setdefault(result.of_any_seed, {})
        if any(other.images != result.images for other in seeds.values()):
            seeds.clear()
        seeds[result.run.seed] = result
    return found


def times(filled: Filled) -> dict[str, float]:
    """Median seconds of every contender of a measurement, over the rounds of all seeds on the last one's device and threads."""
    if not isinstance(filled.cell.run, Timing) or not filled.results:
        return {}
    rounds: dict[str, list[float]] = {}
    places = [(result.row["device"], result.row["machine"]["threads"]) for result in filled.results]
    for result in (result for result, place in zip(filled.results, places, strict=True) if place == places[-1]):
        for name, seconds in result.row["seconds"].items():
            rounds.setdefault(name, []).extend(seconds)
    return medians(rounds)


@dataclass(frozen=True)
class Drift:
    """What random walks come to, those of all seeds together."""

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
    run = filled.cell.run
    assert isinstance(run, Walk)
    means, steps = ([value for result in filled.results for value in result.row[key]] for key in ("step_mean", "step_std"))
    if None in means or len(means) < 2:
        return None
    ratio = math.exp(statistics.median(means) * (run.depth - 2))
    return Drift(statistics.mean(means), statistics.stdev(means) / math.sqrt(len(means)), statistics.mean(steps), ratio)


def by_title(table: Filling, cells: Iterable[Filled]) -> dict[str, list[Filled]]:
    """By the rows' titles, without the name of the panel that they begin with."""
    rows: dict[str, list[Filled]] = {}
    for filled in cells:
        panel = table.experiment.panels.get(filled.cell.row)
        rows.setdefault(table.title(filled.cell.row).removeprefix(f"{panel}, "), []).append(filled)
    return rows


def by_method(table: Filling) -> dict[str, dict[str, list[Filled]]]:
    """By the rows' titles, and then by their panels."""
    methods: dict[str, dict[str, list[Filled]]] = {}
    for method, cells in by_title(table, table.cells).items():
        for filled in cells:
            panel = table.experiment.panels.get(filled.cell.row, "")
            methods.setdefault(method, {}).setdefault(panel, []).append(filled)
    return methods


# What counts as trained: half of the test images right.
TRAINED = 0.5


def final_accuracy(result: Result) -> float:
    """The final one, from 0 to 1; of a run that diverged that of a network that guesses."""
    final = result.row["final_accuracy"]
    return float(result.row["guessing"] if final is None else final)


def deepest(cells: Iterable[Filled]) -> str:
    """Of cells whose columns are numbers of layers, the largest number with which the network is trained.

    Trained is a network that is right, as the mean over the seeds, on `TRAINED` of the test images. ``"50"``; ``"none"`` where no
    network was; ``"·"`` where none was tried; in brackets smaller numbers with which it failed, and larger ones that no run had.
    """
    by_depth = sorted(((int(filled.cell.column), filled) for filled in cells), key=lambda pair: pair[0])
    tried = {depth: statistics.mean(map(final_accuracy, f.results)) >= TRAINED for depth, f in by_depth if f.results}
    if not tried:
        return "·"
    best = max((depth for depth, trained in tried.items() if trained), default=0)
    failed = [str(depth) for depth, trained in tried.items() if depth < best and not trained]
    untried = [str(depth) for depth, _ in by_depth if depth > best and depth not in tried]
    notes = [f"not {', '.join(failed)}"] * bool(failed) + [f"{', '.join(untried)} not run"] * bool(untried)
    bracket = f" ({'; '.join(notes)})" if notes else ""
    return f"{best or 'none'}{bracket}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *body = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{' --- |' * len(lines[0])}", *body])


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
