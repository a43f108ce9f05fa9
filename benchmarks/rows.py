"""Raw rows: one JSON line a measurement, each with what is needed to judge it and to make it again."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timing import CLOCK

from goodinit.files import for_json
from goodinit.paper.provenance import commit, machine, now, versions

Row = dict[str, Any]


class Rows:
    """The rows of one run, appended to a file as they are made: an interrupted run keeps those it has."""

    def __init__(self, out: Path, seed: int, *, quick: bool) -> None:
        self._out = out
        self.quick = quick
        out.parent.mkdir(parents=True, exist_ok=True)
        began = now()
        self._provenance: Row = {
            "run": f"{began:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}",
            "date": f"{began:%Y-%m-%dT%H:%M:%SZ}",
            "seed": seed,
            "quick": quick,
            "clock": CLOCK.name,
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *without_places(sys.argv[1:])]),
            "versions": versions("lsuv", "anyinit", "transformers"),
            "machine": machine(),
            **commit(leaving_out=["benchmarks/results"]),
        }
        self.made: list[Row] = []

    def add(
        self,
        section: str,
        name: str,
        contestant: str,
        *,
        seconds: Sequence[float] = (),
        n: int | None = None,
        failed_checks: Iterable[str] = (),
        **metrics: Any,
    ) -> None:
        """Write a row. ``seconds``: of every repeat; ``n``: the number of repeats where there are no seconds."""
        row: Row = {
            "section": section,
            "name": name,
            "contestant": contestant,
            "n": len(seconds) if n is None else n,
            "median_seconds": statistics.median(seconds) if seconds else None,
            "seconds": list(seconds),
            "failed_checks": list(failed_checks),
            "load": round(os.getloadavg()[0], 2),  # of the last minute, this process included
            **metrics,
            **self._provenance,
        }
        self.made.append(row)
        with self._out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(for_json(row), allow_nan=False) + "\n")

    @property
    def failed(self) -> list[str]:
        """All checks of results that failed, with where."""
        return [f"{r['section']} {r['name']} {r['contestant']}: {check}" for r in self.made for check in r["failed_checks"]]


def without_places(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with DIR and FILE for where things are on this machine."""
    places = {"--data-dir": "DIR", "--checkpoint": "DIR", "--out": "FILE", "--rows": "FILE"}
    return [places.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)]


def last_run(path: Path, *, by: Sequence[str] = ()) -> list[Row]:
    """The rows of the last run in a file, in their order; ``by``: of the last one of every section or name."""
    rows: list[Row] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    last = {tuple(row[key] for key in by): row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[tuple(row[key] for key in by)]]
