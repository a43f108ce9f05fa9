"""Runs one after the other, each once whatever happens: a kill costs the run that it interrupts."""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goodinit.paper.files import BusyError, append_line, locked
from trainability.contestants import CONTESTANTS
from trainability.protocol import Run, fingerprint
from trainability.sets import NoDataError
from trainability.tasks import TASKS
from trainability.train import run as train

Row = dict[str, Any]
_SCHEMA = 1


def finished(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Keys of the runs that have a row of their task as it is now."""
    keys = set()
    for row in rows:
        run = Run(*(row[name] for name in ("task", "contestant", "seed", "optimizer", "lr")))
        if row["task"] in TASKS and row["contestant"] in CONTESTANTS and row["definition"] == fingerprint(run):
            keys.add(run.key)
    return keys


def sessions_of(path: Path) -> Path:
    """The file with what the rows of one call have in common: versions, machine, command, commit."""
    return path.with_name(f"{path.stem}-sessions.jsonl")


class Done:
    """The runs that have a row, by whatever process; only new lines are read."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._keys = path, 0, set[str]()

    def __contains__(self, run: Run) -> bool:
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]  # another process may be in the middle of a line
            self._read += len(whole)
            self._keys |= finished(json.loads(line) for line in whole.splitlines())
        return run.key in self._keys


def work(runs: Sequence[Run], path: Path, command: str, until: float, parent: int) -> None:
    """Do the runs that no other process is at or has done, until a moment of the monotonic clock or the parent process's end."""
    import torch

    from goodinit.paper.provenance import commit, machine, now, versions

    torch.set_num_threads(1)
    _warm_up()
    session = uuid.uuid4().hex[:8]
    origin = {
        "session": session,
        "date": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        "command": command,
        "versions": versions("lsuv", "anyinit", "scikit-learn", "numpy"),
        "machine": machine(),
        **commit(leaving_out=["benchmarks/results", "docs"]),
    }
    append_line(sessions_of(path), origin)
    claims = path.parent / ".trainability"
    done = Done(path)
    for number, run in enumerate(runs, 1):
        if time.monotonic() > until or os.getppid() != parent:  # the call was killed
            return
        try:
            with locked(claims / run.key.replace("/", "_"), wait=False):
                if run in done:
                    continue
                row = one(run) | {"session": session, "commit": origin["commit"]}
                append_line(path, row)
                print(f"{number}/{len(runs)} {run.key}: {row['status']}, {row['cpu_seconds']:.1f} s", flush=True)
        except BusyError:
            continue


def _warm_up() -> None:
    """Whatever loads modules or code at its first call has done so when it is timed."""
    task = TASKS["cancer"]
    for contestant in CONTESTANTS.values():
        if contestant.applies(task):
            train(task, contestant, seed=0, optimizer="adamw", lr=0.0, steps=1)


def one(run: Run) -> Row:
    """The row of a run."""
    from goodinit.paper.provenance import now

    task = TASKS[run.task]
    try:
        task.data()
    except NoDataError as error:
        sys.exit(str(error))
    wall, cpu = time.perf_counter(), time.process_time()
    found = train(task, CONTESTANTS[run.contestant], seed=run.seed, optimizer=run.optimizer, lr=run.lr)
    return {
        "schema": _SCHEMA,
        "task": run.task,
        "contestant": run.contestant,
        "seed": run.seed,
        "optimizer": run.optimizer,
        "lr": run.lr,
        **found,
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "wall_seconds": round(time.perf_counter() - wall, 3),
        "load": round(os.getloadavg()[0], 1),
        "definition": fingerprint(run),
        "date": f"{now():%Y-%m-%dT%H:%M:%SZ}",
    }
