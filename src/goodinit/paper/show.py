"""How runs are told of: progress bars on a terminal, plain lines elsewhere, and TensorBoard's files if asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from goodinit.errors import require
from goodinit.paper.audience import Audience
from goodinit.paper.config import Run, Training
from goodinit.paper.data import ImageSet
from goodinit.paper.experiment import Cell
from goodinit.paper.order import Order
from goodinit.paper.outcome import Evaluation, Observer, Outcome, Progress
from goodinit.report import Report


class Lines(Audience, Observer):
    """A line for every run, for every test of its network, and for its end."""

    def __init__(self, *others: Observer) -> None:
        self.observers = (self, *others)
        self._total = self._done = self._iterations = 0
        self._start = time.perf_counter()
        self._decoded = ""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)  # noqa: T201 - its purpose

    def starts(self, order: Order, runs: int, finished: int) -> None:
        """What will be done."""
        experiment = order.experiment
        before = f", {finished} of them finished before" if finished else ""
        self.say(f"{experiment.name}: {experiment.title}")
        count = f"{runs} run" if runs == 1 else f"{runs} runs"
        self.say(f"{order.budget}: {experiment.budgets[order.budget]}; {count}{before}; device {order.device}")
        self._total, self._done = runs, finished

    def decodes(self, what: str, done: int, total: int) -> None:
        """Once a set."""
        if done == total or what != self._decoded:
            self.say(f"{what}: {done:,} of {total:,}")
        self._decoded = what

    def next_run(self, cell: Cell, run: Run) -> None:
        """Which one."""
        self._done += 1
        self.say(f"[{self._done}/{self._total}] {cell.name}, seed {run.seed}: {run}")

    def leaves_out(self, cell: Cell, run: Run) -> None:
        """Which one."""
        self._done += 1
        self.say(f"[{self._done}/{self._total}] {cell.name}, seed {run.seed}: another process is at work on it")

    def begins(self, run: Training, images: ImageSet, progress: Progress, report: Report | None) -> None:
        """Where it begins."""
        self._iterations = run.total
        if report is None:
            self.say(f"  goes on from iteration {progress.iteration:,} of {run.total:,}")
        else:
            self.say(f"  {images}; {report.summary()}")

    def advances(self, progress: Progress, loss: float) -> None:  # noqa: ARG002 - bars show it
        """What the next line will say."""
        self._speed = progress.iteration / max(progress.seconds, 1e-9)

    def evaluates(self, evaluation: Evaluation) -> None:
        """How good it is."""
        left = (self._iterations - evaluation.iteration) / self._speed
        self.say(
            f"  iteration {evaluation.iteration:,} of {self._iterations:,}: loss {evaluation.loss:.3f}, "
            f"test accuracy {evaluation.accuracy:.2%}, {_time(left)} left"
        )

    def ends(self, outcome: Outcome) -> None:
        """What came of it."""
        self.say(f"  {_verdict(outcome)}; {outcome.images_per_second:,.0f} images/s")

    def measures(self, contender: str, seconds: float) -> None:
        """One round."""
        self.say(f"  {contender}: {seconds:.4f} s")

    def notes(self, text: str) -> None:
        """As it is."""
        self.say(f"  {text}")


class Bars(Lines):
    """The same with progress bars: of all runs, and of the iterations of the present one."""

    def __init__(self, progress: Any, *others: Observer) -> None:
        super().__init__(*others)
        self._progress = progress
        self._all = progress.add_task("runs", text="")
        self._one: Any = None
        self._accuracy = ""

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False)

    def starts(self, order: Order, runs: int, finished: int) -> None:
        """What will be done."""
        super().starts(order, runs, finished)
        self._progress.update(self._all, total=runs, completed=finished)

    def decodes(self, what: str, done: int, total: int) -> None:
        """As a bar of its own."""
        if what != self._decoded:
            self._one = self._progress.add_task(what, text="")
        self._decoded = what
        self._progress.update(self._one, completed=done, total=total)
        self._remove(done == total)

    def begins(self, run: Training, images: ImageSet, progress: Progress, report: Report | None) -> None:
        """A bar for its iterations."""
        super().begins(run, images, progress, report)
        self._accuracy = ""
        self._batch = run.batch
        self._one = self._progress.add_task("iterations", total=run.total, completed=progress.iteration, text="")

    def advances(self, progress: Progress, loss: float) -> None:
        """Loss, accuracy, speed."""
        super().advances(progress, loss)
        text = f"loss {loss:.3f}{self._accuracy}, {self._speed * self._batch:,.0f} images/s"
        self._progress.update(self._one, completed=progress.iteration, text=text)

    def evaluates(self, evaluation: Evaluation) -> None:
        """Kept for the bar."""
        self._accuracy = f", accuracy {evaluation.accuracy:.2%}"

    def ends(self, outcome: Outcome) -> None:
        """What came of it."""
        super().ends(outcome)
        self._remove(True)

    def finishes(self, cell: Cell, run: Run, status: str) -> None:  # noqa: ARG002 - whichever it was
        """One more."""
        self._progress.advance(self._all)

    def _remove(self, over: bool) -> None:
        if over and self._one is not None:
            self._progress.remove_task(self._one)
            self._one = None


@contextmanager
def audience(speaks: bool = True, tensorboard: Path | None = None) -> Iterator[Audience]:
    """Bars on a terminal, lines elsewhere; nothing at all in a process that does not speak for the others."""
    if not speaks:
        yield Audience()
        return
    others = [TensorBoard(tensorboard)] if tensorboard else []
    if not sys.stdout.isatty():
        yield Lines(*others)
        return
    require("rich", extra="paper")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns) as progress:
        yield Bars(progress, *others)


class TensorBoard(Observer):
    """Loss and accuracy of every run, as TensorBoard reads them; a folder a run."""

    def __init__(self, folder: Path) -> None:
        require("tensorboard", extra="tensorboard")
        self._folder = folder
        self._writer: Any = None

    def begins(self, run: Training, images: ImageSet, progress: Progress, report: Report | None) -> None:  # noqa: ARG002 - not all are shown
        """A file."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - needs the extra

        self._writer = SummaryWriter(str(self._folder / f"{run}-{run.key}"), purge_step=progress.iteration + 1)
        self._batch = run.batch

    def advances(self, progress: Progress, loss: float) -> None:
        """Loss and speed."""
        self._writer.add_scalar("train/loss", loss, progress.iteration)
        speed = progress.iteration * self._batch / max(progress.seconds, 1e-9)
        self._writer.add_scalar("train/images per second", speed, progress.iteration)

    def evaluates(self, evaluation: Evaluation) -> None:
        """Accuracy."""
        self._writer.add_scalar("test/accuracy", evaluation.accuracy, evaluation.iteration)

    def ends(self, outcome: Outcome) -> None:  # noqa: ARG002 - it has been told all
        """The file is closed."""
        self._writer.close()


def _verdict(outcome: Outcome) -> str:
    if outcome.progress.diverged_at is not None:
        return f"n/c: the loss was not finite at iteration {outcome.progress.diverged_at:,}"
    final = f"final accuracy {outcome.final_accuracy:.2%}, best {outcome.best_accuracy:.2%}"
    return final if outcome.status == "done" else f"n/c: no better than guessing ({final})"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
