"""The process group as one of its processes sees it: adding up, gathering, and failing together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from goodinit.errors import NonFiniteError, OptionError, RankError
from goodinit.processes.messages import FAILED, N, waiting
from goodinit.processes.peers import Peers, is_lost_connection

_PATIENCE = 10.0  # seconds


def is_initialized() -> bool:
    """Whether there are processes of torch.distributed that have joined, this one among them."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Group:
    """All processes. Of one process nothing is sent."""

    def __init__(self, device: torch.device, *, distributed: bool = True) -> None:
        """Those of the default process group, if there is one and ``distributed`` says so. ``device``: of what is sent."""
        self.size, self.rank = 1, 0
        if distributed and is_initialized():
            self.size, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        self.device = device
        self.peers = Peers(self.rank, self.size) if self.size > 1 else None

    @contextmanager
    def together(self, *, in_lockstep: bool = False) -> Iterator[None]:
        """What is done inside all processes do, or none goes on.

        Args:
            in_lockstep: whether the others may wait for this process inside: then they learn of its failure when it ends.

        Raises:
            RankError: another process failed. Where this one did, its own exception goes on.
        """
        try:
            with self.explained():
                yield
        except RankError:  # the others know
            raise
        except BaseException as error:
            if self.peers is not None:
                self.peers.tell(described(error))
            if not in_lockstep:
                with _unless_lost():  # they wait where it failed, in a loader that hands out batches: they will read of it
                    self._agree(error)
            raise
        self._agree(None)

    def _agree(self, error: BaseException | None) -> None:
        failing = error is not None
        if self.size > 1 and self.summed(waiting(self.device, failed=failing), failing=failing)[FAILED].item():
            self.tell_failures(error)

    def tell_failures(self, error: BaseException | None) -> None:
        """All processes do this, some of which failed.

        Raises:
            RankError: this one did not, or only because another did.
        """
        told = None if error is None or (isinstance(error, NonFiniteError) and error.elsewhere) else described(error)
        failures = [(rank, failure) for rank, failure in enumerate(self.gathered(told)) if failure is not None]
        if error is None or (told is None and failures):
            rank, failure = failures[0] if failures else (None, "NaN or infinity")
            raise RankError(f"process {rank} failed: {failure}. All weights are as before")

    def summed(self, table: Tensor, meanwhile: Callable[[], None] | None = None, *, failing: bool = False) -> Tensor:
        """A table of numbers added up over the processes, in place; ``meanwhile`` is done until they answer.

        Raises:
            RankError: they do not; to one that is ``failing`` anyway, and only has to say so, not soon.
        """
        if self.size > 1:
            with self.explained():
                sent = torch.distributed.all_reduce(table, async_op=True)
                try:
                    if meanwhile is not None:
                        meanwhile()
                finally:
                    if failing:
                        _wait_a_little(sent)
                    sent.wait()
        return table

    def any_lacks(self, something: object) -> bool:
        """Whether some process has None."""
        return bool(self.summed(waiting(self.device, failed=False, noted=something is None))[N])

    def gathered(self, value: Any) -> list[Any]:
        """Of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.explained():
            torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Say which processes do not answer, where communication fails: ours, or the model's.

        Raises:
            RankError: it did.
            OptionError: the backend does not know the device of the model.
        """
        try:
            yield
        except RuntimeError as error:
            if self.peers is None or isinstance(error, RankError):
                raise
            if "No backend type" in str(error):
                raise OptionError(
                    f"the process group's backend {torch.distributed.get_backend()!r} cannot add up tensors on the model's "
                    f"device {self.device.type!r}; use init_process_group('cpu:gloo,cuda:nccl'), or lsuv_(…, distributed=False)"
                ) from error
            if not is_lost_connection(error):
                raise
            raise _lost(self.peers.explain(error)) from error


def described(error: BaseException) -> str:
    """As a traceback ends."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _wait_a_little(sent: Any) -> None:
    """For an answer of processes that may be elsewhere, in the model's own communication, and would wait for ever for this one.

    Raises:
        RankError: there is none.
    """
    end = time.monotonic() + _PATIENCE
    while not sent.is_completed():
        if time.monotonic() > end:
            raise _lost("the other processes wait for something else")
        time.sleep(0.001)


def _lost(text: str) -> RankError:
    error = RankError(text)
    error.lost = True
    return error


@contextmanager
def _unless_lost() -> Iterator[None]:
    """Others that do not answer are no error to a process that fails anyway."""
    try:
        yield
    except RankError as error:
        if not error.lost:
            raise
