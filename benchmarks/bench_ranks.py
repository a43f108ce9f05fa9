"""lsuv_ on 2 ranks against 1 rank, with the same batch on every rank: what it costs that the processes talk to each other.

    python benchmarks/bench_ranks.py                                             # about four minutes on two free cores
    python benchmarks/bench_ranks.py --table benchmarks/results/bench_ranks.jsonl    # the table of the last run, as Markdown

Two processes with one thread each, over gloo. Contestants take turns: one process alone, the other idle; both at once, each by
itself, which is what two cores share anyway (memory, clock); and both together, the model replicated, in DistributedDataParallel,
and sharded by FSDP2. Times of both are the longer one. Target: at most 1.3 times one process alone. Exits with 1 if the processes
end with different weights.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import networks
import torch
from rows import Row, Rows, last_run
from table import Cells, add_option, grouped, table, verdict, write
from timing import interleaved, median_ratio, ratios, timed
from torch import nn

from goodinit import lsuv_

_OUT = Path(__file__).resolve().parent / "results" / "bench_ranks.jsonl"
_NETS = ("mlp-10", "mlp-100", "plain-cnn-50", "gpt2-like", "resnet18-like", "inception-like")
_ALONE, _APART = "1 rank", "2 apart"
_FORMS = {"2 ranks": "plain", "2 ranks, DDP": "ddp", "2 ranks, FSDP2": "fsdp"}
TARGET = 1.3
_EXPLAINED = "- Medians of n. In brackets: ratio to 1 rank; and to 2 apart, two processes at once, each by itself: the talking."


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmark lsuv_ on 2 ranks against 1 rank.")
    parser.add_argument("--repeats", default=7, type=int, help="rounds")
    parser.add_argument("--budget", default=60.0, type=float, help="seconds for the rounds of one network")
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds: a test of the benchmark, no figures")
    parser.add_argument("--nets", default=",".join(_NETS), type=lambda text: text.split(","), help="which to run")
    parser.add_argument("--out", default=_OUT, type=Path, help="file that raw rows are appended to")
    add_option(parser)
    options = parser.parse_args()
    if options.table:
        return write(markdown(last_run(options.table)), options.table)
    torch.set_num_threads(1)
    rows = Rows(options.out, 0, quick=options.quick)
    with processes() as pipes:
        for name in options.nets:
            measure(name, pipes, rows, min(2, options.repeats) if options.quick else options.repeats, options.budget)
    print(f"\n{markdown(rows.made)}")
    for failed in rows.failed:
        print(f"WRONG RESULT: {failed}", file=sys.stderr)
    return 1 if rows.failed else 0


@contextmanager
def processes() -> Iterator[list[Connection]]:
    """Two processes of one group, which do what they are told."""
    context = multiprocessing.get_context("spawn")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]  # exported, if not by name
    pipes, running = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        running.append(context.Process(target=serve, args=(rank, store.port, theirs), daemon=True))
        running[-1].start()
        pipes.append(ours)
    try:
        yield pipes
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in running:
            process.join()


def serve(rank: int, port: int, pipe: Connection) -> None:
    """In a process: prepare what is asked for, then run it, until there is nothing more to do."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)  # type: ignore[attr-defined]  # exported, if not by name
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    prepared: dict[str, Any] = {}
    while (told := pipe.recv()) is not None:
        name, quick, contestant = told
        if contestant is None:
            prepared = prepare(name, rank, quick=quick)
            continue
        pipe.send(run(prepared[contestant], prepared["batch"], together=contestant in _FORMS, at_once=contestant != _ALONE))
    os._exit(0)  # destroying the group may wait for ever: it holds the lock that its threads need (pytorch issue 56297)


def prepare(name: str, rank: int, *, quick: bool) -> dict[str, Any]:
    """A model for each contestant, and this process's batch."""
    net = next(net for net in (networks.small_size() if quick else networks.full_size()) if net.name == name)
    models = {contestant: wrapped(net.make(0)[0], form) for contestant, form in _FORMS.items()}
    models[_ALONE] = models[_APART] = net.make(0)[0]
    torch.manual_seed(1 + rank)
    return {**models, "batch": net.batch()}


