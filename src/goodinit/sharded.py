"""Parameters and outputs of which every process holds a part: DTensors, of FSDP2 (fully_shard) and tensor parallelism.

In the forward of a module FSDP2 puts a whole tensor in the place of the sharded parameter, and drops it afterwards: what is to
stay has to be written into the shards too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_sharded(tensor: object) -> bool:
    """Whether it is a DTensor; nothing of torch.distributed.tensor is loaded to answer that."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def communicates(model: nn.Module) -> bool:
    """Whether the processes need each other in the model's forward."""
    return any(is_sharded(p) for p in model.parameters()) or any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def reshard(model: nn.Module) -> None:
    """Let FSDP2 drop the whole tensors that it keeps from one forward to the next."""
    module = sys.modules.get("torch.distributed.fsdp")
    if module is not None:
        for part in model.modules():
            if isinstance(part, module.FSDPModule):
                part.reshard()


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


def fill_(sharded: Tensor, fill: Callable[[Tensor], None]) -> Tensor:
    """Let ``fill`` write a whole tensor, the same in every process, and keep this process's part of it; returns the whole."""
    own = local(sharded)
    full = torch.empty(sharded.shape, dtype=sharded.dtype, device=own.device)
    fill(full)
    copy_(sharded, full)
    return full


def copy_(sharded: Tensor, full: Tensor) -> None:
    """Write this process's part of a whole tensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: PLC0415 - loaded with DTensor

    given: Any = sharded
    shape, offset = compute_local_shape_and_global_offset(given.shape, given.device_mesh, given.placements)
    part = full[tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))]
    local(sharded).copy_(part)
