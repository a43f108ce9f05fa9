"""Random walk initialization's own claim: the logarithm of the error's norm takes steps of mean 0 through the layers."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from goodinit.paper.blocks import prepare_
from goodinit.paper.config import Training, Walk, nonlinearity_of
from goodinit.paper.data import ImageSet
from goodinit.paper.networks import make_network
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing, seed_of
from goodinit.paper.precision import exact_float32
from goodinit.schemes import init_

EVERY = 10  # layers, of a path that is kept


def walks(run: Walk, images: ImageSet, device: torch.device) -> dict[str, Any]:
    """The walks of all draws, from the last layer to the first.

    Returns:
        For every draw the mean step, the standard deviation of the steps, and the path (every tenth place, natural logarithms,
        0 at the last layer); None for what is infinite.
    """
    preprocessing = Preprocessing.fitted(run.pixels, images.train, device)
    batches = Batches(
        images.train, preprocessing, Augmentation(), size=run.batch, seed=seed_of(run.seed, "batches"), device=device
    )
    with exact_float32(device):
        paths = [log_norms(run, images.classes, *batches[draw], draw) for draw in range(run.draws)]
    return {
        "step_mean": [_finite((path[-1] - path[0]) / (len(path) - 1)) for path in paths],
        "step_std": [_finite(torch.tensor(path, dtype=torch.float64).diff().std().item()) for path in paths],
        "paths": [[_finite(value - path[0]) for value in path[::EVERY]] for path in paths],
    }


def log_norms(run: Walk, classes: int, x: Tensor, labels: Tensor, draw: int) -> list[float]:
    """log |dL/dz| for the output z of every layer but the last one, from the last to the first, of one draw of weights."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        model = make_network(run.network, activation=run.activation, classes=classes, depth=run.depth, pixels=x.shape[-1])
    model = model.to(x.device)
    generator = torch.Generator().manual_seed(seed_of(run.seed, "draw", draw))
    init_(model, run.init, x, nonlinearity=nonlinearity_of(run.activation), generator=generator)  # type: ignore[arg-type]  # a scheme
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, z: Tensor) -> None:
        z.retain_grad()
        outputs.append(z)

    prepare_(model, gate_bias=Training.gate_bias)
    named = model.named_modules()
    layers = [m for name, m in named if isinstance(m, nn.Linear) and name.startswith("layer") and not name.endswith("gate")]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    F.cross_entropy(model(x), labels).backward()
    for handle in handles:
        handle.remove()
    norms = torch.stack([torch.linalg.vector_norm(_gradient(z).double()) for z in outputs])
    found: list[float] = norms.log().flip(0).tolist()
    return found


def _gradient(z: Tensor) -> Tensor:
    assert z.grad is not None
    return z.grad


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
