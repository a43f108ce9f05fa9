"""lsuv_ and orthonormal_ side by side with what they cannot do without, and with their peers; checks the results while timing.

    python benchmarks/bench_lsuv.py                                            # all of it: about ten minutes on two free cores
    python benchmarks/bench_lsuv.py --sections c --repeats 9
    python benchmarks/bench_lsuv.py --table benchmarks/results/bench_lsuv.jsonl   # the table of the last run, as Markdown

Sections: a, speed.py; b, peers.py; c, matrices.py; d, peak_memory.py. Raw rows are appended to a file, one JSON line each. Exits
with 1 if a result is wrong, whatever the speed. Speeds are compared within a run: contestants take turns, and figures are medians
over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import matrices
import networks
import peak_memory
import peers
import speed
import torch
from rows import Rows, last_run
from table import add_option, markdown, write
from timing import CLOCK

_OUT = Path(__file__).resolve().parent / "results" / "bench_lsuv.jsonl"
# The nets of a section, where not all. VGG-16 would cost the peers minutes; memory: one net of each form.
_NETS = {
    "b": "mlp-10 mlp-100 mlp-1000 plain-cnn-50 gpt2-like resnet18-like resnet50-like inception-like caffenet",
    "d": "mlp-100 plain-cnn-50 gpt2-like resnet50-like inception-like caffenet vgg16",
}
_QUICK_NETS = {
    "a": "mlp-10 mlp-100 plain-cnn-50 gpt2-like resnet18-like inception-like caffenet",
    "b": "mlp-10 mlp-1000 gpt2-like resnet18-like",
    "d": "caffenet",
}


def main() -> int:
    options = _options()
    if options.table:
        return write(markdown(last_run(options.table)), options.table)
    CLOCK.name = options.clock
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = Rows(options.out, options.seed, quick=options.quick)
    start = time.perf_counter()
    run(options, rows)
    took = time.perf_counter() - start
    print(f"\n{markdown(rows.made)}\n\n{len(rows.made)} rows in {took:.0f} s, appended to {options.out.name}")
    for failed in rows.failed:
        print(f"WRONG RESULT: {failed}", file=sys.stderr)
    return 1 if rows.failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmark goodinit's lsuv_ and orthonormal_; checks the results while timing.")
    parser.add_argument("--sections", default="a,b,c,d", type=lambda text: text.split(","), help="which of a,b,c,d to run")
    parser.add_argument("--repeats", default=5, type=int, help="rounds, fewer where they would exceed --budget")
    parser.add_argument("--budget", default=60.0, type=float, help="seconds for the rounds of one network or matrix")
    parser.add_argument("--cap", default=60.0, type=float, help="wall-clock seconds for one call of a peer")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--threads", type=int, help="torch's default if not given")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu, with --threads 1: where other things use the cores"
    )
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds: a test of the benchmark, no figures")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that raw rows are appended to")
    add_option(parser)
    options = parser.parse_args()
    if unknown := set(options.sections) - set("abcd"):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are a, b, c, d")
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu adds up what all threads use, waiting too: it needs --threads 1")
    if options.quick:
        options.repeats, options.cap = min(options.repeats, 2), min(options.cap, 0.5)
        options.threads = options.threads or 1  # such small operators gain nothing from more
    return options


def run(options: argparse.Namespace, rows: Rows) -> None:
    """All sections asked for, the nets of each in turn."""
    limits = {"repeats": options.repeats, "seed": options.seed}
    if "a" in options.sections:
        for net in _nets("a", quick=options.quick):
            speed.measure(net, rows, budget=options.budget, **limits)
    if "b" in options.sections:
        for net in _nets("b", quick=options.quick):
            peers.measure(net, rows, cap=options.cap, **limits)
    if "c" in options.sections:
        for shape in matrices.SMALL_SIZE if options.quick else matrices.FULL_SIZE:
            matrices.measure(shape, rows, budget=options.budget, **limits)
    if "d" in options.sections:
        budget = 0.0 if options.quick else options.budget / 5  # peaks hardly vary; 0: one round
        for net in _nets("d", quick=options.quick):
            peak_memory.measure(net, rows, budget=budget, quick=options.quick, **limits)


def _nets(section: str, *, quick: bool) -> list[networks.Net]:
    nets = networks.small_size() if quick else networks.full_size()
    names = (_QUICK_NETS if quick else _NETS).get(section)
    return nets if names is None else [net for net in nets if net.name in names.split()]


if __name__ == "__main__":
    sys.exit(main())
