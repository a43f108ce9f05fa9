"""In which order processes that do not use the same operators take their turns.

One process with all the data would use an operator once, on the data of all. So no process may use an operator before all that
use it have come to it. Who will still come is known from the sequences of a pass before; without one, the order in which the
parameters are registered has to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

Position = tuple[object, ...]
"""Of a weight in the model: comparable, the same in every process."""
Turn = tuple[float, Position]
"""The smallest goes first."""


class Turns:
    """The order of the operators of one model, as far as it is known."""

    def __init__(self) -> None:
        self._sequences: list[tuple[Position, ...]] = []
        self._index: dict[Position, int] = {}

    def learn(self, sequences: Iterable[Sequence[Position]]) -> None:
        """Take in what the processes used in a pass, each in its order."""
        self._sequences += [tuple(sequence) for sequence in sequences]
        sorter: TopologicalSorter[Position] = TopologicalSorter()
        for sequence in self._sequences:
            for position in sequence:
                sorter.add(position)
            for before, after in pairwise(sequence):
                sorter.add(after, before)
        try:
            ordered = list(sorter.static_order())
        except CycleError:  # the data decide on the order: there is none for all
            ordered = []
        self._index = {position: i for i, position in enumerate(ordered)}

    def turn(self, position: Position, passed: Sequence[Position]) -> Turn:
        """When it is the turn of an operator; of one never used before, after the last one that the process ``passed``."""
        if position in self._index:
            return self._index[position], position
        known = (self._index[other] for other in reversed(passed) if other in self._index)
        return next(known, -1) + 0.5, position
