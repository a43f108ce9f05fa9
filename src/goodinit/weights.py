"""Whose weight an operator was given: the parameter, and which part of it, found by the memory it shares.

An operator may receive the parameter itself, a view of it (``w.t()``, one expert of a stack, the thirds of
``in_proj_weight``) or a detached alias. All share the parameter's storage, so what is written through them
reaches the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from goodinit import sharded
from goodinit.transforms import is_wrapped

# Where a part of a parameter lies: offset, then (stride, size) of its axes, each in elements.
Region = tuple[int, tuple[tuple[int, int], ...]]
Key = tuple[Any, ...]
Fill = Callable[[Tensor, object], None]
"""Writes a weight at a place in the model."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter or a part of one, as an operator received it."""

    name: str
    """The parameter's name in the model, with the part's indices: ``"experts.w1[3]"``."""
    parameter: Tensor
    tensor: Tensor
    """Shares memory with ``parameter``; the axes are the operator's."""
    embedded: bool = False
    """Whether an embedding reads the parameter too."""
    number: int = 0
    """Of the parameter in the order of registration."""
    home: Tensor | None = None
    """The sharded parameter, where `parameter` is the whole one that a forward works with."""

    @property
    def module(self) -> str:
        """Name of the module that holds the parameter; empty for the root."""
        return module_name(self.name)

    divisible: ClassVar[bool] = True
    """Whether parts of it can be scaled apart."""

    @property
    def obstacle(self) -> str | None:
        """The status of a weight that no factor brings to a target, whatever the output; None for all others."""
        return None

    @property
    def held(self) -> Tensor:
        """What the model holds between forwards."""
        return self.parameter if self.home is None else self.home

    @cached_property
    def key(self) -> Key:
        """The same for every tensor that is this part of this parameter."""
        return id(self.held), self.region

    @property
    def place(self) -> object:
        """Tells it from all other weights of the model, the same in every process and in every wrapper around the model."""
        whole = self.tensor.numel() == self.parameter.numel()
        return self.number if whole else (self.number, self.region)

    def roots(self) -> tuple[Weight, ...]:
        """The parts of parameters that it is made of: itself, unless it is computed from others."""
        return (self,)

    def scale_(self, factor: Tensor) -> None:
        """Multiply it by a 0-d tensor."""
        sharded.local(self.tensor.detach()).mul_(factor)
        if self.home is not None and self.home is not self.tensor:
            sharded.local(self.home).mul_(factor)

    def draw_(self, fill: Fill) -> None:
        """Let ``fill`` write it."""
        if self.home is None:
            fill(self.tensor.detach(), self.place)
            return
        full = sharded.fill_(self.home, lambda weight: fill(weight, self.place))
        if self.home is not self.tensor:
            self.tensor.detach().copy_(full)

    def zero_(self, write: Callable[[Tensor], None]) -> None:
        """Let ``write`` fill parts of it with zeros."""
        write(self.tensor.detach() if self.home is not self.tensor else sharded.local(self.tensor))
        if self.home is not None and self.home is not self.tensor:
            write(sharded.local(self.home))

    def refresh(self) -> None:
        """Bring it up to date with its parameters."""

    def part(self, tensor: Tensor) -> Weight:
        """The same parameter through ``tensor``, a view of this weight."""
        name = parameter_name(self.name) + region_label(self.parameter, tensor)
        return Weight(name, self.parameter, tensor, self.embedded, self.number, self.home)

    def at_first(self, axis: int) -> Weight:
        """The weight at the first place of an axis along which it repeats itself."""
        return Weight(self.name, self.parameter, self.tensor.select(axis, 0), self.embedded, self.number, self.home)

    @cached_property
    def region(self) -> Region:
        """Where in the parameter it lies, whatever the order of its axes and however they are split or repeated."""
        offset = int(self.tensor.storage_offset() - self.parameter.storage_offset())
        merged: list[tuple[int, int]] = []
        for stride, size in sorted((s, n) for s, n in zip(self.tensor.stride(), self.tensor.shape, strict=True) if n != 1 and s):
            if merged and stride == merged[-1][0] * merged[-1][1]:
                merged[-1] = merged[-1][0], merged[-1][1] * size
            else:
                merged.append((stride, size))
        return offset, tuple(merged)


