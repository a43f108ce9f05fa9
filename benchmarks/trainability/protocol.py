"""The protocol: the same grid of learning rates, steps and seeds for every contestant; and the order of the runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainability.contestants import CONTESTANTS, Contestant
from trainability.tasks import TASKS, Task

GRID: dict[str, tuple[float, ...]] = {"sgd": (0.0005, 0.003, 0.02, 0.1), "adamw": (0.0001, 0.0005, 0.002, 0.01)}
"""SGD has the momentum 0.9."""
SEEDS = 3
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


def plan(
    tasks: Sequence[str] = (),
    contestants: Sequence[str] = (),
    *,
    seeds: int = SEEDS,
    points: int | None = None,
    quick: bool = False,
) -> Iterator[Run]:
    """All runs: seed by seed, the core contestants first, point by point (the first ``points``), quick tasks first."""
    ours: Iterable[Contestant] = [CONTESTANTS[name] for name in contestants] or CONTESTANTS.values()
    chosen: Iterable[Task] = [TASKS[name] for name in tasks or (QUICK_TASKS if quick else ())] or TASKS.values()
    ours, chosen = list(ours), sorted(chosen, key=lambda task: task.name not in QUICK_TASKS)
    for seed in range(1 if quick else seeds):
        for core in (True, False) if not quick else (True,):
            for optimizer, lr in QUICK_GRID if quick else _ORDER[:points]:
                for task in chosen:
                    for contestant in ours:
                        wanted = contestant.core is core or (quick and contestants)
                        if wanted and contestant.applies(task):
                            yield Run(task.name, contestant.name, seed, optimizer, lr)


def fingerprint(run: Run) -> str:
    """Of what the run depends on besides its name: a row of another definition of its task or contestant does not count."""
    task = TASKS[run.task]
    revision = CONTESTANTS[run.contestant].revision
    return hashlib.sha256(f"{task.about}/{task.steps}/{task.batch}{revision}".encode()).hexdigest()[:12]


def estimate(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Processor seconds of runs, by the rows of the same task (the same contestant's if there are); how many are guessed."""
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
        known = known or everything or [3.0]
        total += sum(known) / len(known)
    return total, guessed
