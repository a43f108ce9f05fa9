"""What a training gains where freed memory is kept (goodinit.paper.allocator): the same steps with and without it, on noise.

    python benchmarks/bench_allocator.py [--threads 1]    # five minutes
    python benchmarks/bench_allocator.py --table benchmarks/results/bench_allocator.jsonl    # the last run's table, as Markdown

The choice is one of a whole process, so every measurement has a process of its own; both take turns, and the ratio is the median
of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_training import noise, shortened
from fresh_process import last_line
from peak_memory import memory
from rows import Row, Rows, last_run
from table import Cells, add_option, grouped, header, table, write
from timing import median_ratio

from goodinit.paper.allocator import keep_freed_memory
from goodinit.paper.train import train

_OUT = Path(__file__).resolve().parent / "results" / "bench_allocator.jsonl"
# Cell of an experiment -> iterations of a process.
_RUNS = {
    "fitnet-mnist, maxout": ("table2", "full", "mnist-hinge/lsuv", 40),
    "fitnet1, relu": ("table3", "short", "lsuv/relu", 20),
    "fitnet4, relu": ("table3", "full", "lsuv/relu", 4),
}
_KEEPS = {"glibc's default": False, "kept": True}


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark training with freed memory kept.")
    parser.add_argument("--repeats", default=5, type=int, help="rounds")
    parser.add_argument("--threads", default=torch.get_num_threads(), type=int)
    parser.add_argument("--share", default=1.0, type=float, help="of the iterations: less for a test of the benchmark")
    parser.add_argument("--nets", default="*", help="the first words of those to run, *: all")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that raw rows are appended to")
    parser.add_argument("--measure", nargs=2, metavar=("NET", "CONTESTANT"), help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.table:
        return write(markdown(last_run(options.table)), options.table)
    torch.set_num_threads(options.threads)
    if options.measure:
        print(*_measured(options.measure[0], options.measure[1], options.share))
        return 0
    rows = Rows(options.out, 0, quick=options.share < 1)
    for net in _RUNS:
        if options.nets != "*" and not net.startswith(options.nets):
            continue
        found: dict[str, list[tuple[float, float]]] = {contestant: [] for contestant in _KEEPS}
        for _ in range(options.repeats):
            for contestant, measurements in found.items():
                measurements.append(_in_fresh_process(net, contestant, options.threads, options.share))
        seconds = {contestant: [taken for taken, _ in measurements] for contestant, measurements in found.items()}
        ratio = median_ratio(*(seconds[contestant] for contestant in _KEEPS))
        print(f"{net}: {ratio:.2f} times as fast", flush=True)
        for contestant, measurements in found.items():
            rows.add(
                "allocator", net, contestant, seconds=seconds[contestant], threads=options.threads,
                peak_bytes=statistics.median(peak for _, peak in measurements),
            )  # fmt: skip
    return 0


def _in_fresh_process(net: str, contestant: str, threads: int, share: float) -> tuple[float, float]:
    arguments = ["--measure", net, contestant, "--threads", str(threads), "--share", str(share)]
    seconds, peak = map(float, last_line(__file__, arguments, f"{net}, {contestant}").split())
    return seconds, peak


def _measured(net: str, contestant: str, share: float) -> tuple[float, int]:
    """Seconds an iteration, and the peak of this process's memory in bytes."""
    if _KEEPS[contestant] and not keep_freed_memory():
        raise SystemExit("this C library does not keep memory when told to: there is nothing to measure")
    experiment, budget, cell, iterations = _RUNS[net]
    run = shortened(experiment, cell, max(1, round(iterations * share)), budget)
    images = noise(run)

    def trained() -> float:
        return train(run, images, device=torch.device("cpu")).progress.seconds / run.iterations

    trained()  # kernels are made and memory is got
    return trained(), memory("VmHWM")


def markdown(rows: Sequence[Row]) -> str:
    """What a run found, as a table."""
    lines: list[Cells] = []
    for name, own in grouped(rows):
        default, kept = (own[contestant] for contestant in _KEEPS)
        speed = median_ratio(default["seconds"], kept["seconds"])
        times = (f"{1000 * row['median_seconds']:,.0f}" for row in (default, kept))
        peaks = (f"{row['peak_bytes'] / 2**20:,.0f}" for row in (default, kept))
        lines.append((name, str(kept["threads"]), *times, f"{speed:.2f}", *peaks, str(kept["n"])))
    head = ("net", "threads", "glibc's default, ms a step", "kept, ms a step", "times as fast", "peak, MiB", "kept, MiB", "n")
    return "\n".join((header("bench_allocator", rows), "", table(head, lines)))


if __name__ == "__main__":
    sys.exit(main())
