"""Parameters and outputs of which every process holds a part: DTensors, of FSDP2 (fully_shard) and tensor parallelism.

In the forward of a module FSDP2 puts a whole tensor in the place of the sharded parameter, and drops it afterwards: what is to
stay has to be written into the shards too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

Write = Callable[[Tensor], object]


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor; nothing of torch.distributed.tensor is loaded to answer that."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


# A model's own communication.


def _fsdp_modules(model: nn.Module) -> list[Any]:
    module = sys.modules.get("torch.distributed.fsdp")
    return [] if module is None else [part for part in model.modules() if isinstance(part, module.FSDPModule)]


def has_flat_parameters(model: nn.Module) -> bool:
    """Whether it is wrapped in the first FSDP, FullyShardedDataParallel, which keeps weights as pieces of flat parameters."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and any(isinstance(part, module.FullyShardedDataParallel) for part in model.modules())


def meeting_points(model: nn.Module) -> list[nn.Module]:
    """Modules at the start of whose forward the processes need each other, other than in tensor parallelism."""
    return [*_fsdp_modules(model), *(m for m in model.modules() if isinstance(m, nn.SyncBatchNorm))]


@contextmanager
def without_broadcasts(model: nn.Module) -> Iterator[None]:
    """Keep DistributedDataParallel from sending the first process's buffers to all in a forward: all have had them since it was
    made. So a forward needs no other process; and whether the next one would send them is left as it was.
    """
    wrappers = [(m, m.require_forward_param_sync) for m in model.modules() if isinstance(m, nn.parallel.DistributedDataParallel)]
    for wrapper, _ in wrappers:
        wrapper.require_forward_param_sync = False
    try:
        yield
    finally:
        for wrapper, before in wrappers:
            wrapper.require_forward_param_sync = before


def is_tensor_parallel(model: object) -> bool:
    """Whether processes need each other inside of the forward of modules too."""
    if not isinstance(model, nn.Module):
        return False
    given: list[Any] = [p for p in model.parameters() if is_sharded(p)]
    if given and not _fsdp_modules(model):
        return True
    return any(sum(not placement.is_replicate() for placement in p.placements) > 1 for p in given)


def communicates(model: nn.Module) -> bool:
    """Whether the processes need each other in the model's forward."""
    return bool(meeting_points(model)) or is_tensor_parallel(model)


def reshard(model: nn.Module) -> None:
    """Let FSDP2 drop the whole tensors that it keeps from one forward to the next."""
    for part in _fsdp_modules(model):
        part.reshard()


# Memory for what is on the meta device.


def mesh_device(tensor: Tensor) -> str | None:
    """The kind of device that a tensor is sharded over; None of one that is not sharded."""
    return str(cast("Any", tensor).device_mesh.device_type) if is_sharded(tensor) else None


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor like one on the meta device, the same part of it if it is sharded, with memory and no numbers in it."""
    if not is_sharded(tensor):
        return torch.empty_like(tensor.detach(), device=device).requires_grad_(tensor.requires_grad)
    given: Any = tensor
    part = torch.empty_like(given._local_tensor, device=device)
    return cast("Tensor", type(given)(part, given._spec, requires_grad=given.requires_grad))


def exchange_(tensor: Tensor, twin: Tensor, *, meta: bool) -> None:
    """Exchange what two such tensors hold; both stay the same objects, and so does whoever refers to them.

    ``meta``: whether ``tensor`` is on the meta device afterwards. If it is already, in a try that was interrupted, it stays so.
    """
    # torch.utils.swap_tensors refuses tensors with weak references, as an LSTM's have; those stay right, as the object does.
    given, other = cast("Any", tensor), cast("Any", twin)
    if is_sharded(tensor) and given._local_tensor.is_meta != meta:
        given._local_tensor, other._local_tensor = other._local_tensor, given._local_tensor
    if tensor.is_meta != meta:
        torch._C._swap_tensor_impl(tensor, twin)


def renew(model: nn.Module) -> Callable[[], None]:
    """Let FSDP2 take notice of the memory that its shards have now; returns what lets it forget that memory."""
    given = [(p, p._sharded_param_data) for part in _fsdp_modules(model) for p in _fsdp_parameters(part)]
    with torch.no_grad():
        for parameter, _ in given:
            parameter.reset_sharded_param()

    def forget() -> None:
        for parameter, before in given:
            parameter._sharded_param_data = before

    return forget


def _fsdp_parameters(module: Any) -> list[Any]:
    """FSDP2's own objects for the parameters that it gathers with a module."""
    state = module._get_fsdp_state()
    groups = state._fsdp_param_groups if hasattr(state, "_fsdp_param_groups") else [state._fsdp_param_group]
    return [parameter for group in groups if group is not None for parameter in group.fsdp_params]


