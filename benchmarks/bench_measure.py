"""What goodinit.measure costs: time and memory against a plain forward, and with a loss against a plain forward and backward.

    python benchmarks/bench_measure.py                                # about fifteen minutes on a free core
    python benchmarks/bench_measure.py --sections time --clock cpu    # where other things use the cores
    python benchmarks/bench_measure.py --device cuda
    python benchmarks/bench_measure.py --table benchmarks/results/bench_measure.jsonl   # the table of the last runs, as Markdown

Contestants take turns; ratios are medians of the ratios within each round. Peaks of memory are of fresh processes: resident
memory, on a GPU what torch has allocated. Targets: 1.3 times the time and 1.1 times the memory, where layers do real work;
mlp-100 has layers so small that its figures say what a call costs at least. Stds are checked against those of the outputs; exits
with 1 if one is wrong.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import networks
import torch
import torch.nn.functional as F
from checks import output_stds
from measure_table import markdown
from networks import Net
from peak_memory import memory, reset_peak
from rows import Rows, last_run
from table import add_option, write
from timing import CLOCK, interleaved, median_ratio, ratios, timed
from torch import Tensor, nn

from goodinit import Signal, lsuv_, measure

_OUT = Path(__file__).resolve().parent / "results" / "bench_measure.jsonl"
_NETS = "mlp-100 mlp-wide plain-cnn-50 gpt2-like resnet18-like inception-like caffenet vgg16"
# Contestant -> what it is compared with.
_AGAINST = {"measure": "forward", "measure, loss": "forward and backward"}
_TOLERANCE = 1e-4

Action = Callable[[], Any]


def main() -> int:
    options = _options()
    if options.table:
        return write(markdown(last_run(options.table, by=["section", "name"])), options.table)
    torch.set_num_threads(options.threads)
    if options.peak:
        return _print_peak(options)
    CLOCK.name = options.clock
    rows = Rows(options.out, options.seed, quick=options.quick)
    for net in _nets(options):
        for section in options.sections:
            _SECTIONS[section](net, rows, options)
    print(markdown(rows.made))
    print("\n".join(rows.failed), file=sys.stderr)
    return int(bool(rows.failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmark goodinit.measure.")
    parser.add_argument("--repeats", default=7, type=int, help="rounds")
    parser.add_argument("--budget", default=60.0, type=float, help="seconds for the rounds of one network")
    parser.add_argument("--processes", default=3, type=int, help="of each contestant, for peaks of memory")
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", default=1, type=int, help="times as many samples, for a GPU")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--nets", default=_NETS)
    parser.add_argument("--sections", nargs="+", choices=_SECTIONS, default=list(_SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small networks: a test of the benchmark, no figures")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that raw rows are appended to")
    add_option(parser)
    parser.add_argument("--peak", metavar="CONTESTANT", help="of one network: do one thing and print the peak of memory")
    return parser.parse_args()


def _nets(options: argparse.Namespace) -> list[Net]:
    nets = networks.small_size() if options.quick else networks.full_size()
    width = 64 if options.quick else 1024
    nets.append(Net("mlp-wide", lambda: networks.mlp(10, width), lambda: torch.randn(512, width)))
    return [net for name in options.nets.split() for net in nets if net.name == name]


def actions(net: Net, options: argparse.Namespace) -> tuple[nn.Module, Tensor, dict[str, Action]]:
    """The network, its batch, and what there is to be timed."""
    model, batch = net.make(options.seed)
    model, batch = model.to(options.device), torch.cat([batch] * options.batch).to(options.device)
    labels = torch.zeros(len(batch), dtype=torch.int64, device=options.device)
    is_gpt2 = net.name.startswith("gpt2")

    def forward() -> None:
        with torch.no_grad():
            model(batch)

    def backward() -> None:
        loss = model(batch, labels=batch).loss if is_gpt2 else F.cross_entropy(model(batch), labels)
        loss.backward()
        model.zero_grad()

    def with_loss() -> Signal:
        if is_gpt2:
            return measure(model, {"input_ids": batch, "labels": batch}, "output")
        return measure(model, (batch, labels), F.cross_entropy)

    all_actions: dict[str, Action] = {
        "forward": forward,
        "measure": lambda: measure(model, batch),
        "forward and backward": backward,
        "measure, loss": with_loss,
    }
    return model, batch, all_actions


def times(net: Net, rows: Rows, options: argparse.Namespace) -> None:
    """Rows of one network: seconds."""
    model, batch, contestants = actions(net, options)
    lsuv_(model, batch, pre_init=None)  # a signal of unit size, or a deep net would compute with denormal numbers, slowly
    signals: dict[str, Signal] = {}

    def timed_action(name: str) -> float:
        def run() -> None:
            found = contestants[name]()
            if isinstance(found, Signal):
                signals[name] = found
            if options.device != "cpu":
                torch.cuda.synchronize()

        return timed(run)

    seconds = interleaved({name: partial(timed_action, name) for name in contestants}, options.repeats, options.budget)
    true = output_stds(model, batch, training=True)
    common = {"weights": len(signals["measure"]), "device": options.device, "threads": options.threads, "samples": len(batch)}
    for name, own in seconds.items():
        extra: dict[str, Any] = {"failed_checks": []}
        if (limit := _AGAINST.get(name)) is not None:
            extra = {"ratio": median_ratio(own, seconds[limit]), "ratios": ratios(own, seconds[limit])}
            extra["failed_checks"] = _wrong(signals[name], true)
            print(f"{net.name}: {name}: {extra['ratio']:.2f} times {limit}", flush=True)
        rows.add("time", net.name, name, seconds=own, **extra, **common)


def _wrong(signal: Signal, true: dict[str, float]) -> list[str]:
    found = {layer.name.removesuffix(".weight"): layer.std for layer in signal}
    near = {name: abs(found[name] / std - 1) < _TOLERANCE for name, std in true.items() if name in found}
    wrong = [f"std of {name} is {found[name]}, not {true[name]}" for name, is_near in near.items() if not is_near]
    return wrong if near else ["no std could be checked"]


def peaks(net: Net, rows: Rows, options: argparse.Namespace) -> None:
    """Rows of one network: bytes of a fresh process each."""
    names = list(_AGAINST.values()) + list(_AGAINST)
    found: dict[str, list[dict[str, int]]] = {name: [] for name in names}
    for _ in range(options.processes):
        for name in names:
            found[name].append(_peak(net.name, name, options))
    medians = {name: {k: statistics.median(p[k] for p in found[name]) for k in ("peak", "baseline")} for name in names}
    for name in names:
        extra: dict[str, Any] = {}
        if (limit := _AGAINST.get(name)) is not None:
            own, other = medians[name], medians[limit]
            extra["ratio"] = own["peak"] / other["peak"]
            extra["ratio_above_baseline"] = (own["peak"] - own["baseline"]) / (other["peak"] - other["baseline"])
            print(f"{net.name}: {name}: {extra['ratio']:.2f} times the memory of {limit}", flush=True)
        extra["peaks_bytes"] = [process["peak"] for process in found[name]]
        extra["baselines_bytes"] = [process["baseline"] for process in found[name]]
        rows.add("memory", net.name, name, n=options.processes, device=options.device, **extra)


def _peak(net: str, contestant: str, options: argparse.Namespace) -> dict[str, int]:
    size = ["--quick"] if options.quick else []
    given = {
        "--nets": net,
        "--peak": contestant,
        "--threads": options.threads,
        "--device": options.device,
        "--batch": options.batch,
    }
    command = [sys.executable, __file__, *size, *(str(part) for pair in given.items() for part in pair)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"peak memory of {contestant} on {net}: {done.stderr.strip()[-500:]}")
    result: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


def _print_peak(options: argparse.Namespace) -> int:
    """In the fresh process: after one call that loads what libraries load at their first, the peak of the second."""
    _, _, contestants = actions(_nets(options)[0], options)
    small = networks.mlp(3, 8).to(options.device)
    measure(small, (torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)), F.cross_entropy)
    gc.collect()
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        baseline = torch.cuda.memory_allocated()
        contestants[options.peak]()
        peak = torch.cuda.max_memory_allocated()
    else:
        reset_peak()
        baseline = memory("VmRSS")
        contestants[options.peak]()
        peak = memory("VmHWM")
    print(json.dumps({"baseline": baseline, "peak": peak}))
    return 0


_SECTIONS: dict[str, Callable[[Net, Rows, argparse.Namespace], None]] = {"time": times, "memory": peaks}

if __name__ == "__main__":
    sys.exit(main())
