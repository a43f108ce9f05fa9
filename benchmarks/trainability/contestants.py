"""The contestants: what is done to a network in PyTorch's default initialization before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from goodinit import Report, init_, lsuv_
from goodinit.paper.blocks import Prepared
from trainability.tasks import Task

Batch = Callable[[int], tuple[Tensor, Tensor]]
Call = Callable[[nn.Module, Task, Batch], object]


class NotApplicableError(Exception):
    """A contestant that a task has no use for."""


@dataclass(frozen=True)
class Contestant:
    """How to make a network's first weights."""

    name: str
    about: str
    call: Call
    variant: str = ""
    """Of the network: ``"norm"``, ``"fixup"``, ``"skipinit"``; empty for the network as it is."""
    revision: str = ""
    """Changes with what it does, so that older rows do not count."""
    core: bool = False
    """Whether it is in the first rows of the plan."""

    def applies(self, task: Task) -> bool:
        """Whether the task has what it needs, and is not held out from it."""
        if task.held_out and not self.core:
            return False
        if self.variant:
            return task.norm is not None if self.variant == "norm" else self.variant in task.others
        needs = {"authors": task.own is not None, "lsuv-branches": bool(task.branches), "lsuv-after": task.unbounded}
        return needs.get(self.name, True)

    def network(self, task: Task) -> nn.Module:
        """In PyTorch's default initialization."""
        if not self.variant:
            return task.make()
        made = task.norm() if self.variant == "norm" and task.norm is not None else task.others[self.variant]()
        blocks = [module for module in made.modules() if isinstance(module, Prepared)]
        for block in blocks:
            block.prepare_(len(blocks), 0.0)
        return made


def _nothing(_model: nn.Module, _task: Task, _batch: Batch) -> None:
    pass


def _scheme(name: Any) -> Call:
    return lambda model, task, batch: init_(model, name, batch(0)[0], nonlinearity=task.nonlinearity)


def _lsuv(*, targets: bool = False, **options: Any) -> Call:
    """``targets``: whether it sees them, as in a loader's batch."""

    def call(model: nn.Module, _task: Task, batch: Batch) -> Report:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what could not be scaled shows in the training
            return lsuv_(model, batch(0) if targets else batch(0)[0], **options)

    return call


def _lsuv_head(model: nn.Module, _task: Task, batch: Batch) -> Report:
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    return lsuv_(model, batch(0)[0], target_std={last: 0.1})


def _lsuv_branches(model: nn.Module, task: Task, batch: Batch) -> Report:
    ends = [name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in task.branches)]
    return lsuv_(model, batch(0)[0], target_std=dict.fromkeys(ends, len(ends) ** -0.5))


@torch.no_grad()
def _lsuv_after(model: nn.Module, task: Task, batch: Batch) -> None:
    init_(model, "orthonormal", nonlinearity=task.nonlinearity)
    x, layers = batch(0)[0], list(model.children())
    for layer, following in zip(layers, [*layers[1:], nn.Identity()], strict=True):
        x = layer(x)
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            factor = _factor(x, following)
            layer.weight.mul_(factor)
            x = x * factor  # biases are 0


def _factor(x: Tensor, nonlinearity: nn.Module) -> float:
    """Of ``x``, with which the std after a non-linearity is 1: by halving an interval, in powers of ten."""
    low, high = -6.0, 6.0
    for _ in range(40):
        middle = (low + high) / 2
        if nonlinearity(10**middle * x).std(correction=0) < 1:
            low = middle
        else:
            high = middle
    return float(10**high)


def _lsuv_package(model: nn.Module, _task: Task, batch: Batch) -> None:
    from lsuv import lsuv_with_singlebatch

    lsuv_with_singlebatch(model, batch(0)[0], verbose=False)
    model.train()


def _anyinit(mode: str) -> Call:
    def call(model: nn.Module, _task: Task, batch: Batch) -> None:
        import anyinit

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            anyinit.initialize(model, mode, batch(0)[0], seed=int(torch.randint(2**31, ())))
        model.train()

    return call


def _gradinit(model: nn.Module, task: Task, batch: Batch) -> None:
    from trainability.gradinit import gradinit_

    gradinit_(model, batch, task.loss, nonlinearity=task.nonlinearity)


def _authors(model: nn.Module, task: Task, _batch: Batch) -> None:
    if task.own is None:
        raise NotApplicableError
    task.own(model)


CONTESTANTS: dict[str, Contestant] = {
    c.name: c
    for c in (
        Contestant("default", "what PyTorch's layers start with", _nothing, core=True),
        Contestant("glorot", "Glorot & Bengio 2010", _scheme("glorot")),
        Contestant("he", "He et al. 2015, with the gain of the non-linearity", _scheme("he"), core=True),
        Contestant("orthonormal", "Saxe et al. 2014", _scheme("orthonormal"), core=True),
        Contestant("lsuv", "lsuv_(model, x): the paper", _lsuv(), core=True),
        Contestant(
            "lsuv-auto",
            'lsuv_(…, target_std="auto")',
            _lsuv(target_std="auto", targets=True),
            revision="likeness, classes",
            core=True,
        ),
        Contestant("lsuv-0.3", "lsuv_(…, target_std=0.3)", _lsuv(target_std=0.3)),
        Contestant("lsuv-0.1", "lsuv_(…, target_std=0.1)", _lsuv(target_std=0.1)),
        Contestant("lsuv-centred", "lsuv_(…, center=True)", _lsuv(center=True)),
        Contestant("lsuv-mean1", "lsuv_(…, center=True, target_mean=1)", _lsuv(center=True, target_mean=1.0)),
        Contestant("lsuv-mean2", "lsuv_(…, center=True, target_mean=2)", _lsuv(center=True, target_mean=2.0)),
        Contestant("lsuv-samples", 'lsuv_(…, variance="samples")', _lsuv(variance="samples")),
        Contestant("lsuv-channels", 'lsuv_(…, variance="channels", center=True)', _lsuv(variance="channels", center=True)),
        Contestant("lsuv-head", "lsuv_, the last layer's target 0.1", _lsuv_head),
        Contestant("lsuv-after", "the std 1 after the non-linearity, not before it; orthonormal weights", _lsuv_after),
        Contestant("lsuv-branches", "lsuv_, the target of branches' ends 1 / sqrt(how many there are)", _lsuv_branches),
        Contestant("lsuv-package", "the package lsuv 0.3.0", _lsuv_package),
        Contestant("anyinit", "the package anyinit 0.4.0, analytic", _anyinit("analytic")),
        Contestant("anyinit-empirical", "the package anyinit 0.4.0, empirical", _anyinit("empirical")),
        Contestant("gradinit", "GradInit (Zhu et al. 2021), ours after the paper, 30 steps", _gradinit),
        Contestant("authors", "what the network's authors prescribe (SIREN)", _authors),
        Contestant("fixup", "Fixup's blocks (Zhang et al. 2019)", _nothing, variant="fixup"),
        Contestant("skipinit", "SkipInit's blocks (De & Smith 2020), He", _nothing, variant="skipinit"),
        Contestant("normalized", "normalization layers added, PyTorch's default", _nothing, variant="norm", core=True),
    )
}


def chosen(names: Sequence[str]) -> list[Contestant]:
    """By name; all of none."""
    return [CONTESTANTS[name] for name in names] if names else list(CONTESTANTS.values())
