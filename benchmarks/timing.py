"""Timing contestants against each other on a machine where other things run too."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Clock:
    """What times are read from: the wall clock, or the CPU time of this process, which others running do not lengthen."""

    name: str = "wall"

    def read(self) -> float:
        """Seconds since some moment."""
        return _CLOCKS[self.name]()


CLOCK = Clock()
"""Of the whole run."""

Contestant = Callable[[], float]
"""Runs once and returns the seconds it took, less its preparations and checks."""


def interleaved(contestants: Mapping[str, Contestant], repeats: int, budget: float) -> dict[str, list[float]]:
    """Seconds of each contestant in each round.

    A round runs every contestant once, so that what else the machine does slows all of them; the order turns from round to round.
    There are ``repeats`` rounds, or as many as should fit into ``budget`` seconds; one at least.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    settle()
    start = time.perf_counter()
    for i in range(repeats):
        if i > 0 and (time.perf_counter() - start) * (i + 1) / i > budget:
            break
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()  # what others left is not this one's to collect
            seconds[name].append(contestants[name]())
    return seconds


def settle() -> None:
    """Collect garbage, and keep what is left (libraries, the model) out of later collections: those take time then only for what
    is made since.
    """
    gc.collect()
    gc.freeze()


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = CLOCK.read()
    call()
    return CLOCK.read() - start


def ratios(numerator: Sequence[float], *denominators: Sequence[float]) -> list[float]:
    """numerator / sum of denominators, round by round: what slows a whole round cancels."""
    return [a / sum(parts) for a, *parts in zip(numerator, *denominators, strict=True)]


def median_ratio(numerator: Sequence[float], *denominators: Sequence[float]) -> float:
    return statistics.median(ratios(numerator, *denominators))
