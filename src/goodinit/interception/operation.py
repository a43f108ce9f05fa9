"""One call of an operator that is linear in a weight, and how the weight's axes make up matrices."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from goodinit.errors import DataError, ModelError
from goodinit.interception.weights import Weight, Weights
from goodinit.orthonormal import Method, orthonormal_
from goodinit.processes import sharded
from goodinit.processes.sharded import Place
from goodinit.processes.turns import Position


class Layout(NamedTuple):
    """How the axes of a weight make up matrices: which count them, which are rows (out), which columns (in)."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    batch: tuple[int, ...] = ()
    groups: int = 1

    def draw_(self, weight: Tensor, generator: torch.Generator | None, method: Method = "haar") -> None:
        """Fill the weight with orthonormal matrices of this layout."""
        ordered = weight.permute(*self.batch, *self.rows, *self.columns)
        if len(self.rows) == 1 and self.columns:
            orthonormal_(ordered, groups=self.groups, batch_dims=len(self.batch), method=method, generator=generator)
            return
        count, rows, columns = (math.prod(weight.shape[i] for i in axes) for axes in (self.batch, self.rows, self.columns))
        fresh = torch.empty(count, rows, columns, dtype=weight.dtype, device=weight.device)
        orthonormal_(fresh, groups=self.groups, batch_dims=1, method=method, generator=generator)
        ordered.copy_(fresh.view(ordered.shape))

    def matrices(self, weight: Tensor) -> Iterator[Tensor]:
        """The weight's matrices as views of shape (out, in…), the convention of torch.nn.init; groups are not told apart."""
        ordered = weight.permute(*self.batch, *self.rows, *self.columns)
        if not self.rows:
            ordered = ordered.unsqueeze(len(self.batch))
        if not self.columns:
            ordered = ordered.unsqueeze(-1)
        stack = [ordered]
        for _ in self.batch:
            stack = [matrix for part in stack for matrix in part.unbind()]
        yield from stack

    def without(self, axis: int) -> Layout:
        """The layout of a weight without one of its axes."""
        rows, columns, batch = (_renumbered(axes, axis) for axes in (self.rows, self.columns, self.batch))
        return Layout(rows, columns, batch, 1 if axis in self.rows else self.groups)


def _renumbered(axes: Iterable[int], removed: int) -> tuple[int, ...]:
    return tuple(i - (i > removed) for i in axes if i != removed)


class Cut(NamedTuple):
    """Matrices side by side in one weight that are scaled apart: the weight's axis, the output's axis, how many."""

    weight_axis: int
    output_axis: int
    parts: int
    sizes: tuple[int, ...] | None = None
    """Of the parts along the output's axis where they differ; what lies behind them belongs to none."""


class Channels(NamedTuple):
    """Which axes count the channels of an output, and those of its weight."""

    output_axis: int
    """From the right, so negative."""
    weight_axis: int
    groups: int = 1
    """Of a transposed convolution: its channels are those of ``weight_axis``, once for each group of axis 0."""

    def of_weight(self, values: Tensor, weight: Tensor) -> Tensor:
        """A value a channel, in a shape that broadcasts against the weight."""
        if self.groups > 1:
            inputs = weight.shape[0] // self.groups
            values = values.view(self.groups, 1, -1).expand(-1, inputs, -1).reshape(weight.shape[0], -1)
            return values.view(*values.shape, *[1] * (weight.dim() - 2))
        return values.view([-1 if axis == self.weight_axis else 1 for axis in range(weight.dim())])

    def of_output(self, values: Tensor) -> Tensor:
        """A value a channel, in a shape that broadcasts against the output."""
        return values.view(-1, *[1] * (-1 - self.output_axis))

    def without(self, axis: int) -> Channels | None:
        """Of a weight without one of its axes."""
        if axis == self.weight_axis or self.groups > 1:
            return None
        return self._replace(weight_axis=self.weight_axis - (self.weight_axis > axis))


class Description(NamedTuple):
    """An operator's weight as another process can find it: see `described`."""

    position: Position
    """Of the part of the weight that is scaled."""
    content: Any


class Part(NamedTuple):
    """Weight, output without bias, and bias of one of the matrices that are scaled apart."""

    weight: Weight
    z: Tensor
    bias: Tensor | None
    whole_bias: Tensor | None = None
    """Of a bias of which this process holds a part."""


