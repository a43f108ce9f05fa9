"""Algorithm 1 of the paper, literally: layer after layer, whole forward passes, trials and a tolerance.

Slow (one forward pass a trial, so O(layers^2)), and only for models made of torch's linear and convolution modules. It is
what `goodinit.lsuv_` is tested against, and the first thing to read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from goodinit.orthonormal import orthonormal_
from goodinit.seeds import Seeds

LAYERS = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
Layer = nn.Linear | nn.Bilinear | nn.modules.conv._ConvNd


@torch.no_grad()
def lsuv_reference_(
    model: nn.Module,
    forward: Callable[[], object],
    *,
    tol_var: float = 0.02,
    t_max: int = 20,
    generator: torch.Generator | None = None,
) -> int:
    """Initialize ``model`` in place by Algorithm 1.

    Args:
        model: its layers are its Linear, Bilinear and (transposed) convolution modules.
        forward: runs the model on a mini-batch, the same at every call, without dropout.
        tol_var: Tol_var, the largest |Var(B_L) - 1| to accept. The default is that of the authors' script.
        t_max: T_max, the most trials a layer. The default is that of the authors' script.
        generator: source of the orthonormal matrices' random numbers.

    Returns:
        The number of forward passes it took.

    Source:
        Mishkin & Matas, ICLR 2016, arXiv 1511.06422, Algorithm 1.
    """
    layers = layers_in_call_order(model, forward)
    passes = 1
    # Pre-initialize network with orthonormal matrices as in Saxe et al. (2014)
    seeds, places = Seeds.drawn_from(generator), {id(parameter): i for i, parameter in enumerate(model.parameters())}
    for layer in layers:
        own = seeds.generator(places[id(layer.weight)], layer.weight.device)
        orthonormal_(layer.weight, groups=getattr(layer, "groups", 1), generator=own)
        if layer.bias is not None:
            layer.bias.zero_()
    # for each layer L do
    for layer in layers:
        # while |Var(B_L) - 1.0| >= Tol_var and (T_i < T_max) do
        for _ in range(t_max):
            # do Forward pass with a mini-batch; calculate Var(B_L)
            var = variance_of_output(layer, forward)
            passes += 1
            if abs(var - 1.0) < tol_var:
                break
            # W_L = W_L / sqrt(Var(B_L))
            layer.weight.div_(var**0.5)
    return passes


def layers_in_call_order(model: nn.Module, forward: Callable[[], object]) -> list[Layer]:
    """The layers that a forward pass uses, each once, in the order of their first use."""
    order: dict[Layer, None] = {}
    hooks = [
        module.register_forward_hook(lambda layer, _args, _out: order.setdefault(layer))
        for module in model.modules()
        if isinstance(module, LAYERS)
    ]
    try:
        forward()
    finally:
        for hook in hooks:
            hook.remove()
    return list(order)


def variance_of_output(layer: nn.Module, forward: Callable[[], object]) -> float:
    """Var(B_L): over all elements of the layer's first output in a forward pass."""
    variances: list[float] = []

    def measure(_layer: nn.Module, _args: object, output: Tensor) -> None:
        # Here and now: the next operator may overwrite the output.
        variances.append(output.double().var(correction=0).item())

    hook = layer.register_forward_hook(measure)
    try:
        forward()
    finally:
        hook.remove()
    return variances[0]
