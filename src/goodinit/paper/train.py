"""One plain loop: initialize, train, test, and be able to go on after an interruption at any moment."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from goodinit.errors import OptionError
from goodinit.paper.checkpoint import Checkpoint, State
from goodinit.paper.config import Training
from goodinit.paper.data import ImageSet
from goodinit.paper.networks import NETWORKS, make_network
from goodinit.paper.optimize import LOSSES, Solver
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing, in_order, seed_of
from goodinit.report import Report
from goodinit.schemes import init_

# Losses are fetched from a GPU once in so many iterations, since that waits for it.
_WINDOW = 50
_TEST_BATCH = 500
_TRACKED = 40


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


def train(
    run: Training,
    images: ImageSet,
    *,
    device: torch.device,
    checkpoint: Checkpoint | None = None,
    compiled: bool = False,
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Run one training from its beginning or its checkpoint to its end.

    Args:
        run: its settings.
        images: the decoded set.
        device: where to train.
        checkpoint: where to keep the state, about once a minute.
        compiled: whether to train with torch.compile.
        observers: told how it goes.

    Raises:
        OptionError: images of another form than the network takes, more classes than it has, batches larger than the set.
        CheckpointError: the checkpoint is broken, or of another run.
        SaveError: the disk is full; the last checkpoint is as it was.
    """
    _check(run, images)
    with _own_randomness(device):
        trainer = _Trainer(run, images, device, compiled=compiled)
        report = None
        if (state := checkpoint.load() if checkpoint else None) is None:
            report = trainer.initialize()
        else:
            trainer.take_up(state)
        for observer in observers:
            observer.begins(run, images, trainer.progress, report)
        if checkpoint and state is None:
            checkpoint.save(trainer.state())
        _loop(trainer, run, checkpoint, observers)
        outcome = trainer.outcome()
    for observer in observers:
        observer.ends(outcome)
    return outcome


def _loop(trainer: _Trainer, run: Training, checkpoint: Checkpoint | None, observers: Sequence[Observer]) -> None:
    progress = trainer.progress
    tests = sorted({round(run.iterations * i / run.evaluations) for i in range(1, run.evaluations + 1)} - {0})
    window = 1 if trainer.device.type == "cpu" else _WINDOW
    while progress.iteration < run.iterations:
        next_test = next(test for test in tests if test > progress.iteration)
        loss = trainer.advance(min(progress.iteration + window, next_test))
        for observer in observers:
            observer.advances(progress, loss)
        if progress.diverged_at is not None:
            return
        if progress.iteration == next_test:
            evaluation = trainer.evaluate()
            for observer in observers:
                observer.evaluates(evaluation)
        if checkpoint and checkpoint.due:
            checkpoint.save(trainer.state())


