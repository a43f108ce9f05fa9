"""PyTorch Lightning: a callback that initializes a LightningModule when its training starts.

    from lightning import Trainer
    from goodinit.integrations.lightning import LSUVCallback

    Trainer(callbacks=[LSUVCallback()]).fit(module, datamodule)

For ``import lightning`` and ``import pytorch_lightning`` alike; where both are installed, import yours before this.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from goodinit.batches import Forward
from goodinit.errors import GoodinitError, MissingExtraError, OptionError, annotate, require
from goodinit.integrations.shared import Once, refuse
from goodinit.integrations.side_effects import none_left, package_of
from goodinit.loaders import Batches
from goodinit.report import Report

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:

    def _callback() -> type:
        """The base class that Lightning asks callbacks for; of both packages if both are in use."""
        names = ("lightning.pytorch", "pytorch_lightning")
        bases = [getattr(sys.modules.get(name), "Callback", None) for name in names]
        if not any(bases):
            try:
                bases = [require(names[0], extra="lightning").Callback]
            except MissingExtraError as missing:
                try:
                    bases = [require(names[1], extra="lightning").Callback]
                except MissingExtraError:
                    raise missing from None
        return type("Callback", tuple(base for base in bases if base), {})

    Callback = _callback()

_INSTEAD = "use ModelParallelStrategy (FSDP2), or call goodinit.lsuv_(module, batch) before Trainer.fit, without this callback"
_FORWARD = (
    "LSUVCallback(forward=lambda module, batch: module(batch[0])), or whatever else runs the layers that are to be initialized"
)


class LSUVCallback(Callback):
    """Initializes the model by `goodinit.lsuv_` when ``Trainer.fit`` starts, on the first training batches.

    What runs is the module's ``training_step``: in Lightning that is what training runs, and a module's own ``forward`` may be
    something else, the encoder alone say. It runs in the Trainer's precision, on batches that went through the transfer hooks,
    and leaves no side effects: nothing is logged, metrics and the attributes of all modules are as before (of objects that these
    refer to, containers alone are put back). It runs without gradients, and before the module's own hooks ``on_fit_start``,
    ``on_train_start`` and ``on_train_epoch_start``. A module whose ``training_step`` needs these, or takes optimizer steps itself
    (manual optimization), needs ``forward=``.

    All processes take part (DistributedDataParallel, FSDP2) and end with the same weights. The training sees the batches and
    random numbers that it would have seen without the callback; of a data set that can be read but once, what was read is gone.

    Nothing is done for a module that was trained or loaded by this Trainer before: when ``fit`` is given a ``ckpt_path``, and
    when it is called again. Checkpoints hold the report. Weights that you loaded otherwise (``load_from_checkpoint``, a
    pretrained backbone) belong into ``skip=``.

    ``LearningRateFinder`` and ``Tuner.lr_find`` find the learning rate for the initialized model.

    Args:
        batches: over how many training batches the stds are pooled.
        forward: called as ``forward(module, batch)`` in place of the module's ``training_step``.
        log: whether the report goes to the Trainer's loggers: to TensorBoard as `to_tensorboard` writes it, to others as metrics.
        options: of `goodinit.lsuv_`: ``target_std=``, ``skip=``, ``pre_init=``, ….

    Raises:
        OptionError: `goodinit.lsuv_` has no such option; or ``training_step`` cannot be run as a forward.
        ModelError: the strategy keeps weights in a form of its own (FSDP1, DeepSpeed).

    >>> callback = LSUVCallback(batches=4, target_std={"head*": 0.1}, skip="backbone")
    """

    report: Report | None
    """What the initialization did; None before it, and where there was none."""

    def __init__(self, batches: int = 1, *, forward: Forward | None = None, log: bool = True, **options: Any) -> None:
        super().__init__()
        self._once = Once(batches=batches, **options)
        self._forward = forward
        self._log = log
        self.report = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002 - the hook's arguments
        """Go before all other callbacks: Lightning puts those that search for a learning rate first."""
        loop: Any = trainer  # whose type knows no callbacks
        loop.callbacks = [self, *(callback for callback in loop.callbacks if callback is not self)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialize, before anything looks at the model: the sanity check, the search for a learning rate."""
        if not trainer.strategy.restore_checkpoint_after_setup:  # a checkpoint would not have been loaded yet
            self._initialize(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Initialize under strategies that load checkpoints late."""
        self._initialize(trainer, pl_module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002 - the hook's arguments
        """Leave a module alone whose weights were loaded."""
        self._once.leave(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the report."""
        return {"report": None if self.report is None else self.report.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self.report = None if state_dict["report"] is None else Report.from_json(state_dict["report"])

    def _initialize(self, trainer: Trainer, module: LightningModule) -> None:
        if self._once.is_done(module):
            return
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            self._once.leave(module)
            return
        engine = type(trainer.strategy).__name__.removesuffix("Strategy")
        refuse(module, engine if engine in ("DeepSpeed", "FSDP") else "", instead=_INSTEAD)
        if self._forward is None:
            _check_training_step(module)
        trainer.fit_loop.setup_data()  # Lightning's own next step; does nothing the second time
        combined = trainer.fit_loop._combined_loader
        if combined is None:  # limit_train_batches=0
            return
        data = Batches(partial(_training_batches, trainer, combined), tuple(combined.flattened))
        with none_left(trainer, module):
            forward = (
                partial(_training_step, trainer) if self._forward is None else partial(_in_precision, trainer, self._forward)
            )
            self.report = self._once.run(module, data, forward=forward)
        if self._log and trainer.is_global_zero:
            _log(self.report, trainer, module)


def _training_batches(trainer: Trainer, loaders: Any) -> Iterator[Any]:
    """Batches as ``training_step`` gets them."""
    module = trainer.lightning_module
    for batch, *_ in copy.copy(loaders):  # a copy: an iterator over it is the object itself, and the training has one already
        converted = trainer.precision_plugin.convert_input(batch)
        prepared = module._on_before_batch_transfer(converted, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(prepared, dataloader_idx=0)


def _in_precision(trainer: Trainer, forward: Forward, module: LightningModule, batch: Any) -> Any:
    """A forward of the caller's as the Trainer runs training_step."""
    with trainer.precision_plugin.train_step_context():
        return forward(module, batch)


def _training_step(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Run it as the Trainer would, but not through a wrapper of its strategy's."""
    parameters = inspect.signature(module.training_step).parameters.values()
    numbered = len(parameters) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    arguments = (batch, 0) if numbered else (batch,)
    try:
        with trainer.precision_plugin.train_step_context():
            return module.training_step(*arguments)
    except GoodinitError:
        raise
    except Exception as error:
        annotate(
            error,
            "LSUVCallback: raised by training_step, which it runs without gradients and before the module's on_fit_start, "
            f"on_train_start and on_train_epoch_start. Should that be the reason, pass {_FORWARD}",
        )
        raise


def _check_training_step(module: LightningModule) -> None:
    """Refuse one that does more than a forward."""
    name, parameters = type(module).__name__, inspect.signature(module.training_step).parameters
    reason = None
    if not module.automatic_optimization:
        reason = "takes optimizer steps itself (automatic_optimization = False)"
    elif "dataloader_iter" in parameters:
        reason = "takes batches itself (dataloader_iter)"
    if reason is not None:
        raise OptionError(f"the training_step of {name} {reason}, so LSUVCallback cannot run it as a forward; pass {_FORWARD}")


def _log(report: Report, trainer: Trainer, module: LightningModule) -> None:
    """To the Trainer's loggers."""
    for logger in trainer.loggers:
        if isinstance(
            logger, package_of(trainer).loggers.logger.DummyLogger
        ):  # fast_dev_run's, which has whatever it is asked for
            continue
        writer = getattr(logger, "experiment", None)
        if hasattr(writer, "add_histogram"):
            from goodinit.integrations.tensorboard import to_tensorboard  # noqa: PLC0415 - needs TensorBoard, which is there now

            to_tensorboard(report, writer, trainer.global_step, model=module)
        else:
            stds = {"std_before": "before", "std_after": "after"}
            metrics = {f"goodinit/{field}/{r.name}": getattr(r, field) for r in report for field in stds}
            logger.log_metrics({name: value for name, value in metrics.items() if value is not None}, trainer.global_step)
