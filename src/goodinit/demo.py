"""A deep network without normalization layers, trained from PyTorch's default initialization and from LSUV: ``goodinit demo``.

`run_demo` computes and returns a `Demo`; `Story` prints it while it happens; `picture` draws it.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.errors import OptionError, did_you_mean, require
from goodinit.images import CLASSES, Images, digits, mnist
from goodinit.lsuv import lsuv_
from goodinit.measurement.propagation import Layer, measure
from goodinit.plots import short_name, spread
from goodinit.report import Report
from goodinit.training_plots import demo_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATA = ("digits", "mnist")
CHANNELS, BATCH, MOMENTUM = 16, 64, 0.9
GUESSING = math.log(CLASSES)  # the loss where every class is thought equally likely
# How many training images lsuv_ and the measurements see.
SAMPLE = 256
# Activation -> module, and a learning rate at which 30 layers train from LSUV.
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {"tanh": (nn.Tanh, 0.01), "relu": (nn.ReLU, 0.001)}


@dataclass(frozen=True)
class Setting:
    """What to run."""

    data: str = "digits"
    """One of `DATA`."""
    data_dir: Path | None = None
    """Where MNIST's parquet files are; None for a download."""
    steps: int = 400
    seed: int = 0
    depth: int = 30
    """Number of convolutions; a linear layer comes after them."""
    activation: str = "tanh"
    """A key of `ACTIVATIONS`."""
    lr: float | None = None
    """None for the activation's in `ACTIVATIONS`."""

    @property
    def learning_rate(self) -> float:
        """The one that is used."""
        return ACTIVATIONS[self.activation][1] if self.lr is None else self.lr

    def __str__(self) -> str:
        return f"{self.depth} {self.activation} convolutions of {CHANNELS} channels and a linear layer"

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            OptionError: says which option, what it was and what it may be.
        """
        for option, name, known in (("data", self.data, DATA), ("activation", self.activation, tuple(ACTIVATIONS))):
            if name not in known:
                raise OptionError(f"{option} must be {' or '.join(known)}; got {name!r}{did_you_mean(name, known)}")
        for option, number in (("steps", self.steps), ("depth", self.depth)):
            if number < 1:
                raise OptionError(f"{option} must be 1 or more; got {number}")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed must be from 0 to 2**63 - 1; got {self.seed}")
        if not 0 < self.learning_rate <= torch.finfo(torch.float32).max:
            raise OptionError(f"lr must be a positive number; got {self.lr}")
        if self.data_dir is not None and self.data != "mnist":
            raise OptionError(
                f"{self.data} needs no data folder, got {str(self.data_dir)!r}; a data folder is for mnist (--data mnist)"
            )


@dataclass(frozen=True)
class Run:
    """One training, from one initialization."""

    signals: tuple[Layer, ...]
    """Of every layer before training."""
    report: Report | None
    """What `lsuv_` did, if it was called."""
    losses: list[float] = field(repr=False)
    """Of every step's batch; fewer than asked for if one was infinite or NaN, the last then."""
    seconds: float
    """Of the training alone."""
    train_accuracy: float
    test_accuracy: float

    @property
    def start(self) -> str:
        """Name of the initialization."""
        return "PyTorch's default" if self.report is None else "LSUV"

    @property
    def final_loss(self) -> float:
        """Mean of the last twentieth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 20) :]
        return sum(last) / len(last)


@dataclass(frozen=True)
class Demo:
    """What `run_demo` found."""

    setting: Setting
    images: str
    default: Run
    lsuv: Run


class Silence:
    """What `run_demo` tells its progress to; this one keeps it to itself."""

    def opening(self, setting: Setting, images: Images, parameters: int) -> None:
        """Both runs are about to start."""

    def initialized(self, signals: tuple[Layer, ...], report: Report | None) -> None:
        """A network is about to be trained."""

    def training(self, losses: Iterator[float], steps: int) -> Iterator[float]:  # noqa: ARG002 - for those that show progress
        """Pass the losses on as the training yields them."""
        return losses

    def trained(self, run: Run) -> None:
        """A network has been trained."""


def run_demo(setting: Setting, tell: Silence | None = None) -> Demo:
    """Train the network from PyTorch's default initialization and from LSUV, with the same batches in the same order.

    Raises:
        OptionError: a setting that cannot be meant.
        DataError: the data is not where it was said to be, or not what it should be.
        MissingExtraError: a package that reads the data is not installed.
    """
    setting.check()
    tell = tell or Silence()
    with _one_thread():
        images = digits() if setting.data == "digits" else mnist(setting.data_dir)
        default = seeded_network(setting, images.train.shape[-1])
        ours = copy.deepcopy(default)
        tell.opening(setting, images, sum(p.numel() for p in default.parameters()))
        first = _run(default, None, setting, images, tell)
        report = lsuv_(ours, images.train[:SAMPLE], generator=torch.Generator().manual_seed(setting.seed))
        second = _run(ours, report, setting, images, tell)
    return Demo(setting, str(images), first, second)


def _run(model: nn.Module, report: Report | None, setting: Setting, images: Images, tell: Silence) -> Run:
    """Measure, train and test one network."""
    signals = measure(model, images.train[:SAMPLE]).layers
    tell.initialized(signals, report)
    began = time.perf_counter()
    order = batches(len(images.train), setting.steps, setting.seed)
    losses = list(tell.training(train(model, images.train, images.train_labels, order, setting.learning_rate), setting.steps))
    seconds = time.perf_counter() - began
    train_accuracy = accuracy(model, images.train, images.train_labels)
    test_accuracy = accuracy(model, images.test, images.test_labels)
    run = Run(signals, report, losses, seconds, train_accuracy, test_accuracy)
    tell.trained(run)
    return run


@contextmanager
def _one_thread() -> Iterator[None]:
    """The layers are so small that a second thread saves a third of the time at most; on a busy machine, where threads wait for
    each other, it costs many times more.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seeded_network(setting: Setting, size: int) -> nn.Sequential:
    """The network for images of size x size pixels in PyTorch's default initialization; the global generator ends as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(setting.seed)  # unlike torch.manual_seed, leaves the generators of GPUs alone
        return network(setting.depth, setting.activation, size)


def network(depth: int, activation: str, size: int) -> nn.Sequential:
    """``depth`` convolutions of 3x3 that keep the size, each with its activation, and a linear layer; nothing else."""
    layers: dict[str, nn.Module] = {}
    for i in range(1, depth + 1):
        layers[f"conv{i}"] = nn.Conv2d(1 if i == 1 else CHANNELS, CHANNELS, kernel_size=3, padding=1)
        layers[f"{activation}{i}"] = ACTIVATIONS[activation][0]()
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(CHANNELS * size * size, CLASSES)
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def batches(count: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Indices of each step's images, every image once an epoch, in an order that follows from the seed.

    A last, smaller batch of an epoch is left out.
    """
    generator = torch.Generator().manual_seed(seed)
    per_epoch = max(1, count // BATCH)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(count, generator=generator)
        first = step % per_epoch * BATCH
        yield order[first : first + BATCH]


def train(model: nn.Module, images: Tensor, labels: Tensor, order: Iterable[Tensor], lr: float) -> Iterator[float]:
    """Train with SGD and yield the loss of every step; stops early where it is no longer finite."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    model.train()
    for batch in order:
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
        if not loss.isfinite():
            return


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model gives the right class."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return right / len(images)


class Story(Silence):
    """Prints `run_demo` as it goes: with progress bars on a terminal, as plain lines elsewhere."""

    def opening(self, setting: Setting, images: Images, parameters: int) -> None:
        """What will be trained, on what, and how."""
        print("A deep network without normalization layers, trained from two initializations.\n")
        print(f"  data      {images}")
        print(f"  network   {setting}: {parameters:,} parameters")
        print(f"  training  SGD, learning rate {setting.learning_rate:g}, momentum {MOMENTUM};")
        print(f"            {setting.steps} steps of {BATCH} images, both times the same in the same order", flush=True)

    def initialized(self, signals: tuple[Layer, ...], report: Report | None) -> None:
        """The layers before training."""
        if report is None:
            print("\n1. PyTorch's default initialization\n")
            print(f"  Outputs of the layers before training, on {SAMPLE} training images:")
            print(f"  {'layer':<8}{'std':>8}{'std between images':>22}")
            for i in spread(len(signals), 7):
                print(f"  {short_name(signals[i].name):<8}{signals[i].std:>8.2g}{signals[i].sample_std:>22.2g}")
        else:
            print("\n2. LSUV: goodinit.lsuv_(model, images)\n")
            report.show()
            print("(std as drawn: with the orthonormal matrix, the layers above it being scaled already)\n")
        print(f"  {_signal_text(signals[-1])}\n", flush=True)

    def training(self, losses: Iterator[float], steps: int) -> Iterator[float]:
        """The loss, step by step."""
        return _bar(losses, steps) if sys.stdout.isatty() else _lines(losses, steps)

    def trained(self, run: Run) -> None:
        """What came of it."""
        print(f"  {_loss_text(run)}")
        verdict = "it trains" if run.test_accuracy > 2 / CLASSES else "nothing was learned"
        accuracies = f"training {run.train_accuracy:.1%}, test {run.test_accuracy:.1%}"
        print(f"  Accuracy after {run.seconds:.1f} s: {accuracies}: {verdict}.", flush=True)

    def ending(self, demo: Demo, path: Path) -> None:
        """The result, and where its picture is."""
        accuracies = " and ".join(f"{run.test_accuracy:.1%} from {run.start}" for run in (demo.default, demo.lsuv))
        print(f"\nTest accuracy: {accuracies}.")
        if demo.lsuv.report is not None:
            print(f"lsuv_ took {demo.lsuv.report.seconds:.2f} s.")
        print(f"Picture: {path}")


def picture(demo: Demo) -> Figure:
    """Signals before training and losses, of both runs."""
    losses = {run.start: run.losses for run in (demo.default, demo.lsuv)}
    title = f"{demo.setting}; {demo.images}"
    figure, _ = demo_figure(demo.default.signals, demo.lsuv.signals, losses, title=title, guessing=GUESSING)
    return figure


def _signal_text(last: Layer) -> str:
    """What reaches the last layer."""
    if last.sample_std < 1e-3 * last.std:
        return (
            f"The std of {last.std:.2g} at the last layer comes from biases. Between images it is {last.sample_std:.1g}:\n"
            "  whatever the image, the network gives the same answer."
        )
    return f"The std at the last layer is {last.std:.2g}, between images {last.sample_std:.2g}."


def _loss_text(run: Run) -> str:
    """Where the loss began and where it ended."""
    if not math.isfinite(run.losses[-1]):
        return f"Training diverged: the loss was {run.losses[-1]} at step {len(run.losses)}. A smaller --lr may help."
    return f"Loss {run.losses[0]:.3f} at first, {run.final_loss:.3f} at the end; guessing has ln {CLASSES} = {GUESSING:.3f}."


def _lines(losses: Iterator[float], steps: int) -> Iterator[float]:
    """The first step, and each quarter, as a line."""
    for step, loss in enumerate(losses, 1):
        if step == 1 or step * 4 // steps > (step - 1) * 4 // steps:
            print(f"  step {step:>4} of {steps}: loss {loss:.3f}", flush=True)
        yield loss


def _bar(losses: Iterator[float], steps: int) -> Iterator[float]:
    require("rich", extra="cli")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("  training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=steps, loss="")
        for loss in losses:
            progress.update(task, advance=1, loss=f"{loss:.3f}")
            yield loss
