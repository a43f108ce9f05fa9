"""Which of the other processes are still there, asked for over the store of torch.distributed once messages fail."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

_PATIENCE = 3.0  # seconds
_CALLS = itertools.count()


class Address(NamedTuple):
    """Where a process runs."""

    machine: tuple[str, str]
    """Its name, and the space in which process ids count."""
    process: int


def own_address() -> Address:
    """Of this process."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        space = ""
    return Address((socket.gethostname(), space), os.getpid())


class Peers:
    """The processes of one call, as one of them sees them. All make as many, so that those of one call share their keys."""

    def __init__(self, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._prefix = f"goodinit/{next(_CALLS)}"
        self.addresses: Sequence[Address] = ()
        """Of all, once they are known."""

    def tell(self, failure: str) -> None:
        """Leave a word for those who will miss this process."""
        with contextlib.suppress(Exception):  # the store is gone, and with it those who would read
            _store().set(self._key("failure", self._rank), failure)

    def explain(self, error: BaseException) -> str:
        """What became of the others, from an error in talking to them; takes a few seconds."""
        try:
            failure = self._failure_told() or self._missing()
        except Exception:  # noqa: BLE001 - the store is gone with the process that kept it
            failure = f"process {self._rank} no longer reaches process 0, or the launcher"
        return f"{failure} ({str(error).strip().partition(chr(10))[0][:200]}). All weights here are as before"

    def _failure_told(self) -> str | None:
        store = _store()
        for rank in range(self._size):
            key = self._key("failure", rank)
            if rank != self._rank and store.check([key]):
                return f"process {rank} failed: {store.get(key).decode()}"
        return None

    def _missing(self) -> str:
        """Those that died; if none is known to have, those that do not say within a few seconds that they are there."""
        store, end = _store(), time.monotonic() + _PATIENCE
        store.set(self._key("there", self._rank), "1")
        while True:
            dead = [rank for rank, address in enumerate(self.addresses) if _is_dead(address)]
            silent = [rank for rank in range(self._size) if not store.check([self._key("there", rank)])]
            if dead or not silent or time.monotonic() > end:
                break
            time.sleep(0.1)
        if not (dead or silent):
            return f"process {self._rank} lost touch with the others"
        missing = ", ".join(map(str, dead or silent))
        fate = "died" if dead else "died or waits for something else"
        return f"process {self._rank} no longer reaches process {missing}, which {fate}"

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what}/{rank}"


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception, of a model's own communication mostly, says that other processes are not there."""
    if isinstance(error, torch.distributed.DistError):
        return True
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out waiting", "caused pair closure")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _is_dead(address: Address) -> bool:
    """Whether it is known for certain, on this machine, that a process has ended."""
    if os.name == "nt" or address.machine != own_address().machine:  # where signal 0 is Ctrl-C
        return False
    try:
        os.kill(address.process, 0)
        # A process whose parent did not ask for its end yet is there still, in name.
        return Path(f"/proc/{address.process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's, or not Linux
        return False
