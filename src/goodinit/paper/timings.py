"""How long initializations take, and what batch normalization costs in training. Contenders take turns; figures are medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.paper.blocks import NORMS
from goodinit.paper.config import Timing
from goodinit.paper.networks import NETWORKS, ImageNet, make_network
from goodinit.paper.precision import exact_float32
from goodinit.schemes import init_

Seconds = dict[str, list[float]]
# Contenders of an "iteration", by the norm of the network.
STEPS = {"none": "no BN", "before": "BN before", "after": "BN after"}


def measure(run: Timing, *, device: torch.device, tell: Callable[[str, float], None] | None = None) -> Seconds:
    """The seconds of every contender in every round, after one that does not count.

    ``"init"`` has the contenders orthonormal and lsuv; ``"iteration"`` a training step (forward, backward, update, with SGD) of
    the network without batch normalization, with it before the non-linearities, and after them.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), exact_float32(device):
        torch.manual_seed(run.seed)
        contenders = _inits(run, device) if run.measure == "init" else _iterations(run, device)
        seconds: Seconds = {name: [] for name in contenders}
        for warm in (False, *[True] * run.repeats):
            for name, contender in contenders.items():
                taken = _seconds(contender, device)
                if warm:
                    seconds[name].append(taken / (run.steps if run.measure == "iteration" else 1))
                    if tell:
                        tell(name, seconds[name][-1])
    return seconds


def medians(seconds: Seconds) -> dict[str, float]:
    """By contender."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(contender: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    contender()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _inits(run: Timing, device: torch.device) -> dict[str, Callable[[], object]]:
    model, x = _network(run, "none", device)
    return {"orthonormal": lambda: init_(model, "orthonormal"), "lsuv": lambda: init_(model, "lsuv", x)}


def _iterations(run: Timing, device: torch.device) -> dict[str, Callable[[], object]]:
    return {STEPS[norm]: _steps(run, *_network(run, norm, device)) for norm in NORMS}


def _steps(run: Timing, model: nn.Module, x: Tensor) -> Callable[[], None]:
    labels = torch.zeros(run.batch, dtype=torch.int64, device=x.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9, fused=True)

    def steps() -> None:
        for _ in range(run.steps):
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=run.precision == "bfloat16"):
                scores = model(x)
                loss = F.cross_entropy(scores if isinstance(scores, Tensor) else scores[0], labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def _network(run: Timing, norm: str, device: torch.device) -> tuple[nn.Module, Tensor]:
    """A network, and noise for it."""
    shape = NETWORKS[run.network]
    classes = 1000 if isinstance(shape, ImageNet) else 10
    model = make_network(run.network, activation=run.activation, norm=norm, depth=run.depth, classes=classes)
    x = torch.randn(run.batch, shape.channels, shape.published_pixels, shape.published_pixels, device=device)
    placed: nn.Module = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    return placed.train(), x.to(memory_format=torch.channels_last)
