"""Models built on the meta device, where tensors have a shape and no numbers: each module gets memory when it is reached.

So a model never needs more than its own size and that of the weight at work. A tensor stays the same object: what it holds is
exchanged for memory on a device, and back if anything fails. Its first values are those that its module would have given it:
``reset_parameters()``, as torch's layers have it, and ``_init_weights(module)`` of a model around it, as transformers' have it.

Of several processes each gives all that it holds memory before the forward: FSDP2 asks for that, and other processes may need a
weight that this one does not reach. Of a sharded model that is its part. Modules set whole tensors, one module at a time, and
every process keeps its part of them: so first values do not depend on the sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from goodinit import guard
from goodinit.errors import ModelError, OptionError
from goodinit.interception.computed import Sources
from goodinit.options import Reset
from goodinit.processes import sharded
from goodinit.scaling import Scaling
from goodinit.shards import Shards


class Materializer:
    """Gives the tensors of a model memory, each module as a whole, when one of them is first asked for."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | None,
        undo: guard.Undo,
        randomness: guard.Randomness,
        *,
        reset: Reset | None = None,
        shards: Shards | None = None,
        at_once: bool = False,
    ) -> None:
        """``device``: None if all tensors have memory. ``reset``: called with each module when its tensors have memory.
        ``shards``: where finished weights are written, and what an interrupted call left there. ``at_once``: whether all get
        memory before the forward.
        """
        self.weights: Sources | None = None
        self._modules = dict(model.named_modules())
        self._numbers = {name: number for number, name in enumerate(self._modules)}
        self._model, self._device, self._at_once = model, device or torch.device("cpu"), at_once
        self._undo, self._randomness, self._reset, self._shards = undo, randomness, reset, shards
        self._holders: dict[int, str] = {}
        for name, module in self._modules.items() if device else ():
            for tensor in _own(module).values():
                if tensor.is_meta:
                    self._holders.setdefault(id(tensor), name)
        self._names = {id(p): name for name, p in (*model.named_parameters(), *model.named_buffers())}
        self._twins: list[tuple[Tensor, Tensor]] = []
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._unset: dict[str, Tensor] = {}
        self._forget: Callable[[], None] | None = None
        undo.also(self.undo)

    def __bool__(self) -> bool:
        """Whether anything is on the meta device."""
        return bool(self._holders)

    def begin(self, scaling: Scaling, weights: Sources) -> None:
        """A pass begins: go on where an interrupted call was, if there was one."""
        self.weights = weights
        if self._at_once and self._holders:
            self.rest()
            self._forget = sharded.renew(self._model)
        if self._shards is None:
            return
        self._shards.snapshot = scaling.progress
        if self._shards.known.drawn or self._shards.known.scaled:
            self._randomness.follow(self._shards.known.seed)
        for name, parameter in self._model.named_parameters():
            if not parameter.is_meta and self._shards.has(name):
                self._undo.remember(parameter)
                self._shards.take(name, parameter)

    def __call__(self, function: Callable[..., Any], values: Iterable[object]) -> None:
        """Give memory to all tensors of the model's among the arguments of a call."""
        if function in _ASKING:
            return
        for value in values:
            if isinstance(value, Tensor):
                if value.is_meta and (holder := self._holders.get(id(value))) is not None:
                    self._give(holder)
            elif isinstance(value, (tuple, list)):
                self(function, value)

    def _give(self, name: str) -> None:
        """The modules around it first: what they set in the modules inside them is set before those set it."""
        for outer in (*_around(name), name):
            self._fill(outer)

    def _fill(self, name: str) -> None:
        module = self._modules[name]
        fresh = {key: tensor for key, tensor in _own(module).items() if tensor.is_meta}
        if not fresh:
            return
        unsharded = (tensor for tensor in _own(module).values() if not sharded.is_sharded(tensor))
        others = [(tensor, tensor.detach().clone()) for tensor in unsharded if not tensor.is_meta]
        for tensor in fresh.values():
            self._allocate(tensor)
        with torch.no_grad(), self._randomness.as_global(("reset", self._numbers[name]), self._device), whole(module) as own:
            before = {key: (tensor, tensor._version) for key, tensor in own.items()}
            for reset in self._resets(name):
                reset()
            now = _own(module)
        with torch.no_grad():
            for tensor, kept in others:  # tied to a module that was reached before, or there from the beginning
                tensor.copy_(kept)
            for key, tensor in fresh.items():
                _put_back(module, key, tensor, now.get(key))
        self._load(fresh)
        for key, tensor in fresh.items():
            seen, version = before[key]
            if now.get(key) is seen and seen._version == version:  # a weight may still be drawn
                self._unset[f"{name}.{key}".lstrip(".")] = tensor
            if key in module._buffers:
                self._buffers.append((tensor, tensor.detach().clone()))

    def _allocate(self, tensor: Tensor) -> None:
        """Exchange what the tensor holds for memory with no numbers in it; the object stays, and so does whoever refers to it."""
        twin = sharded.on_device(tensor, self._device)
        self._twins.append((tensor, twin))
        sharded.exchange_(tensor, twin, meta=False)
        self._undo.ignore(tensor)
        if self.weights is not None:
            self.weights.arrived(tensor)
        sharded.local(tensor.detach()).fill_(_blank(tensor))

    def _resets(self, name: str) -> Iterator[Callable[[], object]]:
        """What gives a module its first values, in the order in which building the model would have called it."""
        module = self._modules[name]
        for method in ("reset_parameters", "_reset_parameters"):
            own = getattr(module, method, None)
            if callable(own):
                yield own
        for outer in reversed((*_around(name), name)):
            library = getattr(self._modules[outer], "_init_weights", None)
            if callable(library):
                yield partial(library, module)
                break
        if self._reset is not None:
            yield partial(self._reset, module)

    def _load(self, fresh: Mapping[str, Tensor]) -> None:
        """What an earlier call had finished."""
        if self._shards is None:
            return
        for tensor in fresh.values():
            self._shards.take(self._names[id(tensor)], tensor)

    def rest(self) -> None:
        """Give memory to what the forward did not reach."""
        for name in dict.fromkeys(self._holders.values()):
            self._give(name)

    def check(self) -> None:
        """Refuse tensors that still have no values.

        Not while the model runs: Python takes a ``TypeError`` in an operator such as ``*`` for a hint to try another one.

        Raises:
            ModelError: neither did their module set them, nor were they drawn.
        """
        unset = [name for name, tensor in self._unset.items() if not _was_set(tensor)]
        if not unset:
            return
        lost = next((name for name in unset if not isinstance(self._unset[name], nn.Parameter)), None)
        module = type(self._modules[(lost or unset[0]).rpartition(".")[0]]).__name__
        if lost is not None:
            raise ModelError(
                f"the buffer {lost!r} was computed while the model was built on the meta device, so its numbers are lost, and "
                f"{module} has no reset_parameters() that sets it; build the model with real buffers, or pass reset=, a function "
                "that is called with each module and sets it"
            )
        raise ModelError(
            f"{len(unset)} parameters have no first values, as they were not drawn: {', '.join(map(repr, unset[:5]))}; "
            f"{module} has no reset_parameters() that sets them. Pass reset=, a function that is called with each module"
        )

    def finish(self) -> None:
        """All is done: what the forward made of buffers (BatchNorm's statistics) is undone, and what is left is written."""
        with torch.no_grad():
            for buffer, first in self._buffers:
                buffer.copy_(first)
        if self._shards is not None:
            self._shards.finish()

    def undo(self) -> None:
        """Take all memory back: the model is on the meta device as before."""
        for tensor, twin in self._twins:
            sharded.exchange_(tensor, twin, meta=True)
        if self._forget is not None:
            self._forget()
        self._twins, self._buffers, self._unset, self._forget = [], [], {}, None


