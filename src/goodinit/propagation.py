"""The signal through a model, measured in one forward pass without changing the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from goodinit import guard
from goodinit.batches import Forward, first_call
from goodinit.intercept import intercept
from goodinit.moments import moments
from goodinit.operation import Operation
from goodinit.options import check_model


@dataclass(frozen=True)
class Signal:
    """The output of one weight's operator, bias included, at the weight's first use."""

    name: str
    """Name of the parameter, as in a `goodinit.Report`."""
    operator: str
    std: float
    """Over all elements of the output: samples, channels, positions. What LSUV brings to 1."""
    sample_std: float
    """Between samples, the first axis: the root of the variance over samples, averaged over all else. Where it is much smaller
    than ``std``, the output is nearly the same whatever the input is; what varies in it are biases. 0 for a batch of one."""


def output_signals(model: nn.Module, data: Any, *, forward: Forward | None = None) -> tuple[Signal, ...]:
    """Measure the output of every linear operator on a weight, in the order in which they run.

    The pass runs as in training, but without dropout and gradients; afterwards everything is as before, random number generators
    included. Where ``sample_std`` shrinks or grows by a factor from layer to layer, a model that is deep enough does not train;
    where nothing but rounding is left of it at the last layer, this one does not.

    Args:
        model: any module whose forward runs.
        data: a batch, or where to get one, as for `goodinit.lsuv_`.
        forward: called as ``forward(model, data)`` in place of ``model(data)``.

    Returns:
        One `Signal` a weight; of a weight used several times, its first use. Empty if no operator on a weight was reached.

    Raises:
        DataError: no batch, or NaN or infinity in it.
        ModelError: not a module, no parameters, weights on the meta device, TorchScript.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    >>> [round(signal.sample_std, 1) for signal in output_signals(net, torch.randn(1000, 64))]
    [0.6, 0.3]
    """
    check_model(model)
    recorder = _Recorder()
    with guard.Randomness(None).preserved(model), guard.restored(model):
        call = first_call(model, data, forward)
        with torch.inference_mode(False), torch.no_grad(), guard.forward_mode(model, "train"), intercept(model, recorder):
            call(model)
    return recorder.signals()


class _Recorder:
    """Stands in for every operator on a weight: runs it, and keeps the moments of its output on the output's device."""

    def __init__(self) -> None:
        self._first_uses: dict[str, tuple[str, Tensor, Tensor]] = {}

    def __call__(self, operation: Operation) -> Tensor:
        output = operation.complete(operation.linear_part())
        for part in operation.parts(output.detach()):
            if part.z.numel() and part.weight.name not in self._first_uses:  # an expert that no token reached has no output
                variances = moments(part.z).var, part.z.var(dim=0, correction=0).mean()
                self._first_uses[part.weight.name] = (operation.kind, *variances)
        return output

    def signals(self) -> tuple[Signal, ...]:
        """All measurements as numbers: only now is the device waited for."""
        return tuple(
            Signal(name, operator, all_var.item() ** 0.5, sample_var.item() ** 0.5)
            for name, (operator, all_var, sample_var) in self._first_uses.items()
        )
