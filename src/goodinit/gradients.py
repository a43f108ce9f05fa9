"""Gradients by some leaves, which are left as they were, also where a checkpoint refuses autograd.grad; and those that a model's
forward takes itself, in which passes run with gradients on, and which are not those of the way back.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.data import DataLoader, IterableDataset

from goodinit import guard
from goodinit.interception.intercept import unchecked
from goodinit.processes.group import is_initialized

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass
class Way:
    """Which way a pass goes now: hooks that wait for the gradients of the way back leave those of the model's own alone."""

    forward: bool = True


def gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], leaves: Sequence[Tensor], *, by_backward: bool
) -> list[Tensor | None]:
    """Of the outputs, times the cotangents, by each of the leaves; None where they do not depend on it.

    Args:
        outputs: tensors that autograd knows.
        cotangents: one for each output, of its shape; None: 1, for an output of one element.
        leaves: that require gradients.
        by_backward: whether a part of the forward ran without gradients, as checkpoints of the reentrant kind do. They refuse
            autograd.grad, so there is a whole backward pass, which makes gradients on all leaves that it meets.
    """
    if not by_backward:
        return list(unchecked(torch.autograd.grad)(outputs, leaves, cotangents, allow_unused=True))
    met = list({id(leaf): leaf for leaf in (*leaves, *_leaves_behind(outputs))}.values())
    with guard.gradients_aside(met), guard.without_hooks(met):
        unchecked(torch.autograd.backward)(outputs, cotangents)
        return [leaf.grad for leaf in leaves]


# Kinds of data that are a batch, or hold batches that stay.
_WHOLE = (Tensor, Mapping, Sequence)
# Of autograd.grad and backward; of retain_grad; of register_hook.
_REFUSALS = "does not require grad", "can't retain_grad on Tensor that has requires_grad=False", "doesn't require gradient"
_on: ContextVar[bool] = ContextVar("gradients_are_on", default=False)


def are_on() -> bool:
    """Whether forwards are to run with gradients, for they differentiate themselves: see `if_needed`."""
    return _on.get()


def are_needed(error: BaseException) -> bool:
    """Whether a forward that ran without gradients failed since it differentiates itself."""
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in _REFUSALS)


def _can_be_read_again(given: Mapping[str, Any]) -> bool:
    """Whether the arguments' data are the same when they are read once more."""
    data = given.get("data")
    if isinstance(data, DataLoader):
        return not isinstance(data.dataset, IterableDataset)
    whole = given.get("forward") is not None and given.get("batches", 1) == 1  # is handed on as it is
    return not isinstance(data, Iterator) and (whole or not isinstance(data, Iterable) or isinstance(data, _WHOLE))


def if_needed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that runs a model without gradients, once more with them if the forward turns out to need them.

    Between the two everything is as before, as after any failure. Not where something cannot be begun anew: data that can be
    read but once, weights that got memory or were written on the way, other processes that take part.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            given = signature.bind(*args, **kwargs).arguments
            asked = given.get("distributed", "distributed" in signature.parameters)
            together = asked and is_initialized() and torch.distributed.get_world_size() > 1
            once = given.get("device") is not None or given.get("checkpoint") is not None or not _can_be_read_again(given)
            if are_on() or not are_needed(error) or together or once:
                raise
        token = _on.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _on.reset(token)

    return call


def nodes_behind(nodes: Iterable[Node | None]) -> Iterator[Node]:
    """These nodes of autograd's graph and all that lie behind them, each once."""
    waiting, seen = list(nodes), set[Node]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [before for before, _ in node.next_functions]


def _leaves_behind(outputs: Iterable[Tensor]) -> Iterator[Tensor]:
    found = (getattr(node, "variable", None) for node in nodes_behind(t.grad_fn for t in outputs))
    return (leaf for leaf in found if isinstance(leaf, Tensor))