# What a tensor can be asked for without memory. Not its device: the model would put other tensors there.
_ATTRIBUTES = ("shape", "dtype", "ndim", "layout", "is_meta", "is_leaf", "requires_grad", "grad", "nbytes", "itemsize")
_METHODS = ("size", "dim", "numel", "nelement", "stride", "element_size", "is_floating_point", "is_complex", "is_contiguous")
_ASKING = frozenset([getattr(Tensor, name).__get__ for name in _ATTRIBUTES] + [getattr(Tensor, name) for name in _METHODS])


def target_device(model: nn.Module, device: torch.device | str | None) -> torch.device | None:
    """Where tensors on the meta device are to get memory; None if there are none.

    Raises:
        OptionError: not a device, one that is not here, or the meta device itself; or another one than that of the mesh that the
            model is sharded over.
    """
    if device is None or not isinstance(model, nn.Module):
        return None
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise OptionError(f"device must be a device such as 'cpu' or 'cuda:0'; got {device!r}") from error
    if target.type == "meta":
        raise OptionError("device='meta' has no memory to put numbers into; name a real one, such as 'cpu' or 'cuda:0'")
    _check_mesh(model, target)
    tensors = [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]
    if not any(t.is_meta for t in tensors):
        elsewhere = next((t.device for t in tensors if t.device.type != target.type), None)
        if elsewhere is not None and not any(map(sharded.is_sharded, tensors)):
            raise OptionError(
                f"device={str(device)!r} is for tensors on the meta device, of which the model has none; it is on "
                f"{str(elsewhere)!r}. Move it first: model.to({str(device)!r})"
            )
        return None
    try:
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:  # of a torch without CUDA
        raise OptionError(f"device={str(device)!r} cannot be used here: {str(error).strip().partition(chr(10))[0]}") from error
    return target


