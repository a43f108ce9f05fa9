"""How much of a bare training loop's speed `goodinit.paper.train` keeps: forward, backward, update, and nothing else, on noise.

    python benchmarks/bench_training.py [--device cuda] [--precision bfloat16]

What comes on top in a training is the batches (gathered, preprocessed, cropped and mirrored on the device), losses fetched, and
checks. Both take turns, each round anew; the ratio is of medians over the rounds. Target: at least 0.9.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from rows import Rows
from torch import Tensor

from goodinit.paper.config import Training
from goodinit.paper.data import Images, ImageSet
from goodinit.paper.decode import Facts
from goodinit.paper.experiment import named
from goodinit.paper.networks import NETWORKS, make_network
from goodinit.paper.optimize import LOSSES, Solver
from goodinit.paper.train import train

_OUT = Path(__file__).resolve().parent / "results" / "bench_training.jsonl"
# Cell of an experiment's full budget -> iterations a round.
_RUNS = {
    "fitnet-mnist, maxout": ("table2", "mnist-hinge/lsuv", 150),
    "fitnet1, relu": ("figure1", "1/relu", 40),
    "fitnet4, relu": ("table3", "lsuv/relu", 8),
    "fitnet4, maxout": ("table3", "lsuv/maxout", 4),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark goodinit's training loop against a bare one.")
    parser.add_argument("--repeats", default=5, type=int, help="rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--share", default=1.0, type=float, help="of the iterations: less for a test of the benchmark")
    parser.add_argument("--nets", default="*", help="the first words of those to run, *: all")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that raw rows are appended to")
    options = parser.parse_args()
    rows = Rows(options.out, 0, quick=options.share < 1)
    device = torch.device(options.device)
    for name, (experiment, cell, iterations) in _RUNS.items():
        if options.nets != "*" and not name.startswith(options.nets):
            continue
        run = named(experiment).selected("full", [cell])[0].run
        assert isinstance(run, Training)
        count = max(1, round(iterations * options.share * (20 if device.type == "cuda" else 1)))
        run = replace(run, iterations=count, evaluations=1, precision=options.precision, updates=False, milestones=())
        measure(name, run, device, options.repeats, rows)
    return 0


def measure(name: str, run: Training, device: torch.device, repeats: int, rows: Rows) -> None:
    """Both loops in turn."""
    images = noise(run)
    seconds: dict[str, list[float]] = {"bare": [], "train": []}
    for _ in range(repeats):
        seconds["bare"].append(bare(run, device))
        seconds["train"].append(train(run, images, device=device).progress.seconds)
    ratio = statistics.median(seconds["bare"]) / statistics.median(seconds["train"])
    speed = run.batch * run.iterations / statistics.median(seconds["train"])
    print(f"{name}: {ratio:.3f} of the bare loop, {speed:,.0f} images/s", flush=True)
    for contender, taken in seconds.items():
        rows.add(
            "training", name, contender, seconds=taken, iterations=run.iterations, batch=run.batch, device=str(device),
            precision=run.precision, ratio=ratio if contender == "train" else None,
        )  # fmt: skip


def noise(run: Training) -> ImageSet:
    """A set of the size of a few batches."""
    shape = NETWORKS[run.network]
    size = shape.published_pixels
    pixels = torch.randint(256, (40 * run.batch, shape.channels, size, size), dtype=torch.uint8)
    images = Images(pixels, torch.arange(len(pixels)) % 10, Facts(tuple(map(str, range(10))), {}, ""))
    return ImageSet("noise", images, images.first(run.batch))


def bare(run: Training, device: torch.device) -> float:
    """Seconds of as many iterations on one batch that is there already."""
    shape = NETWORKS[run.network]
    model = make_network(run.network, activation=run.activation)
    model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs
    x: Tensor = torch.randn(run.batch, shape.channels, shape.published_pixels, shape.published_pixels, device=device)
    x, y = x.to(memory_format=torch.channels_last), torch.zeros(run.batch, dtype=torch.int64, device=device)
    optimizer, loss_of = Solver(run, model).optimizer, LOSSES[run.loss]
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(run.iterations):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.precision == "bfloat16"):
            loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
