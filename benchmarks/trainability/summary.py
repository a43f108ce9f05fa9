"""From rows to numbers: the best point of the grid for each contestant, ranks, and how sure they are."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

from trainability.contestants import CONTESTANTS
from trainability.protocol import Point, Run, best_point
from trainability.runner import finished
from trainability.tasks import TASKS, Task

Row = Mapping[str, Any]
_DRAWS = 2000
# Errors nearer than this share of the error of knowing nothing are a tie.
TIE = 0.02
_ENDED = ("trained", "untrained")


@dataclass(frozen=True)
class Cell:
    """One contestant on one task."""

    rows: tuple[Row, ...]
    untaught: float
    """The task's error before training: the median over the seeds of PyTorch's default, whose outputs are small, or of whatever
    there is. A run that failed, diverged or ended worse counts as this."""

    @cached_property
    def points(self) -> dict[Point, dict[int, Row]]:
        """Rows by point of the grid and seed."""
        points: dict[Point, dict[int, Row]] = {}
        for row in self.rows:
            points.setdefault((row["optimizer"], row["lr"]), {})[row["seed"]] = row
        return points

    @property
    def grid(self) -> set[Point]:
        """Points that were run with the first seed."""
        return {point for point, rows in self.points.items() if 0 in rows}

    def chosen(self, points: Iterable[Point]) -> Point:
        """The best of these points by the first seed."""
        return best_point(self.points[point][0] for point in points)

    def seeds(self, points: Iterable[Point]) -> set[int]:
        """With which the chosen one of these points was run."""
        return set(self.points[self.chosen(points)])

    def mean(self, points: Iterable[Point], seeds: Iterable[int], error: Callable[[Row, float], float]) -> float:
        """Of an error of a row, at the chosen point over seeds. What failed counts as `untaught`, which ``error`` gets too."""
        rows = [self.points[self.chosen(points)][seed] for seed in seeds]
        return statistics.mean(error(row, self.untaught) if row["status"] in _ENDED else self.untaught for row in rows)

    @property
    def ended(self) -> list[Row]:
        """Rows of runs that came to their end."""
        return [row for row in self.rows if row["status"] in _ENDED]

    def init_steps(self) -> float | None:
        """What initialization costs, in training steps, each row's own: median."""
        costs = [row["init_seconds"] / step_seconds(row) for row in self.ended]
        return statistics.median(costs) if costs else None

    def init_seconds(self) -> float:
        """Median, of whatever machines."""
        return statistics.median(float(row["init_seconds"]) for row in self.rows)


def step_seconds(row: Row) -> float:
    """Of a training step, on the machine that made the row."""
    return float(row["train_seconds"] / row["steps"])


def at_end(row: Row, untaught: float) -> float:
    """The error after the last step."""
    return _learned(row["checkpoints"][-1][3], untaught)


def on_the_way(row: Row, untaught: float) -> float:
    """The smallest error of all checkpoints."""
    return min(_learned(error, untaught) for *_, error in row["checkpoints"])


def course(row: Row, cost: float = 1.0) -> list[tuple[float, float | None]]:
    """Time and error of each checkpoint. Time, initialization included, is counted in training steps of the network as it is.

    All rows have the same number of these, whatever the machine was; ``cost``: of a step of another network, in this unit.
    """
    step = step_seconds(row)
    return [(cost * (row["init_seconds"] + seconds) / step, error) for _, seconds, _, error in row["checkpoints"]]


def _learned(error: float | None, untaught: float) -> float:
    return untaught if error is None or not math.isfinite(error) else min(error, untaught)


def at_time(row: Row, untaught: float, *, limit: float, cost: float) -> float:
    """The error after the time ``limit`` of `course`; between checkpoints on the line that joins them."""
    marks = [(time, _learned(error, untaught)) for time, error in course(row, cost)]
    if limit <= marks[0][0]:
        return untaught
    for (a, low), (b, high) in pairwise(marks):
        if limit <= b:
            return low + (high - low) * (limit - a) / (b - a) if b > a else high
    return marks[-1][1]


