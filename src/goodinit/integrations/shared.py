"""What the integrations with trainers have in common: each model once, with random numbers of its own."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from goodinit.errors import ModelError, OptionError, did_you_mean
from goodinit.lsuv import lsuv_
from goodinit.processes.group import is_initialized
from goodinit.report import Report


class Once:
    """`goodinit.lsuv_` with fixed options, at most once for each model."""

    def __init__(self, **options: Any) -> None:
        """``options``: of `goodinit.lsuv_`.

        Raises:
            OptionError: it has no such option.
        """
        known = inspect.signature(lsuv_).parameters.keys() - {"model", "data"}
        for name in options.keys() - known:
            raise OptionError(f"lsuv_ has no option {name!r}{did_you_mean(name, known)}; it has {', '.join(sorted(known))}")
        self._options = options
        self._done: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def is_done(self, model: nn.Module) -> bool:
        """Whether this model was initialized, or is to be left as it is."""
        return model in self._done

    def leave(self, model: nn.Module) -> None:
        """Do not initialize this model: its training goes on."""
        self._done.add(model)

    def run(self, model: nn.Module, data: Any, **more: Any) -> Report:
        """Initialize a model. ``more``: options that are known only now."""
        with apart():
            report = lsuv_(model, data, **{**self._options, **more})
        self._done.add(model)
        return report

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are spawned; in those, other objects are the models."""
        return {"_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["_options"])  # type: ignore[misc]  # the object has no state yet


@contextmanager
def apart() -> Iterator[None]:
    """Random numbers inside follow from the first process's, the same in all; outside they go on as if none had been drawn."""
    kept = torch.get_rng_state()
    seeds = [int(torch.randint(2**62, (), device="cpu"))]
    if is_initialized():
        torch.distributed.broadcast_object_list(seeds, src=0)
    try:
        torch.default_generator.manual_seed(seeds[0] ^ 1)  # not the number that may seed the training's shuffling next
        yield
    finally:
        torch.set_rng_state(kept)


def refuse(model: nn.Module, engine: str = "", *, instead: str) -> None:
    """Raise for a model whose weights cannot be written by way of its parameters.

    Args:
        model: as it is trained.
        engine: what holds copies of the weights that it would put back; empty if there is none.
        instead: what to do.

    Raises:
        ModelError: it is such a model.
    """
    if not engine and any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        engine = "FullyShardedDataParallel (FSDP1)"
    if engine:
        raise ModelError(f"{engine} keeps the weights in a form of its own, out of lsuv_'s reach; {instead}")