@dataclass
class Operation:
    """One call of an operator that is linear in a weight: output = z(weight) + bias + rest."""

    kind: str
    """The operator: ``"linear"``, ``"conv2d"``, ``"matmul"``, …"""
    weight: Weight
    layout: Layout
    linear_part: Callable[[], Tensor]
    """Computes z with the weight as it is when called."""
    data_shapes: tuple[tuple[int, ...], ...] = ()
    """Shapes of the operands that are not weights."""
    bias: Tensor | None = None
    """Added to z; broadcasts against it."""
    bias_weight: Weight | None = None
    """The parameter behind the bias."""
    rest: Tensor | None = None
    """Data that the operator adds (the ``input`` of addmm)."""
    cuts: Sequence[Cut] = ()
    channels: Channels | None = None
    """None where there is not one axis of them."""
    out: Tensor | None = None
    """Where the caller wants the output to be written (``out=``)."""
    kept_gate: int | None = None
    """The gate of a recurrent layer whose bias is left as it is."""
    call: Callable[[], Tensor] | None = None
    """The operator as the model called it: the whole output."""
    data: weakref.ref[Tensor] | None = None
    """The first operand that is no weight; None where nobody watches."""

    def __str__(self) -> str:
        given = " and ".join(map(str, self.data_shapes))
        weight = f"the weight {self.weight.name!r} of shape {tuple(self.weight.tensor.shape)}"
        return f"{self.kind} with {weight} on input of shape {given}"

    def output(self) -> Tensor:
        """The whole output with the weight as it is."""
        return self.complete(self.linear_part()) if self.call is None else self.call()

    def complete(self, z: Tensor) -> Tensor:
        """The operator's output from its part z, which may be overwritten unless autograd needs it."""
        z = self.with_bias(z)
        if self.rest is not None:
            z = _added(z, self.rest)
        return z if self.out is None else written(self.out, z)

    def with_bias(self, z: Tensor) -> Tensor:
        """z with the bias, which is added once only; z may be overwritten unless autograd needs it."""
        if self.bias is not None:
            z, self.bias = _added(z, self.bias), None
        return z

    def zero_bias_(self, bias: Tensor) -> None:
        """Fill the parameter behind the bias with zeros, but for the gate that is kept."""
        for gate, part in enumerate([bias] if self.kept_gate is None else bias.chunk(self.layout.groups)):
            if gate != self.kept_gate:
                part.zero_()

    def parts(self, z: Tensor) -> list[Part]:
        """The weight, its output z and its bias in the parts that are scaled apart, as views; mostly one."""
        if sharded.is_sharded(z):
            whole = None if self.bias is None else sharded.whole(self.bias)
            return [Part(self.weight, sharded.local(z), None if self.bias is None else sharded.local(self.bias), whole)]
        if not self.cuts or not self.weight.divisible:
            return [Part(self.weight, z, self.bias)]
        pieces = [(self.weight.tensor, z, self.bias)]
        for cut in self.cuts:
            pieces = [piece for whole in pieces for piece in _split(*whole, cut)]
        return [Part(self.weight.part(w), y, b) for w, y, b in pieces]


def refuse_nested(operation: Operation, z: Tensor) -> Tensor:
    """An output, unless it is a nested tensor.

    Raises:
        DataError: it is one.
    """
    if z.is_nested:
        raise DataError(f"{operation} makes a nested tensor, which cannot be measured; give the model padded data")
    return z


def _added(z: Tensor, term: Tensor) -> Tensor:
    in_place = not torch.is_grad_enabled() and torch.result_type(z, term) == z.dtype and _fits(term, z)
    return z.add_(term) if in_place else z + term


def written(out: Tensor, result: Tensor) -> Tensor:
    """``out=`` with the result in it."""
    return out.resize_(result.shape).copy_(result)


def _fits(term: Tensor, z: Tensor) -> bool:
    """Whether ``term`` broadcasts to z's shape; torch.broadcast_shapes would load half a second of modules."""
    sizes = zip(reversed(term.shape), reversed(z.shape), strict=False)
    return term.dim() <= z.dim() and all(own in (1, full) for own, full in sizes)


def _split(w: Tensor, z: Tensor, bias: Tensor | None, cut: Cut) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """One cut through a weight, its output and its bias, which lines up with the output from the right."""
    biases: Sequence[Tensor | None] = [bias] * cut.parts
    if bias is not None and -cut.output_axis <= bias.dim() and bias.shape[cut.output_axis] > 1:
        biases = bias.tensor_split(cut.parts, cut.output_axis)
    ws = w.tensor_split(cut.parts, cut.weight_axis)
    if cut.sizes is None:
        zs: Sequence[Tensor] = z.tensor_split(cut.parts, cut.output_axis)
    else:
        zs = z.split([*cut.sizes, z.shape[cut.output_axis] - sum(cut.sizes)], cut.output_axis)[: cut.parts]
    return list(zip(ws, zs, biases, strict=True))


# An operator's weight, as another process can find it.


def described(operation: Operation, part: Part) -> Description:
    """The weight of an operator, and the part of it that is scaled; of a weight computed from parameters the name alone."""
    weight, bias = operation.weight, operation.bias_weight
    if not weight.divisible:
        return Description(part.weight.position, weight.name)
    bias_place = None if bias is None or not bias.divisible else _where(bias)
    content = (
        operation.kind,
        _where(weight),
        operation.layout,
        bias_place,
        operation.kept_gate,
        _where(part.weight),
        part.z.dtype,
    )
    return Description(part.weight.position, content)


def rebuilt(content: Any, weights: Weights) -> tuple[Operation, Part]:
    """The same weight in this process's model, without data.

    Raises:
        ModelError: it is computed from parameters.
    """
    if isinstance(content, str):
        raise ModelError(
            f"{content!r} is computed from parameters, and not all processes use it: give each of them data that does, or "
            "initialize before the weight is parametrized"
        )
    kind, place, layout, bias_place, kept_gate, own, dtype = content
    weight = _found(place, weights)
    bias = None if bias_place is None else _found(bias_place, weights)
    operation = Operation(kind, weight, layout, _no_data, bias_weight=bias, kept_gate=kept_gate)
    part = _found(own, weights)
    return operation, Part(part, torch.empty(0, dtype=dtype, device=part.held.device), None)


def _where(weight: Weight) -> tuple[int, Place, bool]:
    """Number of the parameter; where in it; and whether the operator sees pairs of real numbers as complex ones."""
    return weight.number, weight.in_whole, weight.is_complex_view


def _found(where: tuple[int, Place, bool], weights: Weights) -> Weight:
    number, place, is_complex_view = where
    weight = weights.numbered(number)
    whole = weight.tensor.detach()
    if is_complex_view:
        whole = torch.view_as_complex(whole.view(-1, 2))
    return weight.part(whole.as_strided(place.shape, place.stride, place.offset + int(whole.storage_offset())))


def _no_data() -> Tensor:
    raise AssertionError("an operation of another process has no data here")
