"""Samples for a model, and what is asked for of those that are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Tensors by name, a sample in each row."""

    tensors: Mapping[str, Tensor]
    text: str
    """What they are and where they come from."""
    ordered: bool = False
    """Whether their order says which argument each is, not their names."""


@dataclass(frozen=True)
class Wanted:
    """What is asked for of samples that are drawn."""

    rows: int
    """How many."""
    seed: int
    image_size: int | None = None
    """Height and width to bring images to; by default that of the images."""


ROWS = 64
"""How many samples a batch has that is drawn."""
