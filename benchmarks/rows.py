"""Raw rows: one JSON line a measurement, each with what is needed to judge it and to make it again."""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from timing import CLOCK

Row = dict[str, Any]

_PACKAGES = ("torch", "goodinit", "lsuv", "anyinit", "transformers")
_ROOT = Path(__file__).resolve().parent.parent


class Rows:
    """The rows of one run, appended to a file as they are made: an interrupted run keeps those it has."""

    def __init__(self, out: Path, seed: int, *, quick: bool) -> None:
        self._out = out
        out.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc)
        self._provenance: Row = {
            "run": f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}",
            "date": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "seed": seed,
            "quick": quick,
            "clock": CLOCK.name,
            "command": shlex.join(["python", "benchmarks/bench_lsuv.py", *sys.argv[1:]]),
            "versions": _versions(),
            "machine": _machine(),
            **_commit(),
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


def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{package: _version(package) for package in _PACKAGES}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "openmp": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _commit() -> Row:
    """The commit that was measured; dirty: something but the results differs from it."""
    head, status = (
        _git("rev-parse", "--verify", "--quiet", "HEAD"),
        _git("status", "--porcelain", "--", ".", ":!benchmarks/results"),
    )
    return {"commit": head or None, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
