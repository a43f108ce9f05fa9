"""Modules whose first forward gives them their form, torch.nn.LazyLinear and its like."""

from __future__ import annotations

from itertools import chain

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy


class Unformed:
    """A module that has no form yet, and how to make it one again: its forward may have met the wrong data."""

    def __init__(self, module: nn.Module) -> None:
        attributes = vars(module)
        self.module, self._class, self._attributes = module, type(module), dict(attributes)
        # Of parameters, buffers and hooks: those that would give it its form are gone once it has one.
        self._contents = [(held, held.copy()) for held in attributes.values() if isinstance(held, dict)]
        held = (*module._parameters.values(), *module._buffers.values())
        self._tensors = [(tensor, type(tensor), tensor.data) for tensor in held if tensor is not None and is_lazy(tensor)]

    def put_back(self) -> None:
        """Let it be without a form."""
        for tensor, kind, memory in self._tensors:
            tensor.data = memory
            tensor.__class__ = kind
        for held, content in self._contents:
            held.clear()
            held.update(content)
        self.module.__class__ = self._class
        vars(self.module).update(self._attributes)


def unformed(model: nn.Module) -> list[Unformed]:
    """All of a model."""
    return [Unformed(m) for m in model.modules() if isinstance(m, LazyModuleMixin) and m.has_uninitialized_params()]


def shapeless(model: nn.Module) -> str | None:
    """Name of the first parameter or buffer that has no shape yet."""
    held = chain(model.named_parameters(), model.named_buffers())
    return next((name for name, tensor in held if is_lazy(tensor)), None)
