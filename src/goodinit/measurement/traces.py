"""What is known of a layer while the pass runs, on its device; and the layers made from that after it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goodinit.interception.operation import Operation, Part
from goodinit.interception.operators import Function, name_of
from goodinit.interception.weights import Weight
from goodinit.ledger import Number, fetched, held
from goodinit.measurement.activations import Flat, shape_of
from goodinit.measurement.layer import Layer
from goodinit.measurement.samples import Shelf, effective_ranks, histograms, rank_limit, same_units, sampled
from goodinit.measurement.summaries import Summary, folded, norms, squared, summarized
from goodinit.processes import sharded


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
    rows: Tensor
    """Some elements: rows x channels."""
    weight_norms: list[Number]
    beside: str | None = None
    activation: str | None = None
    normalized: bool = False
    dead: Number | None = None
    saturated: Number | None = None
    grads: list[Number] | None = None
    """Roots of sums of squares of the gradient's parts; None where none was waited for."""
    grads_of: float = math.inf
    """Of which use of the weight they are: that of the first comes last, but for devices that differentiate side by side."""
    seen: int = 1
    """How many uses were measured, those whose outputs were the same for all samples with it."""
    uses: int = 0
    """At how many uses a gradient is waited for."""
    weight_grads: list[Number] | None = None

    def raw(self) -> list[Number]:
        """All numbers."""
        shares = [share for share in (self.dead, self.saturated) if share is not None]
        summed = [number for summary in self.summaries for number in summary.raw()]
        return [*summed, *shares, *self.weight_norms, *(self.grads or ()), *(self.weight_grads or ())]


def traced(operation: Operation, part: Part, shelf: Shelf) -> Trace:
    """The measurements of an output, forward."""
    z, weight = part.z, part.weight
    channel = channel_axis(operation, z)
    reals = [folded(x, channel) for x in ((z.real, z.imag) if z.is_complex() else (z,))]
    shapes = tuple(weight.tensor.shape), tuple(z.shape)
    own = norms(sharded.local(weight.tensor.detach()))
    return Trace(weight, operation.kind, *shapes, channel, tuple(map(summarized, reals)), sampled(reals[0], shelf), own)


def is_constant(trace: Trace) -> bool:
    """Whether the output was the same for all samples; waits for the device."""
    return all(s.samples > 1 and not any(fetched(s.within)) for s in trace.summaries)


def channel_axis(operation: Operation, z: Tensor) -> int | None:
    """The axis of an output that counts what the weight's rows make; None where there is none but the samples'."""
    if z.dim() < 2:
        return None
    w, layout = operation.weight.tensor, operation.layout
    if operation.kind.startswith("conv"):
        return z.dim() - w.dim() + 1 or None  # without an axis of samples the channels are taken for them
    rows = math.prod(w.shape[axis] for axis in layout.rows)
    last = z.dim() - 1
    return next((axis for axis in (last, last - 1) if axis > 0 and z.shape[axis] == rows), last)


def activate(trace: Trace, given: Tensor, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A non-linearity is given the layer's output: how many units are dead in it, how much of the output is in its flat parts."""
    trace.activation = name_of(function)
    if not given.is_floating_point() or sharded.is_sharded(given):
        return
    shape = shape_of(function, args, kwargs)
    units = folded(given, _axis_of(given, trace))
    if shape.dead.low > -torch.inf or shape.dead.high < torch.inf:
        trace.dead = held(_share_beyond(units, shape.dead))
    if shape.saturated.around_zero:
        rows, flat = sampled(units), shape.saturated
        trace.saturated = held(((rows <= flat.low) | (rows >= flat.high)).to(torch.float32).mean())


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


# After the pass.


def layers_of(traces: Sequence[Trace]) -> tuple[Layer, ...]:
    """All measurements as numbers: only now is the device waited for."""
    values = iter(fetched([number for trace in traces for number in trace.raw()]))
    numbers = [_Numbers.of(trace, values) for trace in traces]
    rows = [trace.rows for trace in traces]
    shapes = histograms(rows, [n.real_mean for n in numbers], [n.std for n in numbers])
    ranks, same = effective_ranks(rows), same_units(rows)
    return tuple(_layer(*facts) for facts in zip(traces, numbers, ranks, shapes, same, strict=True))


@dataclass(frozen=True)
class _Numbers:
    """A trace's numbers on the host."""

    mean: float
    real_mean: float
    """NaN for a complex output, which has no histogram."""
    std: float
    sample_std: float
    channel_std: float
    dead: float | None
    saturated: float | None
    weight_norm: float
    grad_norm: float | None
    weight_grad_norm: float | None

    @classmethod
    def of(cls, trace: Trace, values: Iterator[float]) -> _Numbers:
        """From the values of the trace's raw numbers, in their order."""
        parts = [summary.numbers(values) for summary in trace.summaries]
        mean = parts[0].mean if len(parts) == 1 else math.hypot(*(part.mean for part in parts))
        return cls(
            mean,
            mean if len(parts) == 1 else math.nan,
            math.sqrt(sum(part.var for part in parts)),
            math.sqrt(sum(part.sample_var for part in parts)),
            math.sqrt(sum(part.channel_var for part in parts)),
            None if trace.dead is None else next(values),
            None if trace.saturated is None else next(values),
            _norm(trace.weight_norms, values),
            None if trace.grads is None else _norm(trace.grads, values),
            None if trace.weight_grads is None else _norm(trace.weight_grads, values),
        )


def _norm(roots: list[Number], values: Iterator[float]) -> float:
    """From the norms of parts."""
    return math.sqrt(sum(squared(next(values)) for _ in roots))


def _layer(trace: Trace, numbers: _Numbers, rank: float | None, histogram: tuple[int, ...] | None, same: bool | None) -> Layer:
    limit, std, shape = rank_limit(trace.rows), numbers.std, trace.output_shape
    has_channels = trace.channel is not None
    return Layer(
        trace.weight.name,
        trace.operator,
        trace.shape,
        numbers.mean,
        std,
        numbers.sample_std,
        channel_spread=(numbers.channel_std / std if std else 0.0) if has_channels else None,
        effective_rank=None if rank is None or limit < 1 else rank / limit,
        rank_limit=limit,
        activation=trace.activation,
        normalized=trace.normalized,
        dead=numbers.dead if math.isfinite(std) else None,
        saturated=numbers.saturated if math.isfinite(std) else None,
        grad_std=None if numbers.grad_norm is None else numbers.grad_norm / math.sqrt(math.prod(shape)),
        weight_norm=numbers.weight_norm,
        weight_grad_norm=numbers.weight_grad_norm,
        histogram=histogram,
        output_shape=shape,
        channels=shape[trace.channel] if trace.channel is not None else None,
        same_units=same,
        beside=trace.beside,
    )
