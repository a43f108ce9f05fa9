"""Models for the tests. A new one is one line in `awkward`, `transformers_models` or `vision_models`.

Nothing is built, and no library imported, before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One model, the batch to initialize it with, and what is special about it."""

    name: str
    factory: Callable[[], nn.Module]
    batch: Callable[[], Any]
    """A tensor, a tuple (positional arguments) or a mapping (keyword arguments)."""
    forward: Callable[[nn.Module, Any], Any] | None = None
    needs: tuple[str, ...] = ()
    """Packages that must be installed."""
    slow: bool = False
    statuses: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> status in the report, where the test should insist on one."""
    not_weights: Mapping[str, str] = field(default_factory=dict)
    """Pattern of parameters that a matrix product gets, and the reason why they need not be in the report."""

    def build(self) -> nn.Module:
        """A fresh model, the same every time, in train mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.factory()

    def data(self) -> Any:
        """A fresh batch, the same every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.batch()

    def run(self, model: nn.Module, data: Any) -> Any:
        """The forward that `lsuv_` is to make."""
        if self.forward is not None:
            return self.forward(model, data)
        if isinstance(data, Tensor):
            return model(data)
        return model(**data) if isinstance(data, Mapping) else model(*data)


def all_entries() -> list[Entry]:
    """The whole zoo."""
    from zoo import awkward, transformers_models, vision_models

    return [*awkward.ENTRIES, *transformers_models.ENTRIES, *vision_models.ENTRIES]
