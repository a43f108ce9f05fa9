"""Files of rows: lines that are whole, whatever happens, and one process at work on a file at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goodinit.errors import GoodinitError, SaveError, require


class BusyError(GoodinitError, RuntimeError):
    """Another process is at work on the same thing."""


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON, whole or not at all; several processes may do so at once.

    Raises:
        SaveError: the disk is full, the folder read-only, or the like.
    """
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    with locked(path, wait=True), _opened(path) as file:
        end, missing = _end_of_whole_lines(file)
        line = missing + line
        try:
            file.truncate(end)  # what a killed process left of a line
            written = file.write(line)
            if written != len(line):
                file.write(line[written:])  # says why it was not whole
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise SaveError(f"cannot append to {str(path)!r}: {error.strerror}; the rows in it are as they were") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = path.open("ab+", buffering=0)
    except OSError as error:
        raise SaveError(f"cannot append to {str(path)!r}: {error.strerror}") from error
    with file:
        yield file


def _end_of_whole_lines(file: Any) -> tuple[int, bytes]:
    """Where the last whole line ends, and what it lacks: a newline that somebody's editor took away."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read(size)
    end = content.rfind(b"\n") + 1
    return (size, b"\n") if _is_row(content[end:]) else (int(end), b"")


def _is_row(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none if there is no such file. What a killed process left of a line is left out.

    Raises:
        SaveError: it cannot be read, or a line is no JSON object.
    """
    if not path.exists():
        return []
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise SaveError(f"cannot read {str(path)!r}: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate([*lines, *([last] if _is_row(last) else [])], 1):
        if not _is_row(line):
            raise SaveError(f"line {number} of {str(path)!r} is no JSON object: {line[:60]!r}; mend it or take it out")
        rows.append(json.loads(line))
    return rows


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Be the only process at work on a file. The lock ends with the process, however that ends.

    Raises:
        BusyError: another process is, and ``wait`` is False.
    """
    require("filelock", extra="paper")
    import filelock  # noqa: PLC0415 - needs the extra

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f"cannot make the folder {str(path.parent)!r}: {error.strerror}") from error
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(f"another process is at work on {path.name}") from error
    except OSError as error:
        raise SaveError(f"cannot write in the folder {str(path.parent)!r}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()
