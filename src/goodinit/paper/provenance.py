"""What a row needs to be judged and made again: versions, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_SOURCE = Path(__file__).resolve().parents[3]  # of a checkout; of an installed package some folder without .git


def now() -> datetime:
    """In UTC."""
    return datetime.now(timezone.utc)


def versions(*packages: str) -> dict[str, str | None]:
    """Of Python, and of the packages that are installed."""
    return {"python": platform.python_version(), **{package: _version(package) for package in ("torch", "goodinit", *packages)}}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Processor, cores, threads that torch uses, memory, system."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        **_gpu(),
        "openmp": {key: value for key, value in os.environ.items() if key.startswith(("OMP_", "GOMP_", "KMP_", "MKL_"))},
    }


def _memory_gib() -> float | None:
    """None where the system does not say (Windows)."""
    if not hasattr(os, "sysconf"):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count(), "cuda": torch.version.cuda}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def commit(leaving_out: Iterable[str] = ()) -> dict[str, Any]:
    """The commit that ran; dirty: something differs from it, but for the paths left out. None outside of a checkout."""
    if not (_SOURCE / ".git").exists():
        return {"commit": None, "dirty": None}
    head = _git("rev-parse", "--verify", "--quiet", "HEAD")
    status = _git("status", "--porcelain", "--", ".", *(f":!{path}" for path in leaving_out))
    return {"commit": head or None, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_SOURCE, capture_output=True, text=True, check=True)  # noqa: S603, S607 - git of the user's
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
