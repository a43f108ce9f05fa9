"""The course of a number over the layers: from the first third to the last, steady or in one jump."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from goodinit.measurement.layer import Layer

# Of the logarithm of a fall, the most that one layer may have: more is a jump.
_JUMP = 0.6
# Pairs of values are many: of so many values at most.
_MOST_VALUES = 200


@dataclass(frozen=True)
class Course:
    """One number of each layer that has it, in call order."""

    layers: tuple[Layer, ...]
    values: tuple[float, ...]

    @classmethod
    def of(cls, layers: Sequence[Layer], number: Callable[[Layer], float | None]) -> Course:
        """Of the layers that have the number."""
        pairs = [(layer, value) for layer in layers if (value := number(layer)) is not None]
        return cls(tuple(layer for layer, _ in pairs), tuple(value for _, value in pairs))

    @property
    def head(self) -> tuple[float, ...]:
        """The first third."""
        return self.values[: max(1, len(self.values) // 3)]

    @property
    def start(self) -> float:
        """Median of the first third."""
        return statistics.median(self.head)

    @property
    def end(self) -> float:
        """Median of the last third."""
        return statistics.median(self.values[-max(1, len(self.values) // 3) :])

    @property
    def ratio(self) -> float:
        """Of the end to the start."""
        return quotient(self.end, self.start)

    def steadiness(self) -> float:
        """From -1, where it falls with every layer, to 1, where it rises.

        (pairs in order - pairs out of order) / (both): Goodman and Kruskal's gamma.
        """
        values = self.values[:: math.ceil(len(self.values) / _MOST_VALUES)]
        signs = [(b > a) - (b < a) for i, b in enumerate(values) for a in values[:i]]
        return sum(signs) / sum(map(abs, signs)) if any(signs) else 0.0

    def falls_in_steps(self) -> bool:
        """Whether no single layer accounts for most of a fall."""
        logs = [math.log(max(value, 1e-12)) for value in self.values]
        least = [min(logs[: i + 1]) for i in range(len(logs))]
        steps = [a - b for a, b in pairwise(least)]
        return bool(steps) and max(steps) <= _JUMP * sum(steps)

    def first_below(self, share: float) -> Layer:
        """The first layer from which on all values are below a share of the largest."""
        limit, place = share * max(self.values), len(self.values) - 1
        while place > 0 and self.values[place - 1] < limit:
            place -= 1
        return self.layers[place]

    def first_above(self, times: float) -> Layer:
        """The first layer whose value is more than so many times the start."""
        limit = times * self.start
        return next((layer for layer, value in zip(self.layers, self.values, strict=True) if value > limit), self.layers[-1])

    def __str__(self) -> str:
        """``0.59 at conv1.weight, 1.2e-09 at conv30.weight, a factor of 0.51 a layer``."""
        a, b, steps = self.values[0], self.values[-1], len(self.values) - 1
        each = f", a factor of {(b / a) ** (1 / steps):.2g} a layer" if steps > 1 and a and b else ""
        return f"{a:.2g} at {self.layers[0].name}, {b:.2g} at {self.layers[-1].name}{each}"


def quotient(a: float, b: float) -> float:
    """a / b; infinity where b alone is 0, 1 where both are."""
    return a / b if b else math.inf if a else 1.0
