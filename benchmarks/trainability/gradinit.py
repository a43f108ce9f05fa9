"""GradInit for any network and loss, after its paper; `goodinit.paper.newer` has it for the paper's networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from goodinit import init_
from goodinit.schemes import Nonlinearity

_BOUND, _TRIAL_RATE, _SMALLEST, _RATE, _STEPS = 1.0, 0.1, 0.01, 0.03, 30


def gradinit_(
    model: nn.Module,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    nonlinearity: Nonlinearity = "relu",
    steps: int = _STEPS,
) -> None:
    """He's weights, each times a factor that is learned: a first step of SGD is to lower the loss most, under |gradient| <= 1.

    Source:
        Zhu et al. 2021, arXiv 2102.08098, Algorithm 1, with 30 steps at 0.03 for the paper's epoch at 0.001 to 0.01.
    """
    init_(model, "he", batch(0)[0], nonlinearity=nonlinearity)
    model.train()
    drawn = {name: p.detach().clone() for name, p in model.named_parameters()}
    scales = {name: torch.ones((), requires_grad=True) for name, p in drawn.items() if p.dim() > 1}
    adam = torch.optim.Adam(scales.values(), lr=_RATE)

    def of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        return loss(torch.func.functional_call(model, {**parameters, **buffers}, (x,)), y)

    for step in range(steps):
        x, y = batch(2 * step)
        scaled = {name: scales[name] * p if name in scales else p.requires_grad_() for name, p in drawn.items()}
        found = torch.autograd.grad(of(scaled, x, y), list(scaled.values()), create_graph=True, allow_unused=True)
        gradients = {name: g for name, g in zip(scaled, found, strict=True) if g is not None}
        size = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients.values()]))
        if size > _BOUND:
            size.backward(inputs=list(scales.values()))
        else:
            x2, y2 = batch(2 * step + 1)
            half = len(x) // 2
            moved = {name: p - _TRIAL_RATE * gradients[name] if name in gradients else p for name, p in scaled.items()}
            of(moved, torch.cat([x[:half], x2[half:]]), torch.cat([y[:half], y2[half:]])).backward(inputs=list(scales.values()))
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            for scale in scales.values():
                scale.clamp_(min=_SMALLEST)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in scales:
                p.copy_(drawn[name] * scales[name])
