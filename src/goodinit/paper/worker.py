"""Finishing one run: claimed by one process at a time, taken up where it was broken off, its row appended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from goodinit.errors import GoodinitError, require
from goodinit.files import write_whole
from goodinit.paper import timings
from goodinit.paper.audience import Audience
from goodinit.paper.checkpoint import Checkpoint
from goodinit.paper.config import Run, Timing, Training, Walk
from goodinit.paper.data import ImageSet, load
from goodinit.paper.decode import Progress
from goodinit.paper.experiment import Cell
from goodinit.paper.files import BusyError, locked
from goodinit.paper.networks import make_network
from goodinit.paper.order import Order
from goodinit.paper.outcome import Observer, Outcome
from goodinit.paper.results import Provenance, Results, Row, of_timing, of_training, of_walk
from goodinit.paper.train import train
from goodinit.paper.trainer import seen_size
from goodinit.paper.walks import walks
from goodinit.paper.world import World

FINISHED_BEFORE = "finished before"
LEFT = "left to another process"
NO_TEACHER = "without a teacher"


class TeacherError(GoodinitError, RuntimeError):
    """There is no teacher to learn from."""


class DivergedTeacherError(TeacherError):
    """It was trained, and its loss became infinite or NaN."""


class Worker:
    """Finishes the runs of an order, one at a time."""

    def __init__(self, order: Order, results: Results, provenance: Provenance, audience: Audience) -> None:
        self._order = order
        self._results = results
        self._provenance = provenance
        self._audience = audience
        self._world = World()
        self._sets = _Sets(order.data_dir, audience.decodes)

    def finish(self, cell: Cell, run: Run) -> str:
        """Do a run unless it is finished or another process is at work on it.

        Returns its status, `FINISHED_BEFORE`, `LEFT` or `NO_TEACHER`.

        Raises:
            DataError: the data cannot be read.
            SaveError: the disk is full; finished rows and the last checkpoint are as they were.
            CheckpointError: the checkpoint is broken, or of another run.
        """
        with self._claimed(run) as verdict:
            if verdict is not None:
                if verdict == LEFT:
                    self._audience.leaves_out(cell, run)
                self._audience.finishes(cell, run, verdict)
                return verdict
            self._audience.next_run(cell, run)
            if isinstance(run, Timing):  # by one process: several would disturb each other
                alone = self._world.first
                measured = of_timing(
                    run, timings.measure(run, device=self._device, tell=self._audience.measures) if alone else {}
                )
            elif isinstance(run, Walk):
                measured = of_walk(run, walks(run, self._sets.of(run), self._device))
            else:
                try:
                    teacher = self._teacher(run) if run.teacher else None
                except DivergedTeacherError as error:  # other runs may do without it
                    self._audience.notes(str(error))
                    self._audience.finishes(cell, run, NO_TEACHER)
                    return NO_TEACHER
                measured, _ = self._trained(run, teacher)
            self._add(run, cell.row, cell.column, measured)
            status = str(measured["status"])
            self._audience.finishes(cell, run, status)
            return status

    @contextmanager
    def _claimed(self, run: Run) -> Iterator[str | None]:
        """Be the only process at work on a run, or say what has become of it; of several that train together one decides."""
        path, verdict = self._results.checkpoint(run), None
        with ExitStack() as stack:
            if self._world.first:
                try:
                    stack.enter_context(locked(path, wait=False))
                    verdict = FINISHED_BEFORE if self._results.has(run, self._order.device) else None
                except BusyError:
                    verdict = LEFT
            verdict = self._world.of_first(verdict)
            yield verdict
            self._world.wait()
            if self._world.first and verdict != LEFT:
                path.unlink(missing_ok=True)

    def images(self, runs: Sequence[Training]) -> ImageSet:
        """The set of runs that have the same.

        Raises:
            DataError: it cannot be read, or rows of the same runs are of another one.
        """
        images = self._sets.of(runs[0])
        self._results.check_images(runs, _facts(images, self._order.data_dir))
        return images

    @property
    def _device(self) -> torch.device:
        return torch.device(self._order.device)

    def _trained(self, run: Training, teacher: nn.Module | None = None, observer: Observer | None = None) -> tuple[Row, Outcome]:
        """Train; returns what its row says."""
        order = self._order
        images = self.images([run])
        checkpoint = Checkpoint(self._results.checkpoint(run), run, seconds=order.checkpoint_seconds)
        outcome = train(
            run,
            images,
            device=self._device,
            teacher=teacher,
            checkpoint=checkpoint,
            compiled=order.compiled,
            origin=self._provenance.origin,
            observers=[*self._audience.observers, *([observer] if observer else [])],
        )
        return of_training(run, outcome, _facts(images, order.data_dir), self._world.size), outcome

    def _add(self, run: Run, row: str, column: str, measured: Row) -> None:
        if self._world.first:
            place = {"experiment": self._order.experiment.name, "budget": self._order.budget, "row": row, "column": column}
            self._results.add(self._provenance.row(run, place, measured))

    def _diverged(self, run: Run) -> bool:
        """Whether a row says so of a run."""
        return any(result.run == run and result.row.get("diverged_at") is not None for result in self._results.read())

    def _teacher(self, student: Training) -> nn.Module:
        """The trained teacher of a run: its weights are kept beside the rows, for the students of all seeds."""
        require("safetensors", extra="paper")
        from safetensors import SafetensorError  # noqa: PLC0415 - needs the extra
        from safetensors.torch import load_file, save  # noqa: PLC0415

        run = student.teacher_run
        path = self._results.weights(run)
        with ExitStack() as stack:
            if self._world.first:
                stack.enter_context(locked(self._results.checkpoint(run), wait=True))
            self._world.wait()
            missing = self._world.of_first(not path.exists())
            diverged = missing and self._world.of_first(self._diverged(run))
            if missing and not diverged:
                self._audience.notes(f"first its teacher: {run}")
                kept = _Weights()
                measured, _ = self._trained(run, observer=kept)
                diverged = measured["diverged_at"] is not None
                if self._world.first:
                    if not self._results.has(run, self._order.device):
                        self._add(run, "teacher", "", measured)
                    if not diverged:
                        write_whole(path, save(kept.weights))
                self._results.checkpoint(run).unlink(missing_ok=True)
            self._world.wait()
        if diverged:
            raise DivergedTeacherError(f"the teacher {run} diverged, and nobody can learn from it: {student} is left out")
        images = self._sets.of(run)
        teacher = make_network(
            run.network,
            activation=run.activation,
            norm=run.norm,
            classes=run.classes or images.classes,
            depth=run.depth,
            pixels=seen_size(run, images),
        )
        try:
            teacher.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise TeacherError(
                f"the teacher's weights {str(path)!r} cannot be read ({error}); delete them to train it anew"
            ) from error
        return teacher


class _Weights(Observer):
    """Keeps the final weights of a training."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def ends(self, outcome: Outcome) -> None:
        """Copy them."""
        self.weights = {name: tensor.detach().cpu().contiguous() for name, tensor in outcome.weights.items()}


class _Sets:
    """Image sets, each loaded once."""

    def __init__(self, data_dir: Path | None, progress: Progress) -> None:
        self._data_dir = data_dir
        self._progress = progress
        self._loaded: dict[tuple[str, int], ImageSet] = {}

    def of(self, run: Training | Walk) -> ImageSet:
        """The set of a run."""
        key = run.data, run.image_size
        if key not in self._loaded:
            self._loaded[key] = load(run.data, self._data_dir, size=run.image_size, progress=self._progress)
        return self._loaded[key]


def _facts(images: ImageSet, data_dir: Path | None) -> dict[str, object]:
    """Which data it was."""
    parts = {"train": images.train, "test": images.test}
    facts = {
        name: {"images": len(part), "encodings": part.facts.encodings, "sha256": part.facts.sha256}
        for name, part in parts.items()
    }
    return {"from": "hub" if data_dir is None else "folder", **facts}
