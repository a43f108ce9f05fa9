"""The processes of torch.distributed that initialize one model together, each with data of its own.

Every operator's statistics are added up over the processes by one all-reduce of 64 bytes, so that all of them scale by the same
factor, and end with the weights that one process would have from all the data. Where not all processes come to an operator (an
expert that no token of a process reached), they see that from what they added up, and name their operators to each other: one is
dealt with after the other, see `goodinit.processes.turns`. On a GPU a first pass takes for granted that all are at the same
operator, since to look would be to wait for the device; if it was not so, the pass is done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from goodinit.errors import RankError
from goodinit.interception.operation import Description
from goodinit.interception.weights import Weight
from goodinit.outputs import Statistic, merged
from goodinit.processes import messages, replicas, sharded
from goodinit.processes.group import Group, described
from goodinit.processes.messages import FAILED, OPERATOR, N, message, statistic_of, strangers, waiting
from goodinit.processes.peers import own_address
from goodinit.processes.turns import Position, Turns


class MismatchError(Exception):
    """The processes were not at the same operators, or not in an order that all could keep to: do the pass again."""


Adopt = Callable[[Any, Statistic], None]
"""Draws and scales a weight that only other processes use at the moment."""


class Ranks(Group):
    """The processes that initialize a model. Of one process nothing is sent."""

    def __init__(self, model: object, *, distributed: bool = True, device: object = None) -> None:
        """Those of the default process group, if there is one and ``distributed`` says so. ``device``: where a model on the meta
        device will be.
        """
        super().__init__(_device(model, device), distributed=distributed)
        self.careful = self.device.type != "cuda"
        """Whether to look at every operator if all processes are there."""
        self.disordered = False
        """Whether a process came, in this pass, to a weight that had been dealt with without it."""
        self.model = model
        self._turns = Turns()
        self._passed: list[Position] = []
        self._doubts: list[Tensor] = []

    @property
    def in_lockstep(self) -> bool:
        """Whether the model's forward needs all processes, so that they have to make as many."""
        return self.size > 1 and isinstance(self.model, nn.Module) and sharded.communicates(self.model)

    # Between passes.

    def compare(self, model: nn.Module, settings: str, number: int) -> int:
        """Refuse models that differ; returns ``number`` as the first process gave it.

        Raises:
            RankError: names, shapes and dtypes of the parameters, or the settings, are not the same in all processes; or numbers
                are not that should be.
        """
        if self.peers is None:
            return number
        table, sums = replicas.table(model), replicas.checksums(model)
        told = self.gathered((replicas.digest((table, settings, sums)), number, own_address()))
        self.peers.addresses = [address for _, _, address in told]
        if any(digest != told[0][0] for digest, _, _ in told):
            self._refuse(table, settings, sums)
        return int(told[0][1])

    def _refuse(self, table: Sequence[str], settings: str, sums: dict[str, int]) -> NoReturn:
        tables, all_settings, all_sums = zip(*self.gathered((table, settings, sums)), strict=True)
        if (difference := replicas.difference_of_tables(tables)) is not None:
            raise RankError(
                f"the processes have different models: {difference}; build the same model everywhere, or initialize each by "
                "itself with distributed=False"
            )
        for rank, other in enumerate(all_settings):
            if other != all_settings[0]:
                raise RankError(
                    f"the processes were given different options: process 0 {all_settings[0]}, process {rank} {other}"
                )
        found = replicas.difference_of_checksums(all_sums)
        assert found is not None
        raise RankError(
            f"the parameter {found[0]!r} holds other numbers in process {found[1]} than in process 0; wrap the model in "
            "DistributedDataParallel first, or call torch.manual_seed alike in all processes before building it"
        )

    # In a pass.

    @contextmanager
    def meeting(self, adopt: Adopt) -> Iterator[None]:
        """Let the processes wait for each other where the model's forward would make them wait: there others could still be at an
        operator, or have failed.
        """
        self._passed, self._doubts, self.disordered = [], [], False
        points = sharded.meeting_points(self.model) if self.size > 1 and isinstance(self.model, nn.Module) else []

        def meet(*_: object) -> None:
            with torch._C.DisableTorchFunction():  # what is adopted is no business of who stands in for the model's operators
                self._wait_for_all(None, adopt)

        handles = [point.register_forward_pre_hook(meet, prepend=True) for point in points]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def pool(
        self,
        weight: Weight,
        found: Statistic,
        describe: Callable[[], Description],
        adopt: Adopt,
        meanwhile: Callable[[], None] | None = None,
    ) -> Statistic:
        """The statistics of an operator's output over all processes.

        Args:
            weight: of the operator.
            found: of this process's output.
            describe: for other processes, should they not be at this operator.
            adopt: takes care of operators of other processes in the meantime.
            meanwhile: done while the processes answer.
        """
        if self.size == 1:
            return found
        operator = _number(weight.position)
        in_groups = found.mean.dim() > 0  # by channels or positions: more than fits into a message
        zero = torch.zeros((), dtype=torch.float64, device=found.m2.device)
        while True:
            sums = self.summed(message(Statistic(0, zero, zero) if in_groups else found, operator), meanwhile)
            pooled: Statistic | None = None if in_groups else statistic_of(sums, found)
            if self.careful:
                known = sums.tolist()
                if known[FAILED]:
                    self.tell_failures(None)
                if in_groups or strangers(known, operator, self.size):
                    pooled = self._take_turns(describe(), found, adopt)
            else:
                self._doubts.append(strangers(sums, operator, self.size))
            if pooled is not None:
                self._passed.append(weight.position)
                return pooled

    def come_late(self, weight: Weight) -> None:
        """This process comes to a weight that it adopted in this pass: the others should have waited."""
        self._passed.append(weight.position)
        self.disordered = True

    def end(self, error: BaseException | None, adopt: Adopt) -> None:
        """Take part in what the other processes still do, until all are through; then go on only if all may.

        Raises:
            RankError: another process failed.
            MismatchError: the pass has to be done again.
        """
        if self.peers is None or isinstance(error, RankError):
            return
        if error is not None:
            self.peers.tell(described(error))
            if sharded.is_tensor_parallel(self.model):  # the others wait inside of the model
                return
        try:
            again = self._wait_for_all(error, adopt, last=True)
        except RankError as lost:
            if error is None or not lost.lost:
                raise
            return  # they wait inside of the model, which communicates itself: its own error says more
        except BaseException as own:  # raised by what was adopted
            self._wait_for_all(own, adopt, last=True)
            raise
        if again and error is None:
            self._turns.learn(self.gathered(self._passed))
            self.careful = True
            raise MismatchError

    def _wait_for_all(self, error: BaseException | None, adopt: Adopt, *, last: bool = False) -> bool:
        """Be at no operator until none is; returns whether some process, at the ``last`` such wait, wants the pass done again."""
        while True:
            noted = last and (self.disordered or (bool(self._doubts) and bool(torch.stack(self._doubts).any())))
            sums = self.summed(waiting(self.device, failed=error is not None, noted=noted), failing=error is not None)
            operator, failed, notes = sums[[OPERATOR, FAILED, N]].tolist()
            if failed and (self.careful or not operator):
                self.tell_failures(error)
                return False
            if not operator:
                return bool(notes)
            if self.careful:
                self._take_turns(None, None, adopt)
            else:
                self._doubts.append(torch.ones((), dtype=torch.bool, device=self.device))

    def _take_turns(self, mine: Description | None, found: Statistic | None, adopt: Adopt) -> Statistic | None:
        """Every process names its operator, and that whose turn it is is dealt with; returns its statistics if it is ``mine``."""
        numbers = None if found is None else messages.as_numbers(found)
        turn = None if mine is None else self._turns.turn(mine.position, self._passed)
        given = [proposal for proposal in self.gathered((turn, mine, numbers)) if proposal[0] is not None]
        chosen = min(given, key=lambda proposal: proposal[0])[1]
        pooled: Statistic | None = None
        for _, description, theirs in given:
            if description.position == chosen.position and theirs[0]:
                other = messages.of_numbers(theirs, self.device)
                pooled = other if pooled is None else merged(pooled, other)
        if mine is not None and mine.position == chosen.position:
            return found if pooled is None else pooled
        if pooled is not None:
            adopt(chosen.content, pooled)
        return None


def _device(model: object, target: object) -> torch.device:
    """Of the first parameter; of one on the meta device where its parts will be, or the target, if that can be used."""
    first = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if first is not None and not first.is_meta:
        return first.device
    if first is not None and (mesh := sharded.mesh_device(first)) is not None:
        return torch.device(mesh)
    with suppress(RuntimeError, AssertionError):  # the caller is told of it once all processes can be
        if isinstance(target, (str, torch.device)):
            return torch.empty(0, device=target).device
    return torch.device("cpu")


def _number(position: Position) -> int:
    """Stands for an operator in messages; two operators have the same once in a million."""
    return 1 + int.from_bytes(hashlib.sha256(str(position).encode()).digest()[:4], "big") % (messages.MOST_OPERATORS - 1)
