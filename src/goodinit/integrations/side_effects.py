"""Running a LightningModule's training_step without its side effects: logging, metrics, attributes."""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

_CONTAINERS = (list, dict, set, deque)
_OF_MODULES = frozenset(vars(nn.Module()))
"""Attributes of every module: parameters, buffers, hooks. They are `goodinit.guard`'s business."""


@contextmanager
def none_left(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, nothing is logged; afterwards the attributes of the module and the states of metrics in it are as before.

    Of an attribute that is a list, dict, set or deque the items are put back, of a tensor the numbers.
    """
    loggers, dummy = trainer.loggers, _package(trainer).loggers.logger.DummyLogger
    kept = [(part, _attributes(part, deep=part is not module)) for part in _changing(module)]
    trainer.loggers = [dummy() for _ in loggers]
    vars(module).update(log=_nothing, log_dict=_nothing)
    try:
        yield
    finally:
        trainer.loggers = loggers
        for part, attributes in kept:
            _put_back(part, attributes)


def _package(trainer: Trainer) -> Any:
    """Lightning, by the name that the trainer was imported by."""
    packages = (sys.modules.get(name) for name in ("lightning.pytorch", "pytorch_lightning"))
    return next(package for package in packages if package is not None and isinstance(trainer, package.Trainer))


def _nothing(*_: Any, **__: Any) -> None:
    """In place of ``self.log``."""


def _changing(module: nn.Module) -> Iterator[nn.Module]:
    """The module, and the metrics of torchmetrics in it, whose states are no buffers."""
    yield module
    metrics = sys.modules.get("torchmetrics")
    if metrics is not None:
        yield from (m for m in module.modules() if isinstance(m, (metrics.Metric, metrics.MetricCollection)))


def _attributes(part: nn.Module, *, deep: bool) -> dict[str, tuple[Any, Any]]:
    """Every attribute with a copy of what it holds; of one that can hold nothing else, None."""
    copied = copy.deepcopy if deep else copy.copy
    held = ((name, value) for name, value in vars(part).items() if name not in _OF_MODULES)
    return {name: (value, _contents(value, copied)) for name, value in held}


def _contents(value: Any, copied: Any) -> Any:
    if isinstance(value, Tensor) and not value.is_inference():
        return value._version, value.detach().clone()
    return copied(value) if type(value) in _CONTAINERS else None


@torch.no_grad()
def _put_back(part: nn.Module, attributes: dict[str, tuple[Any, Any]]) -> None:
    held = vars(part)
    for name in held.keys() - attributes.keys() - _OF_MODULES:
        del held[name]
    for name, (value, contents) in attributes.items():
        held[name] = value
        if contents is None:
            continue
        if isinstance(value, Tensor):
            version, numbers = contents
            if value._version != version:
                value.copy_(numbers)
        else:
            value.clear()
            (value.extend if isinstance(value, (list, deque)) else value.update)(contents)
