"""Memory of the CPU that is freed is kept for the next iteration."""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of glibc's mallopt: size of a block from which on it is got from the system by itself, and given back when freed;
# size of what is free at the end of the heap from which on it is given back.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_LARGEST = 2**31 - 1  # a C int


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees.

    A training frees the same megabytes at every iteration and asks for them again. By default glibc may give them back to the
    system in between, which then clears every page anew; benchmarks/bench_allocator.py measures what that takes. In return the
    process holds its peak memory until it ends, so this is for commands that train, not for a library.

    Returns:
        Whether it will. Other C libraries are left alone, and what the user has set (``MALLOC_…_``, ``GLIBC_TUNABLES``).
    """
    theirs = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if theirs or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MMAP_THRESHOLD, _LARGEST), mallopt(_TRIM_THRESHOLD, _LARGEST)])  # both, whatever the first one answers
