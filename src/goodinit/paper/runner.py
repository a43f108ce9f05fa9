"""The runs of an experiment, one after the other: those that are finished are not done again, a broken-off one goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from goodinit.errors import OptionError
from goodinit.paper import timings
from goodinit.paper.checkpoint import Checkpoint
from goodinit.paper.config import Timing, Training
from goodinit.paper.data import ImageSet, Progress, load
from goodinit.paper.experiment import Cell, Experiment
from goodinit.paper.files import BusyError, locked
from goodinit.paper.results import Provenance, Results, of_timing, of_training
from goodinit.paper.train import Observer, train


@dataclass(frozen=True)
class Order:
    """What to run, and how."""

    experiment: Experiment
    budget: str
    seeds: int = 1
    only: tuple[str, ...] = ()
    data_dir: Path | None = None
    device: str = "cpu"
    compiled: bool = False
    precision: str | None = None
    """In place of that of the experiment."""
    checkpoint_seconds: float = 60.0

    def runs(self) -> list[tuple[Cell, Training | Timing]]:
        """All of them, every cell once before any has a second seed.

        Raises:
            OptionError: an unknown budget, a pattern without a match, no seed.
        """
        if self.seeds < 1:
            raise OptionError(f"seeds must be 1 or more; got {self.seeds}")
        cells = self.experiment.selected(self.budget, self.only)
        return [(cell, self._of_seed(cell.run, seed)) for seed in range(self.seeds) for cell in cells]

    def _of_seed(self, run: Training | Timing, seed: int) -> Training | Timing:
        return replace(run, seed=seed, precision=self.precision or run.precision)


class Audience:
    """What `reproduce` tells its progress to; this one keeps it to itself."""

    observers: Sequence[Observer] = ()
    """Told how each training goes."""

    def starts(self, order: Order, runs: int, finished: int) -> None:
        """So many runs, so many of them finished before."""

    def decodes(self, what: str, done: int, total: int) -> None:
        """A data set is being decoded."""

    def next_run(self, cell: Cell, run: Training | Timing) -> None:
        """A run is about to begin."""

    def leaves_out(self, cell: Cell, run: Training | Timing) -> None:
        """Another process is at work on this one."""

    def measures(self, contender: str, seconds: float) -> None:
        """A measurement of times."""


def reproduce(order: Order, results: Results, provenance: Provenance, audience: Audience | None = None) -> Counter[str]:
    """Do all runs that are not finished, and append their rows.

    Returns:
        How many runs there were of each status; ``"finished before"``, ``"left to another process"`` among them.

    Raises:
        OptionError: an order that cannot be meant.
        DataError: the data cannot be read.
        SaveError: the disk is full; finished rows and the last checkpoint are as they were.
        CheckpointError: a checkpoint is broken.
    """
    return _Runner(order, results, provenance, audience or Audience()).all()


class _Runner:
    """Does the runs of one order."""

    def __init__(self, order: Order, results: Results, provenance: Provenance, audience: Audience) -> None:
        self._order = order
        self._results = results
        self._provenance = provenance
        self._audience = audience
        self._sets = _Sets(order.data_dir, audience.decodes)

    def all(self) -> Counter[str]:
        """All that are not finished; counts them by status."""
        runs, rows = self._order.runs(), self._results.read()
        todo = [(cell, run) for cell, run in runs if all(row.run != run for row in rows)]
        count = Counter({"finished before": len(runs) - len(todo)})
        self._audience.starts(self._order, len(runs), count["finished before"])
        for cell, run in todo:
            count[self._unless_finished(cell, run)] += 1
        return count

    def _unless_finished(self, cell: Cell, run: Training | Timing) -> str:
        path = self._results.checkpoint(run)
        try:
            with locked(path, wait=False):
                finished = self._results.has(run)  # by another process, since this one began
                status = "finished before" if finished else self._run(cell, run)
                path.unlink(missing_ok=True)
        except BusyError:
            self._audience.leaves_out(cell, run)
            return "left to another process"
        return status

    def _run(self, cell: Cell, run: Training | Timing) -> str:
        """One run, and its row; returns its status."""
        order, audience = self._order, self._audience
        audience.next_run(cell, run)
        device = torch.device(order.device)
        if isinstance(run, Timing):
            measured = of_timing(run, timings.measure(run, device=device, tell=audience.measures))
        else:
            images = self._sets[run.data]
            checkpoint = Checkpoint(self._results.checkpoint(run), run, seconds=order.checkpoint_seconds)
            observers = audience.observers
            outcome = train(run, images, device=device, checkpoint=checkpoint, compiled=order.compiled, observers=observers)
            measured = of_training(run, outcome, _facts(images, order.data_dir))
        place = {"experiment": order.experiment.name, "budget": order.budget, "row": cell.row, "column": cell.column}
        self._results.add(self._provenance.row(run, place, measured))
        return str(measured["status"])


class _Sets:
    """Image sets, each loaded once."""

    def __init__(self, data_dir: Path | None, progress: Progress) -> None:
        self._data_dir = data_dir
        self._progress = progress
        self._loaded: dict[str, ImageSet] = {}

    def __getitem__(self, name: str) -> ImageSet:
        if name not in self._loaded:
            self._loaded[name] = load(name, self._data_dir, progress=self._progress)
        return self._loaded[name]


def _facts(images: ImageSet, data_dir: Path | None) -> dict[str, object]:
    """Which data it was."""
    parts = {"train": images.train, "test": images.test}
    return {
        "from": "hub" if data_dir is None else "folder",
        **{
            name: {"images": len(part), "encodings": part.facts.encodings, "sha256": part.facts.sha256}
            for name, part in parts.items()
        },
    }


def device_named(name: str) -> str:
    """``"cpu"``, ``"cuda"``, or for ``"auto"`` a GPU if there is one.

    Raises:
        OptionError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise OptionError(f"device must be cpu, cuda or auto; got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("there is no GPU that this PyTorch can use (torch.cuda.is_available() is False); try --device cpu")
    return name
