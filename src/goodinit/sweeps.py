"""The std over many batches, pooled, in place of one batch's.

Not every weight at once is rescaled by its own pooled std: corrections upstream multiply downstream, and a deep network diverges.
The first batch serves as a control. A sweep measures r = pooled std / first batch's std for every operator, all in one forward a
batch; then one more pass on the first batch gives each output the std target / r there. Where the network is positively
homogeneous (ReLU, no biases) r does not change when weights are rescaled, so that one sweep does; elsewhere sweeps are repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from goodinit import sharded
from goodinit.batches import Call, Calls
from goodinit.intercept import intercept
from goodinit.ledger import fetched
from goodinit.messages import IMAG, SIZE, N, message
from goodinit.operation import Operation
from goodinit.outputs import Statistic, merged, statistic
from goodinit.ranks import Ranks
from goodinit.scaling import Scaling
from goodinit.weights import Key

MOST_SWEEPS = 20
Pass = Callable[[Call, Scaling], object]
Watch = Callable[[Iterator[Call]], Iterator[Call]]
"""Passes the batches of a sweep on, and shows how far it is."""


@dataclass
class Swept:
    """What sweeps came to, by the keys of the weights that were scaled."""

    batches: int = 0
    """How many there were in a sweep: fewer than asked for if the loader had no more."""
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
        keys = sorted(targets, key=lambda key: str(first.ledger.place(key)))  # in the same order in all processes
        goals, prints = dict(targets), first.prints
        swept = Swept(factors=dict.fromkeys(targets, 1.0), converged=not targets)
        while not swept.converged and swept.sweeps < MOST_SWEEPS:
            pooled, count = self._measure(targets)
            swept.stds, swept.spreads = _added_up(pooled, keys, self.ranks)
            swept.batches = int(self.ranks.largest(count))
            swept.sweeps += 1
            swept.passes += count
            if all(abs(std / targets[key] - 1) <= self.tol for key, std in swept.stds.items()):
                swept.converged = True
                break
            # The first batch's stds are the goals of the last pass on it.
            ratios = {key: std / goals[key] for key, std in swept.stds.items() if std > 0}
            goals |= {key: targets[key] / ratio for key, ratio in ratios.items()}
            scaling = self._correct(goals)
            swept.passes += 1
            for key, factor in scaling.ledger.factors().items():
                swept.factors[key] *= factor
            if self.ranks.largest(_error(prints, scaling.prints, ratios)) <= self.tol:
                swept.converged = True
                swept.stds = {key: targets[key] for key in swept.stds}
            prints = scaling.prints
        return swept

    def _correct(self, goals: Mapping[Key, float]) -> Scaling:
        """A pass on the first batch that gives its outputs these stds."""
        self.ranks.careful = True  # a pass that scales what is scaled already cannot be done again
        scaling = self.again(goals)
        self.begin(0)
        self.run(self.calls.first, scaling)
        return scaling

    def _measure(self, keys: Mapping[Key, float]) -> tuple[dict[Key, _Pooled], int]:
        """One forward a batch; nothing is scaled. Returns how many there were, too."""
        pooled: dict[Key, _Pooled] = {}
        count = 0
        for call in self.watch(self._in_step(iter(self.calls))):
            self.begin(count)
            count += 1
            measuring = Measuring(keys)
            sharded.reshard(self.model)
            with intercept(self.model, measuring):
                call(self.model)
            for key, found in measuring.found.items():
                known = pooled.setdefault(key, _Pooled(found, []))
                known.of_all = merged(known.of_all, found) if known.stds else found
                known.stds.append(found.std)
        sharded.reshard(self.model)
        return pooled, count

    def _in_step(self, calls: Iterator[Call]) -> Iterator[Call]:
        """As many as every process has, where they need each other in the forward."""
        while True:
            call = next(calls, None)
            some = call is not None
            if not (self.ranks.all_have(some) if self.ranks.communicating else some):
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
        found, stds = self.of_all, torch.stack(self.stds).double()
        own = message(found, 0)[N:]
        if found.var_bias is not None and not found.mean.is_complex():
            own[IMAG - N] = found.n * found.var_bias  # a process that does not use the weight does not know it
        count = torch.full_like(stds[0], float(len(self.stds)))
        return torch.cat([own, torch.stack([stds.sum(), stds.square().sum(), count])])


class Measuring:
    """Stands in for every operator on a weight: runs it, and measures its output at the weight's first use."""

    def __init__(self, keys: Mapping[Key, object]) -> None:
        self.found: dict[Key, Statistic] = {}
        self._keys = keys

    def __call__(self, operation: Operation) -> Tensor:
        """The operator's output."""
        z = operation.linear_part()
        with torch.no_grad():
            for part in operation.parts(sharded.added_up(z.detach())):
                key = part.weight.key
                if key in self._keys and key not in self.found and part.z.numel():
                    self.found[key] = statistic(part)
        return operation.complete(z)


def _added_up(pooled: Mapping[Key, _Pooled], keys: list[Key], ranks: Ranks) -> tuple[dict[Key, float], dict[Key, float]]:
    """Stds over all batches of all processes, and their spreads, of the weights that were used: one sum and one transfer."""
    like = next(iter(pooled.values())).of_all if pooled else None
    device = torch.device("cpu") if like is None else like.m2.device
    nothing = torch.zeros(SIZE, dtype=torch.float64, device=device)
    rows = [pooled[key].sums() if key in pooled else nothing for key in keys]
    stds, spreads = {}, {}
    for key, row in zip(keys, ranks.summed(torch.stack(rows)), strict=True):
        total, square, count = row[-3:].tolist()
        if not count:
            continue
        std = _std(row, pooled[key].of_all if key in pooled else like)
        mean = total / count
        stds[key], spreads[key] = std, max(0.0, square / count - mean**2) ** 0.5 / std if std else 0.0
    return stds, spreads


def _std(row: Tensor, like: Statistic | None) -> float:
    """Of the output with its bias; ``like``: another weight's, for whether all is complex."""
    n, real, imag, square, cov = row[:5].tolist()
    if like is not None and like.mean.is_complex():
        var = square / n - (real / n) ** 2 - (imag / n) ** 2
        bias = 0.0 if like.var_bias is None else like.var_bias.item()
    else:
        var, bias = square / n - (real / n) ** 2, imag / n
    return float(max(0.0, var + 2 * cov / n + bias) ** 0.5)