class Weights:
    """The parameters of a model, found from the tensors that operators receive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._by_id: dict[int, tuple[str, Tensor]] = {}
        self._by_storage: dict[int, list[tuple[str, Tensor]]] = {}
        self._numbers: dict[str, int] = {}
        self._homes: dict[str, Tensor] = {}
        self._strangers: dict[int, Tensor] = {}
        self._rows: dict[int, int] = {}
        self._embedded: set[int] = set()
        self._collect()
        for module in model.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                self.read_by_embedding(module.weight)

    def _collect(self) -> None:
        for name, parameter in self._model.named_parameters():  # a shared one once, under its first name
            self._numbers.setdefault(name, len(self._numbers))
            self._by_id[id(parameter)] = (name, parameter)
            if sharded.is_sharded(parameter):
                self._homes.setdefault(name, parameter)
            if not isinstance(parameter, UninitializedParameter):
                self._store(name, parameter)

    def _store(self, name: str, parameter: Tensor) -> None:
        if key := storage_of(parameter):
            known = self._by_storage.setdefault(key, [])
            if all(parameter is not other for _, other in known):
                known.append((name, parameter))

    def arrived(self, tensor: Tensor) -> None:
        """Note that a tensor of the model's, which was on the meta device, has memory."""
        if (owner := self._by_id.get(id(tensor))) is not None:
            self._store(*owner)

    def find(self, tensor: object) -> Weight | None:
        """The weight that ``tensor`` is or shares memory with; None for anything else (data, activations, buffers)."""
        if not isinstance(tensor, Tensor):
            return None
        if (owner := self._by_id.get(id(tensor))) is not None:
            return self._weight(*owner, tensor)
        if isinstance(tensor, nn.Parameter) and id(tensor) not in self._strangers:
            # Made during the forward (a lazy module's), or not the model's at all: look once.
            self._collect()
            if (owner := self._by_id.get(id(tensor))) is not None:
                return self._weight(*owner, tensor)
            self._strangers[id(tensor)] = tensor  # keeps it alive, and so its id its own
        for name, parameter in self._by_storage.get(storage_of(tensor), ()):
            if _within(tensor, parameter):
                return self._weight(name + region_label(parameter, tensor), parameter, tensor)
        return None

    def numbered(self, number: int) -> Weight:
        """The whole parameter of a number in the order of registration."""
        return next(self._weight(name, p, p) for name, p in self._by_id.values() if self._numbers[name] == number)

    def _weight(self, name: str, parameter: Tensor, tensor: Tensor) -> Weight:
        whole = parameter_name(name)
        home = self._homes.get(whole)
        embedded = id(parameter if home is None else home) in self._embedded
        return Weight(name, parameter, tensor, embedded, self._numbers[whole], home)

    def read_by_embedding(self, tensor: object) -> None:
        """Note that an embedding looks rows up in this weight."""
        if (weight := self.find(tensor)) is not None:
            self._embedded.add(id(weight.held))

    def stack(self, tensor: object, *, rows: int) -> None:
        """Note that a weight holds matrices of ``rows`` rows, one below the other (``in_proj_weight``: query, key, value)."""
        if (weight := self.find(tensor)) is not None:
            self._rows[id(weight.parameter)] = rows

    def stacked(self, weight: Weight) -> int:
        """How many matrices stand in it one below the other: 1 unless `stack` said otherwise."""
        count, remainder = divmod(weight.tensor.shape[0], self._rows.get(id(weight.parameter), weight.tensor.shape[0]))
        return 1 if remainder else max(1, count)


def module_name(name: str) -> str:
    """``"layers.0"`` of ``"layers.0.weight[2]"``."""
    return parameter_name(name).rpartition(".")[0]


def parameter_name(name: str) -> str:
    """``"layers.0.weight"`` of ``"layers.0.weight[2]"``."""
    return name.partition("[")[0]


def matches(name: str, pattern: str) -> bool:
    """Whether a shell-style pattern means this weight: by its own name, its parameter's, or that of a module around it."""
    parameter = parameter_name(name)
    if fnmatchcase(parameter, pattern) or fnmatchcase(name, pattern):
        return True
    module = module_name(name)
    while module:
        if fnmatchcase(module, pattern):
            return True
        module = module.rpartition(".")[0]
    return False


