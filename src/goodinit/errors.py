"""What goodinit raises and warns with.

Every error says what was asked, what was seen and what to try; each also is the built-in
exception that a caller would expect (``ValueError``, ``TypeError``, …).
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Sequence
from numbers import Real
from types import ModuleType

_SOME = 8
"""Names that a message has room for."""


class GoodinitError(Exception):
    """Base of all errors that goodinit raises itself."""


class DataError(GoodinitError, ValueError):
    """The data cannot be given to the model: none there, no tensors in it, not finite."""


class ModelError(GoodinitError, TypeError):
    """The model cannot be initialized: not a module, on the meta device, TorchScript, no weights."""


class OptionError(GoodinitError, ValueError):
    """An option has a value that cannot be meant: a pattern without a match, a target of zero."""


class NonFiniteError(GoodinitError, ArithmeticError):
    """NaN or infinity in an operator's output."""

    elsewhere = False
    """Whether it came from another process."""


class SaveError(GoodinitError, OSError):
    """A file could not be saved; what was there before is as it was."""


class ShardsError(GoodinitError, RuntimeError):
    """The folder of a ``checkpoint=`` is broken."""


class RankError(GoodinitError, RuntimeError):
    """Another process of torch.distributed failed, died, or has another model, other numbers in it, or other options."""

    lost = False
    """Whether other processes do not answer."""


class MissingExtraError(GoodinitError, ImportError):
    """An optional dependency is not installed."""


class UnhealthyError(GoodinitError, AssertionError):
    """The signal through a model has a fault."""


class GoodinitWarning(UserWarning):
    """A weight could not be brought to its target (the report has its status), or something else was not done as asked."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Raises:
        MissingExtraError: ``module`` is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # Only the package itself missing means "not installed": its own broken imports are its own.
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed; it comes with the extra {extra!r}: pip install 'goodinit[{extra}]'"
        ) from error


def is_number(value: object, kind: type = Real) -> bool:
    """Whether it is a number, of NumPy maybe; True and False are none. ``kind``: of `numbers`."""
    return isinstance(value, kind) and not isinstance(value, bool)


def did_you_mean(asked: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """`` (did you mean 'a', 'b'?)``, or nothing where no known name is close; ``cutoff``: how close, of 1."""
    close = difflib.get_close_matches(asked, list(dict.fromkeys(known)), n=3, cutoff=cutoff)
    return f" (did you mean {', '.join(map(repr, close))}?)" if close else ""


def some_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are; ``nothing`` of none."""
    return ", ".join(names[:_SOME]) + (f" and {len(names) - _SOME} more" if len(names) > _SOME else "") or "nothing"


def annotate(error: BaseException, note: str) -> None:
    """Add a line to an exception that is not ours, as ``BaseException.add_note`` does."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
    elif error.args and isinstance(error.args[0], str):
        # Python 3.10 prints no notes: the message is the only place that people see.
        error.args = (f"{error.args[0]}\n{note}", *error.args[1:])
