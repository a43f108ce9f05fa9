"""Drawing a weight while the processes wait for each other: the one that is likely to be used next, apart from the model.

A sum over processes takes as long as the network takes to answer, and the processor has nothing to do. What a weight's matrix is
depends on the seed and its place alone, so that it may be drawn at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from goodinit.interception.operation import Layout, Operation
from goodinit.interception.weights import Weight

# Elements of a weight that is drawn ahead at most: larger ones take longer than any wait, and memory.
_LARGEST = 1 << 20

Draw = Callable[[Layout, Tensor, object], None]
"""Fills a weight at a place in the model."""


class Ahead:
    """At most one weight drawn before it is used."""

    def __init__(self, operations: Iterable[Operation], draw: Draw) -> None:
        """``operations``: likely ones, in the order in which they are likely to run."""
        self._waiting = {op.weight.place: op for op in operations if _is_simple(op.weight)}
        self._draw = draw
        self._drawn: tuple[object, Layout, Tensor] | None = None

    def draw(self) -> None:
        """Draw the first weight that is still to come, unless there is one."""
        if self._drawn is None and self._waiting:
            place, operation = next(iter(self._waiting.items()))
            matrix = torch.empty_like(operation.weight.tensor)
            self._draw(operation.layout, matrix, place)
            self._drawn = place, operation.layout, matrix

    def take(self, layout: Layout, weight: Tensor, place: object) -> bool:
        """A weight is to be drawn now: fill it if that has been done. Returns whether it was."""
        self._waiting.pop(place, None)
        if self._drawn is None or self._drawn[:2] != (place, layout) or self._drawn[2].shape != weight.shape:
            return False
        weight.copy_(self._drawn[2])
        self._drawn = None
        return True


def _is_simple(weight: Weight) -> bool:
    """A whole parameter of moderate size that is all in this process's main memory."""
    whole = weight.tensor is weight.parameter and weight.home is None and weight.divisible
    return whole and weight.tensor.device.type == "cpu" and weight.tensor.numel() <= _LARGEST
