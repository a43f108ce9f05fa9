"""Results measured without goodinit: stds of outputs, errors of Gram matrices, numbers of forward passes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STD_TOLERANCE = 1e-3
GRAM_TOLERANCE = 5e-6  # float32

# Multiplications for one Gram matrix in float64: some seconds. Of larger matrices a part is checked.
_GRAM_COST = 2e10


def weighted_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Linear, convolution and transformers' Conv1D modules by name, less those whose weight is an embedding's too."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.modules.conv._ConvNd)
    if "transformers" in sys.modules:
        from transformers.pytorch_utils import Conv1D

        kinds = (*kinds, Conv1D)
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds) and id(m.weight) not in embedded}


@torch.no_grad()
def output_stds(model: nn.Module, batch: Tensor, *, training: bool) -> dict[str, float]:
    """Std over all elements of what each weighted module returns at its first use, in one more forward on the batch.

    Taken in the module's own hook, before an activation in place can overwrite the output. Running statistics of BatchNorm
    change as in any forward in train mode.
    """
    stds: dict[str, float] = {}

    def note(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            stds.setdefault(name, output.std(correction=0).item())

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in weighted_modules(model).items()]
    was_training = model.training
    try:
        model.train(training)(batch)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return stds


def span(stds: dict[str, float]) -> tuple[float, float]:
    """Smallest and largest; NaN if any is."""
    values = list(stds.values())
    return (math.nan, math.nan) if any(math.isnan(v) for v in values) else (min(values), max(values))


@dataclass
class Passes:
    """Number of times that something ran: the model itself, or only its first weighted module."""

    root: int = 0
    first_module: int = 0

    @property
    def most(self) -> int:
        """Passes begun, by whichever saw more."""
        return max(self.root, self.first_module)


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[Passes]:
    """Count forward passes; one without the model's own forward (torch.fx) or stopped half-way is a pass too."""
    passes = Passes()

    def root(_module: nn.Module, _inputs: Any) -> None:
        passes.root += 1

    def first_module(_module: nn.Module, _inputs: Any) -> None:
        passes.first_module += 1

    first = next(iter(weighted_modules(model).values()))
    handles = [model.register_forward_pre_hook(root), first.register_forward_pre_hook(first_module)]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class GramError:
    """Largest |Q Q^T - I| over the rows of Q that were checked, each against all rows."""

    error: float
    rows_checked: int
    rows: int


@torch.no_grad()
def gram_error(weight: Tensor, groups: int = 1, *, up_to_scale: bool = False, cost: float = _GRAM_COST) -> GramError:
    """How far the matrices in a weight are from orthonormal rows (wide) or columns (tall), in float64.

    ``up_to_scale``: of the matrix divided by the root mean square of its rows' norms. ``cost``: multiplications to spend; of a
    matrix that would need more a random part of the rows is checked.
    """
    total = GramError(0.0, 0, 0)
    random = torch.Generator().manual_seed(0)
    for matrix in weight.detach().flatten(1).chunk(groups):
        q = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        rows = q.shape[0]
        checked = min(rows, max(1, int(cost / groups / q.numel())))
        picked = torch.randperm(rows, generator=random)[:checked]
        scale = torch.linalg.vector_norm(q, dtype=torch.float64).item() / rows**0.5 if up_to_scale else 1.0
        left = q[picked].double() / scale
        gram = torch.cat([left @ part.double().T for part in q.split(1024)], dim=1) / scale
        gram[torch.arange(checked), picked] -= 1
        total = GramError(max(total.error, gram.abs().max().item()), total.rows_checked + checked, total.rows + rows)
    return total


def failed_stds(stds: dict[str, float], expected: int) -> list[str]:
    """What is wrong with the stds after lsuv_; empty if nothing is. ``expected``: how many it says to have scaled."""
    failed = [f"{name} has std {std:.5f}" for name, std in stds.items() if not abs(std - 1) <= STD_TOLERANCE]
    if len(stds) != expected:
        failed.append(f"{expected} weights scaled, {len(stds)} outputs found")
    return failed


def failed_passes(passes: Passes) -> list[str]:
    """What is wrong with the number of forward passes of lsuv_."""
    once = passes.root == passes.first_module == 1
    return [] if once else [f"{passes.root} forward passes, {passes.first_module} of the first layer"]
