"""The std over many batches, pooled, in place of one batch's.

Not every weight at once is rescaled by its own pooled std: corrections upstream multiply downstream, and a deep network diverges.
The first batch serves as a control. A sweep measures r = pooled std / first batch's std for every operator, all in one forward a
batch; then one more pass on the first batch gives each output the std target / r there. Where the network is positively
homogeneous (ReLU, no biases) r does not change when weights are rescaled, so that one sweep does; elsewhere sweeps are repeated.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from goodinit import guard
from goodinit.batches import Call, Calls, same_numbers
from goodinit.errors import DataError, GoodinitWarning
from goodinit.interception.intercept import intercept
from goodinit.interception.operation import Operation
from goodinit.interception.weights import Key
from goodinit.ledger import fetched
from goodinit.moments import doubled
from goodinit.outputs import Statistic, merged, statistic
from goodinit.processes import sharded
from goodinit.processes.messages import SIZE, N, message
from goodinit.processes.ranks import MismatchError, Ranks
from goodinit.scaling import Scaling

MOST_SWEEPS = 20
_ONCE = "batches= reads it several times; keep them, list(itertools.islice(loader, batches))"
Pass = Callable[[Call, Scaling], object]
Watch = Callable[[Iterator[Call]], Iterator[Call]]
"""Passes the batches of a sweep on, and shows how far it is."""


@dataclass
class Swept:
    """What sweeps came to, by the keys of the weights that were scaled."""

    batches: int = 0
    """How many there were in a sweep: fewer than asked for if the loader had no more; of several processes the most."""
    fewest: int = 0
    """In any process."""
    sweeps: int = 0
    passes: int = 0
    """Forward passes, without the very first one."""
    converged: bool = False
    stds: dict[Key, float] = field(default_factory=dict)
    """Over all batches at the end: measured, or where a sweep is known to be exact what it came to."""
    factors: dict[Key, float] = field(default_factory=dict)
    """What weights were multiplied by in addition."""
    spreads: dict[Key, float] = field(default_factory=dict)
    """Standard deviation of the batches' stds, as a share of the pooled std."""


@dataclass(frozen=True)
class Sweeper:
    """Scales the weights until every output's std over all batches is within a tolerance of its target."""

    model: nn.Module
    calls: Calls
    """Forward passes on all batches."""
    ranks: Ranks
    """The processes over whose batches the stds are pooled."""
    run: Pass
    """Runs the model once, with something standing in for its operators."""
    again: Callable[[Mapping[Key, float]], Scaling]
    """Makes what scales to other stds."""
    tol: float
    """Largest relative deviation from the target."""
    begin: Callable[[int], None]
    """Called with the number of a batch before the forward on it."""
    watch: Watch
    """Sees the batches of every sweep pass."""

    def sweep_(self, first: Scaling) -> Swept:
        """``first``: what scaled in a pass on the first batch."""
        targets = first.ledger.targets()
        goals, prints = dict(targets), first.prints
        swept = Swept(factors=dict.fromkeys(targets, 1.0), converged=not targets)
        while not swept.converged and swept.sweeps < MOST_SWEEPS:
            self._pool(first, targets, swept)
            if swept.stds and all(abs(std / targets[key] - 1) <= self.tol for key, std in swept.stds.items()):
                swept.converged = True
                break
            # The first batch's stds are the goals of the last pass on it.
            ratios = {key: std / goals[key] for key, std in swept.stds.items() if std > 0}
            goals |= {key: targets[key] / ratio for key, ratio in ratios.items()}
            scaling = self._correct(goals)
            swept.passes += 1
            for key, factor in scaling.ledger.factors().items():
                swept.factors[key] *= factor
            errors = self.ranks.gathered((_error(prints, scaling.prints, ratios), self.ranks.disordered))
            if all(error <= self.tol and not disordered for error, disordered in errors):
                swept.converged = True
                swept.stds = {key: targets[key] for key in swept.stds}
            prints = scaling.prints
        return swept

    def _pool(self, first: Scaling, targets: Mapping[Key, float], swept: Swept) -> None:
        """Measure all outputs on all batches of all processes."""
        with self.ranks.together(in_lockstep=self.ranks.in_lockstep):
            pooled, count = self._measure(targets, first.remember)
        with self.ranks.together():
            own = fetched([found.of_all.std for found in pooled.values()])
            first.ledger.refuse_non_finite(dict(zip(pooled, own, strict=True)))
        keys = sorted(targets, key=lambda key: str(first.ledger.position(key)))  # in the same order in all processes
        swept.stds, swept.spreads = _added_up(pooled, keys, self.ranks)
        counts = self.ranks.gathered(count)
        swept.batches, swept.fewest = max(counts), min(counts)
        swept.sweeps += 1
        swept.passes += count

    def _correct(self, goals: Mapping[Key, float]) -> Scaling:
        """A pass on the first batch that gives its outputs these stds."""
        self.ranks.careful = True  # a pass that scales what is scaled already is not done again
        scaling = self.again(goals)
        self.begin(0)
        with suppress(MismatchError):  # another sweep will show what became of it
            self.run(self.calls.first, scaling)
        with self.ranks.together():
            scaling.ledger.records()
        return scaling

    def _measure(self, keys: Mapping[Key, float], remember: Callable[[Tensor], object]) -> tuple[dict[Key, _Pooled], int]:
        """One forward a batch; nothing is scaled. Returns how many there were, too."""
        pooled: dict[Key, _Pooled] = {}
        count = 0
        for call in self.watch(self._in_step(iter(self.calls))):
            if not count:
                self._compare(call)
            self.begin(count)
            count += 1
            measuring = Measuring(keys)
            sharded.reshard(self.model)
            with (
                self.ranks.explained(),
                guard.batch_kept(call.tensors()) as about_to_write,
                guard.gradients_aside(self.model.parameters()),
                intercept(self.model, measuring, remember=remember, about_to_write=about_to_write),
            ):
                call(self.model)
            for key, found in measuring.found.items():
                known = pooled.setdefault(key, _Pooled(found, []))
                known.of_all = merged(known.of_all, found) if known.stds else found
                known.stds.append(found.std)
        sharded.reshard(self.model)
        if not count and not self.ranks.in_lockstep:
            raise DataError(f"the data gave a batch once, and none when it was read again: {_ONCE}")
        return pooled, count

    def _compare(self, call: Call) -> None:
        """Warn where the first batch of a sweep is not the one whose stds it is to correct."""
        pairs = zip(call.tensors(), self.calls.first.tensors(), strict=False)
        if not all(same_numbers(ours, theirs) for (_, ours), (_, theirs) in pairs):
            warnings.warn(f"lsuv_: the data gave other batches when it was read again: {_ONCE}", GoodinitWarning, stacklevel=2)

    def _in_step(self, calls: Iterator[Call]) -> Iterator[Call]:
        """As many as every process has, where they need each other in the forward."""
        if not self.ranks.in_lockstep:
            yield from calls
            return
        while True:
            with self.ranks.together():
                call = next(calls, None)
            if self.ranks.any_lacks(call):
                return
            assert call is not None
            yield call


