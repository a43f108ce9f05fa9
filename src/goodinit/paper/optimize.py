"""Losses, solvers and schedules as the authors' recipes for Caffe have them."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.paper.config import Training


def hinge(scores: Tensor, labels: Tensor) -> Tensor:
    """Caffe's HingeLoss with the L1 norm: the sum over classes of max(0, 1 - score) for the right class and
    max(0, 1 + score) for all others, averaged over the images.

    Args:
        scores: (n, classes).
        labels: (n,).

    >>> float(hinge(torch.tensor([[2.0, -3.0, 0.5]]), torch.tensor([0])))
    1.5
    """
    signs = torch.ones_like(scores).scatter_(1, labels[:, None], -1.0)
    return (1 + signs * scores).clamp_min(0).sum(1).mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"softmax": F.cross_entropy, "hinge": hinge}


class Solver:
    """SGD with momentum or RMSProp, weight decay, clipping and the steps of the learning rate, as in Caffe."""

    def __init__(self, run: Training, model: nn.Module) -> None:
        self._run = run
        groups = [
            {"params": params, "weight_decay": run.weight_decay if decays else 0.0, "lr_mult": rate}
            for (decays, rate), params in _groups(run, model).items()
        ]
        # One kernel for all weights instead of several for each.
        fused = torch.device("cpu") if not groups else groups[0]["params"][0].device  # type: ignore[index]  # a list
        self.optimizer: torch.optim.Optimizer
        if run.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=run.lr, momentum=run.momentum, fused=fused.type in ("cpu", "cuda"))
        else:
            self.optimizer = torch.optim.RMSprop(groups, lr=run.lr, alpha=run.rms_decay, eps=1e-8)

    def step(self, iteration: int) -> None:
        """The update of an iteration, counted from 0, from the gradients that are there."""
        rate = learning_rate(self._run, iteration)
        for group in self.optimizer.param_groups:
            own = rate * group["lr_mult"]
            if group["lr"] != own:
                self._change_rate(group, own)
        if self._run.clip_gradients:  # before weight decay is added, as in Caffe
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self._run.clip_gradients)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _change_rate(self, group: dict[str, object], rate: float) -> None:
        """Caffe's momentum is that of updates, torch's that of gradients: where the rate falls, Caffe's steps fall gradually."""
        ratio = float(group["lr"]) / rate  # type: ignore[arg-type]  # a number
        group["lr"] = rate
        for parameter in group["params"]:  # type: ignore[attr-defined]  # a list
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                buffer.mul_(ratio)


def learning_rate(run: Training, iteration: int) -> float:
    """Of an iteration, counted from 0."""
    if run.schedule == "poly":
        return float(run.lr * (1 - iteration / run.iterations) ** run.power)
    return run.lr * run.gamma ** bisect.bisect_right(run.milestones, iteration)


def _groups(run: Training, model: nn.Module) -> dict[tuple[bool, float], list[nn.Parameter]]:
    """Parameters by whether they decay and by the factor on their learning rate. Batch normalization's do not decay."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for module in model.modules():
        normalizes = isinstance(module, nn.modules.batchnorm._BatchNorm)
        decays = run.bias_decay if isinstance(module, nn.modules.conv._ConvNd) else run.linear_bias_decay
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = name == "bias" and not normalizes
            key = not normalizes and (decays or not is_bias), run.bias_lr if is_bias else 1.0
            groups.setdefault(key, []).append(parameter)
    return groups
