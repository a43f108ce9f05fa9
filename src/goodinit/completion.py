"""What a shell offers for a value that has names, for typer's ``autocompletion=``. Without torch, which takes seconds to load."""

from __future__ import annotations

from collections.abc import Callable


def one_of(*values: str) -> Callable[[], list[str]]:
    """Offers these, of which typer keeps those that begin with what is typed already."""
    return lambda: list(values)
