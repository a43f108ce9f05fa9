"""Initializations that the paper does not compare, for the networks of this package: torch's own layers only."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from goodinit.errors import OptionError
from goodinit.guard import restored
from goodinit.paper.config import Training
from goodinit.paper.imagenet import GoogLeNet
from goodinit.paper.objectives import Loss
from goodinit.paper.pixels import Batches
from goodinit.report import Record, Report
from goodinit.schemes import init_

_LAYERS = (nn.Conv2d, nn.Linear)
_SMALLEST = 1e-6
# Of GradInit, from its paper for SGD: bound on the gradient's norm, learning rate of the trial step, smallest scale.
_BOUND, _TRIAL_RATE, _SMALLEST_SCALE = 1.0, 0.1, 0.01
# Ours: steps and learning rate of the scales; the paper has an epoch of steps at 1e-3 to 1e-2.
_STEPS, _SCALES_RATE = 100, 0.01


def bvlc_(model: nn.Module, *, generator: torch.Generator | None = None) -> Report:
    """The initialization that the BVLC model zoo has for CaffeNet or GoogLeNet, whichever the model is.

    CaffeNet: Gaussians of std 0.01, in fc6 and fc7 of 0.005; biases 1 in conv2, conv4, conv5, fc6 and fc7, 0 elsewhere.
    GoogLeNet: Caffe's "xavier", U(-a, a) with a = sqrt(3 / n_in); biases 0.2, in the last layers 0.

    Args:
        model: one of these two.
        generator: source of the random numbers.

    Raises:
        OptionError: it is neither.
    """
    start = time.perf_counter()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
    if not isinstance(model, GoogLeNet) and "fc6" not in layers:
        raise OptionError(f"the reference initialization is CaffeNet's or GoogLeNet's; got a {type(model).__name__}")
    records: list[Record] = []
    with torch.no_grad():
        for name, layer in layers.items():
            # Where the generator draws, in the weight's own order in memory.
            drawn = torch.empty_like(layer.weight, device=layer.weight.device if generator is None else generator.device)
            if isinstance(model, GoogLeNet):
                bound = math.sqrt(3 / layer.weight[0].numel())
                drawn.uniform_(-bound, bound, generator=generator)
                bias = 0.0 if isinstance(layer, nn.Linear) and layer.out_features == model.classes else 0.2
            else:
                drawn.normal_(0, 0.005 if name in ("fc6", "fc7") else 0.01, generator=generator)
                bias = float(name in ("conv2", "conv4", "conv5", "fc6", "fc7"))
            layer.weight.copy_(drawn)
            if layer.bias is not None:
                layer.bias.fill_(bias)
            shape = tuple(layer.weight.shape)
            records.append(Record(f"{name}.weight", type(layer).__name__, shape, "drawn", 1.0, None, None, 1.0))
    return Report(tuple(records), 0, time.perf_counter() - start, 0.0)


@torch.no_grad()
def krahenbuhl_(model: nn.Module, x: Tensor, *, generator: torch.Generator | None = None) -> Report:
    """Gaussian weights, then every channel of every layer's output to mean 0 and std 1 on a batch, biases included.

    In one forward pass: the output of a layer is normalized as it is made, and its weight and bias so that they make it. The
    second half of the source's method, which balances the layers' gradients, is left out.

    Args:
        model: its layers are its Conv2d and Linear modules; each of them is used once.
        x: a batch.
        generator: source of the random numbers.

    Source:
        Krähenbühl, Doersch, Donahue, Darrell 2016, arXiv 1511.06856, Algorithm 1.
    """
    start = time.perf_counter()
    report = init_(model, "lsuv-gaussian", x, generator=generator)  # its scale is measured again below
    names = {module: name for name, module in model.named_modules()}
    records: list[Record] = []

    def normalize(module: nn.Module, _args: object, z: Tensor) -> Tensor:
        assert isinstance(module, _LAYERS)
        others = [axis for axis in range(z.dim()) if axis != 1]
        mean, std = z.mean(others), z.std(others, correction=0)
        alive = std > _SMALLEST * std.max()  # of a channel that is constant the weights stay as they are
        std = torch.where(alive, std, 1.0)
        each = [1, -1, *[1] * (z.dim() - 2)]
        module.weight.div_(std.view(-1, *[1] * (module.weight.dim() - 1)))
        if module.bias is not None:
            module.bias.copy_((module.bias - mean) / std)
            z = z - mean.view(each)
        z = z / std.view(each)
        before = report[f"{names[module]}.weight"]
        status = "scaled" if bool(alive.all()) else "no-signal"
        records.append(Record(before.name, before.operator, before.shape, status, 1.0, before.std_before, z.std().item(), 1.0))
        return z

    with restored(model), _hooked(model, normalize):
        model(x)
    return Report(tuple(records), 2, time.perf_counter() - start, report.sampling_seconds)


@contextmanager
def _hooked(model: nn.Module, hook: object) -> Iterator[None]:
    """Forward hooks on all layers, dropout off."""
    training = [(module, module.training) for module in model.modules()]
    handles = [module.register_forward_hook(hook) for module in model.modules() if isinstance(module, _LAYERS)]  # type: ignore[arg-type]  # one that fits
    for module, _ in training:
        if isinstance(module, nn.Dropout):
            module.training = False
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, flag in training:
            module.training = flag


def gradinit_(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    run: Training,
    *,
    steps: int = _STEPS,
    generator: torch.Generator | None = None,
) -> Report:
    """He's weights, each multiplied by a factor that is learned: so that a first step of SGD lowers the loss most.

    The factors m minimize L(S', theta_m - eta g), g the gradient of L(S, theta_m), under |g| <= 1: where |g| is larger, it is
    that which a step lowers. S' is half of S and half new.

    Args:
        model: its weights with two axes or more get a factor each.
        batches: by number, images and labels.
        loss: of scores and labels.
        run: for its kind of solver; SGD's norm is the Euclidean one.
        steps: of the factors, with Adam.
        generator: source of the random numbers of the weights.

    Source:
        Zhu et al. 2021, arXiv 2102.08098, Algorithm 1.
    """
    start = time.perf_counter()
    report = init_(model, "he", batches[0][0], generator=generator)
    drawn = {name: p.detach().clone() for name, p in model.named_parameters()}
    scales = {name: torch.ones((), device=p.device, requires_grad=True) for name, p in drawn.items() if p.dim() > 1}
    adam = torch.optim.Adam(scales.values(), lr=_SCALES_RATE)
    order = 1 if run.optimizer == "rmsprop" else 2  # of adaptive solvers the source takes the sum of absolute values
    training = model.training
    model.train()
    try:
        for step in range(steps):
            x, labels = batches[2 * step]
            scaled = {name: scales[name] * p if name in scales else p.requires_grad_() for name, p in drawn.items()}
            gradients = torch.autograd.grad(_loss_with(model, scaled, loss, x, labels), list(scaled.values()), create_graph=True)
            size = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]), ord=order)
            if size > _BOUND:
                size.backward(inputs=list(scales.values()))
            else:
                other, other_labels = batches[2 * step + 1]
                half = len(x) // 2
                moved = {
                    name: p - _TRIAL_RATE * (g.sign() if order == 1 else g)
                    for (name, p), g in zip(scaled.items(), gradients, strict=True)
                }
                both = torch.cat([x[:half], other[half:]]), torch.cat([labels[:half], other_labels[half:]])
                _loss_with(model, moved, loss, *both).backward(inputs=list(scales.values()))
            adam.step()
            adam.zero_grad()
            with torch.no_grad():
                for scale in scales.values():
                    scale.clamp_(min=_SMALLEST_SCALE)
    finally:
        model.train(training)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in scales:
                p.mul_(scales[name])
    factors = {name: scale.item() for name, scale in scales.items()}
    records = (Record(r.name, r.operator, r.shape, r.status, r.target, None, None, factors.get(r.name, 1.0)) for r in report)
    return Report(tuple(records), 3 * steps, time.perf_counter() - start, report.sampling_seconds)


def _loss_with(model: nn.Module, parameters: dict[str, Tensor], loss: Loss, x: Tensor, labels: Tensor) -> Tensor:
    """The loss with other parameters; buffers (statistics of batch normalization) are not touched."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    scores = torch.func.functional_call(model, {**parameters, **buffers}, (x,))
    return loss(scores if isinstance(scores, Tensor) else scores[0], labels)
