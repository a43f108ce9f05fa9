"""Accelerate: LSUV in a training loop of one's own, on any number of processes.

from accelerate import Accelerator
from goodinit.integrations.accelerate import lsuv_

accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
report = lsuv_(accelerator, model, loader)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from goodinit.errors import require
from goodinit.integrations.shared import Once, refuse
from goodinit.report import Report

require("accelerate", extra="accelerate")

if TYPE_CHECKING:
    from accelerate import Accelerator


def lsuv_(accelerator: Accelerator, model: nn.Module, data: Any, **options: Any) -> Report:
    """Initialize a prepared model in place: `goodinit.lsuv_` by way of an ``Accelerator``.

    Call it in all processes, after ``accelerator.prepare`` and before the first step, but not when training goes on from a
    checkpoint. Every process takes the batches of its own part of the data; all end with the same weights, those that one process
    would have from all the batches together. DistributedDataParallel, FSDP2, mixed precision and torch.compile are seen through.
    The training loop afterwards sees the batches and the random numbers that it would have seen without the call.

    Args:
        accelerator: the one that prepared the model.
        model: what ``accelerator.prepare`` returned.
        data: the prepared DataLoader, or anything else that `goodinit.lsuv_` takes.
        options: of `goodinit.lsuv_`: ``batches=``, ``target_std=``, ``skip=``, ``forward=``, …. Patterns match the names that the
            model's parameters had before it was prepared.

    Returns:
        The report, the same in all processes.

    Raises:
        ModelError: the model is trained by DeepSpeed, Megatron-LM or FSDP1.
        OptionError: `goodinit.lsuv_` has no such option.
        Exception: whatever `goodinit.lsuv_` raises.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    refuse(
        model,
        kind if kind in ("DEEPSPEED", "MEGATRON_LM") else "",
        instead="use FSDP2 (FullyShardedDataParallelPlugin(fsdp_version=2)), or call goodinit.lsuv_(model, batch, "
        "distributed=False) before accelerator.prepare, with the same seed and batch in all processes",
    )
    return Once(**options).run(_inside(accelerator, model), data)


def _inside(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The model in all its wrappers: compiled and then distributed, or the other way round."""
    inside: nn.Module = accelerator.unwrap_model(model, keep_torch_compile=False)
    return inside if inside is model else _inside(accelerator, inside)
