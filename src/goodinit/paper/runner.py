"""The runs of an experiment: those that are finished are not done again, a broken-off one goes on.

A launcher does them: this process, one after the other, or the workers of a Ray cluster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from goodinit.paper.audience import Audience
from goodinit.paper.config import Run, Training
from goodinit.paper.experiment import Cell
from goodinit.paper.files import BusyError, locked
from goodinit.paper.order import Order
from goodinit.paper.results import Provenance, Results
from goodinit.paper.worker import FINISHED_BEFORE, Worker
from goodinit.paper.world import World

Todo = Sequence[tuple[Cell, Run]]
Launcher = Callable[[Order, Results, Provenance, Audience, Todo], Counter[str]]


def reproduce(
    order: Order, results: Results, provenance: Provenance, audience: Audience | None = None, launcher: Launcher | None = None
) -> Counter[str]:
    """Do all runs that are not finished, and append their rows.

    Returns:
        How many runs there were of each status; `FINISHED_BEFORE` and `worker.LEFT` (to another process) among them.

    Raises:
        OptionError: an order that cannot be meant.
        DataError: the data cannot be read.
        SaveError: the disk is full; finished rows and the last checkpoint are as they were.
        CheckpointError: a checkpoint is broken.
    """
    audience, world = audience or Audience(), World()
    runs, rows = order.runs(), results.read()
    finished = [run for _, run in runs if any(row.is_of(run, order.device) for row in rows)]
    todo = world.of_first([(cell, run) for cell, run in runs if run not in finished])
    if world.first:
        for path in filter(Path.exists, map(results.checkpoint, finished)):  # of a process that was killed after its row
            with suppress(BusyError), locked(path, wait=False):
                path.unlink(missing_ok=True)
    before = len(runs) - len(todo)
    audience.starts(order, len(runs), before)
    return Counter({FINISHED_BEFORE: before}) + (launcher or in_this_process)(order, results, provenance, audience, todo)


def in_this_process(order: Order, results: Results, provenance: Provenance, audience: Audience, todo: Todo) -> Counter[str]:
    """One run after the other."""
    worker = Worker(order, results, provenance, audience)
    if order.data_dir is not None and not todo:  # whose rows may be of another folder's images
        trainings: dict[tuple[str, int], list[Training]] = {}
        for _, run in order.runs():
            if isinstance(run, Training):
                trainings.setdefault((run.data, run.image_size), []).append(run)
        for runs in trainings.values():
            worker.images(runs)
    return Counter(worker.finish(cell, run) for cell, run in todo)