def _check(run: Training, images: ImageSet) -> None:
    """Refuse a set that does not fit the network."""
    shape = NETWORKS[run.network]
    wanted = (shape.channels, shape.pixels, shape.pixels)
    if images.shape != wanted:
        raise OptionError(
            f"{run.network} takes images of shape {wanted} (channels, height, width); {run.data} has such of shape {images.shape}"
        )
    if run.classes is not None and run.classes < images.classes:
        raise OptionError(f"{run.data} has {images.classes} classes, more than the classes={run.classes} of the network")


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """torch's global generators, which dropout draws from, end as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


class _Trainer:
    """Network, solver and data of one run, at one iteration."""

    def __init__(self, run: Training, images: ImageSet, device: torch.device, *, compiled: bool) -> None:
        self.run = run
        self.device = device
        self.progress = Progress()
        torch.manual_seed(seed_of(run.seed, "weights"))
        classes = run.classes or images.classes
        model = make_network(run.network, activation=run.activation, norm=run.norm, classes=classes)
        self.model: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
        self._called = torch.compile(self.model) if compiled else self.model
        self._solver = Solver(run, self.model)
        self._loss = LOSSES[run.loss]
        self._train = images.train.first(run.train_images).to(device)
        self._test = images.test.first(run.test_images).to(device)
        self._preprocessing = Preprocessing.fitted(run.pixels, self._train)
        self._batches = self._batches_of(run.batch, seed_of(run.seed, "batches"))
        self._tracked = _tracked(run.iterations) if run.updates else frozenset()

    def _batches_of(self, size: int, seed: int) -> Batches:
        augmentation = Augmentation(self.run.pad, self.run.mirror)
        return Batches(self._train, self._preprocessing, augmentation, size, seed)

    def initialize(self) -> Report:
        """Give the network its first weights."""
        run, start = self.run, time.perf_counter()
        generator = torch.Generator().manual_seed(seed_of(run.seed, "init"))
        x, _ = self._batches_of(run.init_batch, seed_of(run.seed, "init batch"))[0]
        report = init_(self.model, run.init, x, gain=run.init_gain, generator=generator)  # type: ignore[arg-type]  # a name of a scheme
        self.progress.init_seconds = time.perf_counter() - start
        torch.manual_seed(seed_of(run.seed, "dropout"))
        return report

    def advance(self, stop: int) -> float:
        """Train up to an iteration; returns the last loss. Where one is not finite, its iteration is noted and the last."""
        progress, start = self.progress, time.perf_counter()
        self.model.train()
        losses = []
        for iteration in range(progress.iteration, stop):
            x, y = self._batches[iteration]
            with self._autocast():
                loss = self._loss(self._called(x), y)
            loss.backward()
            self._step(iteration)
            losses.append(loss.detach())
        values = torch.stack(losses).double().tolist()
        finite = [math.isfinite(value) for value in values]
        if not all(finite):
            progress.diverged_at = progress.iteration + finite.index(False) + 1
            stop = progress.diverged_at
        progress.losses += sum(values[: stop - progress.iteration])
        progress.iteration = stop
        progress.seconds += time.perf_counter() - start
        return float(values[-1])

    def _step(self, iteration: int) -> None:
        if iteration not in self._tracked:
            self._solver.step(iteration)
            return
        weights = {name: p for name, p in self.model.named_parameters() if p.dim() > 1}
        before = {name: p.detach().clone() for name, p in weights.items()}
        self._solver.step(iteration)
        for name, p in weights.items():
            size = torch.linalg.vector_norm(p.detach() - before[name]) / torch.linalg.vector_norm(before[name])
            self.progress.updates.setdefault(name, []).append([iteration + 1, size.item() if size.isfinite() else -1.0])

    @torch.inference_mode()
    def evaluate(self) -> Evaluation:
        """Test the network on all test images."""
        self.model.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for x, y in in_order(self._test, self._preprocessing, _TEST_BATCH):
            with self._autocast():
                right += (self.model(x).argmax(1) == y).sum()
        progress = self.progress
        since = progress.iteration - (int(progress.evaluations[-1][0]) if progress.evaluations else 0)
        evaluation = Evaluation(progress.iteration, right.item() / len(self._test), progress.losses / since)
        progress.evaluations.append([evaluation.iteration, evaluation.accuracy, evaluation.loss])
        progress.losses = 0.0
        return evaluation

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.run.precision == "bfloat16")

    def state(self) -> State:
        """All that the rest of the training depends on; where the batches stand follows from the iteration."""
        return {
            "progress": asdict(self.progress),
            "model": self.model.state_dict(),
            "optimizer": self._solver.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def take_up(self, state: State) -> None:
        """Be where the state was taken."""
        self.progress = Progress(**state["progress"])
        self.progress.interruptions += 1
        self.model.load_state_dict(state["model"])
        self._solver.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)

    def outcome(self) -> Outcome:
        """What the training came to."""
        largest = self._test.labels.bincount().max().item() / len(self._test)
        guessing = largest + 3 * math.sqrt(largest * (1 - largest) / len(self._test))
        return Outcome(self.progress, self.run.batch, guessing, _sha256(self.model))


def _tracked(iterations: int) -> frozenset[int]:
    """The iterations, from 0, whose updates are recorded: the first ones, and then ever fewer."""
    spread = (round(iterations ** (i / (_TRACKED - 1))) - 1 for i in range(_TRACKED))
    return frozenset(spread)


def _sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
