"""Whose weight an operator was given: the parameter, and which part of it, found by the memory it shares.

An operator may receive the parameter itself, a view of it (``w.t()``, one expert of a stack, the thirds of
``in_proj_weight``) or a detached alias. All share the parameter's storage, so what is written through them
reaches the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy

from goodinit.interception.transforms import is_wrapped, without_derivative
from goodinit.processes import sharded
from goodinit.processes.sharded import Place
from goodinit.processes.turns import Position

# Where a part of a parameter lies: offset, then (stride, size) of its axes, each in elements.
Region = tuple[int, tuple[tuple[int, int], ...]]
Key = tuple[Any, ...]
Fill = Callable[[Tensor, object], None]
"""Writes a weight at a place in the model."""


_keeps_versions: ContextVar[bool] = ContextVar("keeps_versions", default=False)


@contextmanager
def versions_kept() -> Iterator[None]:
    """Autograd does not notice what is written to weights inside.

    A model that differentiates inside its forward may have saved other parts of a parameter, or of what was computed from it,
    of which nothing changes.
    """
    token = _keeps_versions.set(True)
    try:
        yield
    finally:
        _keeps_versions.reset(token)


def is_zero(tensor: Tensor) -> bool:
    """Whether there is nothing but zeros in it; waits for the device."""
    return not tensor.numel() or bool(tensor.detach().abs().max() == 0)


def to_be_written(tensor: Tensor) -> Tensor:
    """An alias of a weight for changing it in place."""
    return tensor.data if _keeps_versions.get() else tensor.detach()


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
    was_read: bool = False
    """Whether something else than a linear operator has read the parameter already."""
    number: int = 0
    """Of the parameter in the order of registration."""
    home: Tensor | None = None
    """The sharded parameter, where `parameter` is the whole one that a forward works with."""
    start: tuple[int, int] | None = None
    """Of a parameter that shares memory with another one: where this memory is, and at which element of it it begins."""

    @property
    def module(self) -> str:
        """Name of the module that holds the parameter; empty for the root."""
        return module_name(self.name)

    @property
    def is_read(self) -> bool:
        """Whether changing it now would change what something else has read."""
        return self.was_read

    divisible: ClassVar[bool] = True
    """Whether parts of it can be scaled apart."""

    @property
    def obstacle(self) -> str | None:
        """The status of a weight that no factor brings to a target, whatever the output; None for all others."""
        return "unsupported" if _overlaps_itself(self.tensor) else None

    @property
    def held(self) -> Tensor:
        """What the model holds between forwards."""
        return self.parameter if self.home is None else self.home

    @cached_property
    def key(self) -> Key:
        """The same for every tensor that is this part of this parameter."""
        return id(self.held), self.region

    @property
    def memory(self) -> tuple[int, Region]:
        """Where it lies in memory: which one, and its region there, the same whichever of the parameters there it belongs to."""
        if self.start is None:
            return id(self.held), self.region
        address, first = self.start
        offset, axes = self.region
        return address, (offset + first // (2 if self.is_complex_view else 1), axes)

    @property
    def place(self) -> object:
        """Tells it from all other weights of the model, the same in every process and in every wrapper around the model."""
        whole = self.tensor.numel() == self.parameter.numel()
        return self.number if whole else (self.number, self.region)

    @property
    def position(self) -> Position:
        """As `place`; sorts as the parameters are registered, and their parts in their order."""
        return self.number, *self.region

    def roots(self) -> tuple[Weight, ...]:
        """The parts of parameters that it is made of: itself, unless it is computed from others."""
        return (self,)

    def scale_(self, factor: Tensor) -> None:
        """Multiply it by a 0-d tensor."""
        torch.clear_autocast_cache()  # which has casts of parameters, and does not see that they change
        if self._lives_apart:
            sharded.local(to_be_written(self.tensor)).mul_(factor)
        if self.home is not None:
            sharded.multiply_(self.home, self._in_home, factor)

    def draw_(self, fill: Fill) -> None:
        """Let ``fill`` write it."""
        self._write_(lambda weight: fill(weight, self.place))

    def zero_(self, write: Callable[[Tensor], None]) -> None:
        """Let ``write`` fill parts of it with zeros."""
        self._write_(write, start=1.0)

    def assign_(self, values: Tensor) -> None:
        """Give it these values."""
        self._write_(lambda weight: weight.copy_(values))

    def _write_(self, write: sharded.Write, start: float | None = None) -> None:
        torch.clear_autocast_cache()
        if self.home is None:
            write(to_be_written(self.tensor))
            return
        seen = torch.view_as_complex if self.is_complex_view else lambda part: part
        part = sharded.write_(self.home, self._in_home, lambda part: write(seen(part)), start=start)
        if self._lives_apart and start is not None:
            write(to_be_written(self.tensor))
        elif self._lives_apart:
            sharded.assign_(to_be_written(self.tensor), seen(part))

    @property
    def _lives_apart(self) -> bool:
        """Whether there is another tensor than `home` to be changed."""
        return self.home is not self.tensor and not self.tensor.is_meta

    @property
    def is_complex_view(self) -> bool:
        """Whether the operator sees pairs of real numbers as complex ones."""
        return self.tensor.is_complex() and not self.parameter.is_complex()

    @property
    def in_whole(self) -> Place:
        """Where it lies in its parameter, in elements of the operator's."""
        start = self.parameter.storage_offset() // (2 if self.is_complex_view else 1)
        return Place(tuple(self.tensor.shape), tuple(self.tensor.stride()), int(self.tensor.storage_offset() - start))

    @property
    def _in_home(self) -> Place:
        """The same in elements of the parameter."""
        shape, stride, offset = self.in_whole
        return Place((*shape, 2), (*(2 * s for s in stride), 1), 2 * offset) if self.is_complex_view else self.in_whole

    @property
    def factors(self) -> tuple[Weight, ...]:
        """The parts of parameters that multiply it if they are multiplied together."""
        return (self,)

    @property
    def changed(self) -> tuple[Weight, ...]:
        """The parts of parameters that are changed in order to draw it and to scale it."""
        return (self,)

    def refresh(self) -> None:
        """Bring it up to date with its parameters."""

    def without(self, zeros: Container[Key]) -> Tensor:
        """What it would be if these of its roots were zero."""
        return torch.zeros_like(self.tensor) if self.key in zeros else self.tensor

    def part(self, tensor: Tensor) -> Weight:
        """The same parameter through ``tensor``, a view of this weight."""
        name = parameter_name(self.name) + region_label(self.parameter, tensor)
        return replace(self, name=name, tensor=tensor)

    def at_first(self, axis: int) -> Weight:
        """The weight at the first place of an axis along which it repeats itself."""
        return replace(self, tensor=self.tensor.select(axis, 0))

    @cached_property
    def region(self) -> Region:
        """Where in the parameter it lies, whatever the order of its axes and however they are split or repeated."""
        return self.in_whole.offset, merged_axes(self.tensor)


