"""Freed memory that is kept for the next iteration."""

import os
import platform
import subprocess
import sys

import pytest

from goodinit.paper.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its parameters are glibc's")

# As many page faults as a tensor has pages: its memory was given back and got anew.
_FAULTS = """
import resource
import torch
from goodinit.paper.allocator import keep_freed_memory

def renewed():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 * 2**20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (20 * 64 * 2**20)

print(renewed())
assert keep_freed_memory()
renewed()
print(renewed())
"""


def _environment(**added):
    return {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))} | added


def test_memory_that_is_freed_is_not_asked_for_again():
    command = [sys.executable, "-c", _FAULTS]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
    default, kept = map(float, done.stdout.split())
    assert default > 0.9
    assert kept < 0.01


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=131072")]
)
def test_what_the_user_has_set_is_left_alone(name, value, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("set for all that"))
    monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("set for all that"))
    for name in set(os.environ) - set(_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