# Tensors.


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it, sharing its memory; a tensor that is not sharded itself."""
    if not is_sharded(tensor):
        return tensor
    return cast("Tensor", cast("Any", tensor.detach()).to_local())


def added_up(z: Tensor) -> Tensor:
    """An output of which every process has a summand is added up; the model would do so next."""
    if not is_sharded(z):
        return z
    replicate = sys.modules["torch.distributed.tensor"].Replicate()
    given: Any = z
    placements = [replicate if placement.is_partial() else placement for placement in given.placements]
    return cast("Tensor", z if placements == list(given.placements) else given.redistribute(placements=placements))


def whole(tensor: Tensor) -> Tensor:
    """All of it, gathered from all processes."""
    return cast("Tensor", cast("Any", tensor).full_tensor()) if is_sharded(tensor) else tensor


class Place(NamedTuple):
    """Where the elements of a part lie in a whole tensor in row-major order."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def rows(self, row: int) -> tuple[int, int]:
        """The first row, of so many elements, with some of the part in it, and the number of rows to the last one."""
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.offset // row, last // row - self.offset // row + 1


def write_(home: Tensor, place: Place, write: Write, *, start: float | None = None) -> Tensor:
    """Let ``write`` fill a part of a whole tensor, the same in every process, and keep what of it belongs here.

    Args:
        home: sharded.
        place: of the part.
        write: called with a tensor of the part's shape, with nothing in it or ``start`` everywhere.
        start: elements that still have this value afterwards are left as they are.

    Returns:
        The part, whole.
    """
    first, shape = _rows_around(home, place)
    block = torch.empty(shape, dtype=home.dtype, device=home.device)
    if start is not None:
        block.fill_(start)
    part = _seen_at(block, place, first)
    write(part)
    here, given = _own(home, block, first)
    if start is not None:
        given = torch.where(given == start, here, given)
    elif place.size < block.numel():
        given = torch.where(_own(home, _mask(shape, place, first, home.device), first)[1], given, here)
    here.copy_(given)
    return part


def assign_(tensor: Tensor, values: Tensor) -> None:
    """Give all of a tensor, sharded or not, these values."""
    if is_sharded(tensor):
        tensor, values = _own(tensor, values, 0)
    tensor.copy_(values)


def multiply_(home: Tensor, place: Place, factor: Tensor) -> None:
    """Multiply a part of a whole tensor, as far as it is here."""
    factor = factor.to(home.device)
    if place.size == home.numel():
        local(home).mul_(factor)
        return
    first, shape = _rows_around(home, place)
    here, inside = _own(home, _mask(shape, place, first, home.device), first)
    here.copy_(torch.where(inside, here * factor, here))


def _rows_around(home: Tensor, place: Place) -> tuple[int, tuple[int, ...]]:
    """The first row with some of the part in it; and the shape of the rows to the last such."""
    first, count = place.rows(math.prod(home.shape[1:]))
    return first, (count, *home.shape[1:])


def _seen_at(block: Tensor, place: Place, first: int) -> Tensor:
    """The part in a block of the whole tensor's rows from ``first`` on."""
    return block.as_strided(place.shape, place.stride, place.offset - first * math.prod(block.shape[1:]))


def _mask(shape: tuple[int, ...], place: Place, first: int, device: torch.device) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    _seen_at(mask, place, first).fill_(True)
    return mask


def _own(home: Tensor, block: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The part of this process that lies in whole rows from ``first`` on; and these rows' elements that belong there."""
    rows = _split(home, torch.arange(home.shape[0], device="cpu").reshape(-1, *[1] * (home.dim() - 1)), rows=True).flatten()
    start, stop = torch.searchsorted(rows, torch.tensor([first, first + len(block)], device="cpu")).tolist()
    wanted = rows[start:stop] - first
    if stop > start and int(wanted[-1] - wanted[0]) == stop - start - 1:
        picked = block[int(wanted[0]) : int(wanted[-1]) + 1]
    else:
        picked = block[wanted.to(block.device)]
    return local(home)[start:stop], _split(home, picked, rows=False)


def _split(home: Tensor, tensor: Tensor, *, rows: bool) -> Tensor:
    """What of a tensor belongs to this process, split along its rows, or its other axes, as ``home`` is."""
    given: Any = home
    coordinate = given.device_mesh.get_coordinate()
    for placement, count, index in zip(given.placements, given.device_mesh.shape, coordinate, strict=True):
        if not (placement.is_replicate() or placement.is_partial()) and (placement.dim == 0) == rows:
            tensor = placement._split_tensor(tensor, count, with_padding=False, contiguous=False)[0][index]
    return tensor
