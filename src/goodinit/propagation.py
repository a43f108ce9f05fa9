"""The signal through a model, measured in one forward pass without changing the model."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from goodinit import guard
from goodinit.batches import Forward, first_call
from goodinit.intercept import intercept
from goodinit.ledger import fetched
from goodinit.moments import moments
from goodinit.operation import Operation
from goodinit.options import check_model
from goodinit.signals import Finding, Layer, Signal

__all__ = ["Finding", "Layer", "Signal", "measure"]


def measure(
    model: nn.Module,
    data: Any,
    loss: Any = None,  # noqa: ARG001 - to come
    *,
    forward: Forward | None = None,
) -> Signal:
    """Measure the output of every linear operator on a weight, in the order in which they run.

    The pass runs as in training, but without dropout and gradients; afterwards everything is as before, random number generators
    included. Where ``sample_std`` shrinks or grows by a factor from layer to layer, a model that is deep enough does not train;
    where nothing but rounding is left of it at the last layer, this one does not.

    Args:
        model: any module whose forward runs.
        data: a batch, or where to get one, as for `goodinit.lsuv_`.
        loss: its gradients are measured too; not yet.
        forward: called as ``forward(model, data)`` in place of ``model(data)``.

    Returns:
        A `Signal` with one `Layer` a weight; of a weight used several times, its first use. Empty if no operator on a weight was
        reached.

    Raises:
        DataError: no batch, or NaN or infinity in it.
        ModelError: not a module, no parameters, weights on the meta device, TorchScript.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    >>> [round(layer.sample_std, 1) for layer in measure(net, torch.randn(1000, 64))]
    [0.6, 0.3]
    """
    start = time.perf_counter()
    check_model(model)
    recorder = _Recorder()
    with guard.Randomness(None).preserved(model), guard.restored(model):
        call = first_call(model, data, forward)
        with torch.inference_mode(False), torch.no_grad(), guard.forward_mode(model, "train"), intercept(model, recorder):
            call(model)
    return Signal(recorder.layers(), None, str(call), time.perf_counter() - start)


class _Recorder:
    """Stands in for every operator on a weight: runs it, and keeps the moments of its output on the output's device."""

    def __init__(self) -> None:
        self._first_uses: dict[str, tuple[str, tuple[int, ...], list[Tensor]]] = {}

    def __call__(self, operation: Operation) -> Tensor:
        output = operation.complete(operation.linear_part())
        for part in operation.parts(output.detach()):
            if part.z.numel() and part.weight.name not in self._first_uses:  # an expert that no token reached has no output
                found, weight = moments(part.z), part.weight.tensor.detach()
                numbers = [found.mean.abs(), found.var.sqrt(), part.z.var(dim=0, correction=0).mean().sqrt(), weight.norm()]
                self._first_uses[part.weight.name] = (operation.kind, tuple(weight.shape), numbers)
        return output

    def layers(self) -> tuple[Layer, ...]:
        """All measurements as numbers: only now is the device waited for."""
        layers = []
        for name, (operator, shape, tensors) in self._first_uses.items():
            mean, std, sample_std, norm = fetched(tensors)
            layers.append(Layer(name, operator, shape, mean, std, sample_std, weight_norm=norm))
        return tuple(layers)
