"""Gradients by some leaves, which are left as they were, also where a checkpoint refuses autograd.grad."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from goodinit import guard
from goodinit.interception.intercept import unchecked


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


def are_needed(error: BaseException) -> bool:
    """Whether a forward that ran without gradients failed since it differentiates itself."""
    return isinstance(error, RuntimeError) and "does not require grad" in str(error)


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
