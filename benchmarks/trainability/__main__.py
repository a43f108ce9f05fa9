"""`python -m trainability`, with benchmarks/ on PYTHONPATH: run what is not done yet, count it, or make the pages."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rows import without_places

from goodinit.paper.files import read_lines
from trainability.contestants import CONTESTANTS
from trainability.protocol import Run, estimate, grid, pairs, repeats
from trainability.runner import finished, work
from trainability.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "benchmarks" / "results" / "trainability.jsonl"


_DO = "run what has no row yet; count it; measure the layers of deep networks; make the pages from the rows"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m trainability", description=__doc__)
    parser.add_argument("do", choices=("run", "plan", "theory", "page"), help=_DO)
    parser.add_argument("--quick", action="store_true", help="a subset, in five minutes")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each (default: 2)")
    parser.add_argument("--tasks", nargs="*", default=[], choices=list(TASKS), metavar="TASK")
    parser.add_argument("--contestants", nargs="*", default=[], choices=list(CONTESTANTS), metavar="CONTESTANT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, help="of the grid, the first so many in the plan's order")
    parser.add_argument("--most-minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    given = parser.parse_args(arguments)
    if given.do == "theory":
        from trainability.theory import write_rows

        write_rows(given.rows.with_name("trainability-theory.jsonl"))
        return 0
    if given.do == "page":
        from trainability.page import write_pages

        write_pages(given.rows, given.docs)
        return 0
    if given.do == "plan":
        for core in (True, False):
            tell(given, stage(given, core=core))
        return 0
    until = time.monotonic() + 60 * given.most_minutes
    for core in (True, False):  # the core contestants first, whole: rows of an unfinished benchmark say most
        for _ in ("the grid", "the repeats of its best points"):
            left = tell(given, stage(given, core=core))
            if not left or time.monotonic() > until:
                break
            if status := run(given, left, until, sys.argv[1:] if arguments is None else arguments):
                return status
    return 0


def stage(given: argparse.Namespace, *, core: bool) -> list[Run]:
    """Of the core contestants, or the others: the grid, then as far as rows tell them the repeats of its best points."""
    wanted = pairs(given.tasks, given.contestants, core=None if given.quick and given.contestants else core, quick=given.quick)
    if given.quick:
        return list(grid(wanted, quick=True)) if core else []
    rows = [row for row in read_lines(given.rows) if finished([row])]
    return [*grid(wanted, points=given.points), *repeats(wanted, rows, seeds=given.seeds)]


def tell(given: argparse.Namespace, runs: Sequence[Run]) -> list[Run]:
    """The runs that have no row yet; how many there are is printed, and how long they take."""
    if not runs:
        return []
    rows = read_lines(given.rows)
    done = finished(rows)
    left = [run for run in runs if run.key not in done]
    seconds, guessed = estimate(left, rows)
    print(
        f"{len(runs)} runs, {len(runs) - len(left)} of them done; about {seconds / 3600 / given.processes:.1f} hours on "
        f"{given.processes} cores for the rest" + (f" ({guessed} runs without a row of their task to go by)" if guessed else ""),
        flush=True,
    )
    return left


def run(given: argparse.Namespace, left: Sequence[Run], until: float, words: Sequence[str]) -> int:
    """Run them in processes of their own; the worst exit status."""
    command = shlex.join(["python", "-m", "trainability", *without_places(words)])
    # Fresh processes: a thread pool does not survive a fork.
    context = multiprocessing.get_context("spawn")
    told = (left, given.rows, command, until, os.getpid())
    workers = [context.Process(target=work, args=told, daemon=True) for _ in range(given.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


if __name__ == "__main__":
    sys.exit(main())
