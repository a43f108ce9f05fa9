"""The processes that train one network together: one, or those that torchrun has started."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from goodinit.errors import DataError, OptionError
from goodinit.paper.pixels import Share
from goodinit.processes.group import is_initialized


class World:
    """All processes, as one of them sees them. Of one process nothing is sent."""

    def __init__(self) -> None:
        together = is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.size = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all: writes rows and checkpoints, shows progress."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.rank, self.size)

    def check_batch(self, size: int) -> None:
        """Refuse a batch that cannot be divided.

        Raises:
            OptionError: says so.
        """
        if size % self.size:
            raise OptionError(
                f"a batch of {size} images cannot be divided among {self.size} processes; try a multiple of {self.size}"
            )

    def together(self, module: nn.Module, device: torch.device) -> nn.Module:
        """A module whose gradients are averaged over the processes, and whose batch normalization sees all of their images."""
        if self.size == 1:
            return module
        _pool_statistics_(module)
        ids = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)

    def copy_from_first_(self, module: nn.Module) -> None:
        """Give all processes the first one's parameters and buffers."""
        if self.size > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)

    def mean_(self, values: Tensor) -> Tensor:
        """Average over the processes, in place."""
        return self.sum_(values).div_(self.size) if self.size > 1 else values

    def sum_(self, values: Tensor) -> Tensor:
        """Add up over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def gathered(self, value: Any) -> list[Any]:
        """Of all processes, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def of_first(self, value: Any) -> Any:
        """The first process's, for all."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, what: str, value: str) -> None:
        """Refuse to go on where the processes have not the same.

        Raises:
            DataError: says which processes have what.
        """
        values = self.gathered(value)
        if len(set(values)) > 1:
            seen = ", ".join(f"process {rank}: {each}" for rank, each in enumerate(values))
            raise DataError(f"the processes do not have the same {what}: {seen}; give all of them the same files")


class PooledBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization by the statistics of all processes' images, which have to be as many in each.

    torch.nn.SyncBatchNorm does it on GPUs only.
    """

    @classmethod
    def of(cls, norm: nn.modules.batchnorm._BatchNorm) -> PooledBatchNorm:
        """One in the place of another, with its parameters and statistics themselves."""
        pooled = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        pooled.weight, pooled.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            pooled.register_buffer(name, buffer)
        return pooled.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Of (n, channels) or (n, channels, height, width)."""
        if not self.training:
            return super().forward(x)
        axes, each = [0, *range(2, x.dim())], [1, -1, *[1] * (x.dim() - 2)]
        z = x.float()
        mean = _pooled(z.mean(axes))
        centred = z - mean.view(each)
        variance = _pooled(centred.square().mean(axes))
        self._track(mean.detach(), variance.detach(), x.numel() // x.shape[1] * dist.get_world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(each) + self.bias.view(each)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        pass


class _Sum(torch.autograd.Function):
    """The sum over the processes, whose gradients are added up, too."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _pooled(values: Tensor) -> Tensor:
    """The mean over the processes; gradients flow back to all of them."""
    total: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]  # not in its stubs
    return total / dist.get_world_size()


def _pool_statistics_(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, PooledBatchNorm):
            setattr(module, name, PooledBatchNorm.of(child))
        else:
            _pool_statistics_(child)


def started_together() -> bool:
    """Whether torchrun has started this process, and others with it."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def processes(device: str) -> Iterator[World]:
    """All processes that torchrun has started, connected; or this one alone.

    Raises:
        OptionError: more processes than GPUs.
    """
    if not started_together():
        yield World()
        return
    if device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise OptionError(f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local)
    # A process that dies is noticed at once; one that waits for another process's teacher may take hours.
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield World()
    finally:
        # Destroying a group of gloo's joins its threads under Python's lock, which they need to drop their last tensors (pytorch
        # issue 56297): until then they have time to.
        time.sleep(0.1)
        dist.destroy_process_group()
