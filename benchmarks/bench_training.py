"""How much of a bare training loop's speed `goodinit.paper.train` keeps: forward, backward, update, and nothing else, on noise.

    python benchmarks/bench_training.py [--device cuda] [--precision bfloat16]    # six minutes on two free cores
    python benchmarks/bench_training.py --table benchmarks/results/bench_training.jsonl    # the last run's table, as Markdown

What comes on top in a training is the batches (gathered, preprocessed, cropped and mirrored on the device), losses fetched, and
checks. Both take turns, each round anew; the ratio is the median of the rounds' ratios. Target: at least 0.9.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rows import Row, Rows, last_run
from table import Cells, add_option, grouped, header, table, verdict, write
from timing import median_ratio
from torch import Tensor

from goodinit.paper.config import Training
from goodinit.paper.data import Images, ImageSet
from goodinit.paper.decode import Facts
from goodinit.paper.experiment import named
from goodinit.paper.networks import NETWORKS, make_network
from goodinit.paper.optimize import LOSSES, Solver
from goodinit.paper.train import train

_OUT = Path(__file__).resolve().parent / "results" / "bench_training.jsonl"
TARGET = 0.9
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
    add_option(parser)
    options = parser.parse_args()
    if options.table:
        return write(markdown(last_run(options.table)), options.table)
    rows = Rows(options.out, 0, quick=options.share < 1)
    device = torch.device(options.device)
    for name, (experiment, cell, iterations) in _RUNS.items():
        if options.nets != "*" and not name.startswith(options.nets):
            continue
        count = max(1, round(iterations * options.share * (20 if device.type == "cuda" else 1)))
        run = replace(shortened(experiment, cell, count), precision=options.precision)
        measure(name, run, device, options.repeats, rows)
    return 0


def shortened(experiment: str, cell: str, iterations: int, budget: str = "full") -> Training:
    """The training of a cell, for so many iterations and nothing but them."""
    run = named(experiment).selected(budget, [cell])[0].run
    assert isinstance(run, Training)
    return replace(run, iterations=iterations, evaluations=1, updates=False, milestones=())


def measure(name: str, run: Training, device: torch.device, repeats: int, rows: Rows) -> None:
    """Both loops in turn."""
    images = noise(run)
    seconds: dict[str, list[float]] = {"bare": [], "train": []}
    for _ in range(repeats):
        seconds["bare"].append(bare(run, device))
        seconds["train"].append(train(run, images, device=device).progress.seconds)
    ratio = median_ratio(seconds["bare"], seconds["train"])
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


def markdown(rows: Sequence[Row]) -> str:
    """What a run found, as a table, and whether the target is met."""
    by = dict(grouped(rows))
    speeds = {name: median_ratio(own["bare"]["seconds"], own["train"]["seconds"]) for name, own in by.items()}
    lines: list[Cells] = [
        (
            name,
            str(own["train"]["batch"]),
            *(f"{1000 * own[loop]['median_seconds'] / own[loop]['iterations']:,.0f}" for loop in ("bare", "train")),
            f"{own['train']['batch'] * own['train']['iterations'] / own['train']['median_seconds']:,.0f}",
            f"{speeds[name]:.2f}",
            str(own["train"]["n"]),
        )
        for name, own in by.items()
    ]
    head = ("net", "batch", "bare, ms a step", "train, ms a step", "train, images a second", "speed, of the bare loop's", "n")
    worst = min(by, key=speeds.__getitem__)
    target = (f"at least {TARGET} of a bare loop", f"least {speeds[worst]:.2f} ({worst})", verdict(speeds[worst] >= TARGET))
    device = f"- {rows[0]['device']}, {rows[0]['precision']}"
    return "\n".join(
        (header("bench_training", rows), device, "", table(head, lines), "", table(("target", "found", ""), [target]))
    )


if __name__ == "__main__":
    sys.exit(main())
