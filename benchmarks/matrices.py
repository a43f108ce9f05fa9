"""Section c: orthonormal_ against torch.nn.init.orthogonal_, both exact, both uniformly distributed."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from checks import GRAM_TOLERANCE, GramError, gram_error
from rows import Rows
from timing import interleaved, median_ratio, ratios, timed
from torch import Tensor

from goodinit import orthonormal_

Shape = tuple[int, int]

# 4096 x 9216 and 4096 x 25088: the first fully connected layers of CaffeNet and VGG-16.
FULL_SIZE: tuple[Shape, ...] = (
    (128, 1152),
    (2304, 256),
    (512, 4608),
    (1000, 4096),
    (4096, 4096),
    (4096, 9216),
    (4096, 25088),
)
SMALL_SIZE: tuple[Shape, ...] = ((16, 144), (256, 64), (128, 1152))


def measure(shape: Shape, rows: Rows, *, repeats: int, budget: float, seed: int) -> None:
    """Rows of one shape."""
    torch.manual_seed(seed)
    weight = torch.ones(shape)
    samplers: dict[str, Callable[[Tensor], Tensor]] = {
        "orthonormal_": orthonormal_,
        "torch.nn.init.orthogonal_": torch.nn.init.orthogonal_,
    }
    errors: dict[str, list[GramError]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler(torch.ones(64, 64))  # libraries are loaded by the first call

    def contestant(name: str) -> Callable[[], float]:
        def run() -> float:
            seconds = timed(lambda: samplers[name](weight))
            errors[name].append(gram_error(weight))
            return seconds

        return run

    seconds = interleaved({name: contestant(name) for name in samplers}, repeats, budget)
    label = f"{shape[0]}x{shape[1]}"
    for name in samplers:
        worst = max(e.error for e in errors[name])
        wrong = name == "orthonormal_" and not worst < GRAM_TOLERANCE
        rows.add(
            "c",
            label,
            name,
            seconds=seconds[name],
            speedup=median_ratio(seconds["torch.nn.init.orthogonal_"], seconds[name]),
            speedups=ratios(seconds["torch.nn.init.orthogonal_"], seconds[name]),
            gram_error=worst,
            gram_rows_checked=errors[name][0].rows_checked,
            gram_rows=errors[name][0].rows,
            dtype="float32",
            failed_checks=[f"Gram error {worst:.1e}"] if wrong else [],
        )
    print(f"c  {label}: orthonormal_ {statistics.median(seconds['orthonormal_']):.3g} s", flush=True)
