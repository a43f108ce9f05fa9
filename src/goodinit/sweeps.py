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

from goodinit.batches import Call, Calls
from goodinit.intercept import intercept
from goodinit.ledger import fetched
from goodinit.operation import Operation
from goodinit.outputs import Statistic, merged, statistic
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


def sweep_(
    model: nn.Module,
    calls: Calls,
    first: Scaling,
    run: Pass,
    again: Callable[[Mapping[Key, Tensor]], Scaling],
    *,
    tol: float,
    begin: Callable[[int], None] = lambda _batch: None,
    watch: Watch = iter,
) -> Swept:
    """Scale the weights until every output's std over all batches is within ``tol`` of its target.

    Args:
        model: after a pass on the first batch.
        calls: forward passes on all batches.
        first: what scaled in that pass.
        run: runs the model once, with something standing in for its operators.
        again: makes what scales to other stds.
        tol: largest relative deviation from the target.
        begin: called with the number of a batch before the forward on it.
        watch: sees the batches of every sweep pass.
    """
    targets = first.ledger.targets()
    swept = Swept(factors=dict.fromkeys(targets, 1.0), converged=not targets)
    prints = first.prints
    while not swept.converged and swept.sweeps < MOST_SWEEPS:
        pooled = _measure(model, calls, targets, begin, watch)
        stds, ratios, swept.spreads = _fetch(pooled)
        swept.batches = max(len(found.stds) for found in pooled.values())
        swept.sweeps += 1
        swept.passes += swept.batches
        swept.stds = stds
        if all(abs(stds[key] / targets[key] - 1) <= tol for key in stds):
            swept.converged = True
            break
        goals = {key: torch.full_like(pooled[key].of_first.std, targets[key] / ratios[key]) for key in stds}
        scaling = again(goals)
        begin(0)
        run(calls.first, scaling)
        swept.passes += 1
        for key, factor in scaling.ledger.factors().items():
            swept.factors[key] *= factor
        if _error(prints, scaling.prints, ratios) <= tol:
            swept.converged, swept.stds = True, {key: targets[key] for key in stds}
        prints = scaling.prints
    return swept


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
class Pooled:
    """The statistics of one weight's output over the batches of a sweep."""

    of_first: Statistic
    of_all: Statistic
    stds: list[Tensor]


def _measure(
    model: nn.Module, calls: Calls, keys: Mapping[Key, float], begin: Callable[[int], None], watch: Watch
) -> dict[Key, Pooled]:
    """One forward a batch; nothing is scaled."""
    pooled: dict[Key, Pooled] = {}
    for i, call in enumerate(watch(iter(calls))):
        begin(i)
        measuring = Measuring(keys)
        with intercept(model, measuring):
            call(model)
        for key, found in measuring.found.items():
            known = pooled.get(key)
            if known is None:
                pooled[key] = Pooled(found, found, [found.std])
            else:
                known.of_all = merged(known.of_all, found)
                known.stds.append(found.std)
    return pooled


class Measuring:
    """Stands in for every operator on a weight: runs it, and measures its output at the weight's first use."""

    def __init__(self, keys: Mapping[Key, object]) -> None:
        self.found: dict[Key, Statistic] = {}
        self._keys = keys

    def __call__(self, operation: Operation) -> Tensor:
        """The operator's output."""
        z = operation.linear_part()
        with torch.no_grad():
            for part in operation.parts(z.detach()):
                key = part.weight.key
                if key in self._keys and key not in self.found and part.z.numel():
                    self.found[key] = statistic(part)
        return operation.complete(z)


def _fetch(pooled: Mapping[Key, Pooled]) -> tuple[dict[Key, float], dict[Key, float], dict[Key, float]]:
    """Pooled stds, their ratios to the first batch's, and the spreads: all with one transfer from the device."""
    keys = list(pooled)
    tensors: list[Tensor] = []
    for found in pooled.values():
        std = found.of_all.std
        spread = torch.stack(found.stds).std(correction=0) if len(found.stds) > 1 else std * 0
        tensors += [std, std / found.of_first.std, spread / std]
    numbers = fetched(tensors)
    stds, ratios, spreads = (dict(zip(keys, numbers[i::3], strict=True)) for i in range(3))
    return stds, ratios, spreads
