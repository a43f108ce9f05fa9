"""One plain loop: initialize, train, test, and be able to go on after an interruption at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from goodinit.errors import OptionError
from goodinit.paper.checkpoint import Checkpoint, CheckpointError
from goodinit.paper.config import Training
from goodinit.paper.data import ImageSet
from goodinit.paper.networks import NETWORKS
from goodinit.paper.outcome import Observer, Outcome
from goodinit.paper.precision import exact_float32
from goodinit.paper.trainer import Trainer, seen_size
from goodinit.paper.world import World

# Losses are fetched from a GPU once in so many iterations, since that waits for it.
_WINDOW = 50


def train(
    run: Training,
    images: ImageSet,
    *,
    device: torch.device,
    teacher: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
    compiled: bool = False,
    origin: str = "",
    observers: Sequence[Observer] = (),
) -> Outcome:
    """Run one training from its beginning or its checkpoint to its end.

    Where torch.distributed is initialized, all its processes train together: each has its part of every batch, and only the
    first one keeps checkpoints and tells observers. All have to have the same settings, images and checkpoint.

    Args:
        run: its settings.
        images: the decoded set.
        device: where to train.
        teacher: the trained teacher, for hints and distillation.
        checkpoint: where to keep the state, about once a minute.
        compiled: whether to train with torch.compile.
        origin: what does the training: the progress has a list of those that took part in it.
        observers: told how it goes.

    Raises:
        OptionError: images of another form than the network takes, more classes than it has, batches larger than the set.
        CheckpointError: the checkpoint is broken, or of another run.
        SaveError: the disk is full; the last checkpoint is as it was.
    """
    world = World()
    _check(run, images, world)
    observers = observers if world.first else ()
    with _own_randomness(device), exact_float32(device):
        trainer = Trainer(run, images, device, world, teacher, compiled=compiled)
        report = None
        state = world.of_first(checkpoint.load() if checkpoint and world.first else None)
        if state is None:
            report = trainer.initialize()
        else:
            try:
                trainer.take_up(state)
            except CheckpointError:
                raise
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"the checkpoint is of another version of goodinit ({error}); delete it to begin anew"
                ) from error
        if origin and origin not in trainer.progress.origins:
            trainer.progress.origins.append(origin)
        for observer in observers:
            observer.begins(run, images, trainer.progress, report)
        if state is None:
            _save(checkpoint, trainer)
        _loop(trainer, run, checkpoint, observers)
        outcome = trainer.outcome()
    for observer in observers:
        observer.ends(outcome)
    return outcome


def _loop(trainer: Trainer, run: Training, checkpoint: Checkpoint | None, observers: Sequence[Observer]) -> None:
    progress = trainer.progress
    length = run.total - run.hint_iterations
    tests = {run.hint_iterations + round(length * i / run.evaluations) for i in range(1, run.evaluations + 1)}
    stops = sorted(tests | {run.hint_iterations, run.total})
    window = 1 if trainer.device.type == "cpu" else _WINDOW
    while progress.iteration < run.total:
        next_stop = next(stop for stop in stops if stop > progress.iteration)
        loss = trainer.advance(min(progress.iteration + window, next_stop))
        for observer in observers:
            observer.advances(progress, loss)
        if progress.diverged_at is not None:
            return
        if progress.iteration in tests and progress.iteration > run.hint_iterations:
            evaluation = trainer.evaluate()
            for observer in observers:
                observer.evaluates(evaluation)
        if checkpoint and trainer.world.of_first(checkpoint.due):
            _save(checkpoint, trainer)


def _save(checkpoint: Checkpoint | None, trainer: Trainer) -> None:
    if checkpoint:
        state = trainer.state()  # which all processes have a part in
        if trainer.world.first:
            checkpoint.save(state)


def _check(run: Training, images: ImageSet, world: World) -> None:
    """Refuse a set that does not fit the network, and processes that do not fit each other."""
    network, size = NETWORKS[run.network], seen_size(run, images)
    channels, height, width = images.shape
    if (channels, network.pixels or size) != (network.channels, size) or (not run.crop and height != width):
        pixels = network.pixels or size
        raise OptionError(
            f"{run.network} takes images of shape {(network.channels, pixels, pixels)} (channels, height, width); "
            f"{run.data} has such of shape {images.shape}"
        )
    if run.crop > min(height, width) + 2 * run.pad:
        around = f"{height}x{width} and {run.pad} around"
        raise OptionError(f"a crop of {run.crop} pixels is larger than the images of {run.data}, {around}")
    if run.classes is not None and run.classes < images.classes:
        raise OptionError(f"{run.data} has {images.classes} classes, more than the classes={run.classes} of the network")
    world.check_batch(run.batch)
    world.agree("images", images.train.facts.sha256[:12])
    world.agree("settings", run.key)


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """torch's global generators, which dropout draws from, end as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
