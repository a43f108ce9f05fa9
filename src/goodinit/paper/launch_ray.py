"""The runs of an order on a Ray cluster: as many at once as its processors allow, rows gathered as they end.

All nodes need goodinit, and see the results folder (and the data folder) under the same path. A worker that dies is replaced
once, and goes on from the checkpoint.
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from goodinit.errors import GoodinitError, OptionError, require
from goodinit.paper.allocator import keep_freed_memory
from goodinit.paper.audience import Audience
from goodinit.paper.config import Run, Training
from goodinit.paper.data import ImageSet
from goodinit.paper.experiment import Cell
from goodinit.paper.order import Order
from goodinit.paper.outcome import Evaluation, Observer, Progress
from goodinit.paper.results import Provenance, Results
from goodinit.paper.runner import Launcher, Todo
from goodinit.paper.worker import Worker
from goodinit.report import Report

_ANSWER_SECONDS = 10.0
_POLL_SECONDS = 0.5
_RETRIES = 1
# What decides where data is looked for and cached; workers get the same as this process.
_PASSED_ON = ("GOODINIT_CACHE", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")


class WorkerDiedError(GoodinitError, RuntimeError):
    """A worker died, and the one in its place too."""


def on_ray(address: str | None = None, *, cpus: int = 1, gpus: float = 0.0) -> Launcher:
    """A launcher for a cluster.

    Args:
        address: of one that runs, ``"host:port"``, ``"ray://host:port"`` or ``"auto"``; None for one of this machine, made for
            the purpose.
        cpus: processors for each run, and its threads.
        gpus: GPUs for each run; a fraction lets several share one.

    Raises:
        OptionError: no processor, or no answer from the address.
        MissingExtraError: Ray is not installed.
    """
    if cpus < 1 or gpus < 0:
        raise OptionError(f"a run needs 1 CPU or more and 0 GPUs or more; got {cpus} and {gpus:g}")

    def launch(order: Order, results: Results, provenance: Provenance, audience: Audience, todo: Todo) -> Counter[str]:
        with _cluster(address) as ray:
            return _Sweep(ray, order, results, provenance, audience, cpus=cpus, gpus=gpus).all(todo)

    return launch


@contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    ray = require("ray", extra="ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address not in (None, "auto"):
        _knock(str(address))
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": environment}}
    if address is None:
        options["include_dashboard"] = False
    try:
        ray.init("local" if address is None else address, **options)  # None would be any cluster that can be found
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise OptionError(f"no Ray cluster at {address or 'this machine'!r}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself waits for a minute and more for an address that does not answer."""
    host, _, port = address.rpartition("://")[2].partition(":")
    if not port.isdigit():
        raise OptionError(f"a Ray address is host:port, ray://host:port or auto; got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise OptionError(
            f"the Ray address {address!r} does not answer ({error}); is the cluster up (ray status), and can its port be reached "
            "from here?"
        ) from error


@dataclass
class _Sweep:
    """The runs of one order on a cluster."""

    ray: Any
    order: Order
    results: Results
    provenance: Provenance
    audience: Audience
    cpus: int
    gpus: float

    def all(self, todo: Todo) -> Counter[str]:
        """Do all of them; counts them by status.

        Raises:
            WorkerDiedError: of some runs the workers died twice; all others are done.
        """
        ray, count = self.ray, Counter[str]()
        board = ray.remote(_Board).options(num_cpus=0).remote()
        task = ray.remote(_finish).options(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=_RETRIES)
        place = ray.put((self._placed(), self.results.folder.absolute(), self.provenance, self.cpus))
        pending = {task.remote(place, cell, run, board): (cell, run) for cell, run in todo}
        died: list[str] = []
        while pending:
            done, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
            self._tell(ray.get(board.read.remote()))
            for reference in done:
                cell, run = pending.pop(reference)
                try:
                    status = ray.get(reference)
                except ray.exceptions.RayTaskError as error:  # of goodinit's, mostly: as if it had been raised here
                    raise error.cause from error
                except ray.exceptions.RayError as error:
                    died.append(f"{cell.name}, seed {run.seed} ({type(error).__name__})")
                    continue
                count[status] += 1
                self.audience.finishes(cell, run, status)
                self.audience.notes(f"{cell.name}, seed {run.seed}: {status}")
        if died:
            raise WorkerDiedError(
                f"the workers of {'; '.join(died)} died twice, for want of memory perhaps; rows of finished runs are kept, and "
                "the same command goes on from their checkpoints"
            )
        return count

    def _placed(self) -> Order:
        """The order with paths that hold in another process's folder."""
        return replace(self.order, data_dir=self.order.data_dir and self.order.data_dir.absolute())

    def _tell(self, posts: list[tuple[Cell, Run, str]]) -> None:
        for cell, run, text in posts:
            if text:
                self.audience.notes(f"{cell.name}, seed {run.seed}: {text}")
            else:
                self.audience.next_run(cell, run)


def _finish(place: tuple[Order, Any, Provenance, int], cell: Cell, run: Run, board: Any) -> str:
    """One run, in a worker."""
    import torch  # noqa: PLC0415 - in the worker's process

    order, folder, provenance, cpus = place
    torch.set_num_threads(cpus)
    keep_freed_memory()
    here = Provenance.gathered(str(provenance.common["command"]), order.device, compiled=order.compiled)
    # The commit is the caller's: a worker may run from an installed package.
    common = {**here.common, "commit": provenance.common["commit"], "dirty": provenance.common["dirty"]}
    return Worker(order, Results(folder), Provenance({**common, "launcher": "ray"}), _Poster(board)).finish(cell, run)


class _Board:
    """Where workers post how far they are."""

    def __init__(self) -> None:
        self._posts: list[tuple[Cell, Run, str]] = []

    def post(self, cell: Cell, run: Run, text: str) -> None:
        """Add a line."""
        self._posts.append((cell, run, text))

    def read(self) -> list[tuple[Cell, Run, str]]:
        """All lines since the last reading."""
        posts, self._posts = self._posts, []
        return posts


class _Poster(Audience, Observer):
    """Posts the beginning of a run, and every test of its network."""

    def __init__(self, board: Any) -> None:
        self.observers = (self,)
        self._board = board
        self._total = 0
        self._start = time.monotonic()

    def next_run(self, cell: Cell, run: Run) -> None:
        """It begins."""
        self._cell, self._run = cell, run
        self._post("")

    def begins(self, run: Training, images: ImageSet, progress: Progress, report: Report | None) -> None:  # noqa: ARG002 - not shown
        """Where it goes on."""
        self._total = run.total
        if report is None:
            self._post(f"goes on from iteration {progress.iteration:,} of {run.total:,}")

    def evaluates(self, evaluation: Evaluation) -> None:
        """How good it is."""
        done = f"iteration {evaluation.iteration:,} of {self._total:,}"
        self._post(f"{done}: loss {evaluation.loss:.3f}, test accuracy {evaluation.accuracy:.2%}")

    def _post(self, text: str) -> None:
        self._board.post.remote(self._cell, self._run, text)
