"""Raw rows: one JSON line a measurement, each with what is needed to judge it and to make it again."""

from __future__ import annotations

import json
import math
import os
import shlex
import statistics
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from timing import CLOCK

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
            "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
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
            file.write(json.dumps(_finite(row), allow_nan=False) + "\n")

    @property
    def failed(self) -> list[str]:
        """All checks of results that failed, with where."""
        return [f"{r['section']} {r['name']} {r['contestant']}: {check}" for r in self.made for check in r["failed_checks"]]


def last_run(path: Path) -> list[Row]:
    """The rows of the last run in a file, in their order."""
    rows: list[Row] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [row for row in rows if row["run"] == rows[-1]["run"]]


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: ``"nan"``, ``"inf"``."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
