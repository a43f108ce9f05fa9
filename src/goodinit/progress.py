"""How far a long loop is, that something takes long: a bar or a line on a terminal, if rich is installed; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def busy(label: str) -> Iterator[None]:
    """Say on a terminal that something takes its time."""
    if not sys.stderr.isatty():
        yield
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        yield
        return
    with Console(stderr=True).status(label):
        yield
