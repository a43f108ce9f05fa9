"""Measurements of which each needs a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def last_line(script: str, arguments: Sequence[str], what: str) -> str:
    """The last line that a script prints in a fresh process, with glibc's own policy on what is given back to the system.

    Raises:
        RuntimeError: it failed; ``what``: how the message begins.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what}: {done.stderr.strip()[-500:]}")
    return done.stdout.splitlines()[-1]
