"""What the commands have in common: errors and warnings as lines on standard error, and exit codes."""

from __future__ import annotations

import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import typer

from goodinit.errors import GoodinitError, GoodinitWarning, OptionError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
# Packages whose frames do not say where a mistake of the caller's is.
_LIBRARIES = ("goodinit", "torch", "transformers", "timm", "typer", "click", "lightning", "pytorch_lightning")


class CodeError(GoodinitError, RuntimeError):
    """Code of the caller's raised: a module while it was imported, what makes a model, its forward."""


@contextmanager
def errors_shown(*, whole: bool = False) -> Iterator[None]:
    """Errors of goodinit's as one message, and as an exit code: 2 for options that cannot be meant, 130 for Ctrl-C, else 1.

    Args:
        whole: show the whole traceback too.
    """
    try:
        with _warnings_as_lines():
            yield
    except GoodinitError as error:
        if whole:
            traceback.print_exception(error)
        typer.echo("\n".join([f"goodinit: {error}", *getattr(error, "__notes__", [])]), err=True)
        sys.exit(MISUSED if isinstance(error, OptionError) else FAILED)
    except KeyboardInterrupt:
        typer.echo("goodinit: interrupted", err=True)
        sys.exit(INTERRUPTED)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """goodinit's warnings without the place in its code that Python shows, which says nothing to who types commands."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", GoodinitWarning)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, GoodinitWarning):
                typer.echo(f"goodinit: warning: {message}", err=True)
            else:
                shown(message, category, *place, **options)

        warnings.showwarning = show
        yield


def code_error(doing: str, error: BaseException) -> CodeError:
    """An error in code of the caller's, as one that says what was being done, and where in that code it was raised.

    Args:
        doing: ``"importing net"``, ``"the forward of Net"``.
        error: what was raised.
    """
    what = f"called sys.exit({error.code!r})" if isinstance(error, SystemExit) else f"raised {type(error).__name__}: {error}"
    place = _place(error.__traceback__)
    return CodeError("\n".join([f"{doing} {what}", *getattr(error, "__notes__", []), *([place] if place else [])]))


def _place(trace: TracebackType | None) -> str:
    """The innermost line of the caller's own code, as far as there is one."""
    frames = [frame for frame in traceback.extract_tb(trace) if not _is_others(frame.filename)]
    if not frames:
        return ""
    file, here = Path(frames[-1].filename), Path.cwd()
    shown = file.relative_to(here) if file.is_relative_to(here) else file
    return f"at {shown}:{frames[-1].lineno}, in {frames[-1].name}: {frames[-1].line}"


def _is_others(file: str) -> bool:
    """Whether it is a file of Python's own or of a library that the caller's code runs in."""
    files = [sys.modules[name].__file__ for name in _LIBRARIES if name in sys.modules]
    inside = [Path(root).parent for root in files if root]
    of_python = file.startswith(("<", sysconfig.get_path("stdlib"))) and "site-packages" not in file
    return of_python or any(Path(file).is_relative_to(folder) for folder in inside)
