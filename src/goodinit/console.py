"""What the commands have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from goodinit.errors import GoodinitError, OptionError


@contextmanager
def errors_shown() -> Iterator[None]:
    """Errors of goodinit's as one message: exit code 2 for options that cannot be meant, 1 for all else that went wrong."""
    try:
        yield
    except GoodinitError as error:
        typer.echo(f"goodinit: {error}", err=True)
        sys.exit(2 if isinstance(error, OptionError) else 1)
