"""Layer-sequential unit-variance initialization (Mishkin & Matas, ICLR 2016) in one forward pass.

A linear operator's output z is linear in its weight: z(s W) = s z(W). So in the middle of a forward pass, when an
operator has just produced z, its weight can be multiplied by s = target / std(z) and s z passed on instead of z:
everything downstream sees exactly what a second pass would show it. One pass is Algorithm 1 of the paper with as many
trials as it takes, to rounding error; `goodinit.reference` is that algorithm as printed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from goodinit import guard
from goodinit.batches import Call, Forward, first_call
from goodinit.computed import Sources
from goodinit.errors import GoodinitWarning, ModelError, NonFiniteError, annotate
from goodinit.intercept import intercept, module_operations
from goodinit.ledger import Ledger, Outcome
from goodinit.operation import Layout, Operation
from goodinit.options import Options, PreInit, Targets, check_model
from goodinit.outputs import scaling_of, statistic
from goodinit.report import STATUSES, Report
from goodinit.weights import Covered


def lsuv_(
    model: nn.Module,
    data: Any,
    *,
    target_std: Targets = 1.0,
    pre_init: PreInit = "orthonormal",
    forward: Forward | None = None,
    skip: str | Iterable[str] = (),
    generator: torch.Generator | None = None,
    mode: Literal["train", "eval"] = "train",
) -> Report:
    """Initialize ``model`` in place so that the output of every linear operator has unit std on ``data``.

    When the forward pass first reaches a weight that an operator is linear in (Linear, Conv, Bilinear, ``@``, einsum,
    addmm, …, wherever it is called), the weight is filled with an orthonormal matrix and the operator's bias with zeros;
    then the weight is multiplied by ``target_std`` / std(output), the std taken over all elements of the output (samples,
    channels, positions: the paper's Var(B_L)). The pass runs as in training, but without dropout and gradients.
    Afterwards nothing but the weights has changed.

    Args:
        model: any module whose forward runs; its weights on one device or several.
        data: a batch, or where to get one: a tensor, a tuple (positional arguments), a mapping (keyword arguments), a
            DataLoader or other iterable of batches (the first is used). Of a loader's tuple or list as many items are
            passed as the model's forward requires, so that labels are left out; the report's ``batch`` says so. Inputs
            should have a variance of about 1.
        target_std: the std to reach, or a mapping from patterns to std, ``{"head*": 0.1}``: the first match counts, 1
            where none does.
        pre_init: ``"orthonormal"``; None to keep weights and biases and only scale the weights, so that the output with
            its bias has the target std; or a function that fills a weight given as (out, in…), such as those of
            torch.nn.init, biases zeroed.
        forward: called as ``forward(model, data)`` in place of ``model(data)``.
        skip: shell-style patterns of weights to leave as they are. Here and in ``target_std`` a pattern means a weight if
            it matches the name of the parameter (``"layers.*.weight"``) or of a module around it (``"head"``).
        generator: source of the matrices' random numbers; torch's global one by default.
        mode: ``"train"``: as in training, but without dropout: BatchNorm uses the batch's statistics unless it was
            frozen (in eval mode inside a model in train mode). ``"eval"``: the whole model in eval mode.

    Returns:
        A `Report` with one record a weight.

    Raises:
        DataError: no batch, or NaN or infinity in it.
        ModelError: not a module, no linear operator reached, weights on the meta device, TorchScript.
        OptionError: a target that is not a positive number, a pattern without a match, an unknown ``pre_init``.
        NonFiniteError: NaN or infinity in an operator's output.
        Exception: whatever the model's forward raises, with a note on how far it got.
        Whatever is raised, KeyboardInterrupt included: the model is exactly as before.

    Warns:
        GoodinitWarning: a weight could not be scaled, because its output is constant or its bias too large.

    Source:
        Mishkin & Matas, "All you need is a good init", ICLR 2016, arXiv 1511.06422, Algorithm 1.

    >>> net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    >>> report = lsuv_(net, torch.randn(1000, 8))
    >>> round(net(torch.randn(100_000, 8)).std().item(), 1)
    1.0
    """
    start = time.perf_counter()
    check_model(model)
    options = Options.checked(model, target_std, pre_init, skip, mode)
    undo, randomness = guard.Undo(), guard.Randomness(generator)
    with randomness.preserved(model), guard.restored(model), guard.all_or_nothing(undo):
        call = first_call(model, data, forward)
        scaling = Scaling(options, undo, randomness)
        with torch.inference_mode(False), torch.no_grad(), guard.forward_mode(model, mode):
            with scaling.explained(call), intercept(model, scaling, scaling.prepare) as seen:
                call(model)
            scaling.draw_unused(model, seen.weights)
        records = scaling.ledger.records()
        if all(record.status == "unused" for record in records):
            raise ModelError(
                f"no linear operator was reached: the forward of {type(model).__name__} called none of linear, conv, "
                f"bilinear, matmul, einsum, addmm with one of its parameters (it was given {call})"
            )
        report = Report(records, 1, time.perf_counter() - start, scaling.sampling_seconds, str(call))
        _warn(report)
    return report


class Scaling:
    """Stands in for every operator on a weight: draws the weight, runs the operator, scales weight and output."""

    function = "goodinit.lsuv_"
    """What the caller called."""

    def __init__(self, options: Options, undo: guard.Undo, randomness: guard.Randomness) -> None:
        self.ledger = Ledger()
        self.sampling_seconds = 0.0
        self._options = options
        self._undo = undo
        self._randomness = randomness
        self._covered = Covered()
        self._idle: list[Operation] = []
        self._current: Operation | None = None
        self._done: list[str] = []

    def __call__(self, operation: Operation) -> Tensor:
        """The output that the operator would have with its final weight."""
        self._current = operation
        if any(0 in shape for shape in operation.data_shapes):  # an expert that no token reached
            self._idle.append(operation)
            output = operation.complete(operation.linear_part())
        elif torch.is_grad_enabled():
            # The model differentiates inside its forward: its graph must hold the final weight, so a second call makes it.
            with torch.no_grad():
                self._run(operation)
            output = operation.complete(operation.linear_part())
        else:
            output = operation.complete(self._run(operation))
        self._done.append(operation.kind)
        self._current = None
        return output

    def _run(self, operation: Operation) -> Tensor:
        """The output z with the final weight: measured, and at the weight's first use scaled."""
        weight = operation.weight
        again = weight in self._covered
        left_alone = self._options.left_alone(weight) or (None if again else weight.obstacle)
        if again:
            weight.refresh()
        elif left_alone is None:
            self._draw(operation)
        z = operation.linear_part()
        for part in operation.parts(z):
            target = self._options.target(part.weight.name)
            if not part.z.numel():  # an expert that no token reached
                self._idle.append(replace(operation, weight=part.weight, cuts=()))
                continue
            found = statistic(part)
            if again and part.weight in self._covered:
                self.ledger.use_again(part.weight, operation.kind, target, found.std)
            elif left_alone is not None:
                self.ledger.enter(part.weight, operation.kind, target, left_alone, Outcome(found.std))
            else:
                factor, outcome = scaling_of(found, part, target)
                part.weight.scale_(factor)
                part.z.mul_(factor)
                self.ledger.enter(part.weight, operation.kind, target, "scaled", outcome)
            self._covered.add(part.weight)
        return z

    def _draw(self, operation: Operation) -> None:
        """Fill the weight and zero the bias, as ``pre_init`` says."""
        for root in operation.weight.roots():
            self._undo.remember(root.parameter)
        pre_init = self._options.pre_init
        if pre_init is None:
            return
        start = time.perf_counter()
        operation.weight.draw_(lambda weight, place: self._fill(pre_init, operation.layout, weight, place))
        self.sampling_seconds += time.perf_counter() - start
        bias = operation.bias_weight
        if bias is not None and bias.parameter.requires_grad and not self._options.skips(bias.name):
            for root in bias.roots():
                self._undo.remember(root.parameter)
                operation.zero_bias_(root.tensor.detach())
            bias.refresh()
            operation.bias = None  # saves adding it

    def _fill(self, pre_init: PreInit, layout: Layout, weight: Tensor, place: object) -> None:
        if callable(pre_init):
            with self._randomness.as_global(place, weight.device):
                for matrix in layout.matrices(weight):
                    pre_init(matrix)
        else:
            layout.draw_(weight, self._randomness.generator(place, weight.device))

    def prepare(self, operation: Operation, status: str) -> None:
        """A weight whose operator's output says nothing of its scale: drawn, not scaled."""
        weight = operation.weight
        if weight in self._covered:
            return
        left_alone = self._options.left_alone(weight) or weight.obstacle
        if left_alone is None and status != "unsupported":
            self._draw(operation)
        self._covered.add(weight)
        self.ledger.enter(weight, operation.kind, self._options.target(weight.name), left_alone or status, Outcome())

    def draw_unused(self, model: nn.Module, weights: Sources) -> None:
        """Weights that the forward did not use: drawn, not scaled."""
        touched = weights.touched()
        for operation in (*self._idle, *module_operations(model, weights)):
            self.prepare(operation, "unsupported" if id(operation.weight.parameter) in touched else "unused")

    @contextmanager
    def explained(self, call: Call) -> Iterator[None]:
        """Say of an exception of the model's how far its forward got, and whether NaN led to it."""
        try:
            yield
        except Exception as error:
            try:
                self.ledger.records()
            except NonFiniteError as non_finite:
                raise non_finite from error
            at = f"in {self._current}" if self._current else f"after {len(self._done)} operators on weights, outside of any"
            annotate(error, f"{self.function}: raised {at}; the model was given {call}. All weights are as before.")
            raise


def _warn(report: Report) -> None:
    """One warning for all weights that should be at their target and are not."""
    failed = [record for record in report if not record.ok]
    if failed:
        shown = "; ".join(f"{r.name!r} is {r.status} ({STATUSES[r.status]})" for r in failed[:5])
        more = f"; and {len(failed) - 5} more, see the report" if len(failed) > 5 else ""
        warnings.warn(f"lsuv_: {shown}{more}", GoodinitWarning, stacklevel=3)
