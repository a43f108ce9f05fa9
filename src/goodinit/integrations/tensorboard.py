"""TensorBoard: a `goodinit.Report` or a `goodinit.Signal` as a table, scalars and histograms.

from torch.utils.tensorboard import SummaryWriter
from goodinit.integrations.tensorboard import to_tensorboard

with SummaryWriter() as writer:
    to_tensorboard(goodinit.lsuv_(model, loader), writer, model=model)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from torch import nn

from goodinit.errors import OptionError, require
from goodinit.interception.weights import parameter_name
from goodinit.measurement.signals import Layer, Signal
from goodinit.processes import sharded
from goodinit.report import Record, Report

if importlib.util.find_spec("tensorboardX") is None:  # which brings a SummaryWriter of its own
    require("tensorboard", extra="tensorboard")


def to_tensorboard(
    result: Report | Signal, writer: Any, step: int = 0, *, tag: str = "goodinit", model: nn.Module | None = None
) -> None:
    """Write what `goodinit.lsuv_`, `goodinit.init_` or `goodinit.measure` returned.

    Under ``{tag}/table`` the whole table as text. Under ``{tag}/{quantity}/{weight}`` a scalar for every number with a
    fraction: of a report the std before and after and the factor; of a signal whatever was measured, the fields and properties
    of `goodinit.measurement.signals.Layer`, and under ``{tag}/loss`` the loss, so that calls at several steps make curves
    (``relative_update`` for the learning rate that was measured for, or 0.01). Of a signal also the histogram of every output,
    and with ``model`` that of every weight that this process holds the whole of.

    Args:
        result: a `goodinit.Report` or a `goodinit.Signal`.
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or one of tensorboardX. It is neither flushed nor closed.
        step: the step of training to write it at.
        tag: what all names begin with.
        model: the model that the result is of, as it was given to that function.

    Raises:
        OptionError: not a result, or the model has no such parameters.

    >>> import torch; from goodinit import lsuv_
    >>> class Printer:
    ...     def add_text(self, tag, text, step): print(tag)
    ...     def add_scalar(self, tag, value, step): print(tag, round(value, 2))
    >>> to_tensorboard(lsuv_(nn.Linear(8, 4), torch.randn(100, 8), target_std=0.1), Printer())  # doctest: +ELLIPSIS
    goodinit/table
    goodinit/factor/weight ...
    goodinit/std_after/weight 0.1
    goodinit/std_before/weight ...
    """
    if not isinstance(result, (Report, Signal)):
        raise OptionError(f"to_tensorboard takes a Report or a Signal; got {type(result).__name__}")
    if model is not None:
        _weights(result, writer, step, tag, model)
    writer.add_text(f"{tag}/table", _markdown(result), step)
    lr = result.lr if isinstance(result, Signal) else None
    for part in result:
        for quantity, value in _numbers(part, lr):
            writer.add_scalar(f"{tag}/{quantity}/{part.name}", value, step)
        if isinstance(part, Layer):
            _output(part, writer, step, tag)
    if isinstance(result, Signal) and result.loss is not None:
        writer.add_scalar(f"{tag}/loss", result.loss, step)


def _weights(result: Report | Signal, writer: Any, step: int, tag: str, model: nn.Module) -> None:
    """The histogram of every parameter, of a complex one of the absolute values; not of those of which each process holds a part,
    which all would have to gather.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = list(dict.fromkeys(parameter_name(part.name) for part in result))
    missing = [name for name in names if name not in parameters]
    if missing:
        raise OptionError(f"{type(model).__name__} has no parameter {missing[0]!r}; pass the model that the result is of")
    for name in names:
        if sharded.is_sharded(parameters[name]):
            continue
        weight = parameters[name].detach().cpu()
        values = (weight.abs() if weight.is_complex() else weight).float()
        values = values[values.isfinite()]
        if len(values):  # of a weight that is nothing but NaN there is no histogram
            writer.add_histogram(f"{tag}/weight/{name}", values, step)


def _numbers(part: Record | Layer, lr: float | None) -> Iterator[tuple[str, float]]:
    """What was measured and what follows from it, in alphabetical order."""
    if isinstance(part, Record):
        found: dict[str, Any] = {"std_before": part.std_before, "std_after": part.std_after, "factor": part.factor}
    else:
        found = {field.name: getattr(part, field.name) for field in fields(part)}
        update = part.relative_update() if lr is None else part.relative_update(lr)
        found.update(dimensions=part.dimensions, grad_norm=part.grad_norm, relative_update=update)
    yield from ((name, value) for name, value in sorted(found.items()) if isinstance(value, float))


def _output(layer: Layer, writer: Any, step: int, tag: str) -> None:
    """The histogram of an output, from its counts in bins of equal width from mean - 4 std to mean + 4 std."""
    if not layer.histogram or not layer.finite or layer.std == 0:
        return
    count, bins = sum(layer.histogram), len(layer.histogram)
    edges = [layer.mean + layer.std * (8 * i / bins - 4) for i in range(bins + 1)]
    writer.add_histogram_raw(
        f"{tag}/output/{layer.name}",
        min=edges[0],
        max=edges[-1],
        num=count,
        sum=layer.mean * count,
        sum_squares=(layer.std**2 + layer.mean**2) * count,
        bucket_limits=edges,  # upper ones; an empty bin below the first gives that its lower edge
        bucket_counts=[0, *layer.histogram],
        global_step=step,
    )


def _markdown(result: Report | Signal) -> str:
    """The table for TensorBoard's text page, and below it what stands below it in print."""
    head, rows = result._table()
    below = result.summary() if isinstance(result, Report) else result.verdict
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows), "", below])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
