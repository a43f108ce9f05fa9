"""Watching a pass: what each operator on a weight puts out, which non-linearity it goes into, and the gradients on the way back.

Nothing that the model computes is changed, no activation is kept, and no device is waited for before `Observer.layers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from goodinit import sharded
from goodinit.activations import NON_LINEARITIES, NORMALIZATIONS, Flat, Trail, input_of, shape_of
from goodinit.layer import Layer
from goodinit.ledger import fetched
from goodinit.operation import Operation, Part
from goodinit.operators import Function, name_of
from goodinit.summaries import Summary, effective_ranks, folded, gram, histograms, norms, sampled, some_of, summarized
from goodinit.weights import Weight


@dataclass
class Trace:
    """What is known of one layer so far, on its device."""

    weight: Weight
    operator: str
    shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    channel: int | None
    """The output's axis."""
    summaries: tuple[Summary, ...]
    """One; two of a complex output."""
    gram: Tensor
    limit: int
    """Of the rank."""
    some: Tensor
    weight_norms: list[Tensor]
    activation: str | None = None
    normalized: bool = False
    dead: Tensor | None = None
    saturated: Tensor | None = None
    grads: list[Tensor] | None = None
    """Roots of sums of squares of the gradient's parts."""
    weight_grads: list[Tensor] | None = None


