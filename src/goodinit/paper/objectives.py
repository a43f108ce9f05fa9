"""What a network is trained for: to classify, to predict a teacher's hidden layer, or to answer as the teacher does."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.errors import OptionError
from goodinit.paper.blocks import Style
from goodinit.paper.config import Training

Loss = Callable[[Tensor, Tensor], Tensor]


class Objective(nn.Module):
    """A loss as a module: (images, labels, how much of the stage is over, from 0 to 1) -> a number. Its parameters learn."""

    def forward(self, x: Tensor, labels: Tensor, done: Tensor) -> Tensor:
        """The loss of a batch."""
        raise NotImplementedError


class Classification(Objective):
    """The network's scores against the labels; those of auxiliary classifiers too."""

    def __init__(self, model: nn.Module, loss: Loss, auxiliary: float) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self._auxiliary = auxiliary

    def forward(self, x: Tensor, labels: Tensor, done: Tensor) -> Tensor:  # noqa: ARG002 - the same all the time
        """The loss of a batch."""
        scores = self.model(x)
        if isinstance(scores, Tensor):
            return self._loss(scores, labels)
        main, *others = (self._loss(each, labels) for each in scores)
        return main + self._auxiliary * torch.stack(others).sum()


class Hint(Objective):
    """1/2 |u_h - r(v_g)|^2, u_h the teacher's middle layer, v_g the student's, r a convolutional regressor (Romero et al. 2015).

    Sum over all elements of u_h, mean over the images. What of the student lies behind v_g is not trained. The student's guided
    layer is the last convolution of its second stage (FitNet-4's 11th, FitNet-MNIST's 4th), the teacher's hint layer the first
    one of its own.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, style: Style, x: Tensor) -> None:
        """``x``: a batch of images, by which the shapes of the layers are found."""
        super().__init__()
        guided, hint = _last_of_stage(student, 2), _first_of_stage(teacher, 2)
        self.guided = _up_to(student, guided)
        self._hint = Frozen(_up_to(teacher, hint))
        with torch.no_grad(), _testing(self.guided):
            v, u = self.guided(x), self._hint(x)
        kernel = v.shape[2] - u.shape[2] + 1
        if kernel < 1 or v.shape[2] - v.shape[3] != u.shape[2] - u.shape[3]:
            raise OptionError(
                f"the student's layer {guided!r} of shape {tuple(v.shape[1:])} (channels, height, width) cannot be guided by the "
                f"teacher's {hint!r} of shape {tuple(u.shape[1:])}: it has to be at least as high and wide"
            )
        self.regressor = style.convolution(v.shape[1], u.shape[1], 1)
        if kernel > 1:
            first = self.regressor[0]
            assert isinstance(first, nn.Conv2d)
            self.regressor[0] = nn.Conv2d(v.shape[1], first.out_channels, kernel)

    def forward(self, x: Tensor, labels: Tensor, done: Tensor) -> Tensor:  # noqa: ARG002 - needs no labels
        """The loss of a batch."""
        with torch.no_grad():
            u = self._hint(x)
        difference: Tensor = u - self.regressor(self.guided(x))
        return difference.square().flatten(1).sum(1).mean() / 2


class Distillation(Objective):
    """H(y, P_S) + lambda H(P_T^tau, P_S^tau): cross-entropy with the labels and, at the temperature tau, with the teacher.

    Lambda falls linearly during the stage.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, run: Training) -> None:
        super().__init__()
        self.student = student
        self._teacher = Frozen(teacher)
        self._run = run

    def forward(self, x: Tensor, labels: Tensor, done: Tensor) -> Tensor:
        """The loss of a batch."""
        run = self._run
        scores = self.student(x)
        with torch.no_grad():
            softened = (self._teacher(x) / run.temperature).softmax(1)
        weight = torch.lerp(torch.full_like(done, run.distill_from), torch.full_like(done, run.distill_to), done)
        return F.cross_entropy(scores, labels) + weight * F.cross_entropy(scores / run.temperature, softened)


class Frozen:
    """A network that is used, and not trained: no part of the module that holds it, in eval mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    def __call__(self, x: Tensor) -> Tensor:
        """Its output."""
        out: Tensor = self.model(x)
        return out


def _convolutions(model: nn.Module, stage: int) -> list[str]:
    """Names of the blocks with convolutions of a stage, in order."""
    return [name for name, _ in model.named_children() if name.startswith(f"conv{stage}_")]


def _last_of_stage(model: nn.Module, stage: int) -> str:
    return _convolutions(model, stage)[-1]


def _first_of_stage(model: nn.Module, stage: int) -> str:
    return _convolutions(model, stage)[0]


def _up_to(model: nn.Module, name: str) -> nn.Sequential:
    """The first layers of a network, shared with it, up to one of a name."""
    names = [child for child, _ in model.named_children()]
    layers = itertools.islice(model.named_children(), names.index(name) + 1)
    found = nn.Sequential()
    for child, layer in layers:
        found.add_module(child, layer)
    return found


@contextmanager
def _testing(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
