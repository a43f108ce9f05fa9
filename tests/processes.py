"""Real processes of torch.distributed over gloo, with the environment that torchrun gives them, which run functions for a test.

They are forked from one that has imported torch: that takes seconds, a fork milliseconds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11

_IMPORTED = ["torch", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "goodinit"]


FSDP_RUNS = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this version of torch runs on GPUs alone"
)
"""Marks a test of sharded models."""
FSDP = pytest.param("fsdp", marks=FSDP_RUNS)
"""Their form, where a test is parametrized by it."""


class Failure(NamedTuple):
    """An exception in a process, or its end."""

    kind: str
    """Name of the exception; ``"died"``, or ``"hangs"``."""
    text: str = ""
    trace: str = ""


class Processes:
    """So many, until the end of a ``with``."""

    def __init__(
        self, size: int, *, timeout: float = 30.0, limit: float = 60.0, backend: str = "gloo", first_keeps_store: bool = False
    ) -> None:
        """``timeout``: of the process group, in seconds; ``limit``: how many a test waits for an answer. ``first_keeps_store``:
        the first process does, not this one in the place of torchrun's agent.
        """
        self._limit = limit
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._store: object = store
        if first_keeps_store:
            self._store = None
        environment = {
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": str(not first_keeps_store),
            "TORCHELASTIC_RESTART_COUNT": "0",
        }
        del store
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(target=_serve, args=(own, backend, timeout, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self._pipes)

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(rank, *args)`` returns in each process, or a `Failure`."""
        end = time.monotonic() + self._limit
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it died before
                pipe.send((function, args))
        return [self._answer(pipe, end - time.monotonic()) for pipe in self._pipes]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(rank, *args)`` returns in each process; none may fail."""
        found = self.outcomes(function, *args)
        for rank, outcome in enumerate(found):
            if isinstance(outcome, Failure):
                raise AssertionError(f"process {rank} {outcome.kind}: {outcome.text}\n{outcome.trace}")
        return found

    def _answer(self, pipe: Connection, seconds: float) -> Any:
        try:
            return pipe.recv() if pipe.poll(max(0.0, seconds)) else Failure("hangs")
        except (EOFError, ConnectionResetError):
            return Failure("died")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(0.5)
            process.kill()
            process.join()


def _serve(environment: dict[str, str], backend: str, timeout: float, pipe: Connection) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            os._exit(0)  # not waiting for others, which may be gone
        pipe.send(_outcome(function, int(environment["RANK"]), args))


def _outcome(function: Callable[..., Any], rank: int, args: tuple[Any, ...]) -> Any:
    try:
        return function(rank, *args)
    except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt is what some tests are about
        return Failure(type(error).__name__, str(error), traceback.format_exc())
