"""The signal through a model, forward and backward, measured in one pass without changing the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from goodinit import gradients, guard
from goodinit.batches import Call, Forward, first_call
from goodinit.errors import OptionError, annotate, is_number
from goodinit.interception.computed import Sources
from goodinit.interception.intercept import intercept
from goodinit.measurement.layer import Input
from goodinit.measurement.losses import Loss, Objective
from goodinit.measurement.observer import Observer
from goodinit.measurement.signals import Finding, Layer, Signal
from goodinit.options import check_model
from goodinit.processes import sharded

__all__ = ["Finding", "Layer", "Signal", "measure"]


@gradients.if_needed
def measure(
    model: nn.Module,
    data: Any,
    loss: Loss = None,
    *,
    forward: Forward | None = None,
    lr: float | None = None,
    mode: Literal["train", "eval"] = "train",
) -> Signal:
    """Measure the output of every linear operator on a weight, in the order in which they run; with a loss, its gradients too.

    One forward, and with a loss one backward, as in training but without dropout. Afterwards everything is as before: weights,
    gradients, flags, buffers, hooks, random number generators; lazy layers have no form. Print the `Signal` and read its verdict:
    where ``std`` or ``sample_std`` shrinks or grows by a factor from layer to layer, a model that is deep enough does not train;
    likewise where the gradient does so on its way back.

    Args:
        model: any module whose forward runs.
        data: a batch, or where to get one, as for `goodinit.lsuv_`.
        loss: a function of the model's output, or of output and target: ``torch.nn.functional.cross_entropy``. The target is what
            the model is not given of the batch: ``measure(model, (x, y), loss=F.cross_entropy)``, or a loader that yields such
            pairs; with ``forward`` it is the batch. ``"output"`` for a model that returns its loss, itself or as ``.loss``.
        forward: as for `goodinit.lsuv_`.
        lr: a learning rate of plain SGD, to judge the size of its updates; they are shown for 0.01 otherwise, and not judged.
        mode: ``"train"`` or ``"eval"``, as for `goodinit.lsuv_`.

    Returns:
        A `Signal` with one `goodinit.measurement.signals.Layer` a weight; of a weight used several times, its first use.

    Raises:
        DataError: no batch, NaN or infinity in it, no target for the loss.
        ModelError: not a module, no parameters, weights on the meta device, TorchScript.
        OptionError: a loss that is no scalar or has no gradient; an unknown ``mode``; an ``lr`` that is not positive, or without
            a loss.
        Exception: whatever the model raises, with a note on how far it got.
        BaseException: whatever it is, the model is exactly as before.

    Examples:
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
        >>> [round(layer.sample_std, 1) for layer in measure(net, torch.randn(1000, 64))]
        [0.6, 0.3]
    """
    start = time.perf_counter()
    check_model(model)
    if mode not in ("train", "eval"):
        raise OptionError(f"mode must be 'train' or 'eval'; got {mode!r}")
    if lr is not None and not (is_number(lr) and 0 < lr < float("inf")):
        raise OptionError(f"lr must be a positive number; got {lr!r}")
    if lr is not None and loss is None:
        raise OptionError(f"lr={lr:g} judges updates, which need gradients: pass loss=, or leave lr out")
    objective = Objective.checked(loss)
    observer = Observer(gradients=objective is not None)
    with (
        guard.Randomness(None).preserved(model),
        guard.gradients_aside(model.parameters()),
        guard.undone() as undo,
        guard.restored(model, attributes=True),
    ):
        call = first_call(model, data, forward, targets=0 if objective is None else objective.targets)
        inputs = _inputs(call)
        graph = objective is not None or gradients.are_on()
        with torch.inference_mode(False), torch.set_grad_enabled(graph), guard.forward_mode(model, mode):
            value, weights = _run(model, call, objective, observer, undo)
        layers, unmeasured = observer.layers(), observer.unmeasured(model, weights)
        entropy = observer.cross_entropy()
    seconds = time.perf_counter() - start
    return Signal(
        layers,
        value,
        str(call),
        lr,
        seconds,
        unmeasured,
        cross_entropy=entropy,
        inputs=inputs,
    )


def _inputs(call: Call) -> tuple[Input, ...]:
    """Of the arguments that are data: real, and of several numbers a sample. Sparse ones are relations mostly."""
    found = []
    for name, x in call.tensors():
        is_data = x.is_floating_point() and x.dim() > 1 and x.numel() > 1 and "mask" not in name
        if is_data and x.layout is torch.strided and not sharded.is_sharded(x):
            wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            between = wide.var(0, correction=0).mean().sqrt().item() if len(x) > 1 else None
            found.append(Input(name, wide.mean().item(), wide.std(correction=0).item(), between))
    return tuple(found)


def _run(
    model: nn.Module, call: Call, objective: Objective | None, observer: Observer, undo: guard.Undo
) -> tuple[float | None, Sources]:
    """The pass; gives the loss, and the weights that were seen."""
    sharded.reshard(model)
    try:
        with (
            guard.without_reduction(model),
            guard.batch_kept(call.tensors()) as about_to_write,
            intercept(
                model, observer, observer.prepare, watch=observer.watch, remember=undo.remember, about_to_write=about_to_write
            ) as seen,
        ):
            with _explained(observer, call):
                output = call(model)
            if objective is None:
                return None, seen.weights
            value = objective.of(output, call)
            del output
            with _explained(observer, call):
                observer.backward(value, model.parameters())
        return float(value.detach()), seen.weights
    finally:
        sharded.reshard(model)


@contextmanager
def _explained(observer: Observer, call: Call) -> Iterator[None]:
    """Say of an exception of the model's how far it got."""
    try:
        yield
    except Exception as error:
        doing = observer.current
        at = f"in {doing}" if doing else f"after {len(observer.done)} operators on weights, outside of any"
        annotate(error, f"goodinit.measure: raised {at}; the model was given {call}. Nothing was changed.")
        raise
