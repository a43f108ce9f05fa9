"""Structured orthonormal matrices against exactly uniform ones: how fast, how orthonormal, and whether training can tell.

    python benchmarks/bench_structured.py speed
    python benchmarks/bench_structured.py training --data-dir DIR

speed: structured, Haar (both `goodinit.orthonormal_`) and torch.nn.init.orthogonal_ take turns. Target: structured at least 8
times as fast as torch's at 4096x9216, Gram error under 5e-6.
training: two networks, each from LSUV on matrices of either kind, five seeds; all else is the same for a seed. Target: the mean
difference of the test accuracy is within two of its standard errors of 0.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from checks import GRAM_TOLERANCE, gram_error
from rows import Rows
from timing import interleaved, median_ratio, ratios, timed
from torch import Tensor, nn

from goodinit import lsuv_, orthonormal_
from goodinit.paper.data import ImageSet, load
from goodinit.paper.pixels import Augmentation, Batches, Preprocessing, in_order, seed_of

_OUT = Path(__file__).resolve().parent / "results" / "bench_structured.jsonl"
_SHAPES = ((512, 4608), (1024, 1024), (4096, 4096), (4096, 9216), (4096, 25088), (11008, 4096))
_KINDS: tuple[Literal["orthonormal", "structured"], ...] = ("orthonormal", "structured")
_CPU = torch.device("cpu")


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark structured orthonormal matrices.")
    parser.add_argument("section", choices=("speed", "training"))
    parser.add_argument("--repeats", default=5, type=int, help="rounds of the timings")
    parser.add_argument("--seeds", default=5, type=int, help="trainings of each kind")
    parser.add_argument("--steps", default=400, type=int, help="of each training")
    parser.add_argument("--largest", default=10**9, type=int, help="numbers of a matrix: less for a test of the benchmark")
    parser.add_argument("--data-dir", type=Path, help="folder of image sets; downloaded otherwise")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that raw rows are appended to")
    options = parser.parse_args()
    rows = Rows(options.out, 0, quick=options.repeats < 3 or options.steps < 400)
    if options.section == "speed":
        for shape in _SHAPES:
            if math.prod(shape) <= options.largest:
                speed(shape, rows, repeats=options.repeats)
    else:
        for name, make in {"mnist": perceptron, "cifar10": convolutions}.items():
            trainings(name, make, rows, options.data_dir, seeds=options.seeds, steps=options.steps)
    print("\n".join(rows.failed), file=sys.stderr)
    return int(bool(rows.failed))


def speed(shape: tuple[int, int], rows: Rows, *, repeats: int) -> None:
    """Rows of one shape."""
    torch.manual_seed(0)
    weight = torch.ones(shape)
    samplers: dict[str, Callable[[Tensor], Tensor]] = {
        "structured": partial(orthonormal_, method="structured"),
        "haar": orthonormal_,
        "torch": nn.init.orthogonal_,
    }
    errors: dict[str, list[float]] = {name: [] for name in samplers}
    for sampler in samplers.values():
        sampler(torch.ones(300, 300))  # libraries are loaded by the first call

    def contestant(name: str) -> Callable[[], float]:
        def run() -> float:
            seconds = timed(lambda: samplers[name](weight))
            errors[name].append(gram_error(weight).error)
            return seconds

        return run

    seconds = interleaved({name: contestant(name) for name in samplers}, repeats, budget=600)
    for name, taken in seconds.items():
        ours = name != "torch" and not max(errors[name]) < GRAM_TOLERANCE
        rows.add(
            "speed",
            f"{shape[0]}x{shape[1]}",
            name,
            seconds=taken,
            speedup=median_ratio(seconds["torch"], taken),
            speedups=ratios(seconds["torch"], taken),
            gram_error=max(errors[name]),
            failed_checks=[f"Gram error {max(errors[name]):.1e}"] if ours else [],
        )
    ratio = median_ratio(seconds["torch"], seconds["structured"])
    print(f"{shape[0]}x{shape[1]}: structured {ratio:.1f} times as fast as torch", flush=True)


def perceptron() -> nn.Module:
    """Ten ReLU layers of 512 units."""
    widths = [784, *[512] * 10]
    hidden = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(512, 10))


def convolutions() -> nn.Module:
    """Eight tanh convolutions, six of them of 128 channels."""
    plan = [(3, 64, 2), (64, 128, 2), *[(128, 128, 1)] * 4, (128, 128, 2), (128, 128, 1)]
    hidden = [layer for a, b, stride in plan for layer in (nn.Conv2d(a, b, 3, stride, 1), nn.Tanh())]
    return nn.Sequential(*hidden, nn.Flatten(), nn.Linear(128 * 16, 10))


def trainings(name: str, make: Callable[[], nn.Module], rows: Rows, data_dir: Path | None, *, seeds: int, steps: int) -> None:
    """A row a kind of matrices: the test accuracy of every seed."""
    images = load(name, data_dir)
    accuracies: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for seed in range(seeds):
        for kind in _KINDS:
            start = time.perf_counter()
            accuracies[kind].append(trained(make, images, kind, seed, steps))
            seconds[kind].append(time.perf_counter() - start)
    differences = [b - a for a, b in zip(accuracies["orthonormal"], accuracies["structured"], strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(seeds) if seeds > 1 else math.inf
    for kind in _KINDS:
        tells = kind == "structured" and abs(mean) > 2 * error
        rows.add(
            "training",
            name,
            kind,
            seconds=seconds[kind],
            steps=steps,
            accuracies=accuracies[kind],
            mean=statistics.mean(accuracies[kind]),
            difference=mean if kind == "structured" else None,
            standard_error=error if kind == "structured" else None,
            failed_checks=[f"differs by {mean:.4f} +- {error:.4f}"] if tells else [],
        )
    print(f"{name}: structured minus Haar {mean:+.4f} +- {error:.4f} (mean test accuracy {accuracies})", flush=True)


def trained(
    make: Callable[[], nn.Module], images: ImageSet, kind: Literal["orthonormal", "structured"], seed: int, steps: int
) -> float:
    """Accuracy on the test images after SGD with momentum."""
    preprocessing = Preprocessing.fitted("standardized", images.train, _CPU)
    batches = Batches(images.train, preprocessing, Augmentation(), size=64, seed=seed_of(seed, "batches"), device=_CPU)
    model = make()
    report = lsuv_(model, batches[0][0], pre_init=kind, generator=torch.Generator().manual_seed(seed_of(seed, kind)))
    assert report.ok
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(steps):
        x, y = batches[step]
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right, count = 0, 0
    with torch.inference_mode():
        for x, y in in_order(images.test, preprocessing, size=500, device=_CPU):
            right += int((model(x).argmax(1) == y).sum())
            count += len(y)
    return right / count


if __name__ == "__main__":
    sys.exit(main())