def wrapped(model: nn.Module, form: str) -> nn.Module:
    if form == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if form == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        blocks = next((m for m in model.modules() if isinstance(m, (nn.ModuleList, nn.Sequential))), model)
        for block in blocks.children():
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def run(model: nn.Module, batch: torch.Tensor, *, together: bool, at_once: bool) -> dict[str, Any]:
    """Seconds of lsuv_, and what it came to."""
    if at_once:
        torch.distributed.barrier()
    reports = []
    seconds = timed(lambda: reports.append(lsuv_(model, batch, generator=torch.Generator().manual_seed(0), distributed=together)))
    scaled = sum(record.status == "scaled" for record in reports[0])
    return {"seconds": seconds, "weights": scaled, "digest": digest(model), "ok": reports[0].ok}


def digest(model: nn.Module) -> str:
    """Of all weights, whole."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        found.update(whole.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def measure(name: str, pipes: Sequence[Connection], rows: Rows, repeats: int, budget: float) -> None:
    """Rows of one network."""
    results: dict[str, list[list[dict[str, Any]]]] = {contestant: [] for contestant in (_ALONE, _APART, *_FORMS)}

    def contest(contestant: str) -> float:
        own = pipes[:1] if contestant == _ALONE else pipes
        for pipe in own:
            pipe.send((name, rows.quick, contestant))
        results[contestant].append([pipe.recv() for pipe in own])
        return float(max(found["seconds"] for found in results[contestant][-1]))

    for pipe in pipes:  # both at once: wrapping a model takes both
        pipe.send((name, rows.quick, None))
    for contestant in results:  # once for what is loaded at first use
        contest(contestant)
    seconds = interleaved({contestant: partial(contest, contestant) for contestant in results}, repeats, budget)
    for contestant, taken in seconds.items():
        compared: dict[str, Any] = {
            "ratio": median_ratio(taken, seconds[_ALONE]),
            "ratios": ratios(taken, seconds[_ALONE]),
            "ratio_to_apart": median_ratio(taken, seconds[_APART]),
        }
        found = results[contestant]
        weights = found[0][0]["weights"]
        rows.add(
            "ranks", name, contestant, seconds=taken, weights=weights, failed_checks=failures(found, contestant), **compared
        )  # fmt: skip
    print(f"{name}: {statistics.median(seconds['2 ranks']):.3g} s on 2 ranks", flush=True)


def failures(found: Sequence[Sequence[dict[str, Any]]], contestant: str) -> list[str]:
    """Weights that are not at their targets, that differ between processes, or from run to run."""
    failed = [] if all(one["ok"] for both in found for one in both) else ["a weight is not at its target"]
    if contestant in _FORMS and len({one["digest"] for both in found for one in both}) > 1:
        failed.append("the processes end with different weights, or other ones from run to run")
    return failed


def markdown(rows: Sequence[Row]) -> str:
    """What a run found, as a table, and whether the target is met."""
    row, machine = rows[0], rows[0]["machine"]
    by = dict(grouped(rows))
    lines: list[Cells] = [
        (
            name,
            str(own[_ALONE]["weights"]),
            *(f"{own[contestant]['median_seconds']:.3g}" for contestant in (_ALONE, _APART)),
            *(
                f"{own[form]['median_seconds']:.3g} ({own[form]['ratio']:.2f}; {own[form]['ratio_to_apart']:.2f})"
                for form in _FORMS
            ),
            str(own[_ALONE]["n"]),
        )
        for name, own in by.items()
    ]
    head = ("net", "weights", "1 rank, s", "2 apart, s", *(f"{form}, s" for form in _FORMS), "n")
    commit = (row["commit"] or "none yet") + (" with changes" if row["dirty"] else "")
    parts = [
        f"## bench_ranks, run {row['run']}\n",
        f"- `{row['command']}`, commit {commit}",
        f"- {', '.join(f'{k} {v}' for k, v in row['versions'].items())}",
        f"- {machine['cpu']}, {machine['cores']} cores, one thread a process, {machine['memory_gib']} GiB, {machine['system']}",
        f"- load {min(r['load'] for r in rows)} to {max(r['load'] for r in rows)}, this run included",
        _EXPLAINED,
        *(["- --quick: small networks, a test of the benchmark. The figures mean nothing."] if row["quick"] else []),
        f"\n{table(head, lines)}",
    ]
    if not row["quick"]:
        worst = max((own["2 ranks"] for own in by.values()), key=lambda one: one["ratio"])
        middle = statistics.median(own["2 ranks"]["ratio"] for own in by.values())
        met = verdict(worst["ratio"] <= TARGET)
        found = f"worst {worst['ratio']:.2f} ({worst['name']}), median {middle:.2f}"
        parts.append("\n" + table(("target", "found", ""), [(f"2 ranks at most {TARGET} times 1 rank", found, met)]))
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
