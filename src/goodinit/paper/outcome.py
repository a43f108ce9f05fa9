"""What a training comes to, and who is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from goodinit.paper.config import Training
from goodinit.paper.data import ImageSet
from goodinit.report import Report


@dataclass(frozen=True)
class Evaluation:
    """How good the network is at a moment of its training."""

    iteration: int
    accuracy: float
    """On the test images, from 0 to 1."""
    loss: float
    """Mean over the training batches since the last evaluation."""


@dataclass
class Progress:
    """What a training has come to so far. All of it is in the checkpoint."""

    iteration: int = 0
    seconds: float = 0.0
    """Spent in training steps, batches included, tests and checkpoints not."""
    init_seconds: float = 0.0
    losses: float = 0.0
    """Sum since the last evaluation."""
    evaluations: list[list[float]] = field(default_factory=list)
    updates: dict[str, list[list[float]]] = field(default_factory=dict)
    """By layer: iteration, and |update| / |weight| there."""
    diverged_at: int | None = None
    """The iteration, from 1, whose loss was not finite."""
    interruptions: int = 0
    origins: list[str] = field(default_factory=list)
    """Commits, devices and threads that took part, in their order."""


@dataclass(frozen=True)
class Outcome:
    """A finished training."""

    progress: Progress
    batch: int
    guessing: float
    """Accuracy below which the network cannot be told from one that guesses: that of the largest class, and three standard errors
    for the number of test images."""
    weights_sha256: str
    """Of the final weights: equal for equal weights, bit for bit."""
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """The final weights themselves, by name."""

    @property
    def evaluations(self) -> list[Evaluation]:
        """In the order of the iterations."""
        return [Evaluation(int(i), accuracy, loss) for i, accuracy, loss in self.progress.evaluations]

    @property
    def status(self) -> str:
        """``"done"``; ``"n/c"``, did not converge, if the loss was infinite or NaN or the network is no better than guessing."""
        final = self.final_accuracy
        return "n/c" if final is None or final <= self.guessing else "done"

    @property
    def final_accuracy(self) -> float | None:
        """None if it diverged."""
        return None if self.progress.diverged_at is not None else self.evaluations[-1].accuracy

    @property
    def best_accuracy(self) -> float | None:
        """The largest of all evaluations, which the test images have chosen."""
        return max((e.accuracy for e in self.evaluations), default=None)

    @property
    def images_per_second(self) -> float:
        """Of training."""
        return self.progress.iteration * self.batch / max(self.progress.seconds, 1e-9)


class Observer:
    """What a training tells its progress to; this one keeps it to itself."""

    def begins(self, run: Training, images: ImageSet, progress: Progress, report: Report | None) -> None:
        """A run is about to start or, with an iteration above 0, to go on; the report is that of its initialization."""

    def advances(self, progress: Progress, loss: float) -> None:
        """Some iterations are done."""

    def evaluates(self, evaluation: Evaluation) -> None:
        """The network has been tested."""

    def ends(self, outcome: Outcome) -> None:
        """The run is over."""