def region_label(parameter: Tensor, tensor: Tensor) -> str:
    """The indices of a part of a parameter, as one would write them: ``"[3]"``, ``"[:, 2]"``; empty for all of it."""
    if tensor.numel() == parameter.numel():
        return ""
    offset = int(tensor.storage_offset() - parameter.storage_offset())
    spans: list[str] = []
    strides = dict.fromkeys(tensor.stride(), 0)
    strides.update((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    if tensor.dtype != parameter.dtype or not parameter.is_contiguous():
        return f"[offset {offset}, shape {tuple(tensor.shape)}]"
    for stride, size in zip(parameter.stride(), parameter.shape, strict=True):
        start, offset = divmod(offset, stride)
        length = strides.get(stride, 0) or 1
        if start + length > size:  # an axis that the operator sees split or merged
            return f"[offset {tensor.storage_offset()}, shape {tuple(tensor.shape)}]"
        spans.append(":" if length == size else str(start) if length == 1 else f"{start}:{start + length}")
    while spans and spans[-1] == ":":
        spans.pop()
    return f"[{', '.join(spans)}]" if spans else ""


class Covered:
    """Which elements of the parameters have been used: a part may be scaled only if none of it was."""

    def __init__(self) -> None:
        self._regions: dict[int, set[Region]] = {}
        self._masks: dict[int, Tensor] = {}

    def __contains__(self, weight: Weight) -> bool:
        """Whether any element of the weight was added before."""
        return any(self._contains(root) for root in weight.roots())

    def _contains(self, weight: Weight) -> bool:
        seen = self._regions.get(id(weight.held), set())
        if not seen or weight.region in seen:
            return bool(seen)
        near = [known for known in seen if _meet(known, weight.region)]
        if any(_fills(known, weight.region) or _fills(weight.region, known) for known in near):
            return True
        return bool(near) and bool(self._view(weight).any())

    def add(self, weight: Weight) -> None:
        """Note all elements of the weight as used."""
        for root in weight.roots():
            self._add(root)

    def _add(self, weight: Weight) -> None:
        key = id(weight.held)
        self._regions.setdefault(key, set()).add(weight.region)
        if key in self._masks:
            self._view(weight).fill_(True)

    def _view(self, weight: Weight) -> Tensor:
        """The weight's elements in a mask over its parameter, which is as large, so made only for regions that interlock.

        On the CPU, so that reading it waits for no device.
        """
        key, p = id(weight.held), weight.parameter
        if key not in self._masks:
            extent = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            self._masks[key] = torch.zeros(extent, dtype=torch.bool)
            for offset, axes in self._regions.get(key, ()):
                self._masks[key].as_strided([n for _, n in axes], [s for s, _ in axes], offset).fill_(True)
        offset, axes = weight.region
        return self._masks[key].as_strided([n for _, n in axes], [s for s, _ in axes], offset)


def _ends(region: Region) -> tuple[int, int]:
    """Places of its first and last elements."""
    offset, axes = region
    return offset, offset + sum((size - 1) * stride for stride, size in axes)


def _meet(a: Region, b: Region) -> bool:
    """Whether the spans of two regions meet; their elements need not."""
    (first, last), (start, stop) = _ends(a), _ends(b)
    return first <= stop and start <= last


def _fills(a: Region, b: Region) -> bool:
    """Whether region a leaves no gap between its ends, and one end of b lies there: they have an element in common."""
    first, last = _ends(a)
    dense = math.prod(size for _, size in a[1]) == last - first + 1
    return dense and any(first <= end <= last for end in _ends(b))


def storage_of(tensor: Tensor) -> int:
    """Address of the memory under a tensor; 0 where there is none to share (meta, sparse, empty, vmap's)."""
    if (
        is_lazy(tensor)
        or sharded.is_sharded(tensor)
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or is_wrapped(tensor)
    ):
        return 0
    return tensor.untyped_storage().data_ptr()


def _within(part: Tensor, whole: Tensor) -> bool:
    """Whether all bytes of ``part`` lie among those of ``whole``, both of one storage."""

    def span(t: Tensor) -> tuple[int, int]:
        first = int(t.storage_offset())
        last = first + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        return first * t.element_size(), (last + 1) * t.element_size()

    (start, stop), (low, high) = span(part), span(whole)
    return part.numel() > 0 and low <= start and stop <= high