class Observer:
    """Stands in for every operator on a weight, runs it as it is, and takes the measure of its first output."""

    def __init__(self) -> None:
        self.traces: dict[str, Trace] = {}
        self.done: list[str] = []
        """Operators that ran."""
        self.current: Operation | None = None
        self._trail: Trail[Trace] = Trail()
        self._forward = True

    # The way forward.

    def __call__(self, operation: Operation) -> Tensor:
        """The operator's output."""
        self.current = operation
        output = operation.output()
        with torch.no_grad(), _full_precision(output):
            fresh = self._measure(operation, output) if self._forward else []
        if len(fresh) == 1 and not operation.cuts:
            self._trail.begin(output, fresh[0])
        if output.requires_grad:
            self._await_gradient(operation, output)
        self.done.append(operation.kind)
        self.current = None
        return output

    def _measure(self, operation: Operation, output: Tensor) -> list[Trace]:
        fresh = []
        for part in operation.parts(sharded.added_up(output.detach())):
            if part.z.numel() and part.weight.name not in self.traces:  # an expert that no token reached has no output
                fresh.append(_trace(operation, part))
                self.traces[part.weight.name] = fresh[-1]
        return fresh

    def watch(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Make any other call: a non-linearity, maybe, or one that hands an output on."""
        given = input_of(args, kwargs)
        if function in NORMALIZATIONS and (normalized := self._trail.find(given)) is not None:
            normalized.normalized = True
        if function in NON_LINEARITIES and (activated := self._trail.find(given)) is not None and activated.activation is None:
            with torch.no_grad():
                _activated(activated, given.detach(), function, args[1:], kwargs)
        return self._trail.follow(function, args, kwargs, call)

    # The way back.

    def backward(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """Take the gradients of a loss by all parameters that train; their ``grad`` is not touched."""
        self._forward = False
        roots = (root.parameter for trace in self.traces.values() for root in trace.weight.roots())
        leaves = {id(p): p for p in (*parameters, *roots) if p.requires_grad and p.is_leaf}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = dict(zip(leaves, found, strict=True))
        for trace in self.traces.values():
            weight = trace.weight
            if weight.divisible and id(weight.parameter) in gradients:
                gradient = gradients[id(weight.parameter)]
                trace.weight_grads = [] if gradient is None else norms(_part_of(gradient, weight))

    def _await_gradient(self, operation: Operation, output: Tensor) -> None:
        """At the first use of a weight, or where a checkpoint runs it again: only then has the output a gradient."""
        parts = operation.parts(output.detach())
        traces = [self.traces.get(part.weight.name) for part in parts]
        waiting = [
            trace is not None and trace.grads is None and part.z.numel() > 0 for trace, part in zip(traces, parts, strict=True)
        ]
        if not any(waiting):
            return
        light = replace(operation, linear_part=_never, call=None, bias=None, rest=None, out=None)  # holds no activation

        def keep(gradient: Tensor) -> None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                for part, trace, wait in zip(light.parts(gradient), traces, waiting, strict=True):
                    if wait and trace is not None:
                        trace.grads = norms(part.z)

        output.register_hook(keep)
        for trace, wait in zip(traces, waiting, strict=True):
            if wait and trace is not None and trace.grads is None:
                trace.grads = []  # none comes where the loss does not depend on it
                _await_computed(trace, operation.weight)

    # Afterwards.

    def layers(self) -> tuple[Layer, ...]:
        """All measurements as numbers: only now is the device waited for."""
        traces = list(self.traces.values())
        ranks = effective_ranks([trace.gram for trace in traces])
        moments = [_combined(trace) for trace in traces]
        shapes = histograms([t.some for t in traces], [m for m, *_ in moments], [s for _, s, *_ in moments])
        return tuple(_layer(*facts) for facts in zip(traces, moments, ranks, shapes, strict=True))


def _trace(operation: Operation, part: Part) -> Trace:
    z, weight = part.z, part.weight
    channel = channel_axis(operation, z)
    rows = sampled(z, channel)
    summaries = tuple(summarized(x, channel) for x in ((z.real, z.imag) if z.is_complex() else (z,)))
    tensor = sharded.local(weight.tensor.detach())
    limit = min(rows.shape[0] - 1, rows.shape[1])
    return Trace(
        weight, operation.kind, tuple(weight.tensor.shape), tuple(z.shape), channel, summaries,
        gram(rows), limit, some_of(rows), norms(tensor),
    )  # fmt: skip


def channel_axis(operation: Operation, z: Tensor) -> int | None:
    """The axis of an output that counts what the weight's rows make; None where there is none but the samples'."""
    if z.dim() < 2:
        return None
    w, layout = operation.weight.tensor, operation.layout
    if operation.kind.startswith("conv"):
        return max(1, z.dim() - w.dim() + 1)
    rows = math.prod(w.shape[axis] for axis in layout.rows)
    last = z.dim() - 1
    return next((axis for axis in (last, last - 1) if axis > 0 and z.shape[axis] == rows), last)


def _activated(trace: Trace, given: Tensor, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A non-linearity is given the layer's output: how many units are dead in it, how much of the output is in its flat parts."""
    trace.activation = name_of(function)
    if not given.is_floating_point() or sharded.is_sharded(given):
        return
    shape = shape_of(function, args, kwargs)
    channel = _axis_of(given, trace)
    if shape.dead.low > -torch.inf or shape.dead.high < torch.inf:
        trace.dead = _share_beyond(folded(given, channel), shape.dead)
    if shape.saturated.around_zero:
        rows, flat = sampled(given, channel), shape.saturated
        trace.saturated = ((rows <= flat.low) | (rows >= flat.high)).to(torch.float32).mean()


def _share_beyond(units: Tensor, flat: Flat) -> Tensor:
    """The share of channels in whose flat part every element is, on the same side."""
    over = (0, 1, 3)
    beyond = units.amax(over) <= flat.low if flat.low > -torch.inf else units.amin(over) >= flat.high
    if flat.at_both_ends:
        beyond = beyond | (units.amin(over) >= flat.high)
    return beyond.to(torch.float32).mean()


def _axis_of(given: Tensor, trace: Trace) -> int | None:
    """The axis of the channels, which may have moved: the one of their number."""
    if trace.channel is None or given.dim() < 2:
        return None
    channels = trace.output_shape[trace.channel]
    likely = (trace.channel, given.dim() - 1, 1, *range(1, given.dim()))
    return next((axis for axis in likely if axis < given.dim() and given.shape[axis] == channels), given.dim() - 1)


def _await_computed(trace: Trace, weight: Weight) -> None:
    """Of a weight that is computed from parameters the gradient is taken where it is used."""
    if weight.divisible or not weight.tensor.requires_grad:
        return
    trace.weight_grads = []

    def keep(gradient: Tensor) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            trace.weight_grads = norms(gradient)

    weight.tensor.register_hook(keep)


def _part_of(gradient: Tensor, weight: Weight) -> Tensor:
    """The gradient's elements that belong to a weight, which may be a part of a parameter."""
    if gradient.layout is torch.sparse_coo:
        return gradient.coalesce().values()
    gradient = sharded.local(gradient)
    if weight.tensor.numel() == weight.parameter.numel():
        return gradient
    whole = torch.empty_like(weight.parameter).copy_(gradient)  # with the parameter's strides
    offset, axes = weight.region
    return whole.as_strided([size for _, size in axes], [stride for stride, _ in axes], offset)


def _full_precision(output: Tensor) -> AbstractContextManager[object]:
    """Autocast, where it is on, is not for measurements."""
    kind = output.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _combined(trace: Trace) -> tuple[float, float, float, float | None]:
    """Mean, std, std between samples, spread over channels; over the real and imaginary part of a complex output."""
    parts = [summary.numbers() for summary in trace.summaries]
    mean = parts[0].mean if len(parts) == 1 else math.hypot(*(part.mean for part in parts))
    std, sample_std, channel_std = (math.sqrt(sum(getattr(p, v) for p in parts)) for v in ("var", "sample_var", "channel_var"))
    spread = None if trace.channel is None else channel_std / std if std else 0.0
    return mean, std, sample_std, spread


def _layer(
    trace: Trace, moments: tuple[float, float, float, float | None], rank: float | None, histogram: tuple[int, ...] | None
) -> Layer:
    mean, std, sample_std, spread = moments
    elements = math.prod(trace.output_shape)
    grad, weight_grad, weight = map(_norm, (trace.grads, trace.weight_grads, trace.weight_norms))
    assert weight is not None
    return Layer(
        trace.weight.name,
        trace.operator,
        trace.shape,
        mean,
        std,
        sample_std,
        channel_spread=spread,
        effective_rank=None if rank is None or trace.limit < 1 else rank / trace.limit,
        rank_limit=trace.limit,
        activation=trace.activation,
        normalized=trace.normalized,
        dead=_value(trace.dead),
        saturated=_value(trace.saturated),
        grad_std=None if grad is None else grad / math.sqrt(elements),
        weight_norm=weight,
        weight_grad_norm=weight_grad,
        histogram=histogram,
        output_shape=trace.output_shape,
        channels=None if trace.channel is None else trace.output_shape[trace.channel],
    )


def _norm(roots: list[Tensor] | None) -> float | None:
    """From the norms of parts."""
    return None if roots is None else math.sqrt(sum(value * value for value in fetched(roots)))


def _value(tensor: Tensor | None) -> float | None:
    return None if tensor is None else fetched([tensor])[0]


def _never() -> Tensor:
    raise AssertionError("a gradient's operation has no data to run on")