class Weights:
    """The parameters of a model, found from the tensors that operators receive."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._by_id: dict[int, tuple[str, Tensor]] = {}  # FSDP2 has two tensors of one name
        self._by_storage: dict[int, list[tuple[str, Tensor]]] = {}
        self._numbers: dict[str, int] = {}
        self._homes: dict[str, Tensor] = {}
        self._strangers: dict[int, Tensor] = {}
        self._still_strangers: set[int] = set()
        """Ids of those that an operator has used, and were looked for again then."""
        self._rows: dict[int, int] = {}
        self._crowded: set[int] = set()
        """Ids of the parameters that have a part of their memory in common with another one."""
        self._stale: set[int] = set()
        """Memories of which this is not known yet."""
        self._embedded: set[int] = set()
        self._read: set[int] = set()
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
            self._note_storage(name, parameter)

    def _note_storage(self, name: str, parameter: Tensor) -> None:
        if not isinstance(parameter, UninitializedParameter) and (key := storage_of(parameter)):
            known = self._by_storage.setdefault(key, [])
            if all(parameter is not other for _, other in known):
                known.append((name, parameter))
                if len(known) > 1:
                    self._stale.add(key)

    def arrived(self, tensor: Tensor) -> None:
        """Note that a tensor of the model's, which was on the meta device, has memory."""
        if (owner := self._by_id.get(id(tensor))) is not None:
            self._note_storage(*owner)

    def look_again(self, tensors: Iterable[object]) -> None:
        """Let parameters that are about to be used be looked for once more: a layer that the forward makes fills its own before
        the model has it.
        """
        for tensor in tensors if self._strangers else ():
            if id(tensor) in self._strangers and id(tensor) not in self._still_strangers:
                self._still_strangers.add(id(tensor))
                del self._strangers[id(tensor)]

    def find(self, tensor: object) -> Weight | None:
        """The weight that ``tensor`` is or shares memory with; None for anything else (data, activations, buffers)."""
        if not isinstance(tensor, Tensor):
            return None
        if (owner := self._by_id.get(id(tensor))) is not None:
            if owner[0] in self._homes:  # its memory may be new
                self._note_storage(*owner)
            return self._weight(*owner, tensor)
        if isinstance(tensor, nn.Parameter) and id(tensor) not in self._strangers:
            # Made during the forward (a lazy module's), or not the model's at all: look once.
            self._collect()
            if (owner := self._by_id.get(id(tensor))) is not None:
                return self._weight(*owner, tensor)
            self._strangers[id(tensor)] = tensor  # keeps it alive, and so its id its own
        key = storage_of(tensor)
        if not key and (plain := without_derivative(tensor)) is not tensor:
            return self.find(plain)
        for name, parameter in self._by_storage.get(key, ()):
            # FSDP2 frees the memory of its whole tensors, which may then be an activation's.
            if storage_of(parameter) == key and _within(tensor, parameter):
                return self._weight(name + region_label(parameter, tensor), parameter, tensor)
        return None

    def numbered(self, number: int) -> Weight:
        """The whole parameter of a number in the order of registration."""
        name = next(name for name, other in self._numbers.items() if other == number)
        parameter: Tensor = self._model.get_parameter(name)
        if sharded.is_sharded(parameter):  # only its place counts
            parameter = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        return self._weight(name, parameter, parameter)

    def _weight(self, name: str, parameter: Tensor, tensor: Tensor) -> Weight:
        whole = parameter_name(name)
        home = self._homes.get(whole)
        held = id(parameter if home is None else home)
        seen = held in self._embedded, held in self._read
        start = (
            None if home is not None or not self._others(parameter) else (storage_of(parameter), int(parameter.storage_offset()))
        )
        return Weight(name, parameter, tensor, *seen, self._numbers[whole], home, start)

    def _others(self, parameter: Tensor) -> list[Tensor]:
        """Parameters that have a part of their memory in common with this one, apart from itself."""
        for key in self._stale:
            self._crowded |= _overlapping([p for _, p in self._by_storage[key]])
        self._stale.clear()
        if id(parameter) not in self._crowded:
            return []
        known = self._by_storage.get(storage_of(parameter), ())
        return [p for _, p in known if p is not parameter and storage_of(p) == storage_of(parameter) and _overlap(p, parameter)]

    def read_by_embedding(self, tensor: object) -> None:
        """Note that an embedding looks rows up in this weight."""
        if (weight := self.find(tensor)) is not None:
            self._embedded.update(self._ids(weight))

    def read(self, weight: Weight) -> None:
        """Note that something else than a linear operator reads this weight."""
        self._read.update(self._ids(weight))

    def as_now(self, weight: Weight) -> Weight:
        """A weight that was found before, with what has read it since."""
        read = id(weight.held) in self._read
        return weight if weight.was_read == read else replace(weight, was_read=read)

    def _ids(self, weight: Weight) -> set[int]:
        """Of its parameter, and of those that it shares memory with."""
        return {id(weight.held)} | (set() if weight.home is not None else set(map(id, self._others(weight.parameter))))

    def stack(self, tensor: object, *, rows: int) -> None:
        """Note that a weight holds matrices of ``rows`` rows, one below the other (``in_proj_weight``: query, key, value)."""
        if (weight := self.find(tensor)) is not None:
            self._rows[id(weight.parameter)] = rows

    def stacked(self, weight: Weight) -> int:
        """How many matrices stand in it one below the other: 1 unless `stack` said otherwise."""
        rows = weight.tensor.shape[0]
        count, remainder = divmod(rows, self._rows.get(id(weight.parameter), rows) or 1)
        return 1 if remainder else max(1, count)


