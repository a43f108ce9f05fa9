"""For all tests: one thread, since on tensors this small several spend their time in waiting for each other."""

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import user_project
from processes import Processes

torch.set_num_threads(1)

# A shell has what it starts in the background ignore Ctrl-C, and so would the programs that tests press it in.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Each test leaves the number of threads as it was: sums of others depend on it, in their last bits."""
    yield
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert threads == 1, f"the test left torch with {threads} threads"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A user's project as the current folder; the modules that are imported from it are forgotten afterwards."""
    user_project.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


@pytest.fixture(scope="module")
def four() -> Iterator[Processes]:
    with Processes(4) as processes:
        yield processes


@pytest.fixture(params=[2, pytest.param(4, marks=pytest.mark.slow)])
def group(request: Any) -> Processes:
    """Two processes, and in the longer checks four too."""
    found: Processes = request.getfixturevalue({2: "two", 4: "four"}[request.param])
    return found
