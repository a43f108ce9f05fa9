"""Files that are whole, whatever happens: a kill, a power cut, a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goodinit.errors import GoodinitError, require


class SaveError(GoodinitError, OSError):
    """A file could not be saved; what was there before is as it was."""


class BusyError(GoodinitError, RuntimeError):
    """Another process is at work on the same thing."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment either its old content is there or the new.

    Raises:
        SaveError: the disk is full, the folder read-only, or the like.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished: str | None = None
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}-", dir=path.parent, delete=False) as file:
            unfinished = file.name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)  # noqa: PTH105 - as atomic as Path.replace, of a name that is a string
    except OSError as error:
        raise SaveError(f"cannot save {path.name} in {str(path.parent)!r}: {error.strerror}; {len(content):,} bytes") from error
    finally:
        if unfinished is not None:
            Path(unfinished).unlink(missing_ok=True)


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Append a line of JSON, whole or not at all; several processes may do so at once.

    Raises:
        SaveError: the disk is full, the folder read-only, or the like.
    """
    line = json.dumps(row, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, wait=True), path.open("ab+", buffering=0) as file:
        end = _end_of_whole_lines(file)
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


def _end_of_whole_lines(file: Any) -> int:
    """Where the last newline ends."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    content = file.read(size)
    return int(content.rfind(b"\n") + 1)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines; none if there is no such file.

    Raises:
        SaveError: a line is no JSON object.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise SaveError(f"line {number} of {str(path)!r} is not JSON ({error}); mend it or take it out") from error
        rows.append(row)
    return rows


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Be the only process at work on a file. The lock ends with the process, however that ends.

    Raises:
        BusyError: another process is, and ``wait`` is False.
    """
    require("filelock", extra="paper")
    import filelock  # noqa: PLC0415 - needs the extra

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BusyError(f"another process is at work on {path.name}") from error
    try:
        yield
    finally:
        lock.release()
