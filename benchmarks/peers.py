"""Section b: lsuv_ against the packages on PyPI that do the same or nearly: `lsuv` 0.3.0 and `anyinit` 0.4.0.

They aim at different things, so that stds are reported and not judged: `lsuv` at an output std within 0.1 of 1, in eval mode;
`anyinit` (mode "empirical") at a mean square of the activations behind the layers, in train mode, where a normalization does not
make it moot.
"""

from __future__ import annotations

import copy
import gc
import math
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from checks import counted_passes, failed_passes, failed_stds, output_stds, span, weighted_modules
from networks import Net
from rows import Rows
from speed import timed_forward
from timing import settle, timed
from torch import Tensor, nn

from goodinit import lsuv_

# A contestant whose first call takes more than this share of the cap is called only once.
_SLOW = 1 / 20


@dataclass(frozen=True)
class Peer:
    """How to call a contestant, with the settings of its documentation's examples."""

    name: str
    call: Callable[[nn.Module, Tensor], object]
    training: bool
    """The mode in which it measures."""
    least_forwards: float
    """How many full forward passes it makes for each layer, at least; 0 if not one for each."""


@dataclass
class Outcome:
    """What came of a contestant on one network."""

    status: str = "ok"
    error: str = ""
    seconds: list[float] = field(default_factory=list)
    passes: int = 0
    stds: dict[str, float] = field(default_factory=dict)
    own_stds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    at_least: float | None = None
    """Seconds that a call would have taken, or had taken when it was stopped."""

    def again(self, cap: float) -> bool:
        """Whether another call is worth its time."""
        return self.status in ("ok", "diverged") and not (self.seconds and self.seconds[0] > _SLOW * cap)


def _lsuv_package(model: nn.Module, batch: Tensor) -> object:
    from lsuv import lsuv_with_singlebatch

    return lsuv_with_singlebatch(model, batch, verbose=False)


def _anyinit_package(model: nn.Module, batch: Tensor) -> object:
    import anyinit

    return anyinit.initialize(model, "empirical", batch)


GOODINIT = Peer("goodinit lsuv_", lsuv_, training=True, least_forwards=0)
PEERS = (
    GOODINIT,
    Peer("lsuv 0.3.0", _lsuv_package, training=False, least_forwards=1),
    # Stops each pass at the layer that it measures: half a pass on average. (Skips layers before a normalization, but the nets
    # that are too deep to wait for have none.)
    Peer("anyinit 0.4.0", _anyinit_package, training=True, least_forwards=0.5),
)


def measure(net: Net, rows: Rows, *, repeats: int, cap: float, seed: int) -> None:
    """Rows of one network; a call of a contestant is stopped, or not begun, at ``cap`` seconds."""
    model, batch = net.make(seed)
    layers = len(weighted_modules(model))
    forward = _forward_seconds(model, batch)
    settle()
    outcomes = {peer.name: _foreseen(peer, layers, forward, cap) for peer in PEERS}
    for i in range(repeats):
        for peer in PEERS[i % len(PEERS) :] + PEERS[: i % len(PEERS)]:
            if outcomes[peer.name].again(cap):
                _call(peer, copy.deepcopy(model), batch, outcomes[peer.name], cap)
                gc.collect()
    for peer in PEERS:
        rows.add("b", net.name, peer.name, layers=layers, cap_seconds=cap, **_metrics(peer, outcomes[peer.name]))
    print(f"b  {net.name}: " + ", ".join(f"{k} {o.status}" for k, o in outcomes.items()), flush=True)


def _metrics(peer: Peer, outcome: Outcome) -> dict[str, Any]:
    low, high = span(outcome.stds) if outcome.stds else (None, None)
    own_low, own_high = span(outcome.own_stds) if outcome.own_stds else (None, None)
    return {
        "seconds": outcome.seconds,
        "status": outcome.status,
        "error": outcome.error,
        "seconds_at_least": outcome.at_least,
        "forward_passes": outcome.passes or None,
        "std_min": low,
        "std_max": high,
        "own_mode": "train" if peer.training else "eval",
        "own_mode_std_min": own_low,
        "own_mode_std_max": own_high,
        "failed_checks": outcome.failed,
    }


def _forward_seconds(model: nn.Module, batch: Tensor) -> float:
    """Of a plain forward on a signal of unit size."""
    warm = copy.deepcopy(model)
    lsuv_(warm, batch, pre_init=None)
    return timed_forward(warm, batch)


def _foreseen(peer: Peer, layers: int, forward: float, cap: float) -> Outcome:
    """A contestant that cannot end within the cap by the number of forward passes that it makes is not begun."""
    least = peer.least_forwards * layers * forward
    if least <= cap:
        return Outcome()
    return Outcome(
        "not run", f"{peer.least_forwards:g} forward passes a layer, {layers} layers, {forward:.2g} s each", at_least=least
    )


def _call(peer: Peer, model: nn.Module, batch: Tensor, outcome: Outcome, cap: float) -> None:
    """One call on a fresh copy of the model; its time and what an independent measurement finds afterwards."""
    with counted_passes(model) as passes:
        try:
            with warnings.catch_warnings(), _stopped_after(math.inf if peer is GOODINIT else cap):
                warnings.simplefilter("ignore")
                seconds = timed(lambda: peer.call(model, batch))
        except _TooLong:
            outcome.status, outcome.at_least, outcome.passes = "stopped", cap, passes.most
            return
        except Exception as error:  # whatever a peer raises is its result
            if peer is GOODINIT:
                raise
            first_line = (str(error).splitlines() or [""])[0]
            outcome.status, outcome.error = "crashed", f"{type(error).__name__}: {first_line}"
            return
    outcome.seconds.append(seconds)
    outcome.passes = passes.most
    outcome.own_stds = output_stds(model, batch, training=peer.training)
    outcome.stds = output_stds(model, batch, training=True)
    if not all(math.isfinite(std) for std in (outcome.own_stds | outcome.stds).values()):
        outcome.status = "diverged"
    if peer is GOODINIT:
        outcome.failed += failed_stds(outcome.stds, expected=len(weighted_modules(model))) + failed_passes(passes)


class _TooLong(BaseException):
    """The time of a contestant is up. No Exception, which a contestant might catch."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Stop what runs inside after so many seconds (in the main thread, on POSIX)."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0 if math.isinf(seconds) else seconds)  # 0: never
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
