"""From what the caller passes as loss to the number that is differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from goodinit.batches import Call, shape_and_dtype
from goodinit.errors import DataError, OptionError, annotate

Loss = Callable[..., Tensor] | str | None


@dataclass(frozen=True)
class Objective:
    """A function of the model's output and of what the model was not given of the batch."""

    function: Callable[..., Any]
    targets: int
    """How many items of a batch it is given."""
    optional: bool = False
    """Whether it may do without: what a builtin takes cannot be asked."""
    more: int | None = 0
    """How many items of what the model does not take it is given besides, if there are any; None: all."""

    @classmethod
    def checked(cls, loss: Loss) -> Objective | None:
        """A loss that can be meant; None for none.

        Raises:
            OptionError: neither a function nor ``"output"``.
        """
        if loss is None:
            return None
        if isinstance(loss, str) and loss == "output":
            return cls(loss_in, 0)
        if not callable(loss):
            raise OptionError(
                "loss must be a function of the model's output, or of output and target (torch.nn.functional.cross_entropy), or "
                f'"output" for a model that returns its loss; got {loss!r}'
            )
        required = _required(loss)
        return cls(loss, 1, optional=True) if required is None else cls(loss, required - 1, more=_more(loss, required))

    def of(self, output: Any, call: Call) -> Tensor:
        """The loss of an output.

        Raises:
            DataError: it needs more than the batch has.
            OptionError: it is no scalar, or has no gradient.
            Exception: whatever the function raises, with a note on what it was given.
        """
        targets = call.rest[: self.targets]
        if len(targets) < self.targets and not self.optional:
            raise DataError(
                f"the loss takes the output and {self.targets} more, the batch has {len(targets)} more than the model takes "
                f"({call}); pass the target with it: measure(model, (x, y), loss=…), or a loss of the output alone"
            )
        targets += call.rest[len(targets) :][: self.more]
        try:
            value = self.function(output, *targets)
        except Exception as error:
            given = ", ".join(map(_kind, (output, *targets)))
            annotate(error, f"goodinit.measure: raised by the loss, which was given {given}. Nothing was changed.")
            raise
        return _scalar(value)


def loss_in(output: Any) -> Any:
    """The loss that a model returns: ``output.loss``, ``output["loss"]``, or the output itself.

    Raises:
        OptionError: there is none.
    """
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if not isinstance(found, Tensor):
        raise OptionError(
            f'loss="output" needs a model that returns its loss, itself or as .loss; it returned {_kind(output)}. Models of '
            "transformers do so if the batch has labels"
        )
    return found


def _scalar(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise OptionError(
            f"the loss must be one number, a tensor of one element; got {_kind(value)}. A loss for each sample: take its mean"
        )
    if not value.requires_grad:
        raise OptionError(
            "the loss has no gradient: no weight that trains leads to it. Is every parameter frozen (requires_grad=False), or "
            "the output detached, or computed under torch.no_grad?"
        )
    return value.reshape(())


def _required(loss: Callable[..., Any]) -> int | None:
    """How many positional arguments it must be given, one at least; None where that cannot be known."""
    try:
        parameters = _parameters(loss)
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return max(1, sum(p.default is p.empty for p in positional))


def _more(loss: Callable[..., Any], required: int) -> int | None:
    """How many more it may be meant to be given, where it must be given the output alone: ``target=None``, ``*targets``."""
    if required > 1:  # what else torch's own have are weights and the like
        return 0
    parameters = _parameters(loss)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    others = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
    return int(bool(others) and others[0].default is None and others[0].name in _TARGETS)


_TARGETS = frozenset(("target", "targets", "label", "labels", "y", "y_true"))


def _parameters(loss: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters.values())


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {shape_and_dtype(value)}"
    return f"a {type(value).__name__}" if value is not None else "None"
