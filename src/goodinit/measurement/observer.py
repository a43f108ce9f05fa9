"""Watching a pass: what each operator on a weight puts out, which non-linearity it goes into, and the gradients on the way back.

Nothing that the model computes is changed, no activation is kept, and no device is waited for before `Observer.layers`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.gradients import Way, gradients
from goodinit.interception.computed import Sources
from goodinit.interception.intercept import module_operations
from goodinit.interception.operation import Operation, refuse_nested
from goodinit.interception.operators import Function
from goodinit.interception.weights import Weight
from goodinit.ledger import Number
from goodinit.measurement.activations import NON_LINEARITIES, NORMALIZATIONS, Trail, input_of
from goodinit.measurement.layer import Layer
from goodinit.measurement.samples import Shelf
from goodinit.measurement.summaries import norms
from goodinit.measurement.traces import Trace, activate, is_constant, layers_of, traced
from goodinit.processes import sharded

_LOG_SOFTMAX = frozenset({F.log_softmax, torch.log_softmax, Tensor.log_softmax})
# Of how many uses of a weight the gradient is looked for: the first may be one that no gradient goes through.
_USES = 8


class Observer:
    """Stands in for every operator on a weight, runs it as it is, and takes the measure of its first output.

    Of one that is the same for all samples, as from a state that begins as zero, the next is taken.
    """

    def __init__(self, *, gradients: bool) -> None:
        """``gradients``: whether there will be a way back."""
        self.traces: dict[str, Trace] = {}
        self.done: list[str] = []
        """Operators that ran."""
        self._unmeasured: dict[str, str] = {}
        self.current: Operation | None = None
        self._trail: Trail[Trace] = Trail()
        self._logs: Trail[str] = Trail()
        """Of log-probabilities, with the layer whose output they are of."""
        self._shelf = Shelf()
        self._entropies: list[tuple[Tensor, int, str]] = []
        """Means of cross-entropies that were taken: of how many classes, and of which layer's output if that is known."""
        self._given: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        """Tensors that operators were given, by their ids, and the first layer of each."""
        self._way = Way()
        self._wants_gradients = gradients
        self._ran_without_grad = False

    # The way forward.

    def __call__(self, operation: Operation) -> Tensor:
        """The operator's output."""
        self.current = operation
        self._ran_without_grad |= not torch.is_grad_enabled()
        output = operation.output()
        with torch.no_grad(), _full_precision(output):
            fresh = self._measure(operation, output) if self._way.forward else []
        if len(fresh) == 1 and not operation.cuts:
            self._trail.begin(output, fresh[0])
        if self._wants_gradients and output.requires_grad:
            self._await_gradient(operation, output)
        self.done.append(operation.kind)
        self.current = None
        return output

    def prepare(self, operation: Operation, status: str) -> None:
        """A weight whose operator's output says nothing of its scale: ``"recurrent"`` or ``"unsupported"``."""
        if operation.weight.name not in self.traces:
            self._unmeasured.setdefault(operation.weight.name, status)

    def _measure(self, operation: Operation, output: Tensor) -> list[Trace]:
        fresh = []
        beside = self._first_with(operation)
        for part in operation.parts(sharded.added_up(refuse_nested(operation, output.detach()))):
            known = self.traces.get(part.weight.name)
            # An expert that no token reached has no output.
            if part.z.numel() and (known is None or (known.seen < _USES and is_constant(known))):
                fresh.append(traced(operation, part, self._shelf))
                fresh[-1].beside = beside if beside != part.weight.name else None
                fresh[-1].seen = 1 if known is None else known.seen + 1
                self.traces[part.weight.name] = fresh[-1]
        return fresh

    def _first_with(self, operation: Operation) -> str | None:
        """The name of the first layer that was given the same tensor."""
        given = None if operation.data is None else operation.data()
        if given is None or operation.data is None:
            return None
        known = self._given.get(id(given))
        if known is None or known[0]() is not given:  # another one had that id before
            known = self._given[id(given)] = operation.data, operation.weight.name
        return known[1]

    def watch(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Make any other call: a non-linearity, maybe, or one that hands an output on."""
        given = input_of(args, kwargs)
        if function in NORMALIZATIONS and (normalized := self._trail.find(given)) is not None:
            normalized.normalized = True
        if function in NON_LINEARITIES and (activated := self._trail.find(given)) is not None and activated.activation is None:
            with torch.no_grad():
                activate(activated, given.detach(), function, args[1:], kwargs)
        out = self._logs.follow(function, args, kwargs, lambda: self._trail.follow(function, args, kwargs, call))
        if function in _LOG_SOFTMAX and isinstance(out, Tensor):
            self._logs.begin(out, self._name_of(given))
        if function is F.cross_entropy and isinstance(given, Tensor):
            self._note_entropy(given, self._name_of(given), args, kwargs, out)
        elif function is F.nll_loss and (name := self._logs.find(given)) is not None:
            self._note_entropy(given, name, args, kwargs, out)
        return out

    def _name_of(self, tensor: object) -> str:
        """Of the layer whose output a tensor is; empty if it is none's."""
        source = self._trail.find(tensor)
        return "" if source is None else source.weight.name

    def _note_entropy(self, given: Tensor, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        """A loss that was taken, the mean of cross-entropies or their sum, of logits or log-probabilities."""
        reduction = kwargs.get("reduction", "mean")
        classes = given.shape[min(1, given.dim() - 1)]
        if reduction == "sum":
            target = kwargs["target"] if "target" in kwargs else args[1]
            shares = target.is_floating_point()  # of the classes
            count = target.numel() / classes if shares else (target != kwargs.get("ignore_index", -100)).sum()
            out = out / count
        if reduction in ("mean", "sum"):
            self._entropies.append((out.detach(), classes, name))

    # The way back.

    def backward(self, loss: Tensor, parameters: Iterable[Tensor]) -> None:
        """Take the gradients of a loss by all parameters that train; their ``grad`` is not touched."""
        self._way.forward = False
        roots = (root.parameter for trace in self.traces.values() for root in trace.weight.roots())
        leaves = {id(p): p for p in (*parameters, *roots) if p.requires_grad and p.is_leaf}
        # With operators intercepted: a checkpoint runs its part of the forward again.
        found = gradients([loss], [None], list(leaves.values()), by_backward=self._ran_without_grad)
        of_leaf = dict(zip(leaves, found, strict=True))
        for trace in self.traces.values():
            weight = trace.weight
            if weight.divisible and id(weight.parameter) in of_leaf:
                gradient = of_leaf[id(weight.parameter)]
                trace.weight_grads = [] if gradient is None else norms(_part_of(gradient, weight))

    def _await_gradient(self, operation: Operation, output: Tensor) -> None:
        """At the first uses of a weight, or where a checkpoint runs it again: only then has the output a gradient."""
        parts, way = operation.parts(output.detach()), self._way
        traces = [self.traces.get(part.weight.name) if part.z.numel() else None for part in parts]
        waiting = [
            trace if trace is not None and (trace.grads is None or (way.forward and trace.uses < _USES)) else None
            for trace in traces
        ]
        if not any(waiting):
            return
        uses = [0 if trace is None else trace.uses for trace in waiting]
        light = replace(operation, linear_part=_never, call=None, bias=None, rest=None, out=None)  # holds no activation

        def keep(gradient: Tensor) -> None:
            if way.forward:  # the model differentiates
                return
            with torch._C.DisableTorchFunction(), torch.no_grad():
                for part, trace, use in zip(light.parts(gradient), waiting, uses, strict=True):
                    if trace is not None and use < trace.grads_of:
                        trace.grads, trace.grads_of = norms(part.z), use

        output.register_hook(keep)
        for trace in waiting:
            if trace is not None:
                if not trace.uses:
                    trace.grads = []  # none comes where the loss does not depend on it
                    _await_computed(trace, operation.weight, way)
                trace.uses += 1

    # Afterwards.

    def unmeasured(self, model: nn.Module, weights: Sources) -> tuple[tuple[str, str], ...]:
        """The other weights of torch's own layers, each with what became of it: a key of `goodinit.report.STATUSES`."""
        measured = {id(root.held) for trace in self.traces.values() for root in trace.weight.roots()}
        for operation in module_operations(model, weights):
            if not any(id(root.held) in measured for root in operation.weight.roots()):
                self._unmeasured.setdefault(operation.weight.name, "unused")
        return tuple(self._unmeasured.items())

    def cross_entropy(self) -> tuple[float, int, str] | None:
        """The largest of them in the loss of guessing; the name is empty where no layer's output is its argument."""
        found = [(value.item(), classes, name) for value, classes, name in self._entropies]
        if not found:
            return None
        return max(found, key=lambda each: each[0] / math.log(each[1]) if each[1] > 1 else 0.0)

    def layers(self) -> tuple[Layer, ...]:
        """All measurements as numbers: only now is the device waited for."""
        return layers_of(list(self.traces.values()))


def _await_computed(trace: Trace, weight: Weight, way: Way) -> None:
    """Of a weight that is computed from parameters the gradient is taken where it is used."""
    if weight.divisible or not weight.tensor.requires_grad:
        return
    found: list[Number] = []
    trace.weight_grads = found

    def keep(gradient: Tensor) -> None:  # holds no trace, which holds the weight: no collector would find that circle
        if way.forward:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            found[:] = norms(gradient)

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


def _never() -> Tensor:
    raise AssertionError("a gradient's operation has no data to run on")
