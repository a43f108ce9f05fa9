"""The processes of torch.distributed that initialize one model together, each with data of its own.

Every operator's statistics are added up over the processes by one all-reduce of 64 bytes, so that all of them scale by the same
factor, and end with the weights that one process would have from all the data. Nothing is waited for: whether all processes were
at the same operator is seen at the end of the pass. Where they were not (an expert that no token of a process reached), the pass
is done again, with the processes naming their operators to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from goodinit.errors import GoodinitError, OptionError
from goodinit.messages import DONE, FAILED, ID, SIZE, as_numbers, message, of_numbers, statistic_of
from goodinit.operation import Description
from goodinit.outputs import Statistic, merged
from goodinit.sharded import communicates
from goodinit.weights import Weight

_IDS = 1 << 20
_PATIENCE = timedelta(seconds=3)


class RankError(GoodinitError, RuntimeError):
    """Another process failed, died, or has another model."""


class MismatchError(Exception):
    """The processes were not at the same operators: the pass has to be done again, carefully."""


Adopt = Callable[[Any, Statistic], None]
"""Draws and scales a weight that only other processes use at the moment."""


class Ranks:
    """All processes, as one of them sees them. Of one process nothing is sent."""

    def __init__(self, model: nn.Module, *, distributed: bool = True) -> None:
        """Those of the default process group, if there is one and ``distributed`` says so.

        Raises:
            OptionError: its backend does not know the device of the model.
        """
        self.size, self.rank, self.careful = 1, 0, False
        self._device = next(model.parameters()).device
        self.communicating = communicates(model)
        """Whether the model's forward needs all processes."""
        self._mismatches: list[Tensor] = []
        if distributed and torch.distributed.is_available() and torch.distributed.is_initialized():
            self.size, self.rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
        if self.size > 1:
            self._check_backend()

    def _check_backend(self) -> None:
        try:
            torch.distributed.all_reduce(torch.zeros(1, device=self._device))
        except RuntimeError as error:
            if "No backend type" not in str(error):
                self._explain(error)
            raise OptionError(
                f"the process group's backend {torch.distributed.get_backend()!r} cannot add up tensors on the model's device "
                f"{self._device.type!r}; use init_process_group('cpu:gloo,cuda:nccl'), or lsuv_(…, distributed=False)"
            ) from error

    # Between passes.

    def compare(self, model: nn.Module, options: str) -> None:
        """Refuse models that differ.

        Raises:
            RankError: names, shapes and dtypes of the parameters, or the options, are not the same in all processes; or numbers
                are not that should be.
        """
        if self.size == 1:
            return
        tables = self.gathered([*_table(model), options])
        for rank, table in enumerate(tables):
            if (difference := _first_difference(tables[0], table)) is not None:
                raise RankError(
                    f"the processes have different models: process 0 has {difference[0]}, process {rank} {difference[1]}; build "
                    "the same model everywhere, or initialize each by itself with distributed=False"
                )
        sums = self.gathered(_checksums(model))
        for rank, theirs in enumerate(sums):
            different = [name for name, value in theirs.items() if value != sums[0][name]]
            if different:
                raise RankError(
                    f"the parameter {different[0]!r} holds other numbers in process {rank} than in process 0; wrap the model in "
                    "DistributedDataParallel first, or call torch.manual_seed alike in all processes before building it"
                )

    def agree(self, error: BaseException | None = None) -> None:
        """Go on only if all processes do.

        Raises:
            RankError: another process failed. Where this one did, its own error is the caller's to raise.
        """
        if self.size > 1:
            failures = self.gathered(_told(error))
            if error is None:
                _raise_of_others(failures)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside all processes do, or none goes on."""
        try:
            yield
        except RankError:  # the others know
            raise
        except BaseException as error:
            self.agree(error)
            raise
        self.agree()

    # In a pass.

    def begin(self) -> None:
        """A pass begins."""
        self._mismatches = []

    def pool(self, weight: Weight, found: Statistic, describe: Callable[[], Description], adopt: Adopt) -> Statistic:
        """The statistics of an operator's output over all processes.

        Args:
            weight: of the operator.
            found: of this process's output.
            describe: for other processes, should they not be at this operator.
            adopt: takes care of operators of other processes in the meantime.
        """
        if self.size == 1:
            return found
        if self.careful:
            pooled: Statistic = self._pool_by_name(describe(), found, adopt)
            return pooled
        own = 1 + int.from_bytes(hashlib.sha256(str(weight.place).encode()).digest()[:4], "big") % (_IDS - 1)
        sums = self._summed(message(found, own))
        self._mismatches.append(sums[ID] != own * self.size)
        return statistic_of(sums, found)

    def end(self, error: BaseException | None, adopt: Adopt) -> None:
        """Take part in what the other processes still do, until all are through; then go on only if all may.

        Raises:
            RankError: another process failed.
            MismatchError: they were not all at the same operators.
        """
        if self.size == 1 or (error is not None and self.communicating):  # the others wait for this one, in vain
            return
        if self.careful:
            self._pool_by_name(None, None, adopt)
            self.agree(error)
            return
        through = torch.zeros(SIZE, dtype=torch.float64)
        through[DONE], through[FAILED] = 1, float(error is not None)
        while self._summed(through.to(self._device, copy=True))[DONE].item() < self.size:
            pass
        mismatched = bool(self._mismatches) and bool(torch.stack(self._mismatches).any())
        ends = self.gathered((_told(error), mismatched))
        if error is None:
            _raise_of_others([failure for failure, _ in ends])
            if any(other for _, other in ends):
                raise MismatchError

    def _pool_by_name(self, mine: Description | None, found: Statistic | None, adopt: Adopt) -> Any:
        """Rounds in which every process names its operator, until it is this one's turn: the first in the model goes first."""
        while True:
            numbers = None if found is None else as_numbers(found)
            proposals = [p for p in self.gathered((mine, numbers)) if p[0] is not None]
            if not proposals:
                return None
            chosen = min((description for description, _ in proposals), key=lambda d: d.place)
            pooled: Statistic | None = None
            for description, given in proposals:
                if description.place == chosen.place and given[0]:
                    other = of_numbers(given, self._device)
                    pooled = other if pooled is None else merged(pooled, other)
            if mine is not None and mine.place == chosen.place:
                return found if pooled is None else pooled
            if pooled is not None:
                adopt(chosen.content, pooled)

    # Messages.

    def summed(self, table: Tensor) -> Tensor:
        """A table of numbers added up over the processes, in place."""
        return self._summed(table) if self.size > 1 else table

    def largest(self, value: float) -> float:
        """Over all processes."""
        return float(max(self.gathered(value)))

    def all_have(self, something: bool) -> bool:
        """Whether all processes have."""
        return all(self.gathered(something))

    def gathered(self, value: Any) -> list[Any]:
        """Of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            torch.distributed.all_gather_object(values, value)
        except RuntimeError as error:
            self._explain(error)
        return values

    def _summed(self, sums: Tensor) -> Tensor:
        try:
            torch.distributed.all_reduce(sums)
        except RuntimeError as error:
            self._explain(error)
        return sums

    def _explain(self, error: RuntimeError) -> NoReturn:
        """Say which processes no longer answer."""
        raise RankError(
            f"process {self.rank} no longer reaches {self._missing()}, which died or waits for something else "
            f"({str(error).strip().partition(chr(10))[0][:200]}). All weights here are as before"
        ) from error

    def _missing(self) -> str:
        """Those that do not say within a few seconds that they are there."""
        try:
            store = torch.distributed.distributed_c10d._get_default_store()
            store.set(f"goodinit/alive/{self.rank}", "1")
            missing = [rank for rank in range(self.size) if not _is_there(store, rank)]
        except Exception:  # noqa: BLE001 - the store is gone with the process that kept it
            return "process 0, or the launcher"
        return f"process {', '.join(map(str, missing))}" if missing else "the others"


def _is_there(store: Any, rank: int) -> bool:
    try:
        store.wait([f"goodinit/alive/{rank}"], _PATIENCE)
    except RuntimeError:  # it took too long
        return False
    return True


def _told(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def _raise_of_others(failures: Sequence[str | None]) -> None:
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise RankError(f"process {rank} failed: {failure}. All weights are as before")


def _table(model: nn.Module) -> list[str]:
    """A line for every parameter."""
    return [f"{name!r} of shape {tuple(p.shape)}, {p.dtype}" for name, p in model.named_parameters()]


def _first_difference(ours: Sequence[str], theirs: Sequence[str]) -> tuple[str, str] | None:
    if len(ours) != len(theirs):
        return f"{len(ours) - 1} parameters", f"{len(theirs) - 1}"
    return next(((a, b) for a, b in zip(ours, theirs, strict=True) if a != b), None)


def _checksums(model: nn.Module) -> dict[str, float]:
    """Of the parameters that every process holds whole; of one with NaN in it 0."""
    sums = {}
    for name, parameter in model.named_parameters():
        if type(parameter) in (nn.Parameter, Tensor) and (parameter.is_floating_point() or parameter.is_complex()):
            values = parameter.detach().abs() if parameter.is_complex() else parameter.detach()
            sums[name] = values.double().sum().nan_to_num().item()
    return sums
