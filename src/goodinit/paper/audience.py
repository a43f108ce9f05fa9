"""Who is told what becomes of the runs of an order."""

from __future__ import annotations

from collections.abc import Sequence

from goodinit.paper.config import Run
from goodinit.paper.experiment import Cell
from goodinit.paper.order import Order
from goodinit.paper.outcome import Observer


class Audience:
    """Keeps it all to itself."""

    observers: Sequence[Observer] = ()
    """Told how each training goes."""

    def starts(self, order: Order, runs: int, finished: int) -> None:
        """So many runs, so many of them finished before."""

    def decodes(self, what: str, done: int, total: int) -> None:
        """A data set is being decoded."""

    def next_run(self, cell: Cell, run: Run) -> None:
        """A run is about to begin."""

    def leaves_out(self, cell: Cell, run: Run) -> None:
        """Another process is at work on this one."""

    def finishes(self, cell: Cell, run: Run, status: str) -> None:
        """A run is over, its row written, or nothing more to be done for it; says how it ended."""

    def measures(self, contender: str, seconds: float) -> None:
        """A measurement of times."""

    def notes(self, text: str) -> None:
        """Something else that a person would like to know."""