@dataclass(frozen=True)
class Standing:
    """One contestant on one task, by the points of the grid and the seeds that all compared contestants have."""

    task: Task
    contestant: str
    point: Point
    error: float
    best: float
    at_time: float
    share: float
    trains: bool


class Summary:
    """All rows that are of the tasks as they are now: those that are not held out, or those that are."""

    def __init__(self, rows: Iterable[Row], *, held_out: bool = False) -> None:
        self.every_row = [row for row in rows if finished([row])]
        self.planned = {name: task for name, task in TASKS.items() if task.held_out == held_out}
        self.rows = [row for row in self.every_row if row["task"] in self.planned]
        cells: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            cells.setdefault((row["task"], row["contestant"]), []).append(row)
        self.cells = {key: Cell(tuple(some), self._untaught(key[0])) for key, some in cells.items()}

    def _untaught(self, task: str) -> float:
        rows = [row for row in self.rows if row["task"] == task and row.get("checkpoints")]
        first = [row["checkpoints"][0][3] for row in [row for row in rows if row["contestant"] == "default"] or rows]
        known = sorted(_learned(error, math.inf) for error in first)
        return known[len(known) // 2] if known else math.inf

    @cached_property
    def tasks(self) -> list[Task]:
        """With rows of two contestants or more at a common point."""
        return [task for task in self.planned.values() if len(self.compared(task)) > 1]

    @cached_property
    def held_out(self) -> Summary:
        """Of the tasks that are."""
        return Summary(self.every_row, held_out=True)

    def compared(self, task: Task) -> list[str]:
        """The contestants that have all points that those of the core that leave the network as it is have in common."""
        have = {name: cell.grid for (t, name), cell in self.cells.items() if t == task.name}
        core = [p for name, p in have.items() if CONTESTANTS[name].core and not CONTESTANTS[name].variant] or list(have.values())
        wanted = set.intersection(*core) if core else set()
        return [name for name in CONTESTANTS if wanted and have.get(name, set()) >= wanted]

    def points(self, task: Task, names: Sequence[str] = ()) -> list[Point]:
        """Of the grid, what all compared contestants have, or those named."""
        sets = [self.cells[task.name, name].grid for name in names or self.compared(task)]
        return sorted(set.intersection(*sets)) if sets else []

    def seeds(self, task: Task, names: Sequence[str] = ()) -> list[int]:
        """With which all of them were run at the best of these points."""
        names = names or self.compared(task)
        points = self.points(task, names)
        return sorted(set.intersection(*(self.cells[task.name, name].seeds(points) for name in names)))

    @cached_property
    def standings(self) -> dict[str, list[Standing]]:
        """Of each task, the best first."""
        return {task.name: self._of(task) for task in self.tasks}

    def _of(self, task: Task) -> list[Standing]:
        points, names, seeds = self.points(task), self.compared(task), self.seeds(task)
        found = []
        for name in names:
            cell = self.cells[task.name, name]
            common = [cell.points[p][0] for p in points]
            best = cell.mean(points, seeds, on_the_way)
            timed = partial(at_time, limit=task.steps / 2, cost=self.step_cost(task, name))
            share = sum(row["status"] == "trained" for row in common) / len(common)
            error, later = cell.mean(points, seeds, at_end), cell.mean(points, seeds, timed)
            found.append(Standing(task, name, cell.chosen(points), error, best, later, share, best < task.trained))
        return sorted(found, key=lambda s: s.error)

    def step_cost(self, task: Task, name: str) -> float:
        """Of a training step of a contestant's network, in steps of the network as it is, both measured on the same days."""
        if not CONTESTANTS[name].variant:
            return 1.0
        own, plain = (
            self._step_seconds(task, [name]),
            self._step_seconds(task, [n for n, c in CONTESTANTS.items() if not c.variant]),
        )
        ratios = [statistics.median(own[day]) / statistics.median(plain[day]) for day in own.keys() & plain.keys()]
        return statistics.median(ratios) if ratios else 1.0

    def _step_seconds(self, task: Task, names: Iterable[str]) -> dict[str, list[float]]:
        """By day: the next day's machine may be another."""
        days: dict[str, list[float]] = {}
        for name in names:
            for row in self.cells[task.name, name].ended if (task.name, name) in self.cells else ():
                days.setdefault(row["date"][:10], []).append(step_seconds(row))
        return days

    def ranks(self, names: Sequence[str], value: str = "error") -> dict[str, dict[str, float]]:
        """By task and contestant: the place among ``names``, ties sharing theirs; only tasks that have all of them."""
        ranks = {}
        for task, standings in self.standings.items():
            values = {s.contestant: getattr(s, value) for s in standings if s.contestant in names}
            if len(values) == len(names):
                ranks[task] = {
                    n: 1 + sum(o < v for o in values.values()) + (sum(o == v for o in values.values()) - 1) / 2
                    for n, v in values.items()
                }
        return ranks

    def unassisted(self) -> list[str]:
        """The contestants that change neither the network nor its data, and are compared on every task."""
        common = [set(self.compared(task)) for task in self.tasks]
        names = set.intersection(*common) if common else set()
        return [c.name for c in CONTESTANTS.values() if c.name in names and not c.variant]


@dataclass(frozen=True)
class AverageRank:
    """Over tasks, with the interval that 95 % of bootstrap samples of the tasks lie in."""

    contestant: str
    mean: float
    low: float
    high: float
    first: int
    """On how many tasks it is the best, alone or with others."""


def average_ranks(ranks: Mapping[str, Mapping[str, float]]) -> list[AverageRank]:
    """The best first."""
    tasks = list(ranks)
    if not tasks:
        return []
    draw = random.Random(0)
    samples = [[draw.choice(tasks) for _ in tasks] for _ in range(_DRAWS)]
    found = []
    for name in ranks[tasks[0]]:
        means = sorted(statistics.mean(ranks[task][name] for task in sample) for sample in samples)
        mean = statistics.mean(ranks[task][name] for task in tasks)
        first = sum(ranks[task][name] == min(ranks[task].values()) for task in tasks)
        found.append(AverageRank(name, mean, means[int(0.025 * _DRAWS)], means[int(0.975 * _DRAWS)], first))
    return sorted(found, key=lambda rank: rank.mean)


def critical_difference(contestants: int, tasks: int) -> float:
    """Of average ranks, Nemenyi's test at 5 % (Demšar 2006)."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(0.95, contestants, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(contestants * (contestants + 1) / (6 * tasks))


def compared_with(summary: Summary, name: str) -> dict[str, tuple[str, Standing, Standing]]:
    """By task: ``"wins"``, ``"ties"`` or ``"loses"`` against the best other unassisted contestant that is none of ours."""
    found = {}
    for task, standings in summary.standings.items():
        mine = next((s for s in standings if s.contestant == name), None)
        other = next((s for s in standings if is_other(s.contestant)), None)
        if mine is None or other is None:
            continue
        margin = TIE * summary.cells[task, name].untaught
        apart = mine.error - other.error
        found[task] = ("ties" if abs(apart) <= margin else "wins" if apart < 0 else "loses", mine, other)
    return found


def general() -> list[str]:
    """The contestants that leave the network as it is, and that every task has a use for."""
    return [
        c.name
        for c in CONTESTANTS.values()
        if not c.variant and all(c.applies(task) for task in TASKS.values() if not task.held_out)
    ]


def is_other(name: str) -> bool:
    """Whether a contestant neither is ours nor changes the network."""
    return not CONTESTANTS[name].variant and (not name.startswith("lsuv") or name == "lsuv-package")


def runs_in(rows: Iterable[Row]) -> set[str]:
    """Keys of the runs that there are rows of."""
    return {Run(r["task"], r["contestant"], r["seed"], r["optimizer"], r["lr"]).key for r in rows}
