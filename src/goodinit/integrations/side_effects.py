"""Running a LightningModule's training_step without its side effects: logging, metrics, attributes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from goodinit.containers import CONTAINERS, items_of, refill
from goodinit.guard import OF_MODULES

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


@contextmanager
def none_left(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, nothing is logged; afterwards the attributes of all modules and the states of metrics are as before.

    Of attributes that are lists, dicts, sets or deques, of any class and inside of each other, the items are put back, of tensors
    of the module itself the numbers.
    """
    loggers, dummy = trainer.loggers, package_of(trainer).loggers.logger.DummyLogger
    metrics = {id(metric) for metric in _metrics(module)}
    kept = []
    for part in module.modules():
        # Tensors of all other modules are the business of `goodinit.guard`.
        with_tensors = part is module or id(part) in metrics
        kept.append((part, _attributes(part, deep=id(part) in metrics, with_tensors=with_tensors), with_tensors))
    trainer.loggers = [dummy() for _ in loggers]
    vars(module).update(log=_nothing, log_dict=_nothing)
    try:
        yield
    finally:
        trainer.loggers = loggers
        for part, attributes, with_tensors in kept:
            _put_back(part, attributes, with_tensors=with_tensors)


def package_of(trainer: Trainer) -> Any:
    """Lightning, by the name that the trainer was imported by."""
    packages = (sys.modules.get(name) for name in ("lightning.pytorch", "pytorch_lightning"))
    return next(package for package in packages if package is not None and isinstance(trainer, package.Trainer))


def _nothing(*_: Any, **__: Any) -> None:
    """In place of ``self.log``."""


def _metrics(module: nn.Module) -> Iterator[nn.Module]:
    """The metrics of torchmetrics in it, whose states are no buffers."""
    metrics = sys.modules.get("torchmetrics")
    if metrics is not None:
        yield from (m for m in module.modules() if isinstance(m, (metrics.Metric, metrics.MetricCollection)))


Kept = dict[str, tuple[Any, list[Callable[[], object]]]]
"""Attributes by name: the value, and what gives it back what it held."""


def _attributes(part: nn.Module, *, deep: bool, with_tensors: bool) -> Kept:
    held = {name: value for name, value in vars(part).items() if name not in OF_MODULES}
    return {
        name: (value, [] if isinstance(value, Tensor) and not with_tensors else list(_restoring(value, set(), tensors=deep)))
        for name, value in held.items()
    }


def _restoring(value: Any, seen: set[int], *, tensors: bool, outermost: bool = True) -> Iterator[Callable[[], object]]:
    """What gives containers, those in them, and tensors back what they hold now. ``tensors``: those in containers too."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if (outermost or tensors) and not value.is_inference():
            yield partial(_renumber, value, value._version, value.detach().clone())
    elif isinstance(value, CONTAINERS):
        held = items_of(value)
        yield partial(refill, value, held)
        for item in [item for _, item in held] if isinstance(value, dict) else held:
            yield from _restoring(item, seen, tensors=tensors, outermost=False)


def _renumber(tensor: Tensor, version: int, numbers: Tensor) -> None:
    if tensor._version != version:
        tensor.copy_(numbers)


@torch.no_grad()
def _put_back(part: nn.Module, attributes: Kept, *, with_tensors: bool) -> None:
    held = vars(part)
    for name in held.keys() - attributes.keys() - OF_MODULES:
        if with_tensors or not isinstance(held[name], Tensor):
            del held[name]
    for name, (value, steps) in attributes.items():
        if with_tensors or not (isinstance(value, Tensor) and isinstance(held.get(name), Tensor)):
            held[name] = value
        for step in steps:
            step()
