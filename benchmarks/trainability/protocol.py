"""The protocol: the same grid of learning rates, steps and seeds for every contestant; and the order of the runs.

The grid is run with one seed. What ends best there is run with the others: that is what a person does who has a budget, and it
leaves the budget for more tasks and contestants than a grid of every seed would.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainability.contestants import CONTESTANTS, Contestant
from trainability.tasks import TASKS, Task

GRID: dict[str, tuple[float, ...]] = {"sgd": (0.0005, 0.003, 0.02, 0.1), "adamw": (0.0001, 0.0005, 0.002, 0.01)}
"""SGD has the momentum 0.9."""
SEEDS = 3
"""The first of them sees the whole grid."""
# Rows that an estimate goes by: those before them may be another machine's.
_LATEST = 10
# Points of the grid in the order in which they are run, so that rows of an unfinished benchmark say most.
_ORDER = (
    *(("adamw", 0.0005), ("sgd", 0.003), ("adamw", 0.002), ("sgd", 0.02)),
    *(("sgd", 0.0005), ("adamw", 0.0001), ("sgd", 0.1), ("adamw", 0.01)),
)
QUICK_TASKS = ("mlp30-tanh", "mlp30-gelu", "mlp30-relu", "siren", "poisson", "tabular", "cancer", "binary")
QUICK_GRID = _ORDER[:4]


@dataclass(frozen=True)
class Run:
    """One point."""

    task: str
    contestant: str
    seed: int
    optimizer: str
    lr: float

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return "/".join(map(str, asdict(self).values()))


Point = tuple[str, float]
"""Optimizer and learning rate."""
Rows = Sequence[Mapping[str, Any]]


def pairs(
    tasks: Sequence[str] = (), contestants: Sequence[str] = (), *, core: bool | None = None, quick: bool = False
) -> list[tuple[Task, Contestant]]:
    """Every task with every contestant that applies to it, quick tasks first; ``core``: only those of the core, or the others."""
    ours: Iterable[Contestant] = [CONTESTANTS[name] for name in contestants] or CONTESTANTS.values()
    chosen: Iterable[Task] = [TASKS[name] for name in tasks or (QUICK_TASKS if quick else ())] or TASKS.values()
    ordered = sorted(chosen, key=lambda task: task.name not in QUICK_TASKS)
    return [(task, c) for task in ordered for c in ours if core in (None, c.core) and c.applies(task)]


def grid(pairs: Sequence[tuple[Task, Contestant]], *, points: int | None = None, quick: bool = False) -> Iterator[Run]:
    """Every point (the first ``points``) with the first seed, point by point."""
    for optimizer, lr in QUICK_GRID if quick else _ORDER[:points]:
        for task, contestant in pairs:
            yield Run(task.name, contestant.name, 0, optimizer, lr)


def repeats(pairs: Sequence[tuple[Task, Contestant]], rows: Rows, *, seeds: int = SEEDS) -> Iterator[Run]:
    """The other seeds at the best point of every pair whose grid has been run."""
    by: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["seed"] == 0:
            by.setdefault((row["task"], row["contestant"]), []).append(row)
    for seed in range(1, seeds):
        for task, contestant in pairs:
            found = by.get((task.name, contestant.name), ())
            if {(row["optimizer"], row["lr"]) for row in found} >= set(_ORDER):
                optimizer, lr = best_point(found)
                yield Run(task.name, contestant.name, seed, optimizer, lr)


def best_point(rows: Iterable[Mapping[str, Any]]) -> Point:
    """What ends with the least error, by rows of one task, contestant and seed; of equals AdamW's, then the smaller rate."""
    row = min(rows, key=lambda row: (final_error(row), row["optimizer"], row["lr"]))
    return row["optimizer"], row["lr"]


def final_error(row: Mapping[str, Any]) -> float:
    """On the test after the last step; infinite of a run that failed."""
    if row["status"] in ("diverged", "init-failed"):
        return math.inf
    error = row["checkpoints"][-1][3]
    return math.inf if error is None else float(error)


def count(pairs: Sequence[tuple[Task, Contestant]]) -> int:
    """How many runs the whole plan has."""
    return len(pairs) * (len(_ORDER) + SEEDS - 1)


def fingerprint(run: Run) -> str:
    """Of what the run depends on besides its name: a row of another definition of its task or contestant does not count."""
    task = TASKS[run.task]
    revision = CONTESTANTS[run.contestant].revision
    return hashlib.sha256(f"{task.about}/{task.steps}/{task.batch}{revision}".encode()).hexdigest()[:12]


def estimate(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Processor seconds of runs, by the latest rows of their task, their contestant's if there are; how many are guessed."""
    by_task: dict[str, list[float]] = {}
    by_both: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row["cpu_seconds"])
        by_both.setdefault((row["task"], row["contestant"]), []).append(row["cpu_seconds"])
    everything = [seconds for some in by_task.values() for seconds in some]
    total, guessed = 0.0, 0
    for run in runs:
        known = by_both.get((run.task, run.contestant)) or by_task.get(run.task)
        guessed += known is None
        known = (known or everything or [3.0])[-_LATEST:]
        total += sum(known) / len(known)
    return total, guessed
