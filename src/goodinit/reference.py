"""Algorithm 1 of the paper, literally: layer after layer, whole forward passes, trials and a tolerance.

Slow (one forward pass a trial, so O(layers^2)), and only for models made of torch's linear and convolution modules. It is
what `goodinit.lsuv_` is tested against, and the first thing to read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from goodinit.options import Variance
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


@torch.no_grad()
def scale_and_centre_reference_(
    model: nn.Module,
    forward: Callable[[], object],
    *,
    target_std: float = 1.0,
    variance: Variance = "all",
    center: bool = False,
    tol: float = 1e-5,
    t_max: int = 20,
) -> int:
    """The second half of Algorithm 1 with the options that are not the paper's, by whole forward passes; weights are not drawn.

    Args:
        model: its layers are its Linear, Bilinear and (transposed) convolution modules.
        forward: runs the model on a mini-batch, the same at every call, without dropout.
        target_std: the std to reach.
        variance: over ``"all"`` of an output, between ``"samples"``, or of each of the ``"channels"``: see `goodinit.lsuv_`.
        center: whether the mean of every channel is brought to 0, where the layer has a bias.
        tol: the largest relative deviation of a std, and of a mean from 0 as a share of the std.
        t_max: the most trials a layer.

    Returns:
        The number of forward passes it took.
    """
    passes = 1
    for layer in layers_in_call_order(model, forward):
        centred = center and layer.bias is not None
        for _ in range(t_max):
            output = first_output(layer, forward)
            passes += 1
            channels = output.movedim(_channel_axis(layer, output), 0).flatten(1)
            means = channels.mean(1)
            if variance == "samples":
                std = output.var(0, correction=0).mean().sqrt().expand(len(channels))
            elif variance == "channels":
                std = channels.var(1, correction=0).sqrt()
            else:
                centred_channels = channels - means[:, None] if centred else channels
                std = centred_channels.var(correction=0).sqrt().expand(len(channels))
            off = (std / target_std - 1).abs().max()
            if off < tol and (not centred or (means.abs() < tol * std).all()):
                break
            scale_channels_(layer, target_std / std)
            if layer.bias is not None and centred:
                # What the bias added is part of the mean; the rest was multiplied just now.
                layer.bias.copy_((layer.bias - means) * target_std / std)
    return passes


def _channel_axis(layer: Layer, output: Tensor) -> int:
    """Of the layer's output: the last, and of a convolution that before the positions."""
    return output.dim() - 1 if isinstance(layer, (nn.Linear, nn.Bilinear)) else output.dim() + 1 - layer.weight.dim()


def scale_channels_(layer: Layer, factors: Tensor) -> None:
    """Multiply the weights that make each channel of the output."""
    for channel, factor in enumerate(factors):
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            group, row = divmod(channel, layer.weight.shape[1])
            inputs = layer.weight.shape[0] // layer.groups
            layer.weight[group * inputs : (group + 1) * inputs, row] *= factor
        else:
            layer.weight[channel] *= factor


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
    return first_output(layer, forward).var(correction=0).item()


def first_output(layer: nn.Module, forward: Callable[[], object]) -> Tensor:
    """B_L: the layer's first output in a forward pass, in float64."""
    outputs: list[Tensor] = []

    def keep(_layer: nn.Module, _args: object, output: Tensor) -> None:
        # A copy, here and now: the next operator may overwrite the output.
        outputs.append(output.detach().to(torch.float64, copy=True))

    hook = layer.register_forward_hook(keep)
    try:
        forward()
    finally:
        hook.remove()
    return outputs[0]