def _error(before: Mapping[Key, Tensor], after: Mapping[Key, Tensor], ratios: Mapping[Key, float]) -> float:
    """About how far the ratios may have moved in a correction.

    It changed the outputs on the first batch, apart from their scale, by some share at most; the ratios, which differ from 1 by
    what the batches differ in, can then have changed by about that share of this difference.
    """
    shared = [key for key in before if key in after]
    changes = [1.0 for key in shared if before[key].shape != after[key].shape]  # other tokens reached an expert
    alike = [torch.linalg.vector_norm(after[key] - before[key]) for key in shared if before[key].shape == after[key].shape]
    return 2 * max([*changes, *fetched(alike)], default=0.0) * max((abs(r - 1) for r in ratios.values()), default=0.0)


@dataclass
class _Pooled:
    """The statistics of one weight's output over the batches of this process."""

    of_all: Statistic
    stds: list[Tensor]

    def sums(self) -> Tensor:
        """What adds up over processes: of the elements, then of the batches' stds."""
        stds = doubled(torch.stack(self.stds))
        count = torch.full_like(stds[0], float(len(self.stds)))
        return torch.cat([message(self.of_all)[N:], torch.stack([stds.sum(), stds.square().sum(), count])])


class Measuring:
    """Stands in for every operator on a weight: runs it, and measures its output at the weight's first use."""

    def __init__(self, keys: Mapping[Key, object]) -> None:
        self.found: dict[Key, Statistic] = {}
        self._keys = keys

    def __call__(self, operation: Operation) -> Tensor:
        """The operator's output. Its bias is added before it is measured."""
        output = operation.with_bias(sharded.added_up(operation.linear_part()))
        with torch.no_grad():
            for part in operation.parts(output.detach()):
                key = part.weight.key
                if key in self._keys and key not in self.found and part.z.numel():
                    self.found[key] = statistic(part)
        return operation.complete(output)


def _added_up(pooled: Mapping[Key, _Pooled], keys: list[Key], ranks: Ranks) -> tuple[dict[Key, float], dict[Key, float]]:
    """Stds over all batches of all processes, and their spreads, of the weights that were used: one sum and one transfer."""
    own = {key: found.sums() for key, found in pooled.items()}
    device = next(iter(own.values())).device if own else ranks.device
    nothing = torch.zeros(SIZE, dtype=torch.float64, device=device)
    rows = [own.get(key, nothing) for key in keys]
    stds, spreads = {}, {}
    for key, row in zip(keys, ranks.summed(torch.stack(rows)).tolist(), strict=True):
        total, square, count = row[-3:]
        if count:
            std, mean = _std(row), total / count
            stds[key], spreads[key] = std, max(0.0, square / count - mean**2) ** 0.5 / std if std else 0.0
    return stds, spreads


def _std(row: Sequence[float]) -> float:
    """From what `_Pooled.sums` adds up to."""
    n, real, imag, square = row[:4]
    return float(max(0.0, square / n - (real / n) ** 2 - (imag / n) ** 2) ** 0.5)