def _check_mesh(model: nn.Module, target: torch.device) -> None:
    for name, p in model.named_parameters():
        mesh = sharded.mesh_device(p)
        if p.is_meta and mesh is not None and target.type not in (mesh, "cpu"):  # on the CPU: offloaded
            raise OptionError(
                f"device={str(target)!r}, but {name!r} is sharded over a mesh of {mesh} devices; pass device={mesh!r}, or "
                f"build the mesh with init_device_mesh({target.type!r}, …)"
            )


def _own(module: nn.Module) -> dict[str, Tensor]:
    held: dict[str, Any] = {**module._parameters, **module._buffers}
    return {key: tensor for key, tensor in held.items() if tensor is not None and not is_lazy(tensor)}


def _around(name: str) -> list[str]:
    """Names of the modules around one, the outermost first."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


@contextmanager
def whole(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside, the module has whole tensors in the place of those of which this process holds a part. Gives all that it has."""
    held = {key: tensor for key, tensor in module._parameters.items() if sharded.is_sharded(tensor)}
    try:
        for key, tensor in held.items():
            assert tensor is not None
            blank = torch.full(tensor.shape, _blank(tensor), dtype=tensor.dtype, device=tensor.device)
            module._parameters[key] = nn.Parameter(blank, requires_grad=tensor.requires_grad)
            vars(module._parameters[key]).update(vars(tensor))  # notes that a reset may look for
        yield _own(module)
    finally:
        module._parameters.update(held)


def _put_back(module: nn.Module, key: str, tensor: Tensor, now: Tensor | None) -> None:
    """Where a reset has made a new tensor, or has set a whole one, take its values, and keep the one that others may refer to."""
    if now is not tensor:
        if now is not None:
            sharded.assign_(tensor, now)
        held: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
        held[key] = tensor


def _blank(tensor: Tensor) -> float:
    """What shows that nothing was written."""
    return float("nan") if tensor.is_floating_point() or tensor.is_complex() else 0


def _was_set(tensor: Tensor) -> bool:
    """Whether anything has been written, by ``tensor.data`` too, which leaves no other trace; of integers, anything but 0."""
    here = sharded.local(tensor)
    if here.is_floating_point() or here.is_complex():
        return not bool(here.isnan().any())
    return bool(here.any())
