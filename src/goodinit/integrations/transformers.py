"""transformers: a callback that initializes a model when its Trainer starts.

from transformers import Trainer
from goodinit.integrations.transformers import LSUVCallback

model = AutoModelForCausalLM.from_config(config)
Trainer(model, args, train_dataset=data, callbacks=[LSUVCallback()]).train()
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from goodinit.batches import Forward
from goodinit.errors import ModelError, OptionError, require
from goodinit.integrations.shared import Once, refuse
from goodinit.processes.sharded import is_sharded
from goodinit.report import Report

require("transformers", extra="transformers")

from transformers import TrainerCallback  # noqa: E402 - the line above says what is missing

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_LOG = logging.getLogger(__name__)
_INSTEAD = (
    'use FSDP2 (fsdp_config={"version": 2}), or call goodinit.lsuv_(model, batch, distributed=False) before the Trainer is made, '
    "with the same seed and batch in all processes, without this callback"
)
_INITIALIZED = "_is_hf_initialized"
"""By this attribute of a parameter transformers knows that it was loaded; of a module that all of it has its numbers."""


class LSUVCallback(TrainerCallback):
    """Initializes the model by `goodinit.lsuv_` when ``Trainer.train`` starts, on the first training batches.

    Batches are given to the model as in training: mappings, labels included, so that its ``forward`` runs with its loss. What
    was loaded by ``from_pretrained`` is left as it is (status ``skipped``), so that of a pretrained model with a new head the
    head is initialized; weights that you loaded otherwise belong into ``skip=``. Afterwards all weights are marked as
    transformers marks loaded ones, so that ``init_weights()`` does not draw them anew.

    All processes take part (DistributedDataParallel, FSDP2) and end with the same weights. The training sees the batches and the
    random numbers that it would have seen without the callback.

    Nothing is done when the training goes on from a checkpoint, nor for a model that this callback has initialized before. With
    ``model_init=``, every model that it returns is initialized.

    Args:
        batches: over how many training batches the stds are pooled.
        forward: called as ``forward(model, batch)`` in place of ``model(**batch)``: for a Trainer with its own ``compute_loss``.
        pretrained: whether weights that ``from_pretrained`` loaded are initialized too.
        options: of `goodinit.lsuv_`: ``target_std=``, ``skip=``, ``pre_init=``, ….

    Raises:
        OptionError: `goodinit.lsuv_` has no such option.
        ModelError: DeepSpeed or FSDP1 keeps weights in a form of its own; all weights were loaded.
        Exception: whatever `goodinit.lsuv_` raises.

    >>> callback = LSUVCallback(batches=4, target_std={"lm_head": 0.1})
    """

    report: Report | None
    """What the initialization did; None before it, and where there was none."""

    def __init__(
        self, batches: int = 1, *, forward: Forward | None = None, pretrained: bool = False, skip: Any = (), **options: Any
    ) -> None:
        self._once = Once(batches=batches, forward=forward, **options)
        self._skip = (skip,) if isinstance(skip, str) else tuple(skip)
        self._pretrained = pretrained
        self._loaded: tuple[str, ...] | None = None
        self.report = None

    def on_init_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the event's arguments
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **context: Any,
    ) -> None:
        """Note what was loaded: FSDP2 will put other parameters in the place of these, without the marks."""
        self._loaded = tuple(_loaded(context["model"]))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the event's arguments
        **context: Any,
    ) -> None:
        """Initialize; the Trainer has prepared the model, its optimizer and the loader."""
        model = context["model"]
        if state.global_step > 0:
            self._once.leave(model)
        if self._once.is_done(model):
            return
        refuse(model, "DeepSpeed" if args.deepspeed else "", instead=_INSTEAD)
        skip = (*self._skip, *(() if self._pretrained else self._left_alone(model)))
        self.report = self._once.run(model, context["train_dataloader"], skip=skip)
        mark_initialized(model)
        if state.is_world_process_zero:
            _LOG.info("goodinit: %s", self.report.summary())

    def _left_alone(self, model: nn.Module) -> Iterable[str]:
        """Names of the parameters that were loaded."""
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        if any(is_sharded(p) for p in model.parameters()):
            if self._loaded is None:
                raise OptionError(
                    "LSUVCallback was added to a Trainer that was there already, and in a sharded model it cannot be seen any "
                    "more what from_pretrained loaded; make the Trainer with it, Trainer(…, callbacks=[LSUVCallback()]), or pass "
                    "pretrained=True to initialize all weights"
                )
            loaded = names & set(self._loaded)
        else:
            loaded = set(_loaded(model))
        if loaded == names:
            raise ModelError(
                f"all weights of {type(model).__name__} were loaded by from_pretrained, or initialized before: there is nothing "
                "to do; make the model with from_config to train it from scratch, or pass LSUVCallback(pretrained=True) to "
                "initialize all weights"
            )
        return sorted(loaded)


def mark_initialized(model: nn.Module) -> None:
    """Tell transformers that all weights of a model have the numbers that they should have.

    ``LSUVCallback`` does this. After `goodinit.lsuv_` without a Trainer it keeps ``model.init_weights()`` from drawing them anew.
    """
    for part in (*model.modules(), *model.parameters()):
        setattr(part, _INITIALIZED, True)


def _loaded(model: nn.Module) -> list[str]:
    """Names of the parameters that ``from_pretrained`` found in a checkpoint."""
    return [name for name, p in model.named_parameters(remove_duplicate=False) if getattr(p, _INITIALIZED, False)]
