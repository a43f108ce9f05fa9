"""How far a long loop is: a bar on a terminal, if rich is installed; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterator[T], total: int, label: str) -> Iterator[T]:
    """Pass items on, and show how many have been."""
    if not sys.stderr.isatty():
        yield from items
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.progress import track  # noqa: PLC0415
    except ModuleNotFoundError:
        yield from items
        return
    yield from track(items, total=total, description=label, console=Console(stderr=True), transient=True)
