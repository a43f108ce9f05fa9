"""The loss whose gradients are measured, by name: one of torch's, the model's own, or the caller's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from goodinit.batches import shape_and_dtype
from goodinit.command.models import find_object
from goodinit.console import code_error
from goodinit.errors import DataError, OptionError, did_you_mean

Objective = Callable[[Any], Tensor] | Literal["output"]


def objective(name: str, labels: Tensor | None) -> Objective:
    """A function of a model's output.

    Args:
        name: ``"cross-entropy"``, ``"mse"``; ``"output"``, the loss that the model returns; or ``"MODULE:NAME"`` of a function of
            the output, or of output and labels.
        labels: of the batch.

    Raises:
        OptionError: there is no such loss.
        DataError: it needs labels, and there are none.
        CodeError: its module raised while it was imported.
    """
    if name == "output":
        return "output"
    if name not in _NAMED and ":" not in name:
        known = ["output", *_NAMED]
        raise OptionError(f"--loss must be {', '.join(known)} or MODULE:NAME; got {name!r}{did_you_mean(name, known)}")
    function = _NAMED.get(name) or find_object(name)
    if labels is None and (name in _NAMED or not _takes(function, 1)):
        raise DataError(
            f"--loss {name} needs labels, and the data holds none: a tensor of what the model should say, called labels, label, "
            "targets, target or y; or images in a folder for each class"
        )
    with_labels = labels is not None and _takes(function, 2)

    def loss(output: Any) -> Any:
        try:
            return function(output, _beside(labels, output)) if with_labels else function(output)
        except Exception as error:
            doing = f"the loss {name}"
            scores = _tensor(output)
            if with_labels and isinstance(labels, Tensor) and isinstance(scores, Tensor):
                doing += f", given scores {shape_and_dtype(scores)} and labels {shape_and_dtype(labels)}{_range(labels)},"
            raise code_error(doing, error) from error

    return loss


def _range(labels: Tensor) -> str:
    return f" from {labels.min().item():g} to {labels.max().item():g}" if labels.numel() and not labels.is_complex() else ""


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    return True


def _beside(labels: Any, output: Any) -> Any:
    """The labels where the output is."""
    scores = _tensor(output)
    return labels.to(scores.device) if isinstance(scores, Tensor) else labels


def _tensor(output: Any) -> Any:
    """The scores in what models of transformers return."""
    return getattr(output, "logits", output)


def _cross_entropy(output: Any, labels: Tensor) -> Tensor:
    return F.cross_entropy(_tensor(output), labels)


def _mse(output: Any, labels: Tensor) -> Tensor:
    scores = _tensor(output)
    return F.mse_loss(scores, labels.to(scores.dtype).reshape_as(scores))


_NAMED: dict[str, Callable[..., Any]] = {"cross-entropy": _cross_entropy, "mse": _mse}
