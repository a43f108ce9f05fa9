"""Taking batches leaves no trace in what loads them: training will see the batches that it would have seen.

Put back are the random number generators that loading draws from, and where loaders and samplers stand.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from goodinit.containers import CONTAINERS, items_of, refill


@dataclass(frozen=True)
class Batches:
    """Batches that a trainer makes from those of its loaders: an iterable of batches like a DataLoader."""

    iterate: Callable[[], Iterator[Any]]
    loaders: tuple[Any, ...] = ()
    """Where they come from."""

    def __iter__(self) -> Iterator[Any]:
        return self.iterate()


class Loading:
    """Takes batches of some data, the same ones each time.

    What loads them draws from a stream of random numbers of its own, which begins anew each time. Between batches and afterwards
    random number generators are as if nothing had been drawn, those that a loader or sampler holds included, and loaders and
    samplers are as if nothing had been taken: their epoch, the workers that they keep.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._parts = tuple(_parts(data))
        self._generators = [part for part in self._parts if isinstance(part, torch.Generator)]
        self._start = _anew(self._state())

    def batches(self) -> Iterator[Any]:
        """Those of the data, from the first one on."""
        state, batches = self._start, None
        while True:
            with self.begin(state) as reached:
                batches = iter(self._data) if batches is None else batches
                batch = next(batches, _END)
            if batch is _END:
                return
            state = reached[0]
            yield batch

    @contextmanager
    def begin(self, state: Any = None) -> Iterator[list[Any]]:
        """Draw from the stream inside, from a state of it on; gives the state that is reached."""
        kept, reached = self._state(), [self._start]
        self._set(self._start if state is None else state)
        try:
            yield reached
        finally:
            reached[0] = self._state()
            self._set(kept)

    def _state(self) -> Any:
        numpy_random = sys.modules.get("numpy.random")
        numpy_state: Any = None if numpy_random is None else numpy_random.get_state()
        own = [generator.get_state() for generator in self._generators]
        attributes = [(part, dict(vars(part)), _contents(part)) for part in self._parts if _has_a_place(part)]
        return (torch.get_rng_state(), random.getstate(), numpy_state, own), attributes

    def _set(self, state: Any) -> None:
        (of_torch, of_python, of_numpy, own), attributes = state
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        if of_numpy is not None:
            sys.modules["numpy.random"].set_state(of_numpy)
        for generator, its_state in zip(self._generators, own, strict=True):
            generator.set_state(its_state)
        for part, values, contents in attributes:
            held = vars(part)
            for name in held.keys() - values.keys():
                del held[name]
            held.update(values)
            for name, content in contents.items():
                _fill(values[name], content)


_END = object()
# Where loaders and samplers hold what has a state, those of torch, accelerate and lightning.
_ATTRIBUTES = (
    "base_dataloader",
    "batch_sampler",
    "sampler",
    "dataset",
    "generator",
    "synchronized_generator",
    "gradient_state",
    "loaders",
)


def _parts(data: Any) -> Iterator[Any]:
    """The data, and the loaders, samplers and generators in it."""
    waiting, seen = [data], {}
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield part
        # Of a data set nothing but a generator is looked for: what else it is made of is not known here.
        names = _ATTRIBUTES if _has_a_place(part) or isinstance(part, Batches) else ("generator",)
        for name in names:
            held = getattr(part, name, None)
            if name == "generator" and not isinstance(held, torch.Generator):
                continue
            waiting.extend(held if isinstance(held, tuple) else () if held is None else (held,))


def _has_a_place(part: Any) -> bool:
    """Whether its attributes say how far it is."""
    return isinstance(part, (DataLoader, Sampler)) or type(part).__module__.partition(".")[0] == "accelerate"


def _anew(state: Any) -> Any:
    """A state in which no loader goes on with the workers of an iteration that others are in the middle of."""
    generators, attributes = state
    anew = (
        (part, {**values, "_iterator": None} if "_iterator" in values else values, rest) for part, values, *rest in attributes
    )
    return generators, [(part, values, *rest) for part, values, rest in anew]


def _contents(part: Any) -> dict[str, Any]:
    """What a sampler of the caller's holds and may change in place: an order that it shuffles."""
    if not isinstance(part, Sampler) or type(part).__module__.partition(".")[0] == "torch":
        return {}
    held = {
        name: value for name, value in vars(part).items() if isinstance(value, (*CONTAINERS, torch.Tensor)) or _is_array(value)
    }
    return {name: _content(value) for name, value in held.items()}


def _content(held: Any) -> Any:
    if isinstance(held, torch.Tensor):
        return held.clone()
    return held.copy() if _is_array(held) else items_of(held)


def _is_array(held: Any) -> bool:
    return type(held).__module__ == "numpy" and type(held).__name__ == "ndarray"


def _fill(held: Any, content: Any) -> None:
    """Let something that can be changed hold what it held."""
    if isinstance(held, torch.Tensor) or _is_array(held):
        held[...] = content
    else:
        refill(held, content)
