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

from goodinit.errors import ModelError, require
from goodinit.integrations.shared import Once, refuse
from goodinit.report import Report

require("accelerate", extra="accelerate")

if TYPE_CHECKING:
    from accelerate import Accelerator


def lsuv_(accelerator: Accelerator, model: nn.Module, data: Any, **options: Any) -> Report:
    """Initialize a prepared model in place: `goodinit.lsuv_` by way of an ``Accelerator``.

    Call it in all processes, after ``accelerator.prepare`` and before the first step, but not when training goes on from a
    checkpoint: before ``accelerator.load_state`` it would be in vain, and after it it is refused where the optimizer's state
    shows that it was trained (see Raises). Every process takes the batches
    of its own part of the data; all end with the same weights, those that one process would have from all the batches together.
    DistributedDataParallel, FSDP2, mixed precision and torch.compile are seen through. The training loop afterwards sees the
    batches and the random numbers that it would have seen without the call; of data that can be read but once, what
    was read is gone.

    Args:
        accelerator: the one that prepared the model.
        model: what ``accelerator.prepare`` returned.
        data: the prepared DataLoader, or anything else that `goodinit.lsuv_` takes.
        options: of `goodinit.lsuv_`: ``batches=``, ``target_std=``, ``skip=``, ``forward=``, …. Patterns match the names that the
            model's parameters had before it was prepared.

    Returns:
        The report, the same in all processes but for its seconds.

    Raises:
        ModelError: the model is trained by DeepSpeed, Megatron-LM or FSDP1; or an optimizer of the accelerator has taken steps
            with it, as far as that can be seen (Adam's count of them, SGD's momentum).
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
    if _was_trained(accelerator, model):
        raise ModelError(
            f"the training of this {type(_inside(model)).__name__} has begun: its optimizer has taken steps, here or before a "
            "checkpoint was loaded, and lsuv_ would overwrite what was learnt; call it before the first step, and only if "
            "training starts from scratch"
        )
    return Once(**options).run(_inside(model), data)


def _inside(model: nn.Module) -> nn.Module:
    """The model in all its wrappers: compiled and then distributed, or the other way round.

    Not by ``accelerator.unwrap_model``: whether it takes off a compiled wrapper depends on its version.
    """
    inside = getattr(model, "_orig_mod", None)  # of torch.compile, and of Accelerate's compilation by regions
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        inside = model.module
    return _inside(inside) if isinstance(inside, nn.Module) else model


def _was_trained(accelerator: Accelerator, model: nn.Module) -> bool:
    """Whether an optimizer remembers steps that it took with weights of the model.

    Adam and its kin count them, SGD keeps a momentum. Some, Adagrad say, have something for every weight before the first step.
    """
    own = {id(parameter) for parameter in model.parameters()}
    states = (state for o in accelerator._optimizers for parameter, state in o.state.items() if id(parameter) in own)
    return any(state.get("step", 0) > 0 or state.get("momentum_buffer") is not None for state in states)