def module_name(name: str) -> str:
    """``"layers.0"`` of ``"layers.0.weight[2]"``."""
    return parameter_name(name).rpartition(".")[0]


def parameter_name(name: str) -> str:
    """``"layers.0.weight"`` of ``"layers.0.weight[2]"``."""
    module, dot, own = name.rpartition(".")  # names of modules may have brackets, too
    return module + dot + own.partition("[")[0]


def matches(name: str, pattern: str) -> bool:
    """Whether a shell-style pattern means this weight: by its own name, its parameter's, or that of a module around it."""
    parameter = parameter_name(name)
    if pattern in (parameter, name) or fnmatchcase(parameter, pattern) or fnmatchcase(name, pattern):
        return True
    module = module_name(name)
    while module:
        if pattern == module or fnmatchcase(module, pattern):
            return True
        module = module.rpartition(".")[0]
    return False


def merged_axes(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """(stride, size) of its axes, by their strides: those that go on where the one before ends in one, repeated ones left out."""
    merged: list[tuple[int, int]] = []
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1 and s):
        if merged and stride == merged[-1][0] * merged[-1][1]:
            merged[-1] = merged[-1][0], merged[-1][1] * size
        else:
            merged.append((stride, size))
    return tuple(merged)


def region_label(parameter: Tensor, tensor: Tensor) -> str:
    """The indices of a part of a parameter, as one would write them: ``"[3]"``, ``"[:, 2]"``; empty for all of it."""
    if tensor.numel() == parameter.numel():
        return ""
    offset = int(tensor.storage_offset() - parameter.storage_offset())
    otherwise = f"[offset {offset}, shape {tuple(tensor.shape)}]"
    if tensor.dtype != parameter.dtype or not parameter.is_contiguous():
        return otherwise
    spans: list[str] = []
    runs, elements = merged_axes(tensor), 1
    for stride, size in zip(parameter.stride(), parameter.shape, strict=True):
        start, offset = divmod(offset, stride)
        # The run of elements that goes along this axis, and maybe beyond it.
        length = next((min(size, step * n // stride) for step, n in runs if step <= stride < step * n and stride % step == 0), 1)
        elements *= length
        if start + length > size:
            return otherwise
        spans.append(":" if length == size else str(start) if length == 1 else f"{start}:{start + length}")
    if elements != math.prod(n for _, n in runs):  # they do not make up a block of the parameter
        return otherwise
    while spans and spans[-1] == ":":
        spans.pop()
    return f"[{', '.join(spans)}]" if spans else ""


def storage_of(tensor: Tensor) -> int:
    """Address of the memory under a tensor; 0 where there is none to share (meta, sparse, empty, vmap's, a wrapper's)."""
    if (
        is_lazy(tensor)
        or sharded.is_sharded(tensor)
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or is_wrapped(tensor)
    ):
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:  # a wrapper around other tensors, such as those that are still being added up over processes
        return 0


def _within(part: Tensor, whole: Tensor) -> bool:
    """Whether all bytes of ``part`` lie among those of ``whole``, both of one storage."""
    (start, stop), (low, high) = _span(part), _span(whole)
    return part.numel() > 0 and low <= start and stop <= high


def _overlapping(tensors: Sequence[Tensor]) -> set[int]:
    """Ids of those of one storage that overlap another one: many may lie there side by side."""
    found: set[int] = set()
    last, reached = 0, 0
    for start, stop, each in sorted((*_span(t), id(t)) for t in tensors):
        if start < reached:
            found |= {last, each}
        if stop > reached:
            last, reached = each, stop
    return found


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether elements of it may be one and the same (``w.unfold(0, 8, 1)``), apart from axes that repeat the whole of it."""
    reached = 0
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1 and s):
        if stride <= reached:
            return True
        reached += (size - 1) * stride
    return False


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether the bytes from first to last of one and of the other meet, both of one storage."""
    (start, stop), (low, high) = _span(a), _span(b)
    return a.numel() > 0 and b.numel() > 0 and start < high and low < stop


def _span(t: Tensor) -> tuple[int, int]:
    first = int(t.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return first * t.element_size(), (last + 1) * t.element_size()
